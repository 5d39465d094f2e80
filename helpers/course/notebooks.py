"""From notebooks/src/*.py (jupytext percent) to executed notebooks, and back to the question what is stale.

Standard library only at import; jupytext, papermill and nbgrader are loaded by the functions that need them.
"""

import hashlib
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from helpers.core import paths
from helpers.course import chapters, setup
from helpers.course.chapters import NotebookError
from helpers.course.staleness import identity_of, provenance, recorded_in

if TYPE_CHECKING:
    from nbformat import NotebookNode

MAX_BYTES = 1_000_000
START_SECONDS = 60  # that a kernel has for its first answer
# The file that a cell's code pretends to come from; macOS puts /private before its temporary folder.
CELL_FILE = re.compile(rf"(?:/private)?{re.escape(tempfile.gettempdir())}[/\\]ipykernel_\d+[/\\]\d+\.py")
PROGRESS = re.compile(r"\d+%\|.*\||\d+it \[")  # what tqdm writes
LANGUAGE = {
    "codemirror_mode": {"name": "ipython", "version": 3},
    "file_extension": ".py",
    "mimetype": "text/x-python",
    "name": "python",
    "pygments_lexer": "ipython3",
}


def build(source: Path) -> "NotebookNode":
    """Return the notebook of a source, not executed: with a kernel and stable cell ids, solutions and plumbing folded.

    Raises NotebookError unless exactly one cell has the tag `parameters`.
    """
    notebook = read_source(source)
    if sum("parameters" in cell.metadata.get("tags", []) for cell in notebook.cells) != 1:
        raise NotebookError(f"{source.stem}: exactly one cell must have the tag parameters")
    for cell in notebook.cells:
        tags = cell.metadata.get("tags", [])
        if "### BEGIN SOLUTION" in cell.source:
            cell.metadata["tags"] = tags = [*tags, "solution"]
        if {"solution", "plumbing"} & {*tags}:
            cell.metadata["jupyter"] = {"source_hidden": True}
    return notebook


def read_source(source: Path) -> "NotebookNode":
    """Return a source as a notebook with a kernel and stable cell ids; nothing is folded."""
    import jupytext

    notebook = jupytext.read(source, fmt="py:percent")
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": dict(LANGUAGE),
    }
    seen: dict[str, int] = {}
    for cell in notebook.cells:
        cell.metadata.pop("lines_to_next_cell", None)
        # An id follows from the content: an edit changes one, and the diff stays small.
        digest = hashlib.sha256(f"{cell.cell_type}\n{cell.source}".encode()).hexdigest()[:8]
        seen[digest] = seen.get(digest, 0) + 1
        cell["id"] = digest if seen[digest] == 1 else f"{digest}-{seen[digest]}"
    return notebook


def execute(source: Path, *, profile: str, seed: int = 0, progress: Mapping[str, Any] | None = None) -> Path:
    """Execute a notebook with papermill and return where it lies: build/notebooks/<profile>/.

    PROFILE and SEED are injected as parameters. `progress` are options of tqdm for a bar that counts cells. A
    notebook that fails is kept there as well, with its traceback. Raises NotebookError.
    """
    path = _executed(source, profile, seed)
    with kernel_environment(COURSE_PROFILE=profile):
        _run(source, path, parameters={"PROFILE": profile, "SEED": seed}, progress=progress)
    return path


def is_done(source: Path, *, profile: str, seed: int) -> bool:
    """Return whether source and helpers, as they are, have run to their end with this profile and seed, readably."""
    path = _executed(source, profile, seed)
    results = paths.build_dir() / "results" / profile / f"{source.stem}.seed{seed}.json"
    return _is_whole(results) and identity_of(source).items() <= recorded_in(path).items()


def publish(source: Path, *, progress: Mapping[str, Any] | None = None) -> Path:
    """Execute a notebook in quick, with seed 0, and store it in notebooks/, outputs included.

    Raises NotebookError.
    """
    name = f"{source.stem}.ipynb"
    executed = paths.build_dir() / "notebooks" / "publish" / name
    with kernel_environment(COURSE_PROFILE="quick"):  # no injected cell: the defaults are what a reader sees
        _run(source, executed, parameters={}, progress=progress)
    content = executed.read_bytes()
    if len(content) >= MAX_BYTES:
        raise NotebookError(f"{source.stem} has {len(content):,} bytes; allowed: less than {MAX_BYTES:,}")
    paths.write_atomically(chapters.BUILT / name, content)
    return chapters.BUILT / name


def _executed(source: Path, profile: str, seed: int) -> Path:
    suffix = f".seed{seed}" if seed else ""
    return paths.build_dir() / "notebooks" / profile / f"{source.stem}{suffix}.ipynb"


def _is_whole(results_file: Path) -> bool:
    from helpers import evidence

    try:
        evidence.read(results_file)
    except (FileNotFoundError, ValueError):
        return False
    return True


