"""From notebooks/src/*.py (jupytext percent) to executed notebooks, and back to the question what is stale.

Standard library only at import; jupytext, papermill and nbgrader are loaded by the functions that need them.
"""

import ast
import hashlib
import json
import os
import re
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from helpers import checks, environment, paths

if TYPE_CHECKING:
    from nbformat import NotebookNode

__all__ = [
    "NotebookError",
    "build",
    "datasets",
    "execute",
    "find",
    "identity",
    "is_done",
    "kernel_environment",
    "modules_sha256",
    "provenance",
    "publish",
    "sources",
    "stale",
    "student",
]

HELPERS = paths.ROOT / "helpers"
BUILT = paths.NOTEBOOKS
SOURCES = paths.NOTEBOOKS / "src"
MAX_BYTES = 1_000_000
START_SECONDS = 60  # that a kernel has for its first answer
# Set-up and building: nothing that a notebook measures depends on them, so a change there makes none stale.
NOT_HASHED = {"__init__", "environment", "notebooks"}
# The file that a cell's code pretends to come from; macOS puts /private before its temporary folder.
CELL_FILE = re.compile(rf"(?:/private)?{re.escape(tempfile.gettempdir())}[/\\]ipykernel_\d+[/\\]\d+\.py")
SHOWN = re.compile(r"results\.(?:measurements|load)\(\"(\w+)\"")  # the notebook whose results are read
PROGRESS = re.compile(r"\d+%\|.*\||\d+it \[")  # what tqdm writes
LANGUAGE = {
    "codemirror_mode": {"name": "ipython", "version": 3},
    "file_extension": ".py",
    "mimetype": "text/x-python",
    "name": "python",
    "pygments_lexer": "ipython3",
}


class NotebookError(Exception):
    """A notebook cannot be built or did not run to its end; the message names it, the cell and the error."""


# ---------------------------------------------------------------- sources


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


def datasets(source: Path) -> list[str]:
    """Return the datasets that a notebook mentions by calling a function of `data` that loads them."""
    code = source.read_text(encoding="utf-8")
    loaders = {"mnist": "mnist", "cifar10": "cifar10|cifar10_without_cat_and_dog|cat_or_dog", "imdb": "imdb"}
    return [name for name, functions in loaders.items() if re.search(rf"\b({functions})\(", code)]


def build(source: Path) -> "NotebookNode":
    """Return the notebook of a source, not executed: with a kernel, stable cell ids, and collapsed solutions.

    Raises NotebookError unless exactly one cell has the tag `parameters`.
    """
    notebook = _read(source)
    if sum("parameters" in cell.metadata.get("tags", []) for cell in notebook.cells) != 1:
        raise NotebookError(f"{source.stem}: exactly one cell must have the tag parameters")
    for cell in notebook.cells:
        if "### BEGIN SOLUTION" in cell.source:
            cell.metadata["jupyter"] = {"source_hidden": True}
            cell.metadata["tags"] = [*cell.metadata.get("tags", []), "solution"]
    return notebook


def student(source: Path, folder: Path) -> Path:
    """Write the student version of a source into `folder`: nbgrader puts a stub in place of each solution."""
    import nbformat
    from nbgrader.preprocessors import ClearSolutions

    cleared, _ = ClearSolutions(enforce_metadata=False).preprocess(_read(source), {})
    path = folder / f"{source.stem}.ipynb"
    paths.write_atomically(path, (nbformat.writes(cleared) + "\n").encode())
    return path


# ---------------------------------------------------------------- execution


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
    """Return whether this version of the source has run to its end with this profile and seed, and can be read."""
    path = _executed(source, profile, seed)
    results = paths.build_dir() / "results" / profile / f"{source.stem}.seed{seed}.json"
    return _is_whole(results) and _recorded(path).get("source_sha256") == paths.text_sha256(source)


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
    paths.write_atomically(BUILT / name, content)
    return BUILT / name


# ---------------------------------------------------------------- what is stale


def stale() -> dict[str, str]:
    """Return why each notebook in notebooks/ that is not up to date is not, by its name."""
    built = {path.stem for path in BUILT.glob("*.ipynb")}
    gone = {name: "has no source" for name in built - {path.stem for path in sources()}}
    reasons = {source.stem: _why_stale(source) for source in sources()}
    return {name: reason for name, reason in sorted((reasons | gone).items()) if reason}


def modules_sha256(names: Iterable[str]) -> str:
    """Return the SHA-256 of the code of these helpers modules and of those that they import, directly or not.

    Docstrings, comments and layout do not count, nor do the modules that only set up and build.
    """
    code = "\n".join(f"{name}: {_canonical_code(_code(name))}" for name in sorted(_closure(names)))
    return hashlib.sha256(code.encode()).hexdigest()


def identity(source: Path) -> dict[str, str]:
    """Return the SHA-256 of a source and of the code of the helpers that it imports."""
    return {
        "source_sha256": paths.text_sha256(source),
        "helpers_sha256": modules_sha256(_imported(source.read_bytes())),
    }


