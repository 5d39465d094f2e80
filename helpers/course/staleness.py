"""Which stored notebooks are older than their source, the helpers or the results that they show."""

import json
import re
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

from helpers.core import identity, paths, system
from helpers.course import chapters
from helpers.course.chapters import NotebookError

HELPERS = paths.ROOT / "helpers"
HEADER = re.compile(r"# ---\n(.*?)# ---\n", re.DOTALL)  # of a source: YAML in comments


def stale() -> dict[str, str]:
    """Return why each notebook in notebooks/ that is not up to date is not, by its name."""
    built = {path.stem for path in chapters.BUILT.glob("*.ipynb")}
    gone = {name: "has no source" for name in built - {path.stem for path in chapters.sources()}}
    reasons = {source.stem: _why_stale(source) for source in chapters.sources()}
    return {name: reason for name, reason in sorted((reasons | gone).items()) if reason}


def stale_results() -> dict[str, str]:
    """Return why the published full results of a notebook are not those of its present code, by their names."""
    from helpers import evidence

    reasons = {}
    for path in sorted((paths.RESULTS / "full").glob("*.json")):
        name, recorded = path.name.partition(".")[0], evidence.read(path).provenance
        source = chapters.SOURCES / f"{name}.py"
        if not source.exists():
            reasons[path.stem] = "have no source"
        elif recorded["source_sha256"] != paths.text_sha256(source):
            reasons[path.stem] = "are older than the source"
        elif recorded.get("helpers_sha256") != identity.of_notebook(source, package=HELPERS):
            reasons[path.stem] = "were measured with other helpers"
    return reasons


def identity_of(source: Path) -> dict[str, str]:
    """Return the SHA-256 of a source and of the code of the helpers that it uses, its exercises included."""
    return {"source_sha256": paths.text_sha256(source), "helpers_sha256": identity.of_notebook(source, package=HELPERS)}


def reads(source: Path) -> list[str]:
    """Return whose published results a source shows: names of notebooks, or "all", as its header declares.

    In the header, under `jupyter`, stands `reads: [15_combine]`. Raises NotebookError for anything else than a list of
    names.
    """
    import yaml

    header = HEADER.match(source.read_text(encoding="utf-8"))
    try:
        fields = yaml.safe_load(header[1].replace("# ", "")) if header else {}
        named = fields.get("jupyter", {}).get("reads", [])
    except (yaml.YAMLError, AttributeError) as error:
        raise NotebookError(f"{source.stem}: its header is damaged ({error})") from error
    if not isinstance(named, list) or not all(isinstance(name, str) for name in named):
        raise NotebookError(f"{source.stem}: reads={named!r} in the header; allowed: a list of notebooks, or [all]")
    return named


def provenance(source: Path, *, profile: str, seed: int) -> dict[str, Any]:
    """Return what a built notebook's metadata say: source, code, results read, profile, seed, versions, machine."""
    return {
        **identity_of(source),
        "results_sha256": _results_sha256(source),
        "profile": profile,
        "seed": seed,
        "versions": system.versions(),
        "machine": system.machine(),
    }


def recorded_in(path: Path) -> dict[str, Any]:
    """Return the provenance in the metadata of a notebook that ran to its end and is whole, an empty dict otherwise."""
    try:
        recorded = json.loads(path.read_bytes())["metadata"]["course"]
    except (FileNotFoundError, ValueError, LookupError, TypeError):
        return {}
    return recorded if isinstance(recorded, dict) else {}


def _why_stale(source: Path) -> str:
    path = chapters.BUILT / f"{source.stem}.ipynb"
    if not path.exists():
        return "is not built"
    recorded = recorded_in(path)
    if not recorded:
        return "holds no provenance: it is damaged, or was not built here"
    if recorded.get("source_sha256") != paths.text_sha256(source):
        return "is older than its source"
    if recorded.get("helpers_sha256") != identity.of_notebook(source, package=HELPERS):
        return "was built with other helpers"
    if recorded.get("results_sha256", "") != _results_sha256(source):
        return "shows other results than those in data"
    if not _gives_published_time(source, path):
        return "gives another time for the full profile than the results"
    return ""


def in_reading_order(sources: list[Path]) -> list[Path]:
    """Return sources by number, but those that show the results of others after these; NotebookError for a circle."""
    by_name = {source.stem: source for source in sources}
    shown = {name: by_name.keys() if "all" in reads(source) else reads(source) for name, source in by_name.items()}
    sorter = TopologicalSorter({name: {*names} & by_name.keys() - {name} for name, names in shown.items()})
    ordered: list[str] = []
    try:
        sorter.prepare()
    except CycleError as error:
        raise NotebookError(f"notebooks show each other's results: {' → '.join(error.args[1])}") from None
    while sorter.is_active():
        ready = sorted(sorter.get_ready())
        ordered += ready
        sorter.done(*ready)
    return [by_name[name] for name in ordered]


def _gives_published_time(source: Path, built: Path) -> bool:
    from helpers import evidence

    if "evidence.timetable(" not in source.read_text(encoding="utf-8"):
        return True
    return evidence.timetable(source.stem).partition("*full*")[2] in built.read_text(encoding="utf-8")


def _results_sha256(source: Path) -> str:
    """Return the SHA-256 of the results in data that a notebook shows and has not just made; "" if it shows none.

    The titles of all chapters count where it lists them, the records of tools where it reads them.
    """
    from helpers import evidence

    names = {"*" if name == "all" else name for name in reads(source)}
    files = [path for name in sorted(names) for path in sorted(paths.RESULTS.glob(f"*/{name}.*"))]
    found = [evidence.read(path) for path in files]
    shown = [
        [each.record()[part] for part in ("models", "claims", "measurements")]
        for each in found
        if each.notebook != source.stem or each.profile == "full"
    ]
    code = source.read_text(encoding="utf-8")
    titles = [chapters.curriculum()] if "chapters.curriculum(" in code else []
    stored = sorted(paths.TOOLS.glob("*.json")) if "tools.read(" in code else []
    listed = [*shown, *titles, *(json.loads(path.read_bytes()) for path in stored)]
    return paths.sha256(json.dumps(listed).encode()) if listed else ""
