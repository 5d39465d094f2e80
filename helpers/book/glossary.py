"""The glossary, English and Chinese: `book/glossary.toml`, its page, and the links to it."""

import re
import tomllib
from functools import cache
from typing import NamedTuple

from helpers.book.lessons import html_of
from helpers.core import paths
from helpers.course import chapters

FILE = paths.ROOT / "book" / "glossary.toml"
# What no link may stand in: code, formulas, links, HTML, headings, and the bold names of exercises.
PROTECTED = re.compile(
    r"(^```.*?^```|``.*?``|`[^`]*`|\$\$.*?\$\$|\$[^$\n]+\$|!?\[[^\]]*\]\([^)]*\)|<[^>]*>|^#+ .*?$|^\*\*\d\d\.\d.*?\*\*"
    r"|^\|.*?$)",
    re.DOTALL | re.MULTILINE,
)


class Term(NamedTuple):
    """A term: its Chinese name, the forms that link to it, its explanation in both languages, where it is taught."""

    term: str
    zh: str
    forms: list[str]
    en: str
    zh_text: str
    chapter: str


@cache
def terms() -> tuple[Term, ...]:
    """Return all terms in alphabetical order."""
    entries = tomllib.loads(FILE.read_text(encoding="utf-8"))["term"]
    return tuple(sorted((Term(**entry) for entry in entries), key=lambda term: term.term.casefold()))


@cache
def _forms() -> tuple[re.Pattern[str], dict[str, str]]:
    """Return a pattern of all forms, the longest first, and the term of each."""
    owner = {form.casefold(): term.term for term in terms() for form in term.forms}
    longest = sorted(owner, key=len, reverse=True)
    any_form = "|".join(r"\s+".join(map(re.escape, form.split())) for form in longest)
    return re.compile(rf"(?<![\w-])({any_form})(?![\w-])", re.IGNORECASE), owner


def linked(text: str, seen: set[str]) -> str:
    """Return Markdown with the first mention of each term linked; `seen` holds the terms linked before, and learns."""
    pattern, owner = _forms()

    def link(match: re.Match[str]) -> str:
        form = " ".join(match[0].split())
        term = owner[form.casefold()]
        if term in seen:
            return match[0]
        seen.add(term)
        return f"{{term}}`{form} <{term}>`"

    parts = PROTECTED.split(text)
    return "".join(part if place % 2 else pattern.sub(link, part) for place, part in enumerate(parts))


def page() -> str:
    """Return the glossary's page in Markdown."""
    titles = {name[:2]: name for name in chapters.curriculum()}
    lines = [
        "# Glossary · 术语表",
        "",
        f'{len(terms())} terms, in English and Chinese. <span lang="zh">中英文术语对照。</span>',
        "",
        ":::{glossary}",
    ]
    for term in terms():
        lines += [
            term.term,
            f"  {term.en.strip()}",
            "",
            f'  <span lang="zh"><b>{term.zh}</b>：{html_of(term.zh_text)}</span>',
            "",
        ]
        number = term.chapter[:2]
        lines += [f"  [Notebook {number}]({titles[number]}.ipynb)", ""]
    return "\n".join([*lines, ":::", ""])
