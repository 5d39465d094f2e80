"""Fifty networks that are not the course's, and what each technique must do with them: be right, or refuse by name.

    python tests/zoo.py                      the whole table; half an hour
    python tests/zoo.py unet tied_language   some networks

A technique is *right* if its answer agrees with an independent one: parameters counted by hand, `torch`'s own rounding,
ONNX Runtime on other batch sizes, the arrays of the file, multiplications counted where Python calls them. A *refusal*
is an error that `helpers` itself raises. Anything else, an error of a library or a wrong answer, is a fault.
`tests/test_zoo.py` does the same for the small ones.
"""

import argparse
import math
import multiprocessing
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

if __name__ == "__main__":  # not this folder: it has rooms named as modules of Python are
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import helpers
from helpers import files, measure, nets, pruning, quantization, runtime
from helpers.data import Split

HELPERS = Path(helpers.__file__).parent
SECONDS = 300  # for one technique on one network
Network = tuple[nn.Module, Tensor]  # in evaluation mode, with a batch of four examples


# ---------------------------------------------------------------- networks


def images(pixels: int, channels: int = 3) -> Tensor:
    return torch.randn(4, channels, pixels, pixels, generator=torch.Generator().manual_seed(1))


def tokens(words: int, length: int = 12) -> Tensor:
    return torch.randint(2, words, (4, length), generator=torch.Generator().manual_seed(1))


def torchvisions(name: str, pixels: int = 64, **options: Any) -> Callable[[], Network]:
    def build() -> Network:
        model = torchvision.models.get_model(name, weights=None, **options)
        return model, images(pixels)

    return build


class UNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.down1, self.down2 = self.block(3, 8), self.block(8, 16)
        self.bottom = self.block(16, 32)
        self.up2, self.up1 = nn.ConvTranspose2d(32, 16, 2, 2), nn.ConvTranspose2d(16, 8, 2, 2)
        self.side2, self.side1 = self.block(32, 16), self.block(16, 8)
        self.head = nn.Conv2d(8, 5, 1)

    @staticmethod
    def block(inputs, outputs):
        return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU())

    def forward(self, x):
        first = self.down1(x)
        second = self.down2(F.max_pool2d(first, 2))
        x = self.up2(self.bottom(F.max_pool2d(second, 2)))
        x = self.up1(self.side2(torch.cat([x, second], 1)))
        return self.head(self.side1(torch.cat([x, first], 1)))


class Tagger(nn.Module):
    """One label for each token; `kind` is a recurrent layer."""

    def __init__(self, kind, **options):
        super().__init__()
        self.embedding = nn.Embedding(30, 12)
        self.reader = kind(12, 16, batch_first=True, **options)
        self.fc = nn.Linear(16 * (2 if options.get("bidirectional") else 1), 5)

    def forward(self, x):
        return self.fc(self.reader(self.embedding(x))[0]).transpose(1, 2)


