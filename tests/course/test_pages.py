"""How a page is made: what one sees of it, and what its last words stand on."""

import ast
import re

import jupytext
import nbformat
import pytest

from helpers import evidence
from helpers.core import paths
from helpers.course import chapters, staleness

SOURCES = chapters.sources()
NAMES = [source.stem for source in SOURCES]
FOLDED = {"plumbing", "parameters", "solution"}
MOST_LINES, MOST_LINES_TAUGHT, MOST_VISIBLE, FEWEST_WORDS = 15, 20, 240, 1_600
PLOTTING = {"plt", "fig", "ax", "axes", "show"}
BOUND = re.compile(r"<!-- (claims: [\w-]+(, [\w-]+)*|by construction) -->$")


def cells(source):
    return jupytext.read(source, fmt="py:percent").cells


def is_visible(cell):
    tags = {*cell.metadata.get("tags", [])}
    return cell.cell_type == "code" and not tags & FOLDED and "### BEGIN SOLUTION" not in cell.source


def lines_of(cell):
    return [line for line in cell.source.splitlines() if line.strip()]


def teaches(cell):
    """Return whether a cell holds functions or classes, and at most a call of them."""
    body = ast.parse(cell.source).body
    defined = [node for node in body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    return bool(defined) and len(body) - len(defined) <= 1


def names_in(cell):
    return {node.id for node in ast.walk(ast.parse(cell.source)) if isinstance(node, ast.Name)}


@pytest.mark.parametrize("source", SOURCES, ids=NAMES)
def test_an_unfolded_cell_is_short_and_draws_and_renders_nothing(source):
    wrong = []
    for cell in filter(is_visible, cells(source)):
        first, length = lines_of(cell)[0], len(lines_of(cell))
        most = MOST_LINES_TAUGHT if teaches(cell) else MOST_LINES
        if length > most:
            wrong.append(f"{first!r}: {length} lines; allowed: {most}")
        if found := names_in(cell) & (PLOTTING | {"say"}):
            wrong.append(f"{first!r}: uses {', '.join(sorted(found))}; allowed in folded cells")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("source", SOURCES, ids=NAMES)
def test_a_page_shows_little_code_and_says_enough(source):
    found = cells(source)
    visible = sum(len(lines_of(cell)) for cell in found if is_visible(cell))
    words = sum(len(cell.source.split()) for cell in found if cell.cell_type == "markdown")
    assert visible <= MOST_VISIBLE and words >= FEWEST_WORDS, f"{visible} visible lines, {words} words"


@pytest.mark.parametrize("source", SOURCES, ids=NAMES)
def test_a_page_opens_with_a_picture_of_what_was_found(source):
    """The answer before the work: one folded cell, tagged so, that draws published results before section 2."""
    notebook = nbformat.read(paths.NOTEBOOKS / f"{source.stem}.ipynb", as_version=4)
    tags = [cell.metadata.get("tags", []) for cell in notebook.cells]
    (place,) = [place for place, found in enumerate(tags) if "answer" in found]
    second = next(place for place, cell in enumerate(notebook.cells) if re.search(r"(?m)^## 2\. ", cell.source))
    cell = notebook.cells[place]
    assert "plumbing" in tags[place] and place < second
    assert re.search(r"evidence\.(measurements|claimed|published|recorded|runs|board)\b|published", cell.source)
    assert any("image/png" in output.get("data", {}) for output in cell.outputs)


@pytest.mark.parametrize("source", SOURCES, ids=NAMES)
def test_whose_published_results_a_page_shows_stands_in_its_header(source):
    """So the page is built anew when they are published anew."""
    declared = staleness.reads(source)
    code = "\n".join(cell.source for cell in cells(source) if cell.cell_type == "code")
    asked = re.findall(r"evidence\.(?:measurements|published|claimed|load)\(\s*([\w\"]+)", code)
    named = {name.strip('"') if '"' in name else source.stem for name in asked}
    assert "all" in declared or named & set(NAMES) <= set(declared), sorted(named - set(declared))


def remembered(source):
    """Return the bullets of a page's "What to remember"."""
    text = next(c.source for c in cells(source) if c.cell_type == "markdown" and "to remember" in c.source.lower())
    part = re.split(r"(?m)^#+ .*remember.*$", text, flags=re.IGNORECASE)[-1]
    part = re.split(r"(?m)^#+ ", part)[0]
    return [" ".join(each.split()) for each in re.split(r"(?m)^[-*] ", part)[1:]]


@pytest.mark.parametrize("source", SOURCES, ids=NAMES)
def test_what_is_to_be_remembered_stands_on_published_claims(source):
    """Each bullet names the claims that it stands on, or says that it holds by construction, measured or not."""
    bullets = remembered(source)
    assert 3 <= len(bullets) <= 9
    unbound = [bullet for bullet in bullets if not BOUND.search(bullet)]
    assert not unbound, unbound
    published = evidence.published(source.stem)
    for bullet in bullets:
        for claim in re.findall(r"[\w-]+\b", bullet.partition("<!-- claims: ")[2].removesuffix(" -->")):
            found = [each for result in published for each in result.claims if each.id == claim]
            assert found, f"{claim} is in no published result of {source.stem}"
            holds = evidence.decided(found)[1] if found[0].over_seeds else all(each.holds for each in found)
            assert holds, f"{claim} does not hold, and {bullet!r} stands on it"


@pytest.mark.parametrize("name", NAMES)
def test_a_stored_page_shows_no_warning(name):
    notebook = nbformat.read(paths.NOTEBOOKS / f"{name}.ipynb", as_version=4)
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    said = [output.text for output in outputs if output.output_type == "stream" and output.name == "stderr"]
    assert not said, said[0][:300]
