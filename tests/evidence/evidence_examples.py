"""What several tests of `evidence` share."""

from helpers import evidence

NB = "02_prune_weights"
MACHINE = {"cpu": "a", "cores": 2}
PROVENANCE = {"seconds": 1, "started": "now", "torch": "2", "helpers_version": "0", "source_sha256": None}


def add(run, name="sparse", accuracy=0.99, size=None, file=None, base="dense", nonzero=10, macs=2_293_000, **more):
    """Record a small model; `size` makes a file of that many bytes."""
    if size is not None:
        file = run.scratch(f"{name}.pack")
        file.write_bytes(name.encode().ljust(size, b"."))
    run.model(
        name,
        task="mnist",
        method="magnitude",
        accuracy=accuracy,
        base=base,
        weights=100,
        nonzero=nonzero,
        macs=macs,
        file=file,
        **more,
    )


def timed(ratio, *, runtime="onnxruntime", batch=1, **more):
    """Return a record as `measure.latency_records` makes it."""
    interval = [0.9 * ratio, 1.1 * ratio]
    return {"runtime": runtime, "batch": batch, "ratio": ratio, "interval": interval, "verdict": "faster"} | more


def loaded(notebook, **which):
    """Return the results of a notebook that has some."""
    result = evidence.load(notebook, **which)
    assert result is not None
    return result


def finished(notebook=NB, profile="full", seed=0, claims=(), models=()):
    """Run and finish a notebook with claims (id, value, at_most, over_seeds) and models (keyword dicts)."""
    run = evidence.start(notebook, profile=profile, seed=seed)
    for id, value, bound, over_seeds in claims:
        run.claim(id, f"{id} is small", value, at_most=bound, over_seeds=over_seeds)
    for model in models:
        add(run, **model)
    run.finish()
    return loaded(notebook, profile=profile, seed=seed)


def recorded_model(name, accuracy, *, method="dense", base=None, size=1_000, **more):
    return {"name": name, "task": "mnist", "method": method, "split": "test", "accuracy": accuracy, "base": base,
            "weights": 400, "nonzero": 400, "macs": 900, "latency": [], "file_bytes": size} | more  # fmt: skip


def without_file(name, accuracy, **more):
    return {key: value for key, value in recorded_model(name, accuracy, **more).items() if key != "file_bytes"}


def clocked(ratio, *, runtime="onnxruntime", batch=1, interval=None):
    interval = interval or [ratio - 0.1, ratio + 0.1]
    return {
        "variant": "v",
        "runtime": runtime,
        "batch": batch,
        "ratio": ratio,
        "interval": interval,
        "verdict": "faster",
    }
