"""The built website in a browser: what a reader sees, with a mouse, with a keyboard, on a phone, without a script."""

import os
from pathlib import Path

import pytest

from helpers import book, fetching
from helpers.book import building
from helpers.core import paths
from helpers.course import chapters
from tests.book.browsing import chromium, served

pytestmark = pytest.mark.browser

NAMES = list(chapters.curriculum())
LARGEST = 1_500_000  # bytes that a page may transfer
TERMS = {  # and a page on which each must be found
    "magnitude": "02_prune_weights",
    "Taylor": "03_which_weights_matter",
    "rewind": "05_after_pruning",
    "bigram": "06_prune_text",
    "calibration": "10_quantize_after_training",
    "temperature": "12_distill",
    "entropy": "14_entropy_coding",
    "latency": "01_measure_first",
    "Pareto": "19_leaderboard",
    "rubric": "capstone",
}
TYPICAL = [
    "index",
    "02_prune_weights",
    "12_distill",
    "results",
    "glossary",
    "demo",
    "teaching",
    "slides/02_prune_weights",
]
TYPICAL = [f"{name}.html" for name in TYPICAL]
SERIOUS = ("serious", "critical")


@pytest.fixture(scope="session")
def folder() -> Path:
    given = Path(os.environ.get("COURSE_BOOK_DIR", paths.ROOT / "build" / "book"))
    if not (given / "index.html").exists():
        book.build(given)
    return given


@pytest.fixture(scope="session")
def site(folder):
    with served(folder) as address:
        yield address


@pytest.fixture(scope="session")
def browser():
    with chromium() as found:
        yield found


@pytest.fixture
def page(browser):
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    yield page
    page.close()


def pages() -> list[str]:
    others = ["index", "results", "glossary", "demo", "slides", "licences", "search", *building.GUIDE]
    return [f"{name}.html" for name in [*NAMES, *others]] + [f"slides/{name}.html" for name in NAMES]


@pytest.mark.parametrize("name", pages())
def test_a_page_loads_whole_from_its_own_host_is_light_and_fits_a_phone(page, site, name):
    asked, errors, transferred = [], [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("requestfinished", lambda request: transferred.append(request.sizes()["responseBodySize"]))
    page.goto(site + name)
    page.evaluate("for (const image of document.images) image.loading = 'eager'")
    page.wait_for_load_state("networkidle")
    page.wait_for_function("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
    assert not [url for url in asked if not url.startswith((site, "data:", "blob:"))]
    assert errors == []
    assert 10_000 < sum(transferred) < LARGEST
    assert "katex-error" not in page.content()
    page.set_viewport_size({"width": 390, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


@pytest.mark.parametrize("name", TYPICAL)
def test_no_serious_barrier(page, site, name):
    page.goto(site + name, wait_until="networkidle")
    page.add_script_tag(path=fetching.package("axe-core") / "axe.min.js")
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")["violations"]
    assert {each["id"]: each["nodes"][0]["html"][:200] for each in found if each["impact"] in SERIOUS} == {}


@pytest.mark.parametrize(("term", "name"), TERMS.items())
def test_search_finds(page, site, term, name):
    page.goto(f"{site}search.html?q={term}")
    page.wait_for_selector("#search-results li a")
    page.wait_for_selector(f"#search-results li a[href*='{name}.html']")


def test_formulas_are_typeset_and_readable_without_a_script(browser, page, site):
    page.goto(f"{site}12_distill.html")
    page.wait_for_selector(".math .katex-html")
    assert page.locator(".math").count() == page.locator(".math .katex-html").count() > 5
    plain = browser.new_context(java_script_enabled=False).new_page()
    plain.goto(f"{site}12_distill.html")
    assert "\\frac" in plain.inner_text("main") and "What to remember" in plain.inner_text("main")
    plain.context.close()


def test_plumbing_is_folded_and_opens(page, site):
    page.goto(f"{site}02_prune_weights.html")
    fold = page.locator("details", has_text="Show the code").first
    code = fold.locator("pre").first
    assert not code.is_visible()
    fold.locator("summary").first.click()
    assert code.is_visible() and "import" in code.inner_text()


def test_a_figure_changes_places_with_its_table(page, site):
    page.goto(f"{site}02_prune_weights.html")
    figure = page.locator(".figure:has(details)").first
    image, table, switch = figure.locator("img"), figure.locator("table"), figure.locator("summary")
    assert image.is_visible() and not table.is_visible() and len(image.get_attribute("alt")) > 40
    switch.click()
    assert table.is_visible() and not image.is_visible()
    switch.click()
    assert image.is_visible() and not table.is_visible()


def test_a_quiz_has_five_questions_that_answer_in_place(page, site):
    page.goto(f"{site}02_prune_weights.html")
    questions = page.locator(".quiz section")
    assert questions.count() == 5
    wrong = page.locator(".quiz details.wrong").first
    wrong.locator("summary").focus()
    page.keyboard.press("Enter")
    assert wrong.locator("p").is_visible() and wrong.inner_text().count("Not quite.") == 1
    right = questions.first.locator("details.right")
    right.locator("summary").click()
    assert right.inner_text().count("Right.") == 1 and not wrong.locator("p").is_visible()  # one answer at a time


def test_results_are_sorted_and_filtered(page, site):
    page.goto(f"{site}results.html")
    tables = page.locator("table.sortable")
    page.get_by_role("button", name="MNIST").click()
    shown = [tables.nth(i) for i in range(tables.count()) if tables.nth(i).is_visible()]
    assert len(shown) == 1 and "lenet5-thin-coded" in shown[0].inner_text()
    head = shown[0].get_by_role("button", name="test accuracy %")
    head.focus()
    page.keyboard.press("Enter")
    accuracy = [float(text.split()[0]) for text in shown[0].locator("td:nth-child(3)").all_inner_texts()]
    assert accuracy == sorted(accuracy, reverse=True) and len(accuracy) > 10
    head.click()
    assert [float(text.split()[0]) for text in shown[0].locator("td:nth-child(3)").all_inner_texts()] == sorted(
        accuracy
    )
    page.get_by_role("button", name="All tasks").click()
    assert all(tables.nth(i).is_visible() for i in range(tables.count()))


def test_a_term_leads_to_the_glossary_in_both_languages(page, site):
    page.goto(f"{site}02_prune_weights.html")
    page.locator("main a[href*='glossary.html#']").first.click()
    assert "glossary.html#term-" in page.url
    assert any("\u4e00" <= letter <= "\u9fff" for letter in page.locator("dt:target + dd").inner_text())


def test_the_keyboard_alone_reaches_search_and_content(page, site):
    page.goto(f"{site}index.html")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent").strip() == "Skip to main content"
    page.keyboard.press("Enter")
    page.keyboard.press("Control+k")
    page.keyboard.type("distillation")
    page.keyboard.press("Enter")
    page.wait_for_selector("#search-results li a")


@pytest.mark.parametrize("name", NAMES)
def test_a_deck_has_ten_to_fourteen_slides_that_fit(page, site, name):
    page.goto(f"{site}slides/{name}.html", wait_until="networkidle")
    slides = page.evaluate("Reveal.getTotalSlides()")
    assert 10 <= slides <= 14
    for number in range(slides):
        page.evaluate(f"Reveal.slide({number})")
        assert page.evaluate("Reveal.getCurrentSlide().scrollHeight") <= 720, f"slide {number}"
    assert page.evaluate("[...document.images].every(image => image.naturalWidth > 0 && image.alt)")
