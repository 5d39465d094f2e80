"""Notebooks and seeds on a Dask cluster. Standard library only at import; `distributed` is the extra `cluster`.

A time that was measured beside other work lies, and a cluster runs many notebooks side by side. So the work is done in
two passes:

1. `run` hands each pair of notebook and seed to a worker. What comes back from a notebook without times is its result,
   and final. Of a notebook whose results hold a time (a model's latency, a claim or a record with `timing=True`) only
   the states of its trainings are kept. The same holds for one that reads the results of other notebooks or seeds,
   which a worker does not have. Which notebooks these are does not depend on whether their claims held.
2. The caller executes those here, one after another. Their trainings resume from the states, so what is left is mostly
   measuring; `pinned` gives them as many threads as they were trained with. (A state that does not fit, because this
   machine rounds otherwise, is not used: then the training is repeated.)

A worker is a Dask worker of any kind in which `helpers` can be imported, from a clone at the same commit. It runs one
notebook at a time, in a kernel with as many threads as the worker has. Workers share no disk with anybody: results come
back as bytes. Dask gives a task whose worker died to another one; each task has a name of its own, and a notebook's
results are written by the one process that has asked for them, once.
"""

import importlib.util
import json
import math
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from helpers import fetching
from helpers.core import paths
from helpers.course import chapters, notebooks, staleness
from helpers.course.setup import SetupError

if TYPE_CHECKING:
    from distributed import Client, Future

Run = tuple[Path, int]  # a notebook's source, and a seed
THREADS = ["OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS", "LOKY_MAX_CPU_COUNT"]
CONNECT_SECONDS = 10
LOOK_SECONDS = 2  # how often a new worker, or one that is idle again, is looked for
PATIENCE_SECONDS = 6  # how long a run may wait for a worker that was idle when it was given the run
_ONE_AT_A_TIME = threading.Lock()  # in a worker: a notebook has all of its threads


class Outcome(NamedTuple):
    """What the cluster did: which runs are final, why those failed that did, and the threads of those to measure."""

    final: set[Run]
    failures: list[str]
    to_measure: dict[Run, int]


class _Returned(NamedTuple):
    """What a worker hands back: its address and threads, files by their path under build/, and why it failed, if so."""

    worker: str
    threads: int
    seconds: float
    files: dict[str, bytes]
    failure: str


def pinned(threads: int, **variables: str) -> AbstractContextManager[None]:
    """Give the kernels that are started inside the block `threads` threads; ONNX Runtime has its own setting."""
    return notebooks.kernel_environment(**dict.fromkeys(THREADS, str(threads)), **variables)


def run(
    address: str, runs: Iterable[Run], *, profile: str, again: bool = False, say: Callable[[str], None] = print
) -> Outcome:
    """Have the workers of the scheduler at `address` execute `runs`; write what is final, and states, to build/.

    In the full profile, what an earlier call brought the states of is not sent again, unless `again`. Raises SetupError
    if `distributed` is not installed, nothing answers at `address`, or the connection is lost.
    """
    runs = list(runs)
    outcome = Outcome(set(), [], {})
    for each in runs:
        if profile == "full" and not again and (threads := _threads_of_states(each, profile)):
            outcome.to_measure[each] = threads
    waiting = [each for each in runs if each not in outcome.to_measure]
    if waiting:
        client = _connect(address)
        try:
            _hand_out(client, waiting, profile, outcome, say)
        except OSError as error:
            raise SetupError(f"the cluster stopped: {error}; what came back is kept, run the same again") from error
        finally:
            client.close(timeout=CONNECT_SECONDS)
    return outcome


def _connect(address: str) -> "Client":
    if importlib.util.find_spec("distributed") is None:
        raise SetupError("--scheduler needs the package distributed: pip install -c requirements.lock -e .[cluster]")
    from distributed import Client

    try:
        return Client(address, timeout=CONNECT_SECONDS)
    except (OSError, ValueError) as error:
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise SetupError(f"no Dask scheduler answers at {address} ({said}); start one: dask scheduler") from error


def _hand_out(client: "Client", waiting: list[Run], profile: str, outcome: Outcome, say: Callable[[str], None]) -> None:
    """Give each idle worker one run, until all have come back."""
    from distributed import wait

    running: dict[Future, tuple[str, Run]] = {}
    total, told, taken_at = len(waiting), False, time.monotonic()
    while waiting or running:
        given, processing = {worker for worker, _ in running.values()}, client.processing()
        taken_at = _ask_for_patience(running, processing, taken_at, say)
        idle = [worker for worker, keys in processing.items() if not keys and worker not in given]
        if not idle and not running and not told:
            say("No worker yet; waiting for one. Start it where helpers is installed: dask worker ADDRESS")
            told = True
        for worker, each in zip(idle, waiting[: len(idle)], strict=False):
            running[_submit(client, each, profile, worker)] = worker, each
        waiting = waiting[len(idle) :]
        if not running:
            time.sleep(LOOK_SECONDS)
            continue
        try:
            wait(list(running), timeout=LOOK_SECONDS, return_when="FIRST_COMPLETED")
        except TimeoutError:
            continue
        for future in [future for future in running if future.done()]:
            _, each = running.pop(future)
            done = total - len(waiting) - len(running)
            say(f"[{done}/{total}] {_collect(future, each, profile, outcome)}")


