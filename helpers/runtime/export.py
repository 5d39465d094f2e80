"""From PyTorch to ONNX, checked logit for logit."""

import io
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from helpers.core import checks
from helpers.core.paths import write_atomically
from helpers.runtime.sessions import DeployError, first_line, open_session, run, session

if TYPE_CHECKING:
    import onnx
    from torch import Tensor, nn

TOLERANCE = 1e-4
FEW_WORDS = 4
SPECIALIZED = "write x.shape[0] or flatten(1) in place of len(x), a number of rows, or a loop over them"


def export_onnx(model: "nn.Module", example: "Tensor", path: Path, *, check_inputs: "Tensor | None" = None) -> Path:
    """Write `model` as one ONNX file that takes batches of any size; return its path.

    Token numbers, whole numbers of shape (batch, length), may then be of any length, too, where the model takes other
    lengths and the exporter can express it (not a loop over the words in Python); otherwise the file says theirs.

    The model is exported in evaluation mode, masks applied. Before the file appears, ONNX Runtime computes
    the logits of `check_inputs` (default: `example`), as one batch and one by one, and each is compared with
    PyTorch's. They may differ by 1e-4 of the largest logit (or of 1, if that is more), because the runtimes
    add up in different orders. Where inputs of layers are rounded, that moves a number between two codes to the one or
    the other. Then the comparison is made with all roundings taken out, on both sides; and with them, the answers must
    be nearer to the model's (by half, root mean square) than the model's own without roundings are.

    Raises ValueError if there is no example, nothing to check with, a model that puts out anything but one tensor of
    finite numbers, or one that is not of single precision; DeployError if the answers differ by more, or the model
    cannot be a graph for batches of any size.
    """
    checks.not_empty("example", example)
    inputs = example if check_inputs is None else checks.not_empty("check_inputs", check_inputs)
    _require_one_tensor(model, example)
    content = _checked(model, example, inputs)
    write_atomically(Path(path), content)
    return Path(path)


def export_like(model: "nn.Module", graph: Path, example: "Tensor", path: Path) -> Path:
    """Write `model` as ONNX by putting its weights into the `graph` of a network with the same layers; return `path`.

    The layers may have other sizes, as after a removal of filters. `export_onnx` takes seconds, this tenths of one, and
    the file is checked in the same way. `graph` is what `export_onnx` wrote. In both networks BatchNorm must have been
    folded (`quantization.fold_batchnorm`): the exporter does it, too, but then weights lose the model's names.

    Raises ValueError if the graph has no place for one of the model's tensors, or for what `export_onnx` refuses;
    DeployError if the answers differ.
    """
    import onnx

    from helpers.quantization import bake

    checks.not_empty("example", example)
    _require_one_tensor(model, example)
    session(graph)  # says in one sentence what is wrong with a file
    proto = onnx.load(Path(graph))
    places = {tensor.name: tensor for tensor in proto.graph.initializer}
    tensors = list(_tensors(bake(model).cpu()))
    if missing := sorted(names[0] for names, _ in tensors if not places.keys() & names):
        raise ValueError(
            f"graph={str(graph)!r} has no {missing[0]!r}; allowed: a network of the same layers, BatchNorm folded, "
            "whose weights the exporter kept as they are (export_onnx takes any)"
        )
    for name, tensor in ((name, tensor) for names, tensor in tensors for name in places.keys() & names):
        places[name].CopyFrom(onnx.numpy_helper.from_array(tensor.numpy(), name))
    _widen_flattening(proto.graph, places)
    del proto.graph.value_info[:]  # the shapes in between, as they were in the other network
    content = proto.SerializeToString()
    _require_same_logits(content, model, example)
    write_atomically(Path(path), content)
    return Path(path)


def _tensors(model: "nn.Module") -> "Iterator[tuple[list[str], Tensor]]":
    """Yield each tensor of a model with all of its names, of which a graph keeps one."""
    state = model.state_dict(keep_vars=True)
    names: dict[int, list[str]] = {}
    for name, tensor in state.items():
        names.setdefault(id(tensor), []).append(name)
    yield from ((each, state[each[0]].detach()) for each in names.values())


def _widen_flattening(graph: "onnx.GraphProto", places: "dict[str, onnx.TensorProto]") -> None:
    """Tell each reshaping before a linear layer how many inputs that layer now has: a constant of the graph."""
    import onnx

    gemms = [node for node in graph.node if node.op_type == "Gemm" and node.input[1] in places]
    linear = {node.input[0]: places[node.input[1]] for node in gemms}
    for node in graph.node:
        if node.op_type == "Reshape" and node.output[0] in linear and node.input[1] in places:
            shape = onnx.numpy_helper.to_array(places[node.input[1]]).copy()
            shape[-1] = linear[node.output[0]].dims[1]  # a linear layer's weight is (outputs, inputs)
            places[node.input[1]].CopyFrom(onnx.numpy_helper.from_array(shape, node.input[1]))


