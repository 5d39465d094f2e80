"""A deck of slides for each chapter, from its page: reveal.js, 16:9, printable (add `?print-pdf` to the address).

Title and question; the answer's picture; what one will be able to do; a slide for each section, with its first
paragraph and its first figure, or else its first short cell of code; what to remember; the next chapter.
"""

import html
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from helpers import fetching
from helpers.book.lessons import html_of
from helpers.book.pages import CLAIMS, FIGURES
from helpers.core import paths
from helpers.course import chapters

if TYPE_CHECKING:
    from nbformat import NotebookNode

SHORT = 12  # lines of a cell that a slide can show
APART = ("What was measured", "What to remember", "Read on", "Exercises")
STYLE = paths.ROOT / "book" / "slides.css"


class Section(NamedTuple):
    """A section of a page: its heading, its first paragraph, a figure's <img>, a short cell; "" for what it lacks."""

    heading: str
    paragraph: str
    figure: str
    code: str


def write(folder: Path) -> None:
    """Write the decks, and what they load, into `folder`, which lies beside the site's figures."""
    import nbformat

    shutil.copytree(fetching.package("reveal.js"), folder / "reveal", dirs_exist_ok=True)
    shutil.copy(STYLE, folder)
    for path in sorted(paths.NOTEBOOKS.glob("[0-9]*.ipynb")):
        deck = render(path.stem, nbformat.read(path, as_version=4))
        (folder / f"{path.stem}.html").write_text(deck, encoding="utf-8")


def render(name: str, notebook: "NotebookNode") -> str:
    """Return a chapter's deck as one HTML page."""
    heading = re.search(r"^# (.*?): (.*)$", notebook.cells[0].source, re.M)
    assert heading is not None  # `chapters.curriculum` has refused a title without a question
    parts = "\n".join(f"<section>{slide}</section>" for slide in slides(name, notebook))
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(heading[1])}</title>
<link rel="stylesheet" href="reveal/reset.css">
<link rel="stylesheet" href="reveal/reveal.css">
<link rel="stylesheet" href="slides.css">
<link rel="stylesheet" href="../_static/katex/katex.min.css">
</head>
<body>
<div class="reveal"><div class="slides">
{parts}
</div></div>
<script src="reveal/reveal.js"></script>
<script src="../_static/katex/katex.min.js"></script>
<script src="../_static/formulas.js"></script>
<script>
Reveal.initialize({{ width: 1280, height: 720, margin: 0.04, hash: true, slideNumber: "c/t", transition: "none" }});
</script>
</body>
</html>
"""


def slides(name: str, notebook: "NotebookNode") -> Iterator[str]:
    """Yield the slides of a chapter in HTML."""
    first = CLAIMS.sub("", notebook.cells[0].source)
    title, question = re.search(r"^# (.*?): (.*)$", first, re.M).groups()  # type: ignore[union-attr]
    lead = _paragraphs(first)[1]
    yield f"<h1>{html.escape(title)}</h1><p class='question'>{html.escape(question[0].upper() + question[1:])}</p>{_html(lead)}"
    objectives = first.partition("**You will be able to**")[2].partition("\n\n")[0].strip()
    if objectives:
        yield f"<h2>You will be able to</h2>{_html(objectives)}"
    sections = list(_sections(name, notebook))
    answer = _figure(name, notebook, "answer")
    if answer:
        yield f"<h2>The answer first</h2>{answer}"
    for section in sections:
        if not section.heading.startswith(APART) and not re.match(r"\d+\. Exercises", section.heading):
            yield _slide(section)
    yield f"<h2>Now you</h2><ul class='exercises'>{_exercises(notebook)}</ul>"
    remember = next(cell.source for cell in notebook.cells if "## What to remember" in cell.source)
    points = CLAIMS.sub("", remember).partition("## What to remember")[2].partition("\n## ")[0].strip()
    yield f"<h2>What to remember</h2>{_html(points)}"
    yield _last(name)


def _slide(section: Section) -> str:
    heading = f"<h2>{_html(section.heading, inline=True)}</h2>"
    if section.figure:
        return f"{heading}{_html(_short(section.paragraph))}{section.figure}"
    if section.code:
        return f"{heading}{_html(section.paragraph)}<pre><code>{html.escape(section.code)}</code></pre>"
    return f"{heading}{_html(section.paragraph)}"


def _sections(name: str, notebook: "NotebookNode") -> Iterator[Section]:
    """Yield the sections of a page, the part before the first heading left out."""
    heading, paragraph, figure, code = "", "", "", ""
    for number, cell in enumerate(notebook.cells):
        if cell.cell_type != "markdown":
            if not figure:
                figure = _figure_of(name, number, cell)
            visible = not {"plumbing", "solution", "parameters"} & set(cell.metadata.get("tags", []))
            if visible and not code and cell.source.count("\n") < SHORT and "exercises.check" not in cell.source:
                code = cell.source
            continue
        before, *others = re.split(r"(?m)^## ", CLAIMS.sub("", cell.source))
        if not paragraph and heading and before.strip():
            paragraph = _paragraphs(before)[0]
        for text in others:
            if heading:
                yield Section(heading, paragraph, figure, code)
            heading, _, body = text.partition("\n")
            paragraph = next((p for p in _paragraphs(body) if not p.startswith(("#", "**Predict"))), "")
            figure = code = ""
    if heading:
        yield Section(heading, paragraph, figure, code)


def _paragraphs(text: str) -> list[str]:
    return [part.strip() for part in re.split(r"\n\s*\n", text.strip())]


def _short(paragraph: str, sentences: int = 2) -> str:
    """Return a paragraph's first sentences: the figure says the rest."""
    return " ".join(re.split(r"(?<=[.?!:])\s+", paragraph)[:sentences]) if not paragraph.startswith("-") else paragraph


