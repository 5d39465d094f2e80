"""From build/ to data/: what is whole, small enough, and holds over its seeds."""

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from helpers.core import paths
from helpers.core.paths import build_dir, sha256, write_atomically
from helpers.evidence import checksums
from helpers.evidence.claims import MIN_SEEDS, decided
from helpers.evidence.reading import build_file, data_file, read, results_in
from helpers.evidence.records import Claim, Result
from helpers.evidence.schema import ClaimError, dump, number

MAX_FILE_BYTES = 6_000_000
MAX_FILES_BYTES = 30_000_000


def promote_quick(notebook: str) -> Path:
    """Copy this machine's quick results of seed 0 into data/results/quick and return the new file.

    Model files stay in build: only those of full runs are published. Raises FileNotFoundError if there are no
    such results, ClaimError if one of their claims does not hold.
    """
    path = build_file(notebook, "quick", 0)
    if not path.exists():
        raise FileNotFoundError(f"{notebook} has no quick results of seed 0 in build; run it first")
    result = read(path)
    _require_claims([result])
    target = data_file(notebook, "quick", 0)
    write_atomically(target, dump(_published(result, []).record()))
    return target


def publish(notebook: str | None = None) -> list[str]:
    """Copy finished full runs from build into data, and return sentences that say what was published.

    All seeds of a notebook go together, or none does: a seed left out because its claim failed would be
    cherry-picking. They are of one source, of the same helpers and libraries, and state the same claims. A claim over
    seeds is checked on the mean over all published seeds, and "not yet decided" below three. Of seed 0, the model files
    on the notebook's own accuracy/bytes front go to data/models, except those above 6 MB. Raises ClaimError naming each
    claim that does not hold, ValueError for seeds that differ in more than what they measured, for a file that changed
    since it was recorded or for more than 30 MB in all; then nothing of that notebook is published.
    """
    folder = build_dir() / "results" / "full"
    notebooks = [notebook] if notebook else sorted({r.notebook for r in results_in(folder)})
    if not notebooks or not all(results_in(folder, name) for name in notebooks):
        raise FileNotFoundError(f"{notebook or 'no notebook'} has no full results in build; run it first")
    return [line for name in notebooks for line in _publish_one(name, results_in(folder, name))]


def _publish_one(notebook: str, new: list[Result]) -> list[str]:
    seeds = {r.seed: r for r in [*results_in(paths.RESULTS / "full", notebook), *new]}
    results = [seeds[seed] for seed in sorted(seeds)]
    _require_one_source(notebook, results)
    _require_claims(new)
    over_seeds = dict.fromkeys(c.id for result in results for c in result.claims if c.over_seeds)
    outcomes = [_over_seeds(id, results) for id in over_seeds]
    broken = [f"over seeds, {line}" for line, holds in outcomes if holds is False]
    if broken:
        raise ClaimError(f"{notebook}: " + "; ".join(broken))
    files = [file for result in new for file in _files_to_publish(result)]
    _require_room(files)
    for target, content in files:
        write_atomically(target, content)
    written = [data_file(notebook, "full", result.seed) for result in new]
    for target, result in zip(written, new, strict=True):
        write_atomically(target, dump(_published(result, files).record()))
    checksums.enter([*written, *(target for target, _ in files)])
    said = [f"{notebook}: published for n = {len(seeds)}, seeds: {', '.join(map(str, sorted(seeds)))}."]
    return said + [f"  {line}" for line, _ in outcomes]


def differences(results: Sequence[Result]) -> list[str]:
    """Return in what seeds of one notebook differ that they should share: source, helpers, libraries, claims."""
    found = []
    for key in ("source_sha256", "helpers_sha256", "versions"):
        if len({json.dumps(r.provenance.get(key), sort_keys=True) for r in results}) > 1:
            found.append({"source_sha256": "source", "helpers_sha256": "helpers"}.get(key, key))
    stated = [{claim.id: _stated(claim) for claim in r.claims} for r in results]
    ids = dict.fromkeys(id for claims in stated for id in claims)
    return found + [f"claim {id!r}" for id in ids if len({claims.get(id) for claims in stated}) > 1]


def _stated(claim: Claim) -> tuple[Any, ...]:
    """Return what a claim says before anything is measured; the digits in its text may be measured ones."""
    return re.sub(r"[\d.,]+", "#", claim.text), claim.side, claim.bound, claim.over_seeds


def _require_one_source(notebook: str, results: list[Result]) -> None:
    if different := differences(results):
        seeds = ", ".join(str(r.seed) for r in results)
        raise ValueError(
            f"{notebook}: seeds {seeds} differ in {', '.join(different)}; allowed: seeds of the same code and claims. "
            "Run all of them again (python -m helpers course --profile full --again)"
        )


def _over_seeds(id: str, results: list[Result]) -> tuple[str, bool | None]:
    claims = [claim for result in results for claim in result.claims if claim.id == id]
    (mean, std, n), holds = decided(claims)
    outcome = {True: "holds", False: "does not hold", None: f"not yet decided, needs {MIN_SEEDS} seeds"}[holds]
    spread = f" ± {number(std)}" if n > 1 else ""
    measured = f"{number(mean)}{spread} (n = {n})"
    return (
        f"{id}: {outcome}. {claims[-1].text} — measured {measured}, claimed {claims[-1].bound_text}.",
        holds,
    )


def _require_claims(results: list[Result]) -> None:
    broken = [
        f"{r.notebook} seed {r.seed}, {c.failure}"
        for r in results
        for c in r.claims
        if c.holds is False and not c.over_seeds
    ]
    if broken:
        raise ClaimError("; ".join(broken))


def _files_to_publish(result: Result) -> list[tuple[Path, bytes]]:
    """Return (target, content) of the model files to publish: those on the front of a seed-0 result."""
    if result.seed != 0:
        return []
    stored = [m for m in result.models if m.file and m.file_bytes and m.file_bytes <= MAX_FILE_BYTES]
    files = []
    for model in stored:
        if any(other.beats(model) for other in stored):
            continue
        source = build_dir() / str(model.file)
        content = source.read_bytes() if source.exists() else b""
        if sha256(content) != model.file_sha256:
            raise ValueError(f"{model.file} is not what {result.notebook} recorded; run it again")
        files.append((paths.DATA / "models" / source.name, content))
    return files


def _require_room(files: list[tuple[Path, bytes]]) -> None:
    replaced = {target for target, _ in files}
    kept = [p.stat().st_size for p in (paths.DATA / "models").glob("*") if p not in replaced]
    total = sum(kept) + sum(len(content) for _, content in files)
    if total > MAX_FILES_BYTES:
        raise ValueError(f"data/models would hold {total:,} bytes; allowed: {MAX_FILES_BYTES:,}")


def _published(result: Result, files: list[tuple[Path, bytes]]) -> Result:
    """Return a result whose models name the files that are published with it, and no others."""
    names = {target.name for target, _ in files}
    kept = [Path(model.file).name if model.file else "" for model in result.models]
    models = [
        replace(model, file=f"models/{name}" if name in names else None)
        for model, name in zip(result.models, kept, strict=True)
    ]
    return replace(result, models=models)
