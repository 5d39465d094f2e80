"""Results read back, of this build or the published ones; where they lie; and the literature's."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from helpers.core import checks, paths
from helpers.core.paths import build_dir
from helpers.evidence.records import Result
from helpers.evidence.schema import PROFILES, refuse_constant

if TYPE_CHECKING:
    import pandas as pd


def settings(profile: str, *, smoke: dict, quick: dict, full: dict) -> SimpleNamespace:
    """Return the settings of `profile` as attributes; ValueError unless all profiles name the same ones."""
    tables = {"smoke": smoke, "quick": quick, "full": full}
    checks.choice("profile", profile, PROFILES)
    for name, table in tables.items():
        if table.keys() != smoke.keys():
            different = ", ".join(sorted(table.keys() ^ smoke.keys()))
            raise ValueError(f"{name} and smoke differ in {different}; allowed: the same names in each")
    return SimpleNamespace(**tables[profile])


def load(notebook: str, *, profile: str, seed: int = 0) -> Result | None:
    """Return a notebook's results: this machine's own (build) if there are any, else the published (data).

    Raises ValueError for an unknown profile, and for a file that is damaged.
    """
    checks.choice("profile", profile, PROFILES)
    for path in (build_file(notebook, profile, seed), data_file(notebook, profile, seed)):
        if path.exists():
            return read(path)
    return None


def read(path: Path) -> Result:
    """Return the results in a file that `Run.finish` wrote; ValueError, with what to do next, if it is damaged."""
    try:
        result = Result.of(json.loads(path.read_bytes(), parse_constant=refuse_constant))
        if path.name != f"{result.notebook}.seed{result.seed}.json":
            raise ValueError(f"it holds {result.notebook}, seed {result.seed}")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        advice = "restore it with git" if paths.RESULTS in path.parents else "delete it, and run the notebook again"
        raise ValueError(f"{_shown(path)} is damaged ({type(error).__name__}: {error}); {advice}") from error
    return result


def published(notebook: str) -> list[Result]:
    """Return the published full results of `notebook`, one for each seed."""
    return results_in(paths.RESULTS / "full", notebook)


def measurements(notebook: str, key: str, *, profile: str = "full") -> dict[int, Any]:
    """Return what each run of `notebook` recorded as `key`, by seed; this machine's own (build) go first."""
    checks.choice("profile", profile, PROFILES)
    folders = (paths.RESULTS / profile, build_dir() / "results" / profile)
    found = {result.seed: result.measurements for folder in folders for result in results_in(folder, notebook)}
    return {seed: found[seed][key] for seed in sorted(found) if key in found[seed]}


def literature(task: str, *, model: str | None = None) -> "pd.DataFrame":
    """Return the reference results of `task`; `seen` is False where a row was not read in its own paper."""
    import pandas as pd

    rows = pd.DataFrame(literature_file())
    checks.choice("task", task, sorted(set(rows["task"])))
    rows = rows[rows["task"] == task]
    if model is not None:
        checks.choice("model", model, sorted(set(rows["model"])))
        rows = rows[rows["model"] == model]
    return rows.dropna(axis="columns", how="all").reset_index(drop=True)


def build_file(notebook: str, profile: str, seed: int) -> Path:
    """Return where a run's results lie in build, existing or not; ValueError as `build_dir` raises it."""
    return build_dir() / "results" / profile / f"{notebook}.seed{seed}.json"


def data_file(notebook: str, profile: str, seed: int) -> Path:
    """Return where a run's published results lie in data, existing or not."""
    return paths.RESULTS / profile / f"{notebook}.seed{seed}.json"


def results_in(folder: Path, notebook: str = "*", damaged: list[str] | None = None) -> list[Result]:
    """Return a folder's results by notebook and seed; ValueError if one is damaged, or a message in `damaged`."""
    found = []
    for path in sorted(folder.glob(f"{notebook}.seed*.json")):
        try:
            found.append(read(path))
        except ValueError as error:
            if damaged is None:
                raise
            damaged.append(str(error))
    return sorted(found, key=lambda r: (r.notebook, r.seed))


def recorded(*, build: bool = True, damaged: list[str] | None = None) -> list[tuple[str, list[Result]]]:
    """Return (source, its results, one per seed) for each notebook and profile (no smoke), quick ones first.

    The source is "data" (published) or, with `build`, "build" (this machine's own): the one with more seeds, of
    equally many this machine's own. The two are never mixed. Raises ValueError for a damaged file; where there is a
    list `damaged`, it gets that sentence instead, and the file is left out.
    """
    folders = {"build": build_dir() / "results"} if build else {}
    folders["data"] = paths.RESULTS
    found: dict[tuple[str, str], tuple[str, list[Result]]] = {}
    for profile in ("quick", "full"):
        for source, folder in folders.items():
            of_notebook: dict[str, list[Result]] = {}
            for result in results_in(folder / profile, damaged=damaged):
                of_notebook.setdefault(result.notebook, []).append(result)
            for notebook, seeds in of_notebook.items():
                _, before = found.get((profile, notebook), ("", []))
                if len(seeds) > len(before):
                    found[profile, notebook] = source, seeds
    return list(found.values())


def literature_file() -> list[dict[str, Any]]:
    """Return the rows of data/literature.json; ValueError if it is damaged, FileNotFoundError if missing."""
    path = paths.DATA / "literature.json"
    try:
        return json.loads(path.read_bytes())["rows"]
    except (ValueError, LookupError, TypeError) as error:
        raise ValueError(f"{_shown(path)} is damaged ({error}); restore it with git") from error


def _shown(path: Path) -> str:
    return str(path.relative_to(paths.ROOT)) if paths.ROOT in path.parents else str(path)