class OfCells(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.embedding, self.cell, self.fc = nn.Embedding(30, 12), kind(12, 16), nn.Linear(16, 5)

    def forward(self, x):
        state = None
        for step in self.embedding(x).unbind(1):
            state = self.cell(step, state)
        return self.fc(state[0] if isinstance(state, tuple) else state)


class TiedLanguage(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(30, 16)
        self.reader = nets.LSTM(16, 16)
        self.decoder = nn.Linear(16, 30)
        self.decoder.weight = self.embedding.weight

    def forward(self, x):
        return self.decoder(self.reader(self.embedding(x))).transpose(1, 2)


class Shared(nn.Module):
    """One convolution under two names."""

    def __init__(self):
        super().__init__()
        self.stem, self.one, self.fc = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, 5)
        self.two = self.one

    def forward(self, x):
        x = F.relu(self.one(F.relu(self.stem(x))))
        return self.fc(F.relu(self.two(x)).mean((2, 3)))


class TiedConvs(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.fc = nn.Linear(8, 5)
        self.b.weight = self.a.weight

    def forward(self, x):
        return self.fc(F.relu(self.b(F.relu(self.a(F.relu(self.stem(x)))))).mean((2, 3)))


class Viewed(nn.Module):
    """The net of PyTorch's CIFAR-10 tutorial, which flattens by `view`."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 6, 5), nn.Conv2d(6, 16, 5)
        self.fc1, self.fc2 = nn.Linear(400, 40), nn.Linear(40, 10)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.conv2(F.max_pool2d(F.relu(self.conv1(x)), 2))), 2)
        return self.fc2(F.relu(self.fc1(x.view(len(x), -1))))


class Transformer(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.place = nn.Embedding(30, 32), nn.Parameter(0.1 * torch.randn(12, 32))
        layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.fc = nn.Linear(32, 5)

    def forward(self, x):
        return self.fc(self.encoder(self.embedding(x) + self.place).mean(1))


class Attention(nn.Module):
    """Attention by `scaled_dot_product_attention`, between two linear layers."""

    def __init__(self):
        super().__init__()
        self.embedding, self.qkv, self.out = nn.Embedding(30, 32), nn.Linear(32, 96), nn.Linear(32, 32)
        self.fc = nn.Linear(32, 5)

    def forward(self, x):
        parts = self.qkv(self.embedding(x)).unflatten(2, (3, 4, 8)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(parts[0], parts[1], parts[2])
        return self.fc(self.out(mixed.transpose(1, 2).flatten(2)).mean(1))


class Autoencoder(nn.Sequential):
    def __init__(self):
        super().__init__(
            nn.Conv2d(3, 8, 3, 2, 1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.ConvTranspose2d(8, 8, 4, 2, 1, groups=2),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.ConvTranspose2d(8, 3, 3, 1, 1),
        )


class Gated(nn.Module):
    """Squeeze and excitation, a depthwise convolution, and PReLU with a slope for each channel."""

    def __init__(self):
        super().__init__()
        self.stem, self.slope = nn.Conv2d(3, 16, 3, padding=1), nn.PReLU(16)
        self.depth, self.norm = nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.BatchNorm2d(16)
        self.squeeze, self.excite, self.fc = nn.Conv2d(16, 8, 1), nn.Conv2d(8, 16, 1), nn.Linear(16, 5)

    def forward(self, x):
        x = self.norm(self.depth(self.slope(self.stem(x))))
        gate = torch.sigmoid(self.excite(F.relu(self.squeeze(x.mean((2, 3), keepdim=True)))))
        return self.fc((x * gate).mean((2, 3)))


class Casting(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 16, 3), nn.Linear(16, 5)

    def forward(self, x):
        return self.fc(F.relu(self.conv(x.float())).mean((2, 3)))


class Named(nn.Module):
    """A segmentation net in small: its answer is a dictionary."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 5, 1)

    def forward(self, x):
        return {"out": self.head(F.relu(self.conv(x)))}


def vit() -> Network:
    options = {"image_size": 32, "patch_size": 8, "num_layers": 2, "num_heads": 4, "hidden_dim": 32, "mlp_dim": 64}
    model = torchvision.models.VisionTransformer(**options, num_classes=10)
    nn.init.normal_(model.heads.head.weight, std=0.2)  # it begins with zeros: every answer would be the same
    return model, images(32)


def swin() -> Network:
    model = torchvision.models.SwinTransformer([2, 2], 8, [1, 1], [2, 2], [4, 4], num_classes=10)
    return model, images(16)


SMALL: dict[str, Callable[[], Network]] = {
    "lenet5": lambda: (nets.lenet5(), images(28, 1)),
    "cifar_half": lambda: (nets.cifar_half(), images(32)),
    "imdb_bag": lambda: (nets.TextBag(30, dimensions=12, hidden=8), tokens(30)),
    "imdb_cnn": lambda: (nets.TextNet(nets.TextCNN(12, 16), 16, 30, dimensions=12), tokens(30)),
    "imdb_rnn": lambda: (nets.TextNet(nets.RNN(12, 16), 16, 30, dimensions=12), tokens(30)),
    "imdb_lstm": lambda: (nets.TextNet(nets.LSTM(12, 16), 16, 30, dimensions=12), tokens(30)),
    "viewed": lambda: (Viewed(), images(32)),
    "unet": lambda: (UNet(), images(16)),
    "autoencoder": lambda: (Autoencoder(), images(16)),
    "gated": lambda: (Gated(), images(12)),
    "casting": lambda: (Casting(), images(12)),
    "dictionary": lambda: (Named(), images(12)),
    "conv1d": lambda: (
        nn.Sequential(nn.Conv1d(3, 16, 5), nn.BatchNorm1d(16), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 12, 5)),
        images(16)[:, :, 0],
    ),
    "conv3d": lambda: (
        nn.Sequential(nn.Conv3d(3, 8, 3), nn.BatchNorm3d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 64, 5)),
        torch.randn(4, 3, 6, 6, 6),
    ),
    "tagger_lstm": lambda: (Tagger(nn.LSTM), tokens(30)),
    "tagger_gru": lambda: (Tagger(nn.GRU, bidirectional=True), tokens(30)),
    "tagger_rnn": lambda: (Tagger(nn.RNN, num_layers=2), tokens(30)),
    "lstm_cell": lambda: (OfCells(nn.LSTMCell), tokens(30)),
    "gru_cell": lambda: (OfCells(nn.GRUCell), tokens(30)),
    "tied_language": lambda: (TiedLanguage(), tokens(30)),
    "tied_convs": lambda: (TiedConvs(), images(12)),
    "shared": lambda: (Shared(), images(12)),
    "transformer": lambda: (Transformer(), tokens(30)),
    "attention": lambda: (Attention(), tokens(30)),
    "vit": vit,
    "swin": swin,
}