def _require_one_tensor(model: "nn.Module", example: "Tensor") -> None:
    """Raise ValueError unless the model computes in single precision, and answers with one tensor."""
    import torch

    from helpers.core import modules

    floats = {name: p.dtype for name, p in model.named_parameters() if p.is_floating_point() or p.is_complex()}
    if strange := {name: dtype for name, dtype in floats.items() if dtype != torch.float32}:
        name = next(iter(strange))
        raise ValueError(f"model has {name!r} of {strange[name]}; allowed: torch.float32, model.float()")
    where = next((p.device for p in model.parameters()), torch.device("cpu"))
    with modules.asked("example", example), modules.evaluating(model), torch.no_grad():
        answer = model(example.to(where))
    if not isinstance(answer, torch.Tensor):
        raise ValueError(f"model answers with a {type(answer).__name__}; allowed: one tensor, the logits")
    checks.finite("model's answer to example", answer)


def _checked(model: "nn.Module", example: "Tensor", inputs: "Tensor") -> bytes:
    """Return the checked graph: where the model takes texts of any length, of one that does, if there is such a one."""
    import torch

    from helpers.quantization import bake

    # torch.export takes a size of 1 for a constant, so a dynamic size needs an example of at least two.
    batch = (example if len(example) > 1 else torch.cat([example, example])).cpu()
    plain, others = bake(model).cpu().eval(), _of_other_lengths(model, inputs)
    if others:
        try:
            content = _export(plain, _of_a_few_words(model, batch), any_length=True)
            for each in (inputs, *others):
                _require_same_logits(content, model, each)
            return content
        except DeployError:
            pass  # it can have one length only
    content = _export(plain, batch, any_length=False)
    _require_same_logits(content, model, inputs)
    return content


