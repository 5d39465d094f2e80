"""The generated parts of README.md: the map of notebooks with their times, and the published results."""

import re

from helpers import evidence
from helpers.core import paths
from helpers.core.durations import duration
from helpers.course import chapters

README = paths.ROOT / "README.md"


def render(text: str) -> str:
    """Return the README's `text` with its generated parts brought up to date from notebooks/ and data/.

    A part stands between the lines `<!-- generated: NAME -->` and `<!-- end -->`. Raises ValueError if one is
    missing.
    """
    for name, content in {"map": _map(), "results": evidence.results_tables()}.items():
        begin, end = f"<!-- generated: {name} -->\n", "<!-- end -->"
        pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
        if len(pattern.findall(text)) != 1:
            raise ValueError(f"README.md has not exactly one part {begin.strip()}")
        text = pattern.sub(lambda _, part=f"{begin}{content}\n{end}": part, text)  # type: ignore[misc]
    return text


def write() -> None:
    """Bring the generated parts of README.md up to date."""
    text = README.read_text(encoding="utf-8")
    if (new := render(text)) != text:
        paths.write_atomically(README, new.encode())


def _map() -> str:
    head = ["| notebook | the question it answers | quick | full, each seed |", "|---|---|---|---|"]
    return "\n".join(head + [_row(name, question) for name, question in chapters.curriculum().items()])


def _row(name: str, question: str) -> str:
    if not (chapters.BUILT / f"{name}.ipynb").exists():
        return f"| {name} | {question} | *coming* | |"
    seconds = (evidence.expected_seconds(name, profile) for profile in ("quick", "full"))
    quick, full = ("–" if each is None else duration(each) for each in seconds)
    full += f", with {other[:2]}" if (other := evidence.run_with(name)) else ""
    return f"| [{name}](notebooks/{name}.ipynb) | {question} | {quick} | {full} |"