@contextmanager
def kernel_environment(**variables: str) -> Iterator[None]:
    """Set the variables that every kernel of the course gets, and further ones, inside the block."""
    wanted = {
        "COURSE_BUILD_DIR": str(paths.build_dir().resolve()),  # a kernel has another working directory
        "COURSE_DATA_DIR": str(paths.raw_dir().resolve()),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(paths.ROOT), os.environ.get("PYTHONPATH")])),
        "TQDM_DISABLE": "1",  # a bar inside a stored output is litter
        **variables,
    }
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _run(source: Path, path: Path, *, parameters: dict[str, Any], progress: Mapping[str, Any] | None) -> None:
    """Execute a source into `path`, which gets the provenance only if the notebook ran to its end."""
    import nbformat
    import papermill
    from nbclient.exceptions import DeadKernelError

    _check_interpreter(source.stem)
    running = path.with_name(f".{path.name}")
    profile, seed = os.environ["COURSE_PROFILE"], parameters.get("SEED", 0)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        record = provenance(source, profile=profile, seed=seed)  # before: the source may be edited meanwhile
        executed = papermill.execute_notebook(
            build(source),
            re.sub(r"[{}]", r"\g<0>\g<0>", str(running)),  # papermill fills in what stands between braces
            parameters=parameters,
            cwd=chapters.SOURCES.parent,
            start_timeout=START_SECONDS,
            kernel_manager_class=_this_python(),
            progress_bar=dict(progress) if progress else False,
            request_save_on_cell_execute=False,  # seconds, all in all; a failed notebook is saved nevertheless
            extra_arguments=["--log-level=CRITICAL"],  # no warnings about loopback, no noise on Ctrl-C
        )
        executed.metadata["course"] = record
        nbformat.write(_tidy(executed), running)
        running.replace(path)
    except papermill.PapermillExecutionError as error:
        running.replace(path)
        raise NotebookError(_failure(source.stem, error, path)) from error
    except DeadKernelError as error:
        raise NotebookError(f"{source.stem}: its kernel died; the machine may have run out of memory") from error
    except RuntimeError as error:  # "Kernel died before replying", "Kernel didn't respond in 60 seconds"
        raise NotebookError(f"{source.stem}: its kernel did not start ({error}); try {_kernel()} --help") from error
    except OSError as error:
        raise NotebookError(f"{source.stem}: {setup.in_words(error)}") from error
    finally:
        with suppress(OSError):
            running.unlink(missing_ok=True)


def _kernel() -> str:
    return f"{sys.executable} -m ipykernel_launcher"


def _check_interpreter(name: str) -> None:
    if not sys.executable or not Path(sys.executable).exists():
        raise NotebookError(
            f"{name}: its interpreter is gone ({sys.executable!r}); run the command with another Python"
        )


def _this_python() -> type:
    """Return a kernel manager that starts the Python that runs now, whichever kernels are installed on the machine."""
    from jupyter_client.kernelspec import KernelSpecManager
    from jupyter_client.manager import AsyncKernelManager

    class ThisPython(AsyncKernelManager):
        def _kernel_spec_manager_default(self) -> KernelSpecManager:
            return KernelSpecManager(
                parent=self, kernel_dirs=[]
            )  # then "python3" is ipykernel's own, of sys.executable

    return ThisPython


def _failure(name: str, error: Any, path: Path) -> str:
    first = next((line for line in error.source.splitlines() if line.strip()), "")
    place = path.relative_to(paths.ROOT) if paths.ROOT in path.parents else path
    said = f"{error.ename}: {error.evalue}".strip().splitlines()[0][:400]
    return f"{name}, cell [{error.exec_count}] ({first.strip()[:60]}): {said}\n  The whole traceback: {place}"


def _tidy(notebook: "NotebookNode") -> "NotebookNode":
    """Drop what differs from run to run, progress bars, and this machine's paths."""
    notebook.metadata["language_info"] = dict(LANGUAGE)
    notebook.metadata.pop("papermill", None)
    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        for key in ("papermill", "execution"):
            cell.metadata.pop(key, None)
        if not cell.metadata.get("tags", True):
            del cell.metadata["tags"]
        if cell.cell_type == "code":
            cell.outputs = [_without_paths(output) for output in cell.outputs if not _is_bar(output)]
    return notebook


def _is_bar(output: "NotebookNode") -> bool:
    """Return whether an output is only a progress bar; take the bars out of it if there is more."""
    if output.output_type != "stream":
        return any("widget-view" in kind for kind in output.get("data", {}))
    if output.name == "stderr":
        lines = re.split(r"(?<=[\r\n])", output.text)
        output.text = "".join(line for line in lines if line.strip() and not PROGRESS.search(line))
    return not output.text


def _without_paths(value: Any) -> Any:
    """Return an output whose paths do not show this machine: relative to the project, or to ~."""
    if isinstance(value, dict):
        for key, inner in value.items():
            value[key] = inner if str(key).startswith("image/") else _without_paths(inner)
        return value
    if isinstance(value, list):
        return [_without_paths(inner) for inner in value]
    if not isinstance(value, str):
        return value
    value = value.replace(f"{paths.ROOT}{os.sep}", "").replace(str(paths.ROOT), ".").replace(str(Path.home()), "~")
    return CELL_FILE.sub("<cell>", value)