LARGE: dict[str, Callable[[], Network]] = {
    "resnet18_course": lambda: (nets.resnet18(), images(32)),
    "alexnet": torchvisions("alexnet"),
    "convnext_tiny": torchvisions("convnext_tiny"),
    "densenet121": torchvisions("densenet121"),
    "efficientnet_b0": torchvisions("efficientnet_b0"),
    "efficientnet_v2_s": torchvisions("efficientnet_v2_s"),
    "googlenet": torchvisions("googlenet", init_weights=False),
    "inception_v3": torchvisions("inception_v3", 299, init_weights=False),
    "mnasnet0_5": torchvisions("mnasnet0_5"),
    "mobilenet_v2": torchvisions("mobilenet_v2"),
    "mobilenet_v3_small": torchvisions("mobilenet_v3_small"),
    "regnet_x_400mf": torchvisions("regnet_x_400mf"),
    "regnet_y_400mf": torchvisions("regnet_y_400mf"),
    "resnet18": torchvisions("resnet18"),
    "resnet50": torchvisions("resnet50"),
    "resnext50_32x4d": torchvisions("resnext50_32x4d"),
    "shufflenet_v2_x0_5": torchvisions("shufflenet_v2_x0_5"),
    "squeezenet1_1": torchvisions("squeezenet1_1"),
    "swin_t": torchvisions("swin_t"),
    "vgg11_bn": torchvisions("vgg11_bn"),
    "vit_b_16": torchvisions("vit_b_16", 32, image_size=32),
    "wide_resnet50_2": torchvisions("wide_resnet50_2"),
    "lraspp_mobilenet_v3_large": torchvisions("lraspp_mobilenet_v3_large", weights_backbone=None, num_classes=5),
    "fcn_resnet50": torchvisions("fcn_resnet50", weights_backbone=None, num_classes=5),
}
NETWORKS = SMALL | LARGE


def network(name: str) -> Network:
    """Return a network with random weights, and BatchNorm statistics as of a trained one, in evaluation mode."""
    torch.manual_seed(0)
    model, example = NETWORKS[name]()
    for parameter in model.parameters():
        if parameter.ndim > 1 and not parameter.any():
            nn.init.normal_(parameter, std=0.05)  # as ViT's last layer, which is all zeros before any training
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
    return model.eval(), example


# ---------------------------------------------------------------- techniques


def answer(model: nn.Module, inputs: Tensor) -> Tensor:
    with torch.no_grad():
        found = model(inputs)
    return next(iter(found.values())) if isinstance(found, dict) else found


def close(found: Tensor, expected: Tensor, part: float) -> bool:
    """Return whether the tensors differ by at most this part of the range of what was expected."""
    return float((found - expected).abs().max()) <= part * max(1.0, float(expected.abs().max()))