def _figure(name: str, notebook: "NotebookNode", tag: str) -> str:
    """Return the first figure of the cell with this tag, "" if there is none."""
    found = (
        _figure_of(name, number, cell)
        for number, cell in enumerate(notebook.cells)
        if tag in cell.metadata.get("tags", [])
    )
    return next(filter(None, found), "")


def _figure_of(name: str, number: int, cell: "NotebookNode") -> str:
    """Return a cell's first figure as an <img> of the file that the chapter's page shows."""
    kept = [o for o in cell.outputs if not o.get("data", {}).get("text/markdown", "").startswith("**Time**")]
    for place, output in enumerate(kept):
        if "image/png" in output.get("data", {}):
            alt = html.escape(output["data"]["text/plain"], quote=True)
            return f'<img src="../{FIGURES}/{name}/{number:03}-{place}.png" alt="{alt}">'
    return ""


def _exercises(notebook: "NotebookNode") -> str:
    """Return the names of a chapter's exercises as list items."""
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    names = re.findall(r"\*\*(\d\d\.\d) · (.+?)\.?\*\*", text)
    return "".join(f"<li><b>{number}</b> {_html(title, inline=True)}</li>" for number, title in names)


def _last(name: str) -> str:
    names = list(chapters.curriculum().items())
    place = [each for each, _ in names].index(name)
    later = f"<p>Next: {html.escape(names[place + 1][1])}</p>" if place + 1 < len(names) else ""
    return f"<h2>Run it</h2><p><a href='../{name}.html'>The page</a>, its exercises and its quiz</p>{later}"


def _html(text: str, *, inline: bool = False) -> str:
    return html_of(text) if inline else f"<div>{html_of(text, blocks=True)}</div>"


def page() -> str:
    """Return the page that lists the decks, in Markdown."""
    lines = [
        "# Slides",
        "",
        "One deck for each chapter, from the same sources and figures. They are 16:9. Arrow keys turn the page, `O` shows all",
        "slides, `F` fills the screen. To print, add `?print-pdf` to the address and use the browser's own print command.",
        "",
    ]
    for name, question in chapters.curriculum().items():
        lines.append(f'- <a href="slides/{name}.html">{name[:2]} · {html.escape(question)}</a>')
    return "\n".join(lines) + "\n"
