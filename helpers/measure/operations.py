"""Multiplications of a forward pass, layer by layer."""

from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import pandas as pd
import torch
from jaxtyping import Shaped
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from helpers.core import checks, modules
from helpers.measure.parameters import effective, layers_of, trained_elements, unseen

aten = torch.ops.aten
RECURRENT = (aten.mkldnn_rnn_layer, aten._cudnn_rnn, aten.miopen_rnn)


def count_macs(model: nn.Module, example: Shaped[Tensor, "batch ..."]) -> int:
    """Return the multiply-accumulates of one forward pass for one example; `example` is a batch of any size.

    Convolutions and matrix products, as `torch.utils.flop_counter` counts them (it counts a multiply-accumulate as two
    operations), recurrent layers and attention included, whichever kernel computes them. Zeros are counted: a dense
    kernel multiplies by them like by any other number, and so are the places that a causal mask hides. What computes
    the weights themselves (masks, weight normalization) is not counted.

    Raises ValueError if `example` is no batch that the model takes, or its cost cannot be divided among its examples.
    """
    return sum(_forward_costs(model, example)[0].values())


def layer_table(model: nn.Module, example: Shaped[Tensor, "batch ..."]) -> pd.DataFrame:
    """Return one row per layer, in the order of the model's definition: what has own parameters or own MACs.

    Columns: layer, kind, output (shape for one example), weights, biases (every one-dimensional parameter:
    biases, scale and shift of a normalization), parameters (trained values), macs (for one example), bytes (4 per
    parameter, fp32), share_parameters and share_macs (fractions of the column's sum).

    The columns add up to `count_weights`, `count_parameters` and `count_macs`. A product with a layer's weight is that
    layer's, also where another module computes it, as `nn.MultiheadAttention` does for its `out_proj`; any other is
    the module's that computes it. A module under two names has one row, a tied tensor counts in the first of its
    layers. Raises ValueError if there is no row.
    """
    macs, outputs = _forward_costs(model, example)
    plain = modules.materialized(model)
    seen: set[int] = set()
    seen_plain: set[int] = set()
    rows = []
    for name, module in layers_of(model):
        trained = trained_elements(module)
        if not trained and not macs[name]:
            continue
        own = unseen(effective(plain.get_submodule(name)), seen_plain)
        parameters = sum(tensor.numel() for tensor in unseen(trained, seen))
        row = {
            "layer": name,
            "kind": _kind(module),
            "output": outputs.get(name),
            "weights": sum(tensor.numel() for tensor in own if tensor.dim() > 1),
            "biases": sum(tensor.numel() for tensor in own if tensor.dim() <= 1),
        }
        rows.append(row | {"parameters": parameters, "macs": macs[name], "bytes": 4 * parameters})
    table = pd.DataFrame(checks.not_empty("layers with parameters", rows))
    for column in ("parameters", "macs"):
        table[f"share_{column}"] = table[column] / max(1, table[column].sum())
    return table


def _kind(module: nn.Module) -> str:
    return type(module).__name__.removeprefix("Parametrized")


Costs = tuple[Counter[str], dict[str, tuple[int, ...]]]


