"""What several tests of scores share."""

from functools import partial

import torch
from torch import nn
from torch.nn import functional as F

from helpers.data import Split


def random_numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def unsettle(model: nn.Module) -> nn.Module:
    """Give batch normalization statistics and scales that a trained net could have; evaluation mode, float64."""
    for i, module in enumerate(model.modules()):
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean = random_numbers(module.num_features, seed=i) / 5
            module.running_var = random_numbers(module.num_features, seed=i + 100).exp()
            module.weight.data = 1 + random_numbers(module.num_features, seed=i + 200) / 3
            module.bias.data = random_numbers(module.num_features, seed=i + 300) / 3
    return model.double().eval()


class InPlace(nn.Module):
    """What torchvision's residual blocks do: activations and sums that overwrite their inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.conv2, self.bn2 = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.conv3 = nn.Conv2d(4, 5, 3)
        self.relu = nn.ReLU(inplace=True)
        self.fc = nn.Linear(5, 4)

    def forward(self, x):
        x = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(x))
        y += x
        y = self.relu(y)
        return self.fc(self.relu(self.conv3(y)).mean((2, 3)))


def _without(keep: torch.Tensor, module: nn.Module, inputs: object, output: torch.Tensor) -> torch.Tensor:
    return output * keep.view([1, -1] + [1] * (output.dim() - 2))


def damage_by_hooks(model: nn.Module, split: Split, site: nn.Module) -> torch.Tensor:
    """Brute force: zero one channel of the output of `site` after the other, in full forward passes."""
    losses = []
    with torch.no_grad():
        before = F.cross_entropy(model(split.inputs), split.labels)
        channels = (site.bias if site.bias is not None else site.weight).shape[0]
        for channel in range(channels):
            hook = site.register_forward_hook(partial(_without, torch.arange(channels) != channel))
            losses.append(F.cross_entropy(model(split.inputs), split.labels) - before)
            hook.remove()
    return torch.stack(losses)


LABELS = torch.tensor([0, 2, 1, 1, 0, 2])


class Calling(nn.Module):
    """Hands a layer and its input to a function."""

    def __init__(self, layer, call) -> None:
        super().__init__()
        self.layer, self.call = layer, call

    def forward(self, x):
        return self.call(self.layer, x)


def seeded(build) -> nn.Module:
    torch.manual_seed(0)
    return build().double().eval()


class Viewed(nn.Module):
    """Flattens by `view`, which refuses images that are channels last."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.fc = nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Linear(27, 3)

    def forward(self, x):
        return self.fc(torch.relu(self.bn(self.conv(x))).view(len(x), -1))


class OneAtATime(Viewed):
    """Takes a batch of one only."""

    def forward(self, x):
        return self.fc(torch.relu(self.bn(self.conv(x))).reshape(1, -1))


def taylor_by_hooks(model: nn.Module, split: Split, site: nn.Module, filters: int, dim: int) -> torch.Tensor:
    """Brute force: the squared slope at a gate, one example after the other."""
    total = torch.zeros(filters, dtype=torch.float64)
    for index in range(len(split)):
        gate = torch.ones(filters, dtype=torch.float64, requires_grad=True)

        def multiply(module, inputs, output, gate=gate):
            return output * gate.view([-1] + [1] * (output.dim() - 1 - dim % output.dim()))

        hook = site.register_forward_hook(multiply)
        loss = F.cross_entropy(model(split.inputs[index : index + 1]), split.labels[index : index + 1])
        hook.remove()
        total += torch.autograd.grad(loss, gate)[0] ** 2
    return total / len(split)


class Attending(nn.Module):
    def __init__(self, *, norm_first: bool = False) -> None:
        super().__init__()
        self.encoder = nn.TransformerEncoderLayer(4, 2, 6, batch_first=True, norm_first=norm_first)
        self.fc = nn.Linear(4, 3)

    def forward(self, x):
        return self.fc(self.encoder(x).mean(1))


class ByHand(nn.Module):
    """The same for `Attending`, in products and sums; the projection's output goes through a layer of its own."""

    def __init__(self, model: Attending) -> None:
        super().__init__()
        self.model, self.projection = model, nn.Identity()

    def forward(self, x):
        layer, attention = self.model.encoder, self.model.encoder.self_attn
        q, k, v = F.linear(x, attention.in_proj_weight, attention.in_proj_bias).unflatten(2, (3, 2, 2)).unbind(2)
        weights = torch.einsum("bihd,bjhd->bhij", q, k).div(2**0.5).softmax(3)
        mixed = torch.einsum("bhij,bjhd->bihd", weights, v).flatten(2)
        x = layer.norm1(x + self.projection(F.linear(mixed, attention.out_proj.weight, attention.out_proj.bias)))
        x = layer.norm2(x + layer.linear2(torch.relu(layer.linear1(x))))
        return self.model.fc(x.mean(1))
