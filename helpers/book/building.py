"""`make book`: the website, built from the executed notebooks, the published results and what `book/` holds."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

from helpers import evidence, fetching
from helpers.book import demo, glossary, headline, launch, lessons, links, pages, slides, tables
from helpers.core import paths
from helpers.core.durations import duration
from helpers.course import chapters

SOURCE = paths.ROOT / "book"
PARTS = {  # of the contents: the numbers of their chapters, from the first to before the last
    "Start": range(0, 2),
    "Pruning": range(2, 7),
    "Transfer": range(7, 9),
    "Quantization": range(9, 12),
    "Distillation": range(12, 14),
    "Small files, fast answers": range(14, 19),
    "All of it": range(19, 100),
}
GUIDE = ["routes", "launch", "machines", "teaching", "syllabus", "capstone", "nbgrader"]


class BookError(Exception):
    """The book cannot be built; the message says what is missing or what Sphinx found wrong."""


def build(folder: Path) -> Path:
    """Build the website into `folder`, which is replaced once all of it is there, and return its first page.

    Raises BookError if Sphinx warns of anything, or a link leads nowhere.
    """
    source, part = (folder.with_name(f"{folder.name}-{name}") for name in ("source", "part"))
    for each in (source, part):
        shutil.rmtree(each, ignore_errors=True)
    assemble(source)
    _sphinx(source, part)
    _lighten(part)
    launch.write(part)
    slides.write(part / "slides")
    if broken := links.broken(part):
        raise BookError("\n".join(["links that lead nowhere:", *broken]))
    shutil.rmtree(folder, ignore_errors=True)
    part.rename(folder)
    return folder / "index.html"


def assemble(source: Path) -> None:
    """Write everything that Sphinx reads into `source`."""
    static = source / "_static"
    shutil.copytree(SOURCE / "static", static)
    shutil.copy(SOURCE / "conf.py", source)
    for name, place in {"katex": "katex", "onnxruntime-web": "ort"}.items():
        _copy_package(fetching.package(name), static / place)
    pages.write(source)
    demo.write(static / "demo")
    generated: dict[str, Callable[[], str]] = {
        "index": index,
        "results": tables.page,
        "glossary": glossary.page,
        "demo": demo.page,
        "licences": licences,
        "slides": slides.page,
    }
    for name, render in generated.items():
        (source / f"{name}.md").write_text(render(), encoding="utf-8")
    for name in GUIDE:
        text = (SOURCE / "guide" / f"{name}.md").read_text(encoding="utf-8")
        (source / f"{name}.md").write_text(filled(text), encoding="utf-8")


def _copy_package(package: Path, folder: Path) -> None:
    """Copy the files of an npm package; KaTeX's style sheet looks for its fonts in a folder of their own."""
    for path in package.iterdir():
        place = folder / "fonts" if path.suffix == ".woff2" else folder
        place.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, place)


def _sphinx(source: Path, folder: Path) -> None:
    from sphinx.cmd.build import main

    warnings = folder.with_name(f"{folder.name}-warnings.txt")
    doctrees = folder.with_name(f"{folder.name}-doctrees")
    options = ["-q", "-E", "-W", "--keep-going", "-j", "2", "-d", str(doctrees), "-w", str(warnings)]
    if main([*options, str(source), str(folder)]):
        raise BookError(f"Sphinx found something wrong; all of it is in {warnings}")


def _lighten(folder: Path) -> None:
    """Leave out the theme's script of 1.6 MB that draws icons: its fonts, 0.1 MB, draw the same ones.

    And labels that are not what their buttons show, which speech control cannot find.
    """
    for path in folder.glob("*.html"):
        text = path.read_text(encoding="utf-8")
        text = re.sub(r"<script defer[^>]*/fontawesome\.js[^>]*></script>", "", text)
        text = re.sub(r'(<button class="btn search-button-field[^>]*?)\s+aria-label="Search"', r"\1", text)
        text = text.replace('<summary aria-label="Toggle hidden content">', "<summary>")
        path.write_text(text, encoding="utf-8")
    shutil.rmtree(folder / "_sources", ignore_errors=True)
    (folder / "_static/scripts/fontawesome.js").unlink()
    (folder / ".nojekyll").touch()  # or GitHub Pages would leave out folders that begin with _


