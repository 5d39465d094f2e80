"""Where things lie: one place for every folder that the project reads or writes. Standard library only."""

import os
import tempfile
from pathlib import Path

__all__ = [
    "CHECKPOINTS",
    "DATA",
    "MODELS",
    "NOTEBOOKS",
    "RESULTS",
    "ROOT",
    "build_dir",
    "raw_dir",
    "write_atomically",
]

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = ROOT / "notebooks"
DATA = ROOT / "data"
CHECKPOINTS = DATA / "checkpoints"
RESULTS = DATA / "results"
MODELS = DATA / "models"


def raw_dir() -> Path:
    """Folder of the fetched data: `COURSE_DATA_DIR` if set, else data/raw."""
    return Path(os.environ.get("COURSE_DATA_DIR") or DATA / "raw").expanduser()


def build_dir() -> Path:
    """Folder of what a run writes: `COURSE_BUILD_DIR` if set, else build."""
    return Path(os.environ.get("COURSE_BUILD_DIR") or ROOT / "build").expanduser()


def write_atomically(path: Path, data: bytes) -> None:
    """Write `data` to `path` so that a reader sees the old file or the new one, never a part; make its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
