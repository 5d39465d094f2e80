"""What teaches beside a chapter's page: its quiz, its 90-minute plan, students' questions. From `book/lessons/*.toml`.

A measured number is never typed there. A placeholder in braces stands for it, and is filled with the mean over the
published seeds: `{claim-id:.1f}`, `{models[model-name].accuracy:.1%}`.
"""

import html
import math
import re
import tomllib
from functools import cache
from types import SimpleNamespace
from typing import Any

from helpers import evidence
from helpers.core import paths
from helpers.statistics import mean_std

FOLDER = paths.ROOT / "book" / "lessons"
FIELDS = ("accuracy", "weights", "nonzero", "macs", "file_bytes")


def exists(name: str) -> bool:
    """Return whether a chapter has a lesson file."""
    return (FOLDER / f"{name}.toml").exists()


@cache
def read(name: str) -> dict[str, Any]:
    """Return a chapter's lesson, its placeholders filled; ValueError for one that no published claim or model has."""
    path = FOLDER / f"{name}.toml"
    lesson = tomllib.loads(path.read_text(encoding="utf-8"))
    return _filled(lesson, values(name), path.name)


def _filled(part: Any, known: dict[str, Any], where: str) -> Any:
    if isinstance(part, dict):
        return {key: _filled(value, known, where) for key, value in part.items()}
    if isinstance(part, list):
        return [_filled(value, known, where) for value in part]
    if not isinstance(part, str):
        return part
    try:
        return part.format(**known)
    except (KeyError, AttributeError, IndexError, ValueError) as error:
        raise ValueError(f"{where} asks for {error} in {part[:60]!r}; known: {', '.join(sorted(known))}") from error


@cache
def values(name: str) -> dict[str, Any]:
    """Return what a chapter's published runs measured, by claim; "models" holds those by name. Means over the seeds."""
    claims: dict[str, list[float]] = {}
    models: dict[str, dict[str, list[float]]] = {}
    for result in evidence.published(name):
        for claim in result.claims:
            claims.setdefault(claim.id, []).append(math.nan if claim.value is None else claim.value)
        for model in result.models:
            for field in FIELDS:
                if (value := getattr(model, field, None)) is not None:
                    models.setdefault(model.name, {}).setdefault(field, []).append(value)
    means = {key: mean_std(found).mean for key, found in claims.items() if not any(map(math.isnan, found))}
    named = {key: SimpleNamespace(**{f: mean_std(v).mean for f, v in fields.items()}) for key, fields in models.items()}
    return means | {"models": named}


def difficulty(name: str) -> int | None:
    """Return how hard a chapter is, from 1 to 3; None where nobody has said."""
    return read(name)["difficulty"] if exists(name) else None


def quiz(name: str) -> str:
    """Return the five questions of a chapter in HTML. Each answer opens its reason; no script is needed."""
    parts = [_question(name, number, each) for number, each in enumerate(read(name)["quiz"], start=1)]
    return '<div class="quiz">\n' + "\n".join(parts) + "\n</div>"


def _question(name: str, number: int, question: dict[str, Any]) -> str:
    group = f"quiz-{name[:2]}-{number}"
    answers = "".join(_answer(group, answer) for answer in question["answer"])
    asked = f'<p id="{group}"><b>{number}.</b> {html_of(question["ask"])}</p>'
    return f'<section aria-labelledby="{group}">{asked}{answers}</section>'


def _answer(group: str, answer: dict[str, Any]) -> str:
    kind, word = ("right", "Right.") if answer.get("right") else ("wrong", "Not quite.")
    return (
        f'<details name="{group}" class="{kind}"><summary>{html_of(answer["text"])}</summary>'
        f"<p><strong>{word}</strong> {html_of(answer['why'])}</p></details>"
    )


def html_of(text: str, *, blocks: bool = False) -> str:
    """Return Markdown in HTML: one line, or `blocks` such as lists. Formulas are as Sphinx writes them."""
    from markdown_it import MarkdownIt
    from mdit_py_plugins.dollarmath import dollarmath_plugin

    def formula(content: str, options: Any) -> str:
        return f'<span class="math">{html.escape(content)}</span>'

    reader = MarkdownIt("commonmark").enable("table").use(dollarmath_plugin, renderer=formula)
    if blocks:
        return reader.render(text)
    paragraphs = reader.render(text.strip()).strip()  # no blank line: it would end a block of HTML in Markdown
    return re.sub(r"\n+", " ", paragraphs.removeprefix("<p>").removesuffix("</p>"))


def plan(name: str) -> str:
    """Return a chapter's 90-minute plan and its students' questions in Markdown."""
    lesson = read(name)
    rows = [f"| {step['minutes']} | {' '.join(step['do'].split())} |" for step in lesson["plan"]]
    asked = [f"**{q['ask'].strip()}**\n\n{q['answer'].strip()}" for q in lesson["question"]]
    return "\n\n".join(
        [
            f"*Before the lesson.* {lesson['prepare'].strip()}",
            "\n".join(["| minutes | what happens |", "|---|---|", *rows]),
            f"*If time is short.* {lesson['skip'].strip()}",
            "*What students ask.*",
            *asked,
        ]
    )