def filled(text: str) -> str:
    """Return a page of the guide, its placeholders filled: {chapter:02}, {reading:02_name}, {total:00,01}, plans."""
    names = {name[:2]: name for name in chapters.curriculum()}

    def link(match: re.Match[str]) -> str:
        return f"[notebook {match[1]}]({names[match[1]]}.ipynb)"

    def reading(match: re.Match[str]) -> str:
        return f"{evidence.reading_minutes(match[1]):.0f}"

    def total(match: re.Match[str]) -> str:
        return f"{sum(evidence.reading_minutes(names[number.strip()]) for number in match[1].split(',')) / 60:.1f}"

    text = re.sub(r"\{chapter:(\d\d)\}", link, text)
    text = re.sub(r"\{reading:(\w+)\}", reading, text)
    text = re.sub(r"\{total:([\d, ]+)\}", total, text)
    return text.replace("<!-- generated: plans -->", _plans()) if "<!-- generated: plans -->" in text else text


def _plans() -> str:
    """Return what each chapter's page promises, its plan and its questions, in Markdown."""
    parts = []
    for name in filter(lessons.exists, chapters.curriculum()):
        outcomes = ["*Afterwards the class is able to*", *_objectives(name)]
        parts.append(
            f"### {title(name)}\n\n[The page]({name}.ipynb)\n\n" + "\n".join(outcomes) + f"\n\n{lessons.plan(name)}"
        )
    return "\n\n".join(parts)


def _objectives(name: str) -> list[str]:
    """Return the lines of a chapter's “You will be able to”."""
    text = (chapters.SOURCES / f"{name}.py").read_text(encoding="utf-8")
    found = re.search(r"^# \*\*You will be able to\*\*\n((?:# .*\n)+)", text, re.MULTILINE)
    return ["", *(line.removeprefix("# ") for line in found[1].splitlines())] if found else []


def title(name: str) -> str:
    """Return a chapter's title without its question, such as "02 · Prune weights"."""
    first = re.search(r"^# # (\d\d · [^:\n]+)", (chapters.SOURCES / f"{name}.py").read_text(encoding="utf-8"), re.M)
    return first[1] if first else name


def index() -> str:
    """Return the landing page: one picture, the chart from goal to first try, the routes, all chapters."""
    text = (SOURCE / "index.md").read_text(encoding="utf-8")
    picture = f"![{headline.alt()}](_static/{headline.FILE.name})"
    parts = {"picture": picture, "chart": _chart(), "chapters": _chapters(), "contents": _contents()}
    for name, part in parts.items():
        text = text.replace(f"<!-- generated: {name} -->", part)
    return text


def _chart() -> str:
    """Return the chart "my goal, first try, what it bought": the table that notebook 00 generated."""
    import nbformat

    notebook = nbformat.read(paths.NOTEBOOKS / "00_start_here.ipynb", as_version=4)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    texts = [output.get("data", {}).get("text/markdown", "") for output in outputs]
    return next(text for text in texts if text.startswith("| my goal |"))


def _chapters() -> str:
    rows = ["| chapter | the question it answers | reading | run |", "|---|---|---|---|"]
    for name, question in chapters.curriculum().items():
        quick = evidence.expected_seconds(name, "quick")
        reading = f"{evidence.reading_minutes(name):.0f} min"
        run = duration(quick) if quick else "–"
        rows.append(f"| [{title(name)}]({name}.ipynb) | {question} | {reading} | {run} |")
    return "\n".join(rows)


def _contents() -> str:
    """Return the tables of contents that the side bar shows."""
    names = list(chapters.curriculum())
    parts = {part: [name for name in names if int(name[:2]) in numbers] for part, numbers in PARTS.items()}
    parts |= {"Try it": ["demo", "results"], "Learn and teach": [*GUIDE, "slides", "glossary", "licences"]}
    trees = [
        "\n".join(["```{toctree}", ":hidden:", f":caption: {part}", "", *entries, "```"])
        for part, entries in parts.items()
    ]
    return "\n\n".join(trees)


def licences() -> str:
    """Return the page that names what the site brings along, with versions and licences."""
    text = (SOURCE / "licences.md").read_text(encoding="utf-8")
    return re.sub(r"@@(.+?)@@", lambda match: fetching.version(match[1]), text)