def check_removal(model: nn.Module, example: Tensor, folder: Path) -> str:
    keep = {}
    for group in pruning.groups(model, example):
        whole = torch.ones(group.channels // group.parts, dtype=torch.bool)
        whole[: max(1, len(whole) // 4)] = len(whole) == 1
        keep[group.name] = whole.repeat(group.parts)
    if not keep:
        return "no groups"
    new, zeroed = pruning.remove_filters(model, keep, example), pruning.zero_filters(model, keep, example)
    assert close(answer(new, example), answer(zeroed, example), 1e-4), "removed differs from zeroed"
    assert not torch.equal(answer(zeroed, example), answer(model, example)), "nothing was removed"
    original = dict(model.named_parameters())
    for name, parameter in zeroed.named_parameters():
        assert bool(((parameter == original[name]) | (parameter == 0)).all()), (
            f"{name} was changed otherwise than zeroed"
        )
    fewer = sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in new.parameters())
    assert fewer > 0, "no parameter fewer"
    return f"{len(keep)} groups"


def matrices(model: nn.Module) -> dict[str, Tensor]:
    """Return all trained tensors of two and more dimensions longer than 1, normalization left out: each once."""
    found = {}
    for name, parameter in model.named_parameters():
        if parameter.squeeze().dim() > 1 and not isinstance(model.get_submodule(name.rpartition(".")[0]), _BatchNorm):
            found[name] = parameter.detach()
    return found


def check_quantization(model: nn.Module, example: Tensor, folder: Path) -> str:
    labels = torch.zeros(len(example), dtype=torch.int64)
    expected, before = matrices(model), answer(model, example)
    new = quantization.quantize_model(model, weights=8, activations=8, calibration=Split(example, labels))
    baked = quantization.bake(new)
    assert torch.isfinite(answer(new, example)).all()
    for name, weight in matrices(baked).items():
        for row in weight.flatten(1)[:3]:
            assert len(row.unique()) <= 256, f"{name} has {len(row.unique())} values"
    stay = [name for name, weight in matrices(baked).items() if torch.equal(weight, expected[name])]
    for name in stay:
        raise AssertionError(f"{name} stays in floating point")
    power = float(before.square().mean())
    noise = float((answer(new, example) - before).square().mean())
    return f"{10 * math.log10(power / max(noise, 1e-30)):.0f} dB"


def check_packed(model: nn.Module, example: Tensor, folder: Path) -> str:
    before = answer(model, example)
    path = folder / "sparse.pack"
    files.write_sparse(model, path)
    arrays = files.read(path)
    state = model.state_dict()
    assert all(np.array_equal(array, state[name].numpy()) for name, array in arrays.items()), "other numbers"
    assert {state[name].data_ptr() for name in arrays} == {t.data_ptr() for t in state.values()}, "a tensor is missing"
    assert len(arrays) == len({t.data_ptr() for t in state.values()}), "a tensor stands twice"
    once = sum(t.numel() * t.element_size() for t in {t.data_ptr(): t for t in state.values()}.values())
    size = path.stat().st_size
    assert size <= once + 40 * len(state) + 2_000, f"{size} bytes for {once} bytes of numbers"
    torch.manual_seed(1)
    again = files.load_into(model, path)
    assert torch.equal(answer(again, example), before), "other answers"
    quantized = quantization.quantize_model(model, weights=4)
    small = folder / "small.pack"
    files.write_quantized(quantized, small)
    assert torch.equal(answer(files.load_into(model, small), example), answer(quantized, example)), "4 bits: others"
    return f"{once / small.stat().st_size:.1f} x"


def check_export(model: nn.Module, example: Tensor, folder: Path) -> str:
    import onnxruntime

    path = runtime.export_onnx(model, example, folder / "net.onnx")
    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    for part in (example[:1], example[:3], torch.cat([example, example])):
        found = torch.from_numpy(session.run(None, {name: part.numpy()})[0])
        assert close(found, answer(model, part), 1e-3), f"other answers for a batch of {len(part)}"
    return ""


def check_int8(model: nn.Module, example: Tensor, folder: Path) -> str:
    import onnx
    import onnxruntime

    graph = runtime.export_onnx(quantization.fold_batchnorm(model, example), example, folder / "folded.onnx")
    labels = torch.zeros(len(example), dtype=torch.int64)
    path = runtime.quantize_static(graph, Split(example, labels), folder / "int8.onnx")
    kinds = {"Conv", "ConvTranspose", "MatMul", "Gemm"}
    proto = onnx.load(path).graph
    floats = {t.name for t in proto.initializer if t.data_type == onnx.TensorProto.FLOAT and len(t.dims) > 1}
    used = {name for node in proto.node if node.op_type in kinds for name in node.input[1:2]}
    assert not floats & used, f"{sorted(floats & used)[0]} stays in floating point"
    # With all its optimizations off, the runtime computes in floating point what the file's text says.
    plain = onnxruntime.SessionOptions()
    plain.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    sessions = [onnxruntime.InferenceSession(path.read_bytes(), options) for options in (None, plain)]
    fast, slow = (s.run(None, {s.get_inputs()[0].name: example.numpy()})[0] for s in sessions)
    power, noise = float(np.square(slow).mean()), float(np.square(fast - slow).mean())
    assert np.isfinite(fast).all() and noise <= 0.1 * power + 1e-12, "integers answer otherwise than their file says"
    return ""


class Counting(TorchFunctionMode):
    """Counts multiplications where Python calls them; `RNN`s are counted by hooks."""

    def __init__(self):
        super().__init__()
        self.macs = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "")
        if name == "linear":
            self.macs += output.numel() * args[1].shape[1]
        elif name in ("conv1d", "conv2d", "conv3d"):
            self.macs += output.numel() * math.prod(args[1].shape[1:])
        elif name.startswith("conv_transpose"):
            self.macs += args[0].numel() * math.prod(args[1].shape[1:])
        elif name in ("matmul", "__matmul__", "bmm"):
            self.macs += output.numel() * args[0].shape[-1]
        elif name == "scaled_dot_product_attention":
            query, key, value = args[:3]
            self.macs += query.shape[:-1].numel() * key.shape[-2] * (query.shape[-1] + value.shape[-1])
        elif name == "multi_head_attention_forward":
            (length, batch, size), other = args[0].shape, len(args[1])
            self.macs += batch * (2 * length * size**2 + 2 * other * size**2 + 2 * length * other * size)
        return output


RECURRENT = (nn.RNNBase, nn.RNNCellBase, nets.RNN, nets.LSTM)


def multiplications(model: nn.Module, example: Tensor) -> int:
    counting, recurrent = Counting(), [m for m in model.modules() if isinstance(m, RECURRENT)]

    def hook(module: nn.Module, inputs: Any, output: Any) -> None:
        steps = 1 if isinstance(module, nn.RNNCellBase) else inputs[0].shape[1]
        counting.macs += len(inputs[0]) * steps * sum(p.numel() for p in module.parameters() if p.dim() > 1)

    handles = [module.register_forward_hook(hook) for module in recurrent]
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), counting:
            model(example)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for handle in handles:
            handle.remove()
    return counting.macs


