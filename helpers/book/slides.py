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

LARGEST, LINES = 30, 15  # pixels of a letter, and how many lines of such letters a slide holds
SHORT = 12  # lines of a cell that a slide can show
APART = re.compile(r"What (was measured|you measured|to (remember|read))|To read|Read on|Exercises|The course|Appendix")
FEW, MANY = 7, 10  # sections: up to FEW the opening and the end have a slide more, beyond MANY the last two share one
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
    parts = "\n".join(
        f'<section style="font-size: {_size(slide)}px">{slide}</section>' for slide in slides(name, notebook)
    )
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(heading[1])}</title>
<link rel="icon" href="../_static/favicon.svg">
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
const size = {{ width: 1280, height: 720, margin: 0.04 }};
Reveal.initialize({{ ...size, hash: true, center: false, slideNumber: "c/t", transition: "none" }});
</script>
</body>
</html>
"""


def slides(name: str, notebook: "NotebookNode") -> list[str]:
    """Return the slides of a chapter in HTML, 10 to 14 of them."""
    first = CLAIMS.sub("", notebook.cells[0].source)
    title, question = re.search(r"^# (.*?): (.*)$", first, re.M).groups()  # type: ignore[union-attr]
    question = html.escape(question[0].upper() + question[1:])
    opening = f"<h1>{html.escape(title)}</h1><p class='question'>{question}</p>"
    objectives = f"<h2>You will be able to</h2>{_html(_after(first, '**You will be able to**'))}"
    remember = next(cell.source for cell in notebook.cells if "## What to remember" in cell.source)
    points = CLAIMS.sub("", remember).partition("## What to remember")[2].partition("\n## ")[0].strip()
    exercises = f"<h2>Now you</h2><ul>{_exercises(notebook)}</ul>"
    sections = [_slide(section) for section in _sections(name, notebook) if not APART.match(section.heading)]
    if len(sections) > MANY:
        sections[MANY - 1 :] = ["".join(sections[MANY - 1 :])]
    answer = f"<h2>The answer first</h2>{_figure(name, notebook, 'answer')}"
    memory = f"<h2>What to remember</h2>{_html(points)}"
    if len(sections) <= FEW:
        return [opening + _html(_paragraphs(first)[1]), objectives, answer, *sections, memory, exercises, _last(name)]
    return [opening + objectives, answer, *sections, memory, exercises + _last(name)]


def _size(slide: str) -> int:
    """Return the size of a slide's letters in pixels at which it should fit: by its lines, a figure counted as 13."""
    lines = 13.0 * ("<img" in slide) + 1.8 * slide.count("<h2") + 3 * slide.count("<h1")
    for block in re.findall(r"<pre>.*?</pre>|<(?:p|li)\b.*?(?=</?(?:p|li|ul|ol|div|pre|h2)\b)", slide, re.DOTALL):
        text = html.unescape(re.sub(r"<[^>]+>", "", block))
        if block.startswith("<pre"):
            lines += 0.8 * sum(1 + len(line) // 85 for line in text.splitlines()) + 1
        else:
            lines += 1.5 + len(text) // 78
    return round(LARGEST * min(1, (LINES / lines) ** 0.5))


def _after(text: str, mark: str) -> str:
    """Return the list that follows a line of bold text."""
    return text.partition(mark)[2].strip().partition("\n\n")[0]


def _slide(section: Section) -> str:
    heading = f"<h2>{_html(section.heading, inline=True)}</h2>"
    if section.figure:
        return f"{heading}{_html(_short(section.paragraph))}{section.figure}"
    if section.code:
        return f"{heading}{_html(_short(section.paragraph))}<pre><code>{html.escape(section.code)}</code></pre>"
    return f"{heading}{_html(_short(section.paragraph, 4))}"


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
            heading = "Exercises" if heading.endswith("Exercises") else heading
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
    return f"<p><a href='../{name}.html'>The page</a>, to run and to read, with its quiz.</p>{later}"


def _html(text: str, *, inline: bool = False) -> str:
    written = html_of(text) if inline else f"<div>{html_of(text, blocks=True)}</div>"
    return re.sub(r'href="(\d\d_\w+)\.ipynb"', r'href="../\1.html"', written)


def page() -> str:
    """Return the page that lists the decks, in Markdown."""
    lines = [
        "# Slides",
        "",
        "One deck for each chapter, from the same sources and figures. They are 16:9. Arrow keys turn the page, `O`",
        "shows all slides, `F` fills the screen. To print, add `?print-pdf` to the address and print as usual.",
        "",
    ]
    for name, question in chapters.curriculum().items():
        lines.append(f'- <a href="slides/{name}.html">{name[:2]} · {html.escape(question)}</a>')
    return "\n".join(lines) + "\n"
