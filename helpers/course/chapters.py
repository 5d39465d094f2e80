"""The notebooks' sources, by number or name."""

import re
from collections.abc import Iterable
from pathlib import Path

from helpers.core import checks, paths

BUILT = paths.NOTEBOOKS
SOURCES = paths.NOTEBOOKS / "src"


class NotebookError(Exception):
    """A notebook cannot be built or did not run to its end; the message names it, the cell and the error."""


def sources() -> list[Path]:
    """Return the notebooks' sources, in the order of the course."""
    return sorted(SOURCES.glob("[0-9][0-9]_*.py"))


def find(names: Iterable[str] = ()) -> list[Path]:
    """Return the sources with these numbers ("2", "02") or names ("02_prune_weights"); all if none is given.

    Raises ValueError for one that does not exist.
    """
    available = sources()
    by_name = {path.stem: path for path in available} | {path.stem[:2]: path for path in available}
    chosen = {by_name[checks.choice("notebook", _padded(name), list(by_name))] for name in names}
    return sorted(chosen) if chosen else available


def curriculum() -> dict[str, str]:
    """Return the question that each notebook answers, by its name: what stands behind the colon of its title.

    Raises NotebookError for a source without such a title.
    """
    found = {}
    for source in sources():
        title = re.search(r"^# # \d\d · [^:\n]+: (.+)$", source.read_text(encoding="utf-8"), re.MULTILINE)
        if title is None:
            raise NotebookError(f"{source.stem} has no title such as “# # 02 · Prune weights: how many does it need?”")
        found[source.stem] = title[1][0].upper() + title[1][1:]
    return found


def is_timed(source: Path) -> bool:
    """Return whether a notebook compares times, and so has to run alone on the machine."""
    return re.search(r"\b(time_interleaved|judge)\(", source.read_text(encoding="utf-8")) is not None


def datasets(source: Path) -> list[str]:
    """Return the datasets that a notebook mentions by calling a function of `data` that loads them."""
    code = source.read_text(encoding="utf-8")
    loaders = {"mnist": "mnist", "cifar10": "cifar10|cifar10_without_cat_and_dog|cat_or_dog", "imdb": "imdb"}
    return [name for name, functions in loaders.items() if re.search(rf"\b({functions})\(", code)]


def _padded(name: str) -> str:
    return name.zfill(2) if name.isdigit() else Path(name).stem