def _forward_costs(model: nn.Module, example: Tensor) -> Costs:
    """Return each module's own MACs and its output's shape, for one example, by the module's (first) name.

    The first example is counted alone: what does not depend on the batch would be divided otherwise. A network that
    refuses it is counted with the whole batch.
    """
    if not isinstance(example, Tensor) or example.dim() == 0:
        raise ValueError(f"example={example!r}; allowed: a tensor whose first dimension counts the examples")
    batch = len(checks.not_empty("example", example))
    try:
        return _counted(model, example[:1])
    except Exception:
        if batch == 1:
            raise
    macs, outputs = _counted(model, example)
    if any(count % batch for count in macs.values()):
        raise ValueError(f"example has {batch} examples, whose MACs are no multiple of {batch}; allowed: one example")
    return Counter({name: count // batch for name, count in macs.items()}), outputs


def _counted(model: nn.Module, batch: Tensor) -> Costs:
    """Return the MACs and output shapes of one forward pass, on a copy."""
    new = modules.materialized(model).eval()
    for name, module in new.named_modules():
        where = type(module).__module__
        if where.startswith("torch.ao.nn.") and ".quantized." in where:
            raise ValueError(
                f"layer {name!r} is {_kind(module)}, of torch.ao: it hides its product; allowed: float layers"
            )
    running, macs, outputs = [""], Counter[str](), dict[str, tuple[int, ...]]()

    def enter(name: str, *_: object) -> None:
        running.append(name)

    def leave(name: str, module: nn.Module, inputs: object, output: object) -> None:
        running.pop()
        tensors = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
        outputs[name] = tuple(tensors[0].shape[1:]) if tensors else ()

    def note(tensors: list[Tensor], count: int) -> None:
        owners = [name for tensor in tensors for name in _holders(tensor, weights)]
        own = not owners or running[-1] in owners
        macs[running[-1] if own else owners[-1]] += count

    for name, module in new.named_modules():
        module.register_forward_pre_hook(partial(enter, name))
        module.register_forward_hook(partial(leave, name), always_call=True)
    with torch.no_grad(), parametrize.cached(), modules.plain_attention():
        weights = [(name, tensor) for name, module in layers_of(new) for tensor in effective(module).values()]
        with modules.asked("example", batch), FlopCounterMode(display=False, custom_mapping=_formulas(note)):
            new(batch)
    return macs, outputs


def _holders(tensor: Tensor, weights: list[tuple[str, Tensor]]) -> list[str]:
    """Return the layers of which `tensor` is a weight, transposed or a part of it perhaps."""
    return [name for name, weight in weights if _within(tensor, weight)]


def _within(tensor: Tensor, weight: Tensor) -> bool:
    if not tensor.layout == weight.layout == torch.strided or tensor.device != weight.device:
        return False
    start = weight.data_ptr()
    return 0 < start <= tensor.data_ptr() < start + weight.nbytes  # 0: on the meta device


Note = Callable[[list[Tensor], int], None]


def _formulas(note: Note) -> dict[Any, Callable[..., int]]:
    """Return a function for each operator that multiplies: it notes the tensors and the MACs, layer by layer."""
    known = {operator: _noting(note, lambda *a, f=f, **k: f(*a, **k) // 2) for operator, f in flop_registry.items()}
    others = {operator: _noting(note, formula) for operator, formula in _unknown_operators().items()}
    return known | others | {operator: _noting_matrices(note) for operator in RECURRENT}


def _unknown_operators() -> dict[Any, Callable[..., int]]:
    """Return formulas of the MACs for what torch's counter does not know."""
    attention = flop_registry[aten._scaled_dot_product_flash_attention]
    formulas: dict[Any, Callable[..., int]] = {
        aten._scaled_dot_product_flash_attention_for_cpu: lambda *a, **k: attention(*a, **k) // 2,
        aten._scaled_dot_product_fused_attention_overrideable: lambda *a, **k: attention(*a, **k) // 2,
        aten.dot: lambda a, b, **_: a.numel(),
        aten.vdot: lambda a, b, **_: a.numel(),
        aten.mv: lambda matrix, vector, **_: matrix.numel(),
        aten.addmv: lambda summand, matrix, vector, **_: matrix.numel(),
        aten.addbmm: lambda summand, a, b, **_: a.numel() * b.shape[2],
        aten._addmm_activation: lambda summand, a, b, **_: a.numel() * b.shape[1],
        aten._int_mm: lambda a, b, **_: a.numel() * b.shape[1],
        aten._trilinear: lambda a, weight, *_, **__: len(a) * weight.numel(),  # of nn.Bilinear
        aten.conv_tbc: lambda x, weight, *_, out_val, **__: out_val[..., 0].numel() * weight.numel(),
    }
    if hasattr(torch.ops.torchvision, "deform_conv2d"):  # torchvision has been imported
        deformed = torch.ops.torchvision.deform_conv2d
        formulas[deformed] = lambda x, weight, *_, out_val, **__: out_val[:, 0].numel() * weight.numel()
    return formulas


def _noting(note: Note, formula: Callable[..., int]) -> Callable[..., int]:
    def count(*args: Any, **kwargs: Any) -> int:
        tensors = [leaf for leaf in tree_leaves(args) if isinstance(leaf, Tensor) and leaf.dim() > 1]
        note(tensors, formula(*args, **kwargs))
        return 0

    return _given_tensors(count)


def _noting_matrices(note: Note) -> Callable[..., int]:
    """Count a recurrent layer's kernel: each matrix once for each step of each example."""

    def count(x: Tensor, *args: Any, **_: Any) -> int:
        for matrix in tree_leaves(args[:2]):
            if isinstance(matrix, Tensor) and matrix.dim() == 2:
                note([matrix], x[..., 0].numel() * matrix.numel())
        return 0

    return _given_tensors(count)


def _given_tensors(formula: Callable[..., int]) -> Callable[..., int]:
    """Tell torch's counter to give the formula the tensors, not their shapes."""
    formula._get_raw = True  # type: ignore[attr-defined]
    return formula
