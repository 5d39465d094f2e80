"""What a built site's pages point to: every file and anchor must be there, and nothing may come from another host."""

from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

LOADED = {"img": "src", "script": "src", "link": "href", "source": "src", "iframe": "src"}


class _Page(HTMLParser):
    """The addresses in a page, each with its tag, and the places in it that a link may name."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.addresses: list[tuple[str, str]] = []
        self.places: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.places |= {name for name in (found.get("id"), found.get("name")) if name}
        address = found.get(LOADED.get(tag, "href")) if tag in ("a", *LOADED) else None
        if address and address != "#":
            self.addresses.append((tag, address))


def broken(folder: Path) -> list[str]:
    """Return a line for each link of a built site that leads nowhere, and for each file from another host."""
    paths = [path for path in sorted(folder.rglob("*.html")) if "_static" not in path.relative_to(folder).parts]
    pages = {path.resolve(): _Page(path.read_text(encoding="utf-8")) for path in paths}
    return [f"{path.relative_to(folder.resolve())}: {line}" for path in pages for line in _of_page(path, pages)]


def _of_page(path: Path, pages: dict[Path, _Page]) -> Iterator[str]:
    for tag, address in pages[path].addresses:
        parts = urlsplit(address)
        if parts.scheme in ("data", "mailto"):
            continue
        if parts.scheme or parts.netloc:
            if tag != "a" or parts.scheme != "https":
                yield f"<{tag}> asks for {address}"
            continue
        target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
        if not target.is_file():
            yield f"{address} does not exist"
        elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].places:
            yield f"{address} has no such place"
