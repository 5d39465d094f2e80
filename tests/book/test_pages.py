"""What becomes of an executed notebook on its page, its deck, its downloads; and links that lead nowhere."""

import base64
import io
import json
import re

import nbformat
import pytest
from PIL import Image

from helpers import evidence
from helpers.book import building, headline, launch, links, pages, readme, slides, tables
from helpers.core import paths
from helpers.course import chapters


def png(width: int = 20, height: int = 10) -> str:
    content = io.BytesIO()
    Image.new("RGB", (width, height)).save(content, format="png")
    return base64.b64encode(content.getvalue()).decode()


def output(**data: str):
    return nbformat.v4.new_output("display_data", data={key.replace("_", "/"): value for key, value in data.items()})


@pytest.fixture
def figure():
    image = png()
    html = f'<img alt="a line" width="200" src="data:image/png;base64,{image}">'
    return output(image_png=image, text_html=html, text_plain="a line")


def test_a_figure_becomes_a_file_with_its_alt_text_and_its_table(figure, tmp_path):
    stem = tmp_path / "_static" / "figures" / "02_prune_weights" / "004"
    stem.parent.mkdir(parents=True)
    table = output(text_html="<details><summary>The same numbers</summary><table></table></details>", text_plain="1")
    (shown,) = pages._outputs([figure, table], stem)
    text = shown.data["text/html"]
    assert '<img alt="a line" width="200" height="100" src="_static/figures/02_prune_weights/004-0.png"' in text
    assert text.startswith('<div class="figure">') and "<details>" in text and "base64" not in text
    assert "image/png" not in shown.data and (stem.parent / "004-0.png").read_bytes().startswith(b"\x89PNG")


def test_two_figures_keep_their_own_tables(figure, tmp_path):
    stem = tmp_path / "_static" / "figures" / "x" / "1"
    stem.parent.mkdir(parents=True)
    second = nbformat.from_dict(json.loads(json.dumps(figure)))
    table = output(text_html="<details>T</details>", text_plain="1")
    shown = [each.data["text/html"] for each in pages._outputs([figure, second, table], stem)]
    assert len(shown) == 2 and "<details>" not in shown[0] and shown[1].count("<details>") == 1


def test_a_table_after_an_output_that_speaks_of_a_figure_stays(tmp_path):
    outputs = [output(text_html="<p>the figure</p>"), output(text_html="<details>T</details>")]
    assert "<details>T</details>" in [*pages._outputs(outputs, tmp_path / "1")][1].data["text/html"]


def test_a_build_that_fails_leaves_the_book_before_as_it_was(tmp_path, monkeypatch):
    (tmp_path / "book").mkdir()
    (tmp_path / "book" / "index.html").write_text("before")

    def sphinx(source, folder):
        folder.mkdir()
        raise building.BookError("x")

    monkeypatch.setattr(building, "assemble", lambda source: None)
    monkeypatch.setattr(building, "_sphinx", sphinx)
    with pytest.raises(building.BookError):
        building.build(tmp_path / "book")
    assert (tmp_path / "book" / "index.html").read_text() == "before"


def test_other_outputs_stay(tmp_path):
    outputs = [output(text_markdown="**Time**: soon"), output(text_markdown="It holds."), output(text_html="<p>x</p>")]
    shown = list(pages._outputs(outputs, tmp_path / "1"))
    assert [*shown[0].data.values()] == ["It holds."]
    assert shown[1].data["text/html"] == '<div class="wide" tabindex="0"><p>x</p></div>'


def test_a_solution_is_folded_and_named(tmp_path):
    code = "def f():\n    ### BEGIN SOLUTION\n    return 1\n    ### END SOLUTION"
    cell = nbformat.v4.new_code_cell(code, metadata={"tags": ["solution"]})
    pages._fold(cell)
    assert cell.source == "def f():\n    return 1\n" and "hide-input" in cell.metadata["tags"]
    assert cell.metadata["mystnb"]["code_prompt_show"] == "Show a solution"
    plain = nbformat.v4.new_code_cell("x = 1")
    pages._fold(plain)
    assert "tags" not in plain.metadata


def test_mentions_of_other_notebooks_are_links():
    text = pages.with_links(
        "See notebook 01, Notebook 02 and notebook 99; [notebook 01](x).", "02_prune_weights", set()
    )
    assert "[notebook 01](01_measure_first.ipynb), Notebook 02 and notebook 99" in text


def test_the_opening_says_how_long_and_where():
    facts = pages._facts("02_prune_weights")
    assert re.search(r"<li>\d+ min to read</li>", facts) and "to run</li>" in facts and "●" in facts
    assert 'href="downloads/student/02_prune_weights.ipynb"' in facts


@pytest.mark.parametrize(
    ("origin", "repository"),
    [
        ("https://github.com/someone/course.git", "someone/course"),
        ("git@github.com:someone/course", "someone/course"),
        ("https://elsewhere.example/course.git", ""),
        ("", ""),
    ],
)
def test_the_repository_is_that_of_the_origin(origin, repository, monkeypatch):
    monkeypatch.delenv("GITHUB_REPOSITORY", raising=False)
    monkeypatch.setattr(launch.subprocess, "run", lambda *_, **__: type("Done", (), {"stdout": f"{origin}\n"}))
    assert launch.repository() == repository
    assert ("Binder" in launch.links("02_prune_weights")) == bool(repository)