def provenance(source: Path, *, profile: str, seed: int) -> dict[str, Any]:
    """Return what a built notebook's metadata say: source, code, results read, profile, seed, versions, machine."""
    return {
        **identity(source),
        "results_sha256": _results_sha256(source),
        "profile": profile,
        "seed": seed,
        "versions": environment.versions(),
        "machine": environment.machine(),
    }


# ---------------------------------------------------------------- private: reading


def _padded(name: str) -> str:
    return name.zfill(2) if name.isdigit() else Path(name).stem


def _read(source: Path) -> "NotebookNode":
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


def _executed(source: Path, profile: str, seed: int) -> Path:
    suffix = f".seed{seed}" if seed else ""
    return paths.build_dir() / "notebooks" / profile / f"{source.stem}{suffix}.ipynb"


def _recorded(path: Path) -> dict[str, Any]:
    """Return the provenance in the metadata of a notebook that ran to its end and is whole, an empty dict otherwise."""
    try:
        recorded = json.loads(path.read_bytes())["metadata"]["course"]
    except (FileNotFoundError, ValueError, LookupError, TypeError):
        return {}
    return recorded if isinstance(recorded, dict) else {}


def _is_whole(results_file: Path) -> bool:
    from helpers import results

    try:
        results.read(results_file)
    except (FileNotFoundError, ValueError):
        return False
    return True


# ---------------------------------------------------------------- private: executing


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
            cwd=SOURCES.parent,
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
        raise NotebookError(f"{source.stem}: {environment.in_words(error)}") from error
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


# ---------------------------------------------------------------- private: what is stored


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


# ---------------------------------------------------------------- private: hashes


def _why_stale(source: Path) -> str:
    path = BUILT / f"{source.stem}.ipynb"
    if not path.exists():
        return "is not built"
    recorded = _recorded(path)
    if not recorded:
        return "holds no provenance: it is damaged, or was not built here"
    if recorded.get("source_sha256") != paths.text_sha256(source):
        return "is older than its source"
    if recorded.get("helpers_sha256") != modules_sha256(_imported(source.read_bytes())):
        return "was built with other helpers"
    if recorded.get("results_sha256", "") != _results_sha256(source):
        return "shows other results than those in data"
    if not _gives_published_time(source, path):
        return "gives another time for the full profile than the results"
    return ""


def _gives_published_time(source: Path, built: Path) -> bool:
    from helpers import results

    if "results.timetable(" not in source.read_text(encoding="utf-8"):
        return True
    return results.timetable(source.stem).partition("*full*")[2] in built.read_text(encoding="utf-8")


def _results_sha256(source: Path) -> str:
    """Return the SHA-256 of the results in data that a notebook shows and has not just made; "" if it shows none.

    A notebook with `board` shows all; others those that they name in `results.measurements` or `results.load`.
    """
    from helpers import results

    code = source.read_bytes()
    names = "*" if "board" in _imported(code) else set(SHOWN.findall(code.decode()))
    files = [path for name in sorted(names) for path in sorted(paths.RESULTS.glob(f"*/{name}.*"))]
    found = [results.read(path) for path in files]
    shown = [
        [each[part] for part in ("models", "claims", "measurements")]
        for each in found
        if each["notebook"] != source.stem or each["profile"] == "full"
    ]
    return hashlib.sha256(json.dumps(shown).encode()).hexdigest() if shown else ""


def _code(name: str) -> bytes:
    return (HELPERS / f"{name}.py").read_bytes()


def _closure(names: Iterable[str]) -> set[str]:
    """Return these modules and all that they import from helpers, at the top or inside functions."""
    found: set[str] = set()
    waiting = set(names) - NOT_HASHED
    while waiting:
        name = waiting.pop()
        found.add(name)
        waiting |= _imported(_code(name)) - found - NOT_HASHED
    return found


def _imported(code: bytes) -> set[str]:
    """Return the helpers modules that `code` imports, wherever the statement stands."""
    return {name for name in _named(code) if (HELPERS / f"{name}.py").exists()}


@cache  # sixteen notebooks import the same twenty modules
def _named(code: bytes) -> frozenset[str]:
    """Return what `code` imports from helpers, modules and other names."""
    dotted: set[str] = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            dotted |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = "helpers" if node.level else node.module or ""
            module = f"helpers.{node.module}" if node.level and node.module else package
            dotted |= {module} | {f"{module}.{alias.name}" for alias in node.names}
    return frozenset(name.split(".")[1] for name in dotted if name.startswith("helpers."))


@cache
def _canonical_code(code: bytes) -> str:
    return _canonical(ast.parse(code))


def _canonical(node: Any) -> str:
    """Return a text of a syntax tree that is the same in every Python version; docstrings are left out."""
    if isinstance(node, list):
        return f"[{','.join(map(_canonical, node))}]"
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = dict(ast.iter_fields(node))
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        fields["body"] = node.body[1:] if ast.get_docstring(node, clean=False) is not None else node.body
    kept = (f"{name}={_canonical(value)}" for name, value in fields.items() if value not in (None, []))
    return f"{type(node).__name__}({','.join(kept)})"
