"""Two processes that torchrun starts, against one: `helpers.training.devices`."""

import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from helpers import data, training
from helpers.core import paths
from helpers.training import devices

OPTIONS = {"epochs": 3, "lr": 0.1, "batch_size": 16, "seed": 4}
TRAINED = """
import os, sys
from pathlib import Path
import torch
from helpers import training
from helpers.training import devices
from tests.training.test_torchrun import OPTIONS, Forked, examples, network, odd

folder = Path(sys.argv[1])
assert devices.count() == 2
torch.set_num_threads(1)

class Killed(Exception):
    pass

def die(model, at):
    if at.step == 6:  # of 4 an epoch: the state of the first epoch is there
        raise Killed

def mine(*, make=network, **options):
    net = make(**options)
    if os.environ["RANK"] == "1":  # all begin with the first process's weights
        for parameter in net.parameters():
            parameter.data.add_(1)
    return net

def train(name, **options):
    always = {"validation": examples(), "progress": False, "checkpoint": state}
    fitted = devices.fit(mine(**options), examples(), **always, **OPTIONS)
    rows = [(row["loss"], row["validation"]) for row in fitted.history]
    rank = torch.distributed.get_rank()
    torch.save({"weights": fitted.model.state_dict(), "rows": rows}, folder / f"{name}{rank}.pt")

state = folder / "state.pt"
try:
    always = {"validation": examples(), "progress": False, "checkpoint": state}
    devices.fit(mine(), examples(), on_step=training.watching(die), **always, **OPTIONS)
except Killed:
    pass
train("resumed")
if os.environ["RANK"] == "0":
    state.write_bytes(state.read_bytes()[:99])
train("afresh")
state = None
train("normalized", normalize=True)
train("odd", make=odd)

try:
    devices.fit(Forked(), examples(), **OPTIONS)
except ValueError as error:
    assert "parameters on which the loss does not depend" in str(error), error
else:
    raise AssertionError("nobody averages the gradient that is not there")
try:
    devices.fit(network(), examples(), **OPTIONS | {"batch_size": 15})
except ValueError as error:
    assert "batch_size=15; allowed: a multiple of the 2 processes" in str(error)
else:
    raise AssertionError("15 examples cannot be shared by two")
devices._synchronized = lambda model, accelerator: model
train("apart")
"""


class Odd(nn.Module):
    """What networks of others hold: a pruned layer, extra state, whole and truth-valued buffers, and a `view`."""

    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(1, 4, 2), nn.Linear(8, 3)
        self.register_buffer("truth", torch.tensor(True))
        self.register_buffer("axes", torch.zeros(1, 1, 2, 1, 1, dtype=torch.int32))
        prune.l1_unstructured(self.fc, "weight", amount=0.5)

    def forward(self, x):
        return self.fc(self.conv(x.view(-1, 1, 2, 3)).view(len(x), -1))

    def get_extra_state(self):
        return {"note": "kept"}

    def set_extra_state(self, state):
        pass


def odd() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return Odd()


class Forked(nn.Linear):
    """Puts out logits and something else, of which the loss knows nothing."""

    def __init__(self):
        super().__init__(6, 3)
        self.other = nn.Linear(6, 3)

    def forward(self, x):
        return SimpleNamespace(logits=super().forward(x), other=self.other(x))


def network(*, normalize: bool = False) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        between = nn.BatchNorm1d(12) if normalize else nn.Identity()
        return nn.Sequential(nn.Linear(6, 12), between, nn.Tanh(), nn.Linear(12, 3))


def examples() -> data.Split:
    generator = torch.Generator().manual_seed(2)
    inputs = torch.randn(64, 6, generator=generator)
    return data.Split(inputs, (inputs @ torch.randn(6, 3, generator=generator)).argmax(1))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """What two processes trained: by name and rank, weights and the history's losses and accuracies."""
    folder = tmp_path_factory.mktemp("torchrun")
    (folder / "train.py").write_text(TRAINED)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    variables = {"PYTHONPATH": f"{paths.ROOT}:{paths.ROOT / 'tests'}", "OMP_NUM_THREADS": "1", "COURSE_DEVICE": "cpu"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        done = subprocess.run([*command, str(folder / "train.py"), str(folder)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "state.pt is damaged; the training starts afresh" in done.stderr
    return {path.stem: torch.load(path, weights_only=True) for path in folder.glob("*[01].pt")}


def distance(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> float:
    pairs = [(one[name].double(), two[name].double()) for name in one if isinstance(one[name], torch.Tensor)]
    return max(float((a - b).abs().max()) for a, b in pairs)


@pytest.fixture(scope="module")
def alone():
    return training.fit(network(), examples(), validation=examples(), progress=False, **OPTIONS)


@pytest.mark.slow
def test_two_processes_give_the_result_of_one_even_if_they_were_interrupted(trained, alone):
    start = network().state_dict()
    assert distance(start, alone.model.state_dict()) > 0.1, "it learned something"
    assert distance(trained["resumed0"]["weights"], alone.model.state_dict()) < 1e-5
    for (loss, accuracy), row in zip(trained["resumed0"]["rows"], alone.history, strict=True):
        assert loss == pytest.approx(row["loss"], abs=1e-5) and accuracy == row["validation"]


@pytest.mark.slow
def test_a_damaged_state_is_trained_afresh_by_both(trained, alone):
    assert distance(trained["afresh0"]["weights"], alone.model.state_dict()) < 1e-5


@pytest.mark.slow
def test_two_processes_train_what_one_does_of_networks_of_all_kinds(trained):
    start = odd()
    expected = training.fit(start, examples(), progress=False, **OPTIONS).model.state_dict()
    weights = trained["odd0"]["weights"]
    for name in ("conv.weight", "fc.bias", "fc.weight_orig"):
        torch.testing.assert_close(weights[name], expected[name], rtol=0, atol=1e-5)
    assert torch.equal(weights["fc.weight_mask"], start.fc.weight_mask) and weights["truth"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resumed", "normalized", "odd", "afresh"])
def test_both_processes_end_with_the_same_network(name, trained):
    assert distance(trained[f"{name}0"]["weights"], trained[f"{name}1"]["weights"]) == 0
    assert trained[f"{name}0"]["rows"] == trained[f"{name}1"]["rows"]


@pytest.mark.slow
def test_without_synchronized_gradients_neither_would_hold(trained, alone):
    """What the two tests above compare does differ as soon as each process steps with its own gradients."""
    assert distance(trained["apart0"]["weights"], trained["apart1"]["weights"]) > 1e-3
    assert distance(trained["apart0"]["weights"], alone.model.state_dict()) > 1e-3


def test_alone_it_is_the_usual_training_bit_for_bit(alone):
    fitted = devices.fit(network(), examples(), validation=examples(), progress=False, **OPTIONS)
    assert devices.count() == 1 and devices.is_first()
    with pytest.raises(ValueError, match="batch_size='all'"):
        devices.fit(network(), examples(), **OPTIONS | {"batch_size": "all"})
    assert distance(fitted.model.state_dict(), alone.model.state_dict()) == 0
