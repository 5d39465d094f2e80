"""What several tests of `measure` share."""

import torch
from torch import nn
from torch.nn import functional as F

IMAGES = torch.zeros(3, 1, 28, 28)
DIM, HIDDEN = 8, 6


class Calling(nn.Module):
    """Hands a layer and its input to a function."""

    def __init__(self, layer: nn.Module | None, call) -> None:
        super().__init__()
        self.layer, self.call = layer, call

    def forward(self, x):
        return self.call(self.layer, x)


class Attention(nn.Module):
    """Scaled dot-product attention with as many heads of keys and values as asked for."""

    def __init__(self, groups: int = 4, **options: object) -> None:
        super().__init__()
        self.groups, self.options = groups, options
        self.q, self.kv = nn.Linear(DIM, DIM), nn.Linear(DIM, 2 * groups * 2)

    def forward(self, x):
        q = self.q(x).unflatten(2, (4, 2)).transpose(1, 2)
        k, v = self.kv(x).unflatten(2, (2, self.groups, 2)).permute(2, 0, 3, 1, 4)
        return F.scaled_dot_product_attention(q, k, v, enable_gqa=self.groups < 4, **self.options)


def sequences(batch: int, n: int) -> torch.Tensor:
    return torch.zeros(batch, n, DIM)


def recurrent(gates: int, n: int, *, inputs: int = DIM) -> int:
    return n * gates * HIDDEN * (inputs + HIDDEN)
