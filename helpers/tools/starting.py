"""How long a program takes from its start to its first answer, and how much memory: `python -m helpers.tools.starting`.

Runs in a tool's environment, imports what opens the file and nothing else, and prints one line of JSON.
"""

import importlib
import json
import sys
import time
from pathlib import Path

import numpy as np


def main(tool: str, variant: str, file: str, shape: str) -> None:
    """Open a file and answer once, to zeros; `shape` such as 1,3,32,32, of whole numbers if it has two sides."""
    import psutil

    sides = tuple(map(int, shape.split(",")))
    load = importlib.import_module(f"helpers.tools.{tool}").VARIANTS[variant][1]
    load(Path(file), threads=1, batch=1)(np.zeros(sides, np.int64 if len(sides) == 2 else np.float32))
    seconds = time.time() - psutil.Process().create_time()
    print(json.dumps({"seconds": seconds, "peak_memory_mb": _peak(), "torch": "torch" in sys.modules}))


def _peak() -> float:
    """Return the largest memory of this program in megabytes; the kernel's count, without a parent's."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise ValueError("/proc/self/status names no VmHWM; allowed: Linux")


if __name__ == "__main__":
    main(*sys.argv[1:])
