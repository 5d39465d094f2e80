"""The file of an interrupted training, and when it may be continued."""

import io
import sys
import zipfile
from pathlib import Path
from typing import Any

import torch

_resumed: list[float] = []


def note_resumed(seconds: float) -> None:
    """Take down how many seconds a training did not take, because its checkpoint held them."""
    _resumed.append(seconds)


def resumed_seconds() -> float:
    """Return the seconds of the epochs that trainings in this process found done, in their checkpoints."""
    return sum(_resumed)


def saved(value: Any) -> bytes:
    """Return the bytes that `torch.save` writes for a value."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def load_state(path: Path | None, fingerprint: str) -> dict[str, Any] | None:
    """Return the state in `path` if the same training wrote it, else None; of a damaged file a sentence says so."""
    if path is None or not path.exists():
        return None
    try:
        with zipfile.ZipFile(path) as file:
            if file.testzip() is not None:  # `torch.load` compares no checksums
                raise ValueError
        state = torch.load(path, weights_only=True)
        return state if state["fingerprint"] == fingerprint else None
    except OSError:
        raise
    except Exception:  # whatever a damaged file makes of the pickle in it
        say_damaged(path)
        return None


def say_damaged(path: Path) -> None:
    """Print to standard error that the file is damaged and that the training starts afresh."""
    print(f"{path} is damaged; the training starts afresh and will replace it.", file=sys.stderr)
