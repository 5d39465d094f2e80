"""SHA-256 sums of what is published: a results file or a model that was edited by hand is noticed."""

from collections.abc import Iterable
from pathlib import Path

from helpers.core import paths
from helpers.core.paths import sha256

NAME = "SHA256SUMS"  # in data/, in the format of `sha256sum`, so that `sha256sum -c` reads it too
KEPT = ("results/full/*.json", "models/*")


def enter(files: Iterable[Path]) -> None:
    """Take down the sums of these files, new or written anew; those of files that are gone are dropped."""
    sums = known() | {path.relative_to(paths.DATA).as_posix(): sha256(path.read_bytes()) for path in files}
    lines = [f"{digest}  {name}\n" for name, digest in sorted(sums.items()) if (paths.DATA / name).exists()]
    paths.write_atomically(paths.DATA / NAME, "".join(lines).encode())


def known() -> dict[str, str]:
    """Return the sums that were taken down, by the path below data/."""
    path = paths.DATA / NAME
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return {name: digest for digest, name in (line.split("  ", 1) for line in lines)}


def changed() -> list[str]:
    """Return the published files whose bytes are not those that `publish` wrote, or that it did not write."""
    sums = known()
    present = {path.relative_to(paths.DATA).as_posix(): path for kind in KEPT for path in paths.DATA.glob(kind)}
    wrong = [name for name, path in present.items() if sums.get(name) != sha256(path.read_bytes())]
    return sorted([*wrong, *(sums.keys() - present.keys())])
