"""The website: `make book`."""

from helpers.book.building import BookError, build

__all__ = ["BookError", "build"]