def test_colab_first_clones_and_installs_what_is_pinned(monkeypatch):
    monkeypatch.setenv("GITHUB_REPOSITORY", "someone/course")
    notebook = nbformat.read(paths.NOTEBOOKS / "00_start_here.ipynb", as_version=4)
    copy = launch.for_colab(notebook)
    nbformat.validate(copy)
    first, *rest = [cell.source for cell in copy.cells]
    assert rest == [cell.source for cell in notebook.cells] and copy.cells[0].cell_type == "code"
    compile(first, "colab", "exec")
    assert "https://github.com/someone/course" in first and "course/requirements.lock" in first
    address = launch.links("00_start_here")["Colab"]
    assert address.endswith("/github/someone/course/blob/gh-pages/colab/00_start_here.ipynb")


def test_the_colab_cell_brings_the_helpers(tmp_path, monkeypatch):
    """Its clone and its installation are replaced; what it leaves behind is a path on which `helpers` is found."""
    code = launch.COLAB.format(repository="someone/course")
    calls = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("subprocess.run", lambda command, check: calls.append(command))
    monkeypatch.setattr("sys.path", ["before"])
    exec(code, {})
    import sys

    assert calls[0][:3] == ["git", "clone", "--depth=1"] and calls[1][1:4] == ["-m", "pip", "install"]
    assert sys.path == [str(tmp_path / "course"), "before"]
    (tmp_path / "course").mkdir()
    calls.clear()
    exec(code, {})
    assert calls == []


PAGE = '<html><body id="top"><a href="{}">x</a><img src="a.png"></body></html>'


@pytest.mark.parametrize(
    ("address", "found"),
    [
        ("b.html", []),
        ("b.html#there", []),
        ("#top", []),
        ("https://elsewhere.example/", []),
        ("b.html#nowhere", ["a.html: b.html#nowhere has no such place"]),
        ("c.html", ["a.html: c.html does not exist"]),
        ("http://elsewhere.example/", ["a.html: <a> asks for http://elsewhere.example/"]),
    ],
)
def test_links_that_lead_nowhere_are_named(address, found, tmp_path):
    (tmp_path / "a.png").touch()
    (tmp_path / "a.html").write_text(PAGE.format(address))
    (tmp_path / "b.html").write_text('<p id="there">')
    assert links.broken(tmp_path) == found


@pytest.mark.parametrize("tag", ["<script src='{}'></script>", "<img src='{}'>", "<link rel=stylesheet href='{}'>"])
def test_nothing_comes_from_another_host(tag, tmp_path):
    (tmp_path / "a.html").write_text(tag.format("https://cdn.example/x"))
    assert len(links.broken(tmp_path)) == 1


@pytest.mark.parametrize("name", list(chapters.curriculum()))
def test_a_deck_has_ten_to_fourteen_slides_with_the_chapters_own_words(name):
    notebook = nbformat.read(paths.NOTEBOOKS / f"{name}.ipynb", as_version=4)
    found = slides.slides(name, notebook)
    assert 10 <= len(found) <= 14
    assert building.title(name) in found[0] and any("What to remember" in slide for slide in found)
    assert all(15 <= slides._size(slide) <= slides.LARGEST for slide in found)


def test_the_guides_placeholders_are_filled():
    text = building.filled("{chapter:02} takes {reading:02_prune_weights} min; {total:00,01} h")
    assert text.startswith("[notebook 02](02_prune_weights.ipynb) takes ")
    minutes = evidence.reading_minutes("02_prune_weights")
    assert f" {minutes:.0f} min" in text and "{" not in text


@pytest.mark.parametrize("path", sorted((paths.ROOT / "book" / "guide").glob("*.md")), ids=lambda path: path.stem)
def test_a_page_of_the_guide_is_listed_and_leaves_nothing_open(path):
    assert path.stem in building.GUIDE
    assert not re.search(r"\{(chapter|reading|total):", building.filled(path.read_text(encoding="utf-8")))


def test_every_chapter_stands_in_the_contents_once_in_order():
    listed = re.findall(r"^\d\d_\w+$", building._contents(), re.MULTILINE)
    assert listed == list(chapters.curriculum())


def test_the_results_page_has_the_rows_of_the_table():
    text = tables.page()
    assert {*re.findall(r'data-task="([\w-]+)"', text)} == {*tables.TASKS}
    rows = [line for line in evidence.results_tables().splitlines() if line.startswith("| ")]
    assert text.count("<tr>") == len(rows)


def test_the_picture_shows_published_recipes():
    found = headline.points()
    assert {*found["label"]} == {*headline.SHOWN.values()} and (found["factor"] > 1).all()
    assert {*found["task"]} == {*headline.TASKS}
    assert all(f"{label} (" in headline.alt() for label in headline.SHOWN.values())


def test_the_stored_picture_and_table_are_up_to_date():
    stored, drawn = (Image.open(each).convert("L") for each in (headline.FILE, io.BytesIO(headline.png())))
    assert stored.size == drawn.size
    differing = sum(abs(a - b) > 64 for a, b in zip(stored.tobytes(), drawn.tobytes(), strict=True))
    assert differing < 0.002 * len(stored.tobytes()), "run python -m helpers readme"
    assert readme.RESULTS.read_text(encoding="utf-8") == readme.results()


def test_what_sphinx_warns_of_ends_the_build(tmp_path):
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "conf.py").write_text("")
    (tmp_path / "source" / "index.rst").write_text("Title\n=====\n\n:doc:`nowhere`\n")
    with pytest.raises(building.BookError, match="book-warnings.txt"):
        building._sphinx(tmp_path / "source", tmp_path / "book")
