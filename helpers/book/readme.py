"""What is generated of the files that a visitor of the repository reads: parts of README.md, the table of results."""

import re

from helpers import evidence
from helpers.book import headline, tables
from helpers.core import paths
from helpers.core.durations import duration
from helpers.course import chapters

README = paths.ROOT / "README.md"
RESULTS = paths.RESULTS / "README.md"


def render(text: str) -> str:
    """Return the README's `text` with its generated parts brought up to date from notebooks/ and data/.

    A part stands between the lines `<!-- generated: NAME -->` and `<!-- end -->`. Raises ValueError if one is
    missing.
    """
    for name, content in {"map": _map(), "picture": _picture()}.items():
        begin, end = f"<!-- generated: {name} -->\n", "<!-- end -->"
        pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
        if len(pattern.findall(text)) != 1:
            raise ValueError(f"README.md has not exactly one part {begin.strip()}")
        text = pattern.sub(lambda _, part=f"{begin}{content}\n{end}": part, text)  # type: ignore[misc]
    return text


def write() -> None:
    """Bring the generated parts of README.md, its picture, and the table of all results up to date."""
    paths.write_atomically(README, render(README.read_text(encoding="utf-8")).encode())
    paths.write_atomically(RESULTS, results().encode())
    headline.write()


def results() -> str:
    """Return the page of all published results as it stands in data/results, to be read in the repository."""
    return f"{tables.INTRODUCTION}\n{evidence.results_tables()}\n\n{tables.CLAIM}"


def _picture() -> str:
    return f"![{headline.alt()}]({headline.FILE.relative_to(paths.ROOT).as_posix()})"


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
