"""Run code that somebody published, in a process of its own, and say what it did.

A notebook that has run for a while is a bad judge: it has imported modules and defined names that the snippet lacks.
`run_snippet` starts a Python that knows nothing. It is no sandbox: whoever distrusts a snippet's author takes a
container. Standard library only, so that it also runs where torch is not installed.
"""

import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from helpers.core import checks, paths
from helpers.core.paths import write_atomically

TRANSCRIPTS = paths.DATA / "transcripts"
PRINTED = 1 << 20  # bytes that are read back of what a snippet printed, and of its report
THREAD_SETTINGS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "TF_NUM_INTRAOP_THREADS")
# Runs in the new process. It needs two arguments, the snippet's file and the file of the report.
DRIVER = """
import json, os, sys
def no_network(event, args):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto", "socket.bind"):
        raise PermissionError("a snippet has no network")
sys.addaudithook(no_network)
snippet, report = sys.argv[1:]
del sys.argv[1:]
with open(snippet, encoding="utf-8") as file:
    code = file.read()
error = message = ""
try:
    exec(compile(code, "snippet", "exec"), {"__name__": "__main__"})
except BaseException as raised:
    error, message = type(raised).__name__, str(raised)[:10_000]
sys.stdout.flush()
with open(report, "w", encoding="utf-8") as file:
    json.dump([error, message], file)
"""


@dataclass(frozen=True)
class Outcome:
    """What a snippet did: the text it printed, its exception's type and message ("" if it ran to its end), seconds.

    `error` is also "Timeout" for a snippet that had to be stopped, and "Crash" for a process that died. `source` says
    where the outcome is from. As text, it is what the reader of a terminal would see.
    """

    printed: str
    error: str
    message: str
    seconds: float
    source: str = "run now"

    @property
    def ended(self) -> bool:
        """Whether it ran to its end."""
        return not self.error

    def __str__(self) -> str:
        last = f"{self.error}: {self.message}" if self.message else self.error
        return "\n".join(part for part in (self.printed.rstrip("\n"), last) if part) or "(nothing printed, no error)"


def run_snippet(code: str, *, timeout: float = 60) -> Outcome:
    """Run `code` in a fresh Python process and return what it did; nothing that it does raises here.

    The process starts in an empty temporary folder of its own, which is deleted afterwards, with one thread for each
    library, without this process's modules, names, `PYTHON…` variables and import path beyond the installed packages,
    and without a network (connecting raises PermissionError). After `timeout` seconds it is stopped, with the
    processes that it started.

    Raises:
        ValueError: `code` is not a text or is blank, or `timeout` is not a number above 0.
    """
    if not isinstance(code, str) or not code.strip():
        raise ValueError(f"code={code!r}; allowed: a text with at least one statement")
    if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not 0 < timeout < math.inf:
        raise ValueError(f"timeout={timeout!r}; allowed: a number of seconds above 0")
    with tempfile.TemporaryDirectory(prefix="snippet-", ignore_cleanup_errors=True) as name:
        outcome = _run_in(Path(name).resolve(), code, timeout)
    return outcome


def _run_in(folder: Path, code: str, timeout: float) -> Outcome:
    snippet, report, printed = (folder / name for name in ("snippet.py", "report.json", "printed.txt"))
    work = folder / "work"
    work.mkdir()
    snippet.write_text(code, encoding="utf-8")
    # Not a pipe: a grandchild that outlives the snippet would hold it open.
    with printed.open("wb") as output:
        # -E and -P: no PYTHON… variable, and no folder of this process on the import path
        command = [sys.executable, "-E", "-P", "-X", "utf8", "-c", DRIVER, str(snippet), str(report)]
        began = time.monotonic()
        process = subprocess.Popen(
            command,
            cwd=work,
            env=_environment(work),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            process.wait(timeout)
            error, message = _reported(report, process.returncode)
        except subprocess.TimeoutExpired:
            error, message = "Timeout", f"stopped after {timeout:g} s"
        finally:
            stop(process)
        seconds = time.monotonic() - began
    text = _beginning(printed)
    return Outcome(_without(text, folder), error, _without(message, folder), seconds)


def _beginning(path: Path) -> str:
    """Return the text of a file, of one that is longer than `PRINTED` the beginning and how much is left out."""
    with path.open("rb") as file:
        text = file.read(PRINTED).decode("utf-8", errors="replace").replace("\r\n", "\n")
    left = path.stat().st_size - PRINTED
    return text if left <= 0 else f"{text}\n… ({left:,} bytes more)\n"


def _environment(work: Path) -> dict[str, str]:
    one_thread = dict.fromkeys(THREAD_SETTINGS, "1")
    return {**os.environ, **one_thread, **dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(work))}


def _reported(report: Path, code: int) -> tuple[str, str]:
    try:
        error, message = json.loads(_beginning(report))
    except (OSError, ValueError):  # it died before it could write
        return "Crash", f"the process ended with code {code}"
    return error, message


def stop(process: subprocess.Popen) -> None:
    """Kill the process, and where there are process groups, those that it started; return when it has ended."""
    if hasattr(os, "killpg"):
        with suppress(ProcessLookupError, PermissionError):  # nobody is left
            os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.wait()


def _without(text: str, folder: Path) -> str:
    """Return `text` without the name of the temporary folder, which differs from run to run."""
    return text.replace(str(folder / "work"), ".").replace(str(folder), ".")


def recall(code: str, *, name: str) -> Outcome:
    """Return what the transcript data/transcripts/<name>.json says that `code` did; `source` gives versions and date.

    For code that needs what is not installed here. Raises ValueError if there is no such transcript, or it does not
    hold this very code: another one's outcome would be a guess.
    """
    stored = transcript(name)
    for title, run in stored["runs"].items():
        if run["code"].strip() == code.strip():
            return Outcome(run["printed"], run["error"], run["message"], run["seconds"], source=_origin(stored, title))
    raise ValueError(f"code={code.strip()[:60]!r}… is not in the transcript; allowed: {', '.join(stored['runs'])}")


def transcript(name: str) -> dict[str, Any]:
    """Return the stored transcript: packages and their versions, date, python, and runs by name.

    Raises ValueError if there is none of that name.
    """
    checks.choice("name", name, sorted(path.stem for path in TRANSCRIPTS.glob("*.json")))
    return json.loads((TRANSCRIPTS / f"{name}.json").read_text(encoding="utf-8"))


def record_transcript(name: str, codes: dict[str, str], *, packages: Sequence[str], timeout: float = 300) -> Path:
    """Run each of `codes` and store what it did in data/transcripts/<name>.json; return that path.

    Call it in an environment that has `packages`, whose versions are stored. Raises ValueError if there is no code, and
    what `run_snippet` raises.
    """
    checks.not_empty("codes", codes)
    runs = {key: {"code": code} | asdict(run_snippet(code, timeout=timeout)) for key, code in codes.items()}
    for run in runs.values():
        run["seconds"] = round(run["seconds"], 1)
        del run["source"]
    stored = {
        "packages": {package: version(package) for package in packages},
        "python": ".".join(map(str, sys.version_info[:3])),
        "date": datetime.now(UTC).date().isoformat(),
        "runs": runs,
    }
    path = TRANSCRIPTS / f"{name}.json"
    write_atomically(path, (json.dumps(stored, indent=1, ensure_ascii=False) + "\n").encode())
    return path


def _origin(stored: dict[str, Any], title: str) -> str:
    versions = ", ".join(f"{package} {number}" for package, number in stored["packages"].items())
    return f"stored transcript ({title}): {versions}, Python {stored['python']}, {stored['date']}"
