"""What several tests of `removal` share."""

from copy import deepcopy

import torch
from torch import nn
from torch.nn import functional as F

from helpers.pruning import Group

IMAGES = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
DIGITS = torch.randn(4, 1, 28, 28, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
CIFAR_GROUPS = [
    Group(("stem.conv",), 8),
    Group(("conv1.conv", "res1.block2.conv"), 12),
    Group(("res1.block1.conv",), 12),
    Group(("conv2.conv",), 16),
    Group(("conv3.conv", "res2.block2.conv"), 24),
    Group(("res2.block1.conv",), 24),
]


def randomise(model: nn.Module) -> nn.Module:
    """Give every BatchNorm statistics and a shift, so that a channel that is zero before it is not zero after it."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.5)
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 1.5)
    return model


def random_keep(groups: list[Group], share: float = 0.6, *, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    keep = {}
    for group in groups:
        values = torch.rand(group.channels // group.parts, generator=generator)
        keep[group.name] = (values <= values.quantile(share)).repeat(group.parts)
    return keep


def zeroing(channels: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
    zeroed = tensor.clone()
    zeroed[:, channels] = 0
    return zeroed


@torch.no_grad()
def answers_with_zeroed(model: nn.Module, places, inputs: torch.Tensor) -> torch.Tensor:
    """Return what `model` answers when `places`, (module, "in" or "out", channels), are zeroed as they pass."""
    model, hooks = model.eval(), []
    for name, side, channels in places:
        module = model.get_submodule(name)
        if side == "out":
            hook = module.register_forward_hook(lambda m, i, output, channels=channels: zeroing(channels, output))
        else:
            hook = module.register_forward_pre_hook(lambda m, inputs, c=channels: (zeroing(c, inputs[0]),))
        hooks.append(hook)
    try:
        return model(inputs)
    finally:
        for hook in hooks:
            hook.remove()


def assert_close(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert float((found - expected).abs().max()) <= 1e-8 * max(1.0, float(expected.abs().max()))


@torch.no_grad()
def answers(model: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    return model.eval()(inputs)


def step(model: nn.Module, inputs: torch.Tensor) -> list[str]:
    """Train one step, with a new optimizer; return the names of the parameters that stayed as they were."""
    before = deepcopy(dict(model.named_parameters()))
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    loss = F.cross_entropy(model.train()(inputs), torch.arange(len(inputs)))
    loss.backward()
    optimizer.step()
    assert loss.isfinite()
    return [name for name, parameter in model.named_parameters() if torch.equal(parameter, before[name])]


class Function(nn.Sequential):
    """A few layers with a function of the channels in the middle."""

    def __init__(self, function, *layers: nn.Module) -> None:
        super().__init__(*layers)
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self[2](self[1](self.function(self[0](x))))


def conv_net(function, middle: nn.Module, *, reads: int = 8) -> nn.Module:
    torch.manual_seed(0)
    return Function(function, nn.Conv2d(3, 8, 3), middle, nn.Conv2d(reads, 5, 30)).double()


def filter_norms(model: nn.Module) -> dict[str, torch.Tensor]:
    layers = {name: m for name, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    return {name: layer.weight.detach().abs().flatten(1).sum(1) for name, layer in layers.items()}


class Net(nn.Module):
    """Layers by name, and what they do to `x`."""

    def __init__(self, function, **layers: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(self, x)


ROWS = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
PHOTOS = IMAGES.float()[:, :, :8, :8]
TEXTS = torch.randint(0, 9, (4, 5), generator=torch.Generator().manual_seed(0))


def recurrent(net, x):
    states = torch.zeros(1, len(x), 8), torch.zeros(1, len(x), 8)
    return net.b(
        net.lstm(net.a(x)[:, None], tuple(s.transpose(0, 1).contiguous().transpose(0, 1) for s in states))[0][:, 0]
    )


def in_autocast(net, x):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return net.b(net.a(x).relu())


def plain(net, x):
    return net.b(net.a(x).relu())


def dense(function=plain, **layers: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return Net(function, a=nn.Linear(6, 8), b=nn.Linear(8, 3), **layers)


def photos(function, last: nn.Module | None = None, **layers: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return Net(function, a=nn.Conv2d(3, 8, 3), b=last or nn.Conv2d(8, 2, 3), **layers)


ANY = {
    "float": (dense(lambda net, x: net.b(net.a(x.float()).relu().float())), ROWS),
    "to": (dense(lambda net, x: net.b(net.a(x).to(torch.float32).relu())), ROWS),
    "typed zeros": (
        dense(lambda net, x: net.b(net.a(x).relu()) + net.c(torch.zeros(1, 6, dtype=torch.float32)), c=nn.Linear(6, 1)),
        ROWS,
    ),
    "nn.LSTM": (dense(recurrent, lstm=nn.LSTM(8, 8, batch_first=True)), ROWS),
    "autocast": (dense(in_autocast), ROWS),
    "one-hot": (dense(lambda net, x: net.b(net.a(F.one_hot(x[:, :1] % 6, 6)[:, 0].float()).relu())), TEXTS),
    "tokens": (dense(lambda net, x: net.b(net.a(net.e(x).mean(1)).relu()), e=nn.Embedding(9, 6)), TEXTS),
    "one text": (dense(lambda net, x: net.b(net.a(net.e(x).mean(1)).relu()), e=nn.Embedding(9, 6)), TEXTS[:1]),
    "bytes": (photos(lambda net, x: net.b(net.a(x / 255).relu()).flatten(1)), PHOTOS.mul(50).to(torch.uint8)),
    "bfloat16": (dense().bfloat16(), ROWS.bfloat16()),
    "half": (dense().half(), ROWS.half()),
    "alone in a row": (photos(lambda net, x: net.b(net.a(x).relu().view(1, -1)), nn.Linear(288, 3)), PHOTOS[:1]),
    "by keyword": (dense(lambda net, x: net.b(input=net.a(input=x).relu())), ROWS),
    "view": (photos(lambda net, x: net.b(net.a(x).relu().view(len(x), -1)), nn.Linear(288, 3)), PHOTOS),
    "a float32 constant": (dense(lambda net, x: net.b(net.a(x) @ net.constant)), ROWS),
}  # fmt: skip
ANY["a float32 constant"][0].constant = torch.eye(8).flip(0)  # no buffer: `.double()` does not reach it


def zeroed_by_hand(model: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    """Return the answers with the first three outputs of `a` zeroed after the activation, where `b` reads them."""
    zeroed = deepcopy(model)
    with torch.no_grad():
        zeroed.a.weight[:3] = 0
        zeroed.a.bias[:3] = 0
        return zeroed.eval()(inputs)
