"""The glossary: its terms, and where the pages link to them."""

import re

import pytest

from helpers.book import glossary
from helpers.course import chapters

TERMS = glossary.terms()


def test_terms_and_forms_are_unique_and_complete():
    names = [term.term for term in TERMS]
    forms = [form.casefold() for term in TERMS for form in term.forms]
    assert len(set(names)) == len(names) >= 80 and len(set(forms)) == len(forms)
    for term in TERMS:
        assert term.chapter in chapters.curriculum(), term.term
        assert len(term.en.split()) >= 5 and re.search("[\u4e00-\u9fff]", term.zh_text), term.term
        assert re.search("[\u4e00-\u9fff]", term.zh) or term.zh.isascii(), term.term


@pytest.fixture
def two(monkeypatch):
    terms = (
        glossary.Term("mask", "掩码", ["mask", "masks"], "", "", "02_prune_weights"),
        glossary.Term("batch normalization", "批归一化", ["batch normalization"], "", "", "04_prune_filters"),
        glossary.Term("batch", "批", ["batch"], "", "", "01_measure_first"),
    )
    monkeypatch.setattr(glossary, "terms", lambda: terms)
    glossary._forms.cache_clear()
    yield
    glossary._forms.cache_clear()


@pytest.mark.parametrize(
    ("text", "linked"),
    [
        ("Two masks and a mask.", "Two {term}`masks <mask>` and a mask."),
        ("Masks first.", "{term}`Masks <mask>` first."),
        (
            "batch\nnormalization in a batch",
            "{term}`batch normalization <batch normalization>` in a {term}`batch <batch>`",
        ),
        ("`mask` and $mask$ and a mask", "`mask` and $mask$ and a {term}`mask <mask>`"),
        ("# A mask\n\nmask", "# A mask\n\n{term}`mask <mask>`"),
        ("[a mask](x.md), mask", "[a mask](x.md), {term}`mask <mask>`"),
        ("```\nmask\n```\nmask", "```\nmask\n```\n{term}`mask <mask>`"),
        ("unmask, mask-like, masked", "unmask, mask-like, masked"),
        ("**02.1 · Mask.** A mask", "**02.1 · Mask.** A {term}`mask <mask>`"),
        ("| mask |\n|---|\n\nmask", "| mask |\n|---|\n\n{term}`mask <mask>`"),
        ('<p class="mask">mask', '<p class="mask">{term}`mask <mask>`'),
    ],
)
def test_the_first_mention_is_linked_and_what_is_no_prose_is_left(two, text, linked):
    assert glossary.linked(text, set()) == linked


def test_a_page_links_a_term_once(two):
    seen: set[str] = set()
    assert "{term}" in glossary.linked("a mask", seen)
    assert glossary.linked("a mask", seen) == "a mask"


def test_the_page_gives_both_languages_and_the_chapter(two, monkeypatch):
    text = glossary.page()
    assert "mask\n" in text and '<span lang="zh"><b>掩码</b>' in text and "(02_prune_weights.ipynb)" in text
