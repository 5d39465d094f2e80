"""What several tests of `pruning` share."""

import torch
from torch import nn

from helpers import nets


def reading(encoder, units):
    torch.manual_seed(0)
    return nets.TextNet(encoder, units, words=40, dimensions=6).eval()


TOKENS = torch.randint(2, 40, (8, 10), generator=torch.Generator().manual_seed(0))


class Tied(nn.Module):
    """A language model whose decoder is tied to its embedding."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.middle, self.decoder = nn.Embedding(10, 4), nn.Linear(4, 4), nn.Linear(4, 10)
        self.decoder.weight = self.embedding.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.decoder(self.middle(self.embedding(tokens)).relu().mean(1))


def torch_masks(model: nn.Module) -> dict[str, torch.Tensor]:
    return {
        f"{name}.{key.removesuffix('_mask')}": value.bool()
        for name, layer in model.named_modules()
        for key, value in layer.named_buffers(recurse=False)
        if key.endswith("_mask")
    }


def assert_equal_masks(ours, theirs) -> None:
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def half_of(name: str, *shape: int) -> dict[str, torch.Tensor]:
    return {name: torch.arange(torch.Size(shape).numel()).view(shape) % 2 == 0}
