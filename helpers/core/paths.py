"""Where things lie: one place for every folder that the project reads or writes. Standard library only."""

import hashlib
import os
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = ROOT / "notebooks"
DATA = ROOT / "data"
CHECKPOINTS = DATA / "checkpoints"
RESULTS = DATA / "results"
MODELS = DATA / "models"
TOOLS = DATA / "tools"


def raw_dir() -> Path:
    """Folder of the fetched data: `COURSE_DATA_DIR` if set, else data/raw. Raises ValueError for nobody's home."""
    return _folder("COURSE_DATA_DIR", DATA / "raw")


def build_dir() -> Path:
    """Folder of what a run writes: `COURSE_BUILD_DIR` if set, else build. Raises ValueError for nobody's home."""
    return _folder("COURSE_BUILD_DIR", ROOT / "build")


def _folder(variable: str, usual: Path) -> Path:
    path = Path(os.environ.get(variable) or usual)
    try:
        return path.expanduser()
    except RuntimeError:
        raise ValueError(
            f"{variable}={str(path)!r} is in nobody's home folder; allowed: the path of a folder"
        ) from None


def sha256(content: bytes) -> str:
    """Return the SHA-256 of `content` as 64 hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def text_sha256(path: Path) -> str:
    """Return the SHA-256 of a text file, the same whichever line ends git gave it on this machine."""
    return sha256(path.read_bytes().replace(b"\r\n", b"\n"))


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