def check_macs(model: nn.Module, example: Tensor, folder: Path) -> str:
    expected = multiplications(model, example)
    assert expected % len(example) == 0
    found, table = measure.count_macs(model, example), measure.layer_table(model, example)
    assert found == expected // len(example), f"{found} of {expected // len(example)}"
    assert table["macs"].sum() == found, f"the rows add up to {table['macs'].sum()} of {found}"
    assert table["parameters"].sum() == measure.count_parameters(model), "the rows' parameters do not add up"
    return f"{found / 1e6:.2f} M"


TECHNIQUES = {
    "removal": check_removal,
    "quantization": check_quantization,
    "packed": check_packed,
    "export": check_export,
    "int8": check_int8,
    "macs": check_macs,
}


# ---------------------------------------------------------------- the table


def outcome(name: str, technique: str) -> tuple[str, str]:
    """Return "right", "refused", "wrong" or "raw", and what was found or said."""
    model, example = network(name)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of exporters and tracers: not what is asked here
        try:
            return "right", TECHNIQUES[technique](model, example, Path(folder))
        except AssertionError as error:
            return "wrong", str(error) or traceback.format_exc().splitlines()[-2].strip()
        except Exception as error:
            frame = traceback.extract_tb(error.__traceback__)[-1]
            ours = HELPERS in Path(frame.filename).parents and (frame.line or "").startswith("raise ")
            said = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            return ("refused" if ours else "raw"), said


def _put(queue: Any, name: str, technique: str) -> None:
    torch.set_num_threads(1)
    queue.put(outcome(name, technique))


def _limited(name: str, technique: str) -> tuple[str, str]:
    """Return the outcome by a process of its own, which may take `SECONDS`."""
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    process = context.Process(target=_put, args=(queue, name, technique))
    process.start()
    try:
        return queue.get(timeout=SECONDS)
    except Exception:  # the queue's own: empty when the time is over
        return "hang", f"over {SECONDS} s"
    finally:
        process.kill()
        process.join()


def main() -> int:
    """Print the outcome of every technique on the networks named; return 1 if one is neither right nor refused."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("network", nargs="*", help="default: all")
    args = parser.parse_args()
    counts: Counter[str] = Counter()
    for name in args.network or NETWORKS:
        for technique in TECHNIQUES:
            began = time.monotonic()
            kind, said = _limited(name, technique)
            counts[kind] += 1
            print(f"{name:26} {technique:13} {kind:8} {time.monotonic() - began:4.0f} s  {said[:200]}", flush=True)
    print(", ".join(f"{count} {kind}" for kind, count in counts.most_common()))
    return 0 if set(counts) <= {"right", "refused"} else 1


if __name__ == "__main__":
    sys.exit(main())
