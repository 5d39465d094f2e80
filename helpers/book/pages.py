"""The pages of the chapters: executed notebooks, made ready for Sphinx. Nothing is executed.

Figures move from the notebook into files, each in one place with the table of its numbers. Plumbing and solutions are
folded. The opening gets the times, the launch buttons, and each mention of another notebook its link; the end, a quiz.
"""

import base64
import html
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from helpers import evidence
from helpers.book import glossary, launch, lessons
from helpers.core import paths
from helpers.core.durations import duration
from helpers.course import chapters

if TYPE_CHECKING:
    from nbformat import NotebookNode

FIGURES = "_static/figures"
MENTION = re.compile(r"(?<![\[\w])([Nn]otebook) (\d\d)\b")
CLAIMS = re.compile(r"\s*<!-- (?:claims|by construction).*?-->", re.DOTALL)
SOLUTION = re.compile(r"^[ \t]*### (?:BEGIN|END) SOLUTION\n?", re.MULTILINE)
LEVELS = {1: "first steps", 2: "builds on earlier chapters", 3: "demanding"}


def write(folder: Path) -> None:
    """Write each built notebook into `folder` as a page of the book, and its figures below `_static`."""
    import nbformat

    for path in sorted(paths.NOTEBOOKS.glob("[0-9]*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        figures = folder / FIGURES / path.stem
        figures.mkdir(parents=True, exist_ok=True)
        page(path.stem, notebook, figures)
        nbformat.write(notebook, folder / path.name)


def page(name: str, notebook: "NotebookNode", figures: Path) -> None:
    """Turn an executed notebook into its page of the book; write its figures as PNG files into `figures`."""
    import nbformat

    seen: set[str] = set()
    for number, cell in enumerate(notebook.cells):
        if cell.cell_type == "markdown":
            cell.source = with_links(CLAIMS.sub("", cell.source), name, seen)
        else:
            _fold(cell)
            cell.outputs = list(_outputs(cell.outputs, figures / f"{number:03}"))
    opening, _, rest = notebook.cells[0].source.partition("\n\n")
    notebook.cells[0].source = f"{opening}\n\n{_facts(name)}\n\n{rest}"
    if lessons.exists(name):
        quiz = f"## Check yourself\n\nOpen an answer to see whether it is right, and why.\n\n{lessons.quiz(name)}"
        notebook.cells.append(nbformat.v4.new_markdown_cell(quiz))


def with_links(text: str, name: str, seen: set[str]) -> str:
    """Return a page's Markdown with links to other chapters, and to the glossary where `seen` lacks a term."""
    names = {chapter[:2]: chapter for chapter in chapters.curriculum() if chapter != name}

    def link(match: re.Match[str]) -> str:
        target = names.get(match[2])
        return f"[{match[0]}]({target}.ipynb)" if target else match[0]

    return glossary.linked(MENTION.sub(link, text), seen)


def _fold(cell: "NotebookNode") -> None:
    """Fold what a reader need not see at first, and say what it is."""
    tags = cell.metadata.get("tags", [])
    shown = {"solution": "a solution", "plumbing": "the code", "parameters": "the parameters"}
    kind = next((kind for kind in shown if kind in tags), None)
    if kind:
        cell.metadata["tags"] = [*tags, "hide-input"]
        cell.metadata["mystnb"] = {
            "code_prompt_show": f"Show {shown[kind]}",
            "code_prompt_hide": f"Hide {shown[kind]}",
        }
    cell.source = SOLUTION.sub("", cell.source)


def _outputs(outputs: "list[NotebookNode]", stem: Path) -> "Iterator[NotebookNode]":
    """Yield a cell's outputs: figures as files, each with the table behind it; the line of times stands elsewhere."""
    kept = [output for output in outputs if not output.get("data", {}).get("text/markdown", "").startswith("**Time**")]
    for number, output in enumerate(kept):
        data = output.get("data", {})
        if "image/png" in data:
            path = stem.parent / f"{stem.name}-{number}.png"
            path.write_bytes(base64.b64decode(data.pop("image/png")))
            table = _table(kept[number + 1]) if number + 1 < len(kept) else ""
            source = path.relative_to(stem.parents[3]).as_posix()
            image = re.sub(r'src="data:[^"]*"', f'src="{source}" loading="lazy"', data["text/html"])
            data["text/html"] = f'<div class="figure">{_with_height(image, path)}{table}</div>'
        elif _table(output) and number and _html(kept[number - 1]).startswith('<div class="figure">'):
            continue
        elif "text/html" in data:
            data["text/html"] = f'<div class="wide" tabindex="0">{_plain(data["text/html"])}</div>'
        yield output


def _html(output: "NotebookNode") -> str:
    return output.get("data", {}).get("text/html", "")


def _table(output: "NotebookNode") -> str:
    """Return the folded table of a figure's numbers, if the output is one."""
    return _html(output) if _html(output).startswith("<details>") else ""


def _with_height(image: str, path: Path) -> str:
    """Give an image its height, so that the text does not move when it arrives."""
    from PIL import Image

    with Image.open(path) as opened:
        width, height = opened.size
    shown = re.search(r'width="(\d+)"', image)
    if shown is None:
        return image
    return image.replace(shown[0], f'{shown[0]} height="{round(int(shown[1]) * height / width)}"')


def _plain(table: str) -> str:
    """Return an output's HTML without the style sheet that pandas puts into each."""
    return re.sub(r"<style scoped>.*?</style>\s*", "", table, flags=re.DOTALL)


def _facts(name: str) -> str:
    """Return the line below a title: how long, how hard, and where to open it."""
    quick, full = (evidence.expected_seconds(name, profile) for profile in ("quick", "full"))
    facts = [f"{evidence.reading_minutes(name):.0f} min to read"]
    if quick:
        facts.append(f"{duration(quick)} to run")
    if full:
        facts.append(f"{duration(full)} for each published run")
    level = lessons.difficulty(name)
    if level:
        facts.append(f"{LEVELS[level]} <span aria-hidden='true'>{'●' * level}{'○' * (3 - level)}</span>")
    links = "".join(f'<a href="{html.escape(address)}">{label}</a>' for label, address in launch.links(name).items())
    listed = "".join(f"<li>{fact}</li>" for fact in facts)
    return f'<ul class="facts">{listed}</ul>\n<p class="launch">{links}</p>'
