"""What several tests of `quantization` share."""

import numpy as np
import torch
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of
from torch import nn

from helpers.data import Split
from helpers.quantization import Grid, fake_quantize

IMAGES = torch.randn(12, 1, 28, 28, generator=torch.Generator().manual_seed(1))
SPLIT = Split(IMAGES, torch.arange(12) % 10)
MODES = [
    {"symmetric": True, "signed": True, "narrow": False},
    {"symmetric": True, "signed": True, "narrow": True},
    {"symmetric": False, "signed": True, "narrow": False},
    {"symmetric": False, "signed": False, "narrow": False},
]


def values_of(seed: int, *shape: int, shift: float = 0.0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) + shift


def state_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_same_state(model: nn.Module, before: dict[str, torch.Tensor]) -> None:
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


numbers = st.floats(-1e4, 1e4, width=32)
tensors = arrays_of.arrays(np.float32, st.tuples(st.integers(1, 4), st.integers(1, 6)), elements=numbers)
grids = st.tuples(
    st.integers(2, 8), st.floats(-100, 0, width=32), st.floats(2**-7, 100, width=32), st.sampled_from(MODES)
)


def squared_error(x: torch.Tensor, grid: Grid) -> float:
    return float((fake_quantize(x, grid) - x).double().square().sum())


def with_statistics(model: nn.Module, *, seed: int = 13) -> nn.Module:
    """Give BatchNorm statistics, scales (some negative, one 0) and shifts that are not those of a new network."""
    generator = torch.Generator().manual_seed(seed)
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean.normal_(generator=generator)
            norm.running_var.uniform_(0.5, 2, generator=generator)
            norm.weight.data.normal_(generator=generator)
            norm.weight.data[0] = 0
            norm.bias.data.normal_(generator=generator)
    return model.eval()


TOKENS = torch.randint(0, 20, (7, 5), generator=torch.Generator().manual_seed(3))
SMALL = torch.randn(6, 3, 5, 5, generator=torch.Generator().manual_seed(4))


def made(kind: type[nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return kind().eval()


class Upwards(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.fc = nn.ConvTranspose1d(4, 6, 3, groups=2), nn.Linear(48, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.up(x).flatten(1))


SEQUENCES = torch.randn(8, 4, 6, generator=torch.Generator().manual_seed(5))
SEQUENCE_SPLIT = Split(SEQUENCES, torch.arange(8) % 3)


def trained(norm: nn.Module) -> nn.Module:
    with torch.no_grad():
        for tensor in (norm.running_mean, norm.bias):
            tensor.normal_()
        norm.running_var.uniform_(0.1, 2)
        norm.weight.normal_()
    return norm
