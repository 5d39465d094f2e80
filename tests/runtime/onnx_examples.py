"""What several tests of ONNX graphs share."""

import numpy as np
import onnx
import torch
from torch import nn

from helpers import data, nets, runtime

IMAGES = torch.randn(6, 1, 28, 28, generator=torch.Generator().manual_seed(1))


def trained_batchnorm(model: nn.Module) -> nn.Module:
    """Give every BatchNorm statistics, scale and shift that folding must not lose; return it in evaluation mode."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight.data, module.running_var):
                tensor.uniform_(0.5, 1.5)
            for tensor in (module.bias.data, module.running_mean):
                tensor.normal_(0, 0.3)
    return model.eval()


def cifar(*widths: int) -> nn.Module:
    torch.manual_seed(0)
    return trained_batchnorm(nets.CifarNet(widths, classes=3))


PHOTOS = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(2))


def split(images, *, is_test: bool = False) -> data.Split:
    return data.Split(images, torch.zeros(len(images), dtype=torch.long), is_test)


def initializers(path) -> dict[str, np.ndarray]:
    return {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}


TEXTS = torch.randint(2, 30, (4, 12), generator=torch.Generator().manual_seed(3))
TEXTS[0, 7:] = TEXTS[2, 3:] = 1


def assert_texts_answer(model: nn.Module, path, lengths) -> None:
    session = runtime.session(path)
    for count, length in lengths:
        tokens = TEXTS.repeat(2, 4)[:count, :length]
        found, expected = runtime.run(session, tokens.numpy()), model.eval()(tokens).detach().numpy()
        assert found.shape == (count, expected.shape[1]) and np.abs(found - expected).max() < 1e-5


class Written(nn.Module):
    """A linear layer, and a forward pass of one's own."""

    def __init__(self, way) -> None:
        super().__init__()
        self.fc, self.way = nn.Linear(12, 3), way

    def forward(self, x):
        return self.way(self.fc, x)


ROWS = torch.randn(4, 3, 4, generator=torch.Generator().manual_seed(4))