def _of_other_lengths(model: "nn.Module", inputs: "Tensor") -> "list[Tensor]":
    """Return the first texts cut to half and drawn to double length, as far as they are texts that the model takes."""
    import torch

    from helpers.training import predict

    if inputs.dim() != 2 or inputs.is_floating_point() or inputs.is_complex():
        return []
    few, taken = inputs[:3], []
    for other in (few[:, : max(1, few.shape[1] // 2)], torch.cat([few, few], 1)):
        try:
            predict(model, other)
        except Exception:  # of any class: the model's own
            continue
        taken.append(other)
    return [other for other in taken if other.shape[1] != inputs.shape[1]]


def _of_a_few_words(model: "nn.Module", batch: "Tensor") -> "Tensor":
    """Return texts of 2 to 7 tokens where the model takes such: the exporter takes recurrent layers apart step by step.

    An LSTM that was shown 1,000 tokens took 212 seconds, and the same graph, for any length, from 4 tokens a few.
    """
    import torch

    from helpers.training import predict

    if batch.shape[1] < 2:
        return torch.cat([batch, batch], 1)
    while batch.shape[1] >= 2 * FEW_WORDS:
        shorter = batch[:, : batch.shape[1] // 2]
        try:
            predict(model, shorter)
        except Exception:  # of any class: the model's own
            break
        batch = shorter
    return batch.contiguous()


def _export(model: "nn.Module", batch: "Tensor", *, any_length: bool) -> bytes:
    """Return the model as ONNX, for batches of any size; raise DeployError, in one sentence, if there is no such graph.

    The exporter follows the operations one by one, for which `len(x)` is a number. Where that made a constant of the
    batch's size, it reads the code.
    """
    import torch

    sizes = {0: torch.export.Dim("batch")} | ({1: torch.export.Dim("length")} if any_length else {})
    reason = ""
    for strict in (False,) if any_length else (False, True):
        try:
            with without_advice(), _forgetful():
                program = _program(model, batch, sizes, strict=strict)
        except Exception as error:  # the exporter's have no common base but Exception
            reason = reason or first_line(error)
            continue
        sides = program.graph.input[0].type.tensor_type.shape.dim
        if fixed := [int(sides[axis].dim_value) for axis in sizes if not sides[axis].dim_param]:
            reason = f"the graph takes {fixed[0]} only"
            continue
        return _without_metadata(program).SerializeToString()
    raise DeployError(f"model cannot be a graph for any {'length' if any_length else 'batch'}: {reason}; {SPECIALIZED}")


def _program(model: "nn.Module", batch: "Tensor", sizes: "dict[int, Any]", *, strict: bool) -> "onnx.ModelProto":
    import torch

    names: dict[str, Any] = {"input_names": ["input"], "output_names": ["logits"], "verbose": False, "dynamo": True}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a tracer, about its own inside
        if strict:
            read = torch.export.export(model, (batch,), dynamic_shapes=(sizes,), strict=True)
            program = torch.onnx.export(read, **names)
        else:
            program = torch.onnx.export(model, (batch,), dynamic_shapes=(sizes,), **names)
    if program is None:
        raise DeployError("torch.onnx.export returned nothing")
    return program.model_proto


@contextmanager
def _forgetful() -> "Iterator[None]":
    """Have torch forget how it took recurrent layers apart before, which it otherwise does, for one length, again.

    Its exporter exchanges that function for one that knows no length, but an operator that was exported once in this
    process remembers the old one: of two exports the second had a fixed length.
    """
    import torch

    operators = [getattr(torch.ops.aten, name).input for name in ("lstm", "gru", "rnn_tanh", "rnn_relu")]
    for operator in operators:
        getattr(operator, "_dispatch_cache", {}).clear()
    try:
        yield
    finally:
        for operator in operators:
            getattr(operator, "_dispatch_cache", {}).clear()


def _without_metadata(proto: "onnx.ModelProto") -> "onnx.ModelProto":
    """Drop the exporter's notes: they hold this machine's paths and are no part of the model."""
    graph = proto.graph
    for part in (
        proto,
        graph,
        *graph.node,
        *graph.input,
        *graph.output,
        *graph.value_info,
        *graph.initializer,
    ):
        del part.metadata_props[:]
        part.doc_string = ""
    return proto


def _require_same_logits(content: bytes, model: "nn.Module", inputs: "Tensor") -> None:
    """Raise DeployError unless the graph answers as the model does, to a batch and to its first three one by one."""
    from helpers.quantization import bake, input_grids
    from helpers.training import predict

    expected, found = predict(model, inputs).numpy(), _answers(content, inputs)
    try:
        _require_close(found, expected)
    except DeployError:
        if not input_grids(model) or found[0].shape != expected.shape:
            raise
        plain = bake(model)  # whose weights stay rounded
        with _unrounded()():
            smooth = predict(plain, inputs).numpy()
        _require_close(_answers(_without_roundings(content), inputs), smooth)
        _require_nearer(found[0], expected, smooth)


def _answers(content: bytes, inputs: "Tensor") -> tuple[np.ndarray, np.ndarray]:
    """Return what ONNX Runtime answers to a batch, and to its first three one by one."""
    data = inputs.cpu().numpy()
    try:
        runtime = open_session(content, threads=1)
        one_by_one = [run(runtime, data[index : index + 1]) for index in range(min(3, len(data)))]
        return run(runtime, data), np.concatenate(one_by_one)
    except Exception as error:  # the classes that ONNX Runtime raises have no common base but Exception
        raise DeployError(f"ONNX Runtime cannot compute the graph ({first_line(error)}); {SPECIALIZED}") from error


def _require_close(found: tuple[np.ndarray, np.ndarray], expected: np.ndarray) -> None:
    allowed = TOLERANCE * max(1.0, float(np.abs(expected).max()))
    for answers, wanted in zip(found, (expected, expected[: len(found[1])]), strict=True):
        if answers.shape != wanted.shape:
            raise DeployError(f"ONNX Runtime gives logits of shape {answers.shape}, PyTorch {wanted.shape}")
        difference = float(np.abs(answers - wanted).max())
        if not difference <= allowed:  # also for NaN
            raise DeployError(
                f"ONNX Runtime's logits differ from PyTorch's by {difference:.3g}; allowed: {allowed:.3g}"
            )


def _require_nearer(found: np.ndarray, expected: np.ndarray, smooth: np.ndarray) -> None:
    """Raise DeployError unless the graph's answers are those of the rounded network, but for a few numbers."""
    apart, lost = (float(np.sqrt(np.square(other - expected).mean())) for other in (found, smooth))
    if not apart <= lost / 2:
        raise DeployError(
            f"ONNX Runtime's logits differ from PyTorch's by {apart:.3g} (root mean square), where rounding the inputs "
            f"of layers changes them by {lost:.3g}; allowed: half of it"
        )


def _unrounded() -> "Callable[[], Any]":
    """Return a context in which PyTorch's `round` leaves numbers as they are."""
    import torch
    from torch.overrides import TorchFunctionMode

    class Unrounded(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            return args[0] if func in (torch.round, torch.Tensor.round) else func(*args, **(kwargs or {}))

    return Unrounded


def _without_roundings(content: bytes) -> bytes:
    import onnx

    proto = onnx.load_from_string(content)
    for node in proto.graph.node:
        if node.op_type == "Round":
            node.op_type = "Identity"
    return proto.SerializeToString()


@contextmanager
def without_advice() -> Iterator[None]:
    """Silence tools that print, and give hints and tracebacks through the root logger, whatever one has done."""
    before, handlers = logging.root.manager.disable, list(logging.root.handlers)
    logging.disable(logging.ERROR)
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(before)
        logging.root.handlers[:] = handlers  # a hint adds one if there is none
