"""What several tests of `training` share."""

import torch
from torch import nn
from torch.nn import functional as F


def net() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.Dropout(0.2), nn.ReLU(), nn.Linear(8, 2))


def same(a: nn.Module, b: nn.Module) -> bool:
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


def damaged(content: bytes) -> dict[str, bytes]:
    middle = len(content) // 2
    flipped = bytes([content[middle] ^ 255])
    return {
        "empty": b"",
        "rubbish": b"not a state" * 100,
        "cut": content[:middle],
        "one byte changed": content[:middle] + flipped + content[middle + 1 :],
    }


def scaled(model, inputs, labels, factor=1.0):
    return factor * F.cross_entropy(model(inputs), labels)


class Viewed(nn.Module):
    """As in PyTorch's CIFAR-10 tutorial: `view` refuses a convolution's output that is laid out channels last."""

    def __init__(self, *, way="view"):
        super().__init__()
        self.conv1, self.conv2, self.fc = nn.Conv2d(1, 4, 2), nn.Conv2d(4, 6, 2), nn.Linear(24, 2)
        self.norm, self.dropout, self.way = nn.BatchNorm2d(4), nn.Dropout(0.3), way

    def forward(self, x):
        x = self.conv2(self.dropout(self.norm(self.conv1(x)).relu()))
        return self.fc(getattr(x, self.way)(-1, 24))  # of 6 maps of 2 × 2: of one place each, view takes any layout


def viewed(way):
    torch.manual_seed(3)
    return Viewed(way=way)


class Puts(nn.Module):
    """Puts out whatever `what` makes of its logits."""

    def __init__(self, what):
        super().__init__()
        self.fc, self.unused, self.what = nn.Linear(16, 2), nn.Linear(16, 2), what

    def forward(self, x):
        return self.what(self.fc(x.flatten(1)), self.unused(x.flatten(1)))