def _ask_for_patience(
    running: Mapping["Future", tuple[str, Run]],
    processing: Mapping[str, Iterable[str]],
    taken_at: float,
    say: Callable[[str], None],
) -> float:
    """Say so, once, when a run waits though its worker is idle; return when none did, infinity once it was said."""
    taken = {key for keys in processing.values() for key in keys}
    left = [each for future, (_, each) in running.items() if not future.done() and future.key not in taken]
    if not left:
        return time.monotonic()
    if time.monotonic() - taken_at <= PATIENCE_SECONDS:
        return taken_at
    source, seed = left[0]
    say(
        f"No worker takes {source.stem}, seed {seed}. Dask pauses a worker whose memory is nearly full, and its log "
        "says so: give it more (--memory-limit), or start another one."
    )
    return math.inf


def _submit(client: "Client", each: Run, profile: str, worker: str) -> "Future":
    source, seed = each
    identity = staleness.identity_of(source)
    key = f"{source.stem}-{profile}-seed{seed}-{'-'.join(digest[:12] for digest in identity.values())}"
    # Another worker may take it over only when this one is gone.
    return client.submit(
        _execute, source.stem, profile, seed, identity, key=key, workers=[worker], allow_other_workers=True, pure=False
    )


def _collect(future: "Future", each: Run, profile: str, outcome: Outcome) -> str:
    """Write what came back, note what it means, and return a line that says so."""
    title = f"{each[0].stem}, seed {each[1]}"
    if future.status in ("cancelled", "lost"):
        raise ConnectionError(f"{title} was cancelled")
    if error := future.exception():
        outcome.final.add(each)
        outcome.failures.append(f"{title}: {_in_a_sentence(error)}")
        return f"{title}: failed"
    returned: _Returned = future.result()
    done = f"{title}: {returned.seconds:.0f} s on {returned.worker} ({returned.threads} threads)"
    result = returned.files.get(_result_file(each, profile))
    if _to_measure(each[0], result) and (result is not None or not returned.failure):
        _write({name: content for name, content in returned.files.items() if name.startswith("scratch/")})
        _note_states(each, profile, returned.threads)
        outcome.to_measure[each] = returned.threads
        return f"{done}, to be measured here"
    _write(returned.files)
    outcome.final.add(each)
    outcome.failures.extend([returned.failure] if returned.failure else [])
    return f"{done}, failed" if returned.failure else done


def _in_a_sentence(error: BaseException) -> str:
    if type(error).__name__ == "KilledWorker":
        return "each worker that took it died; its machine may have run out of memory"
    return f"{type(error).__name__}: {error}".splitlines()[0]


def _to_measure(source: Path, result: bytes | None) -> bool:
    """Return whether a run is to be executed here as well: it reads other results, or its own hold a time."""
    from helpers.evidence import Result

    return bool(staleness.reads(source)) or (result is not None and Result.of(json.loads(result)).holds_times)


def _result_file(each: Run, profile: str) -> str:
    return f"results/{profile}/{each[0].stem}.seed{each[1]}.json"


def _write(files: Mapping[str, bytes]) -> None:
    """Write files under build/, the executed notebook last: only with it does a run count as done."""
    for name in sorted(files, key=lambda name: (name.startswith("notebooks/"), name)):
        paths.write_atomically(paths.build_dir() / name, files[name])


def _note(each: Run, profile: str) -> Path:
    return paths.build_dir() / "scratch" / profile / f"{each[0].stem}.seed{each[1]}" / "cluster.json"


def _note_states(each: Run, profile: str, threads: int) -> None:
    content = staleness.identity_of(each[0]) | {"threads": threads}
    paths.write_atomically(_note(each, profile), json.dumps(content).encode())


def _threads_of_states(each: Run, profile: str) -> int | None:
    """Return the threads with which this version of the notebook was trained on a cluster; None if it was not."""
    try:
        known = json.loads(_note(each, profile).read_bytes())
        threads = known.pop("threads")
    except (FileNotFoundError, ValueError, LookupError, TypeError, AttributeError):
        return None
    return threads if known == staleness.identity_of(each[0]) and isinstance(threads, int) else None


def _execute(name: str, profile: str, seed: int, identity: Mapping[str, str]) -> _Returned:
    """Execute a notebook in a build folder of its own and return all that it wrote there."""
    from distributed import get_worker

    worker = get_worker()
    threads = worker.state.nthreads
    with _ONE_AT_A_TIME:
        began = time.monotonic()
        paths.build_dir().mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f"cluster-{name}-", dir=paths.build_dir())).resolve()
        try:
            failure = _failure(name, profile, seed, identity, folder, threads)
            written = [path for path in folder.rglob("*") if path.is_file()]
            files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in written}
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    failure = re.sub(rf"\S*{folder.name}", "build", failure)  # the path of the traceback, here
    return _Returned(worker.address, threads, time.monotonic() - began, files, failure)


def _failure(name: str, profile: str, seed: int, identity: Mapping[str, str], folder: Path, threads: int) -> str:
    """Execute a notebook with `folder` as build/; return why it failed, or nothing."""
    try:
        source = chapters.find([name])[0]
        if staleness.identity_of(source) != identity:
            return f"{name}: a worker's clone has another version of it or of helpers; bring all to the same commit"
        for dataset in chapters.datasets(source):
            fetching.fetch(dataset)
        with pinned(threads, COURSE_BUILD_DIR=str(folder)):
            notebooks.execute(source, profile=profile, seed=seed)
    except (chapters.NotebookError, fetching.SourceError, ValueError) as error:
        return str(error)
    return ""
