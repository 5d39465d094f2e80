"""What runs in the judge's sandbox: it takes a submission and inputs, and answers with logits. It never has a label.

Two kinds of work, each for a process of its own. "network" executes a student's module: from then on, nothing that this
process says is believed, and it is not needed again. "graph" only runs ONNX Runtime on a graph, which is data.

The conversation, in the frames of `sandbox`; a payload's size stands in the header or follows from the question:

    {"hidden": [path, …]}                                → {"seen": [path, …]}: those that hold anything here
    network: {} + file, {"export": shape or null} + source → {"own_numbers": n, "size": s} + the graph, before any input
    graph: {} + graph                                      → {}
    {"shape": s, "batch": b, "weights": w} + inputs        → {"shape": s} + float32 logits, as often as asked
    anything                                               → {"refused": [criterion, sentence]}, and no more

Weights 0 are those of the file, 1 to `SHUFFLES` the same numbers in another order, written before the module exists.
"""

import gc
import inspect
import io
import json
import math
import os
import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from helpers.capstone.sandbox import limit, read_exactly, read_header, write_frame
from helpers.core import paths

if TYPE_CHECKING:
    from torch import Tensor, nn

PROCESS, WEIGHTS = "decodes in a fresh process", "the weights are in the file"
SHUFFLES = 3
LONGEST = 300  # characters of a sentence
CODE_PLACES = tuple(os.path.realpath(place) + os.sep for place in (sys.prefix, sys.base_prefix, paths.ROOT / "helpers"))
CODE = {".py", ".pyc", ".so", ".pyd", ".dll", ".dylib"}
LOOKING = {"os.listdir", "os.scandir"}  # importing does that
FORBIDDEN = (
    "os.", "shutil.", "tempfile.", "subprocess.", "pty.", "signal.", "_thread.", "ctypes.", "mmap.", "socket.", "http.",
    "urllib.", "ftplib.", "smtplib.", "sqlite3.", "winreg.", "_winapi.", "msvcrt.",
)  # fmt: skip
READERS = {"safetensors", "pickle5", "urllib3", "requests"}  # they open what Python does not see
Answer = Callable[[Any, int, int], np.ndarray]  # of inputs, the batch size and which weights


class _Refused(Exception):
    def __init__(self, criterion: str, sentence: str) -> None:
        super().__init__(criterion, sentence)
        self.criterion, self.sentence = criterion, sentence


def main(work: str, requests: IO[bytes] | None = None, replies: IO[bytes] | None = None) -> None:
    """Answer requests from the standard input on the standard output, until there are none; `work` as above."""
    requests = requests or _taken(0, "rb", os.O_RDONLY)
    replies = replies or _taken(1, "wb", os.O_WRONLY)
    try:
        (_network if work == "network" else _graph)(requests, replies)
    except EOFError:  # the judge has what it wants
        return
    except _Refused as refused:
        said = [refused.criterion, refused.sentence]
    except BaseException as error:  # whatever a student's code does is said in one sentence
        said = [PROCESS, f"{type(error).__name__}: {(str(error).strip().splitlines() or ['no message'])[0]}"]
    write_frame(replies, {"refused": [part[:LONGEST] for part in said]})


def _taken(number: int, mode: str, flags: int) -> IO[bytes]:
    """Return a standard stream, and put nothing in its place: what a module prints goes nowhere."""
    stream: IO[bytes] = os.fdopen(os.dup(number), mode)
    nowhere = os.open(os.devnull, flags)
    os.dup2(nowhere, number)
    os.close(nowhere)
    return stream


def _greet(requests: IO[bytes], replies: IO[bytes]) -> None:
    places = read_header(requests)["hidden"]
    write_frame(replies, {"seen": [place for place in places if os.path.isdir(place) and os.listdir(place)]})


def _payload(requests: IO[bytes]) -> tuple[dict[str, Any], bytes]:
    header = read_header(requests)
    return header, read_exactly(requests, header["size"])


def _serve(requests: IO[bytes], replies: IO[bytes], answer: Answer, check: Callable[[], None]) -> None:
    while True:
        header, content = _payload(requests)
        is_text = header["shape"] is None
        inputs = json.loads(content) if is_text else np.frombuffer(content, np.float32).reshape(header["shape"]).copy()
        logits = np.ascontiguousarray(answer(inputs, header["batch"], header["weights"]), np.float32)
        check()
        write_frame(replies, {"shape": logits.shape}, logits.tobytes())


def _graph(requests: IO[bytes], replies: IO[bytes]) -> None:
    from helpers import runtime
    from helpers.runtime import sessions

    _greet(requests, replies)
    content = _payload(requests)[1]
    limit()
    session = sessions.open_session(content, threads=1)
    write_frame(replies, {})

    def answer(inputs: np.ndarray, batch: int, weights: int) -> np.ndarray:
        return np.concatenate([runtime.run(session, part) for part in _batches(inputs, batch)])

    _serve(requests, replies, answer, lambda: None)


def _batches(inputs: np.ndarray, size: int) -> list[np.ndarray]:
    return [inputs[start : start + size] for start in range(0, len(inputs), size)]


def _network(requests: IO[bytes], replies: IO[bytes]) -> None:
    import torch

    from helpers import files, quantization, training  # noqa: F401  all that is read before the guard stands

    torch.set_num_threads(1)
    _greet(requests, replies)
    content = _payload(requests)[1]
    header, source = _payload(requests)
    student, export = _Student(content, source.decode()), header["export"]
    if export:
        exported(torch.nn.Linear(1, 1), torch.zeros(2, 1))  # what the exporter itself reads, it has read now
    limit()
    gc.freeze()  # garbage from before stays: to clear it away may delete a file, which is not the module's doing
    with _Guard(student.files) as guard:  # in here, the student's code may have replaced whatever is called
        own = _own_numbers(student.model(0)) if source else 0  # a network of the course holds none of a student's
        graph = exported(student.model(0), torch.zeros(export)) if export else b""
        guard.check()
        write_frame(replies, {"own_numbers": own, "size": len(graph)}, graph)
        _serve(requests, replies, student.answer, guard.check)


class _Student:
    """A student's module, or without source the file's, with the weights of the file, or the same in another order."""

    def __init__(self, content: bytes, source: str) -> None:
        from helpers.files import read_words

        self.files, self.source, self.names = _written(content), source, _names(source)
        self.words = read_words(Path(self.files[0]))
        self.models: dict[int, nn.Module] = {}
        if (
            not source
        ):  # no code of a student's: what `load` and torch import for it, they import before the guard stands
            self.model(0)

    def model(self, weights: int) -> "nn.Module":
        """Return the module with these weights; its source is executed anew for each."""
        if weights not in self.models:
            self.models[weights] = _filled(self.source, self.names, self.files[weights])
        return self.models[weights]

    def answer(self, inputs: Any, batch: int, weights: int) -> np.ndarray:
        """Return logits."""
        import torch

        from helpers import training

        tensor = torch.from_numpy(_encoded(inputs, self.words) if isinstance(inputs, list) else inputs)
        return np.asarray(training.predict(self.model(weights), tensor, batch_size=batch))


def _written(content: bytes) -> list[str]:
    """Write the file and its shuffled copies into the present folder; return their absolute paths."""
    from helpers.files import contents, encoding, writing
    from helpers.files.arrays import Writable

    files = [Path(f"{number}.pack").absolute() for number in range(1 + SHUFFLES)]
    files[0].write_bytes(content)
    arrays, _, architecture = contents(files[0])
    for seed, path in enumerate(files[1:]):
        generator = np.random.default_rng(seed)
        shuffled: Writable = {name: _shuffled(name, array, generator) for name, array in arrays.items()}
        writing.write(shuffled, path, [], code=encoding.encode_sparse, architecture=architecture)
    return [str(path) for path in files]


def _shuffled(name: str, array: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    from helpers.files import loading

    is_whole = loading.is_grid(name)  # a scale and its ends mean nothing in another order
    return array if is_whole else generator.permutation(array.reshape(-1)).reshape(array.shape)


def _names(source: str) -> dict[str, Any]:
    """Return what is at hand for a student's source."""
    import torch
    from torch import nn

    names = {"__name__": "submission", "torch": torch, "nn": nn, "F": nn.functional, "np": np, "math": math}
    if "nets" in source:
        from helpers import nets

        names["nets"] = nets
    if "resnet" in source.lower():  # torchvision comes with it, and takes seconds
        from helpers.nets import resnet  # noqa: F401  read before the guard stands
    return names


def _filled(source: str, names: Mapping[str, Any], path: str) -> "nn.Module":
    from torch import nn

    from helpers.files import load_into

    if not source:
        return _of_the_course(path)
    namespace = dict(names)
    exec(compile(source, "<submission>", "exec"), namespace)
    if not callable(namespace.get("build")):
        raise _Refused(PROCESS, "the source defines no function `build`.")
    module: Any = namespace["build"]()
    if not isinstance(module, nn.Module):
        raise _Refused(PROCESS, f"build() returns a {type(module).__name__}; asked: an nn.Module.")
    return load_into(module, Path(path)).eval()


def _of_the_course(path: str) -> "nn.Module":
    from helpers.files import load

    try:
        network = load(Path(path))
    except ValueError as error:
        raise _Refused(PROCESS, f"{error}; say by `build` or model.py which module the numbers fill.") from None
    vars(network).pop("words", None)  # of the file, and not numbers beside it
    return network


def _encoded(texts: list[str], words: list[str]) -> np.ndarray:
    from helpers.core import vocabulary

    tokens = [vocabulary.tokenize(text) for text in texts]
    if any(" " in word for word in words):
        tokens = [vocabulary.with_bigrams(each) for each in tokens]
    return vocabulary.encode(tokens, words)


def _own_numbers(module: "nn.Module") -> int:
    """Return how many numbers a module holds in tensors, arrays and lists that its `state_dict` does not name."""
    import torch

    saved = {tensor.data_ptr() for tensor in module.state_dict().values()}
    seen: set[int] = set()

    def count(value: Any, depth: int = 0) -> int:
        if id(value) in seen or depth > 6:
            return 0
        if isinstance(value, torch.Tensor):
            seen.add(id(value))
            return 0 if value.data_ptr() in saved else value.numel()
        if isinstance(value, np.ndarray):
            return int(value.size)
        if isinstance(value, bytes | str):
            return len(value) // 4
        if isinstance(value, Mapping):
            return sum(count(each, depth + 1) for each in value.values())
        if isinstance(value, list | tuple | set):
            is_plain = all(isinstance(each, int | float) for each in value)
            return len(value) if is_plain else sum(count(each, depth + 1) for each in value)
        if inspect.isfunction(value):
            return sum(count(cell.cell_contents, depth + 1) for cell in value.__closure__ or ())
        return 0

    total = 0
    for part in module.modules():
        own = {key: value for key, value in vars(part).items() if key not in ("_parameters", "_modules")}
        total += sum(count(value) for value in own.values())
        if type(part).__module__ == "submission":
            total += sum(count(value) for key, value in vars(type(part)).items() if not key.startswith("__"))
    return total


def exported(model: "nn.Module", example: "Tensor") -> bytes:
    """Return a module as ONNX by PyTorch's older exporter: the newer one takes seconds to load."""
    import torch

    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # that there is a newer one
        torch.onnx.export(
            model.eval(),
            (example,),
            file,  # type: ignore[arg-type]  # it takes what can be written to, too
            dynamo=False,
            input_names=["input"],
            output_names=["logits"],
            dynamic_axes={"input": {0: "batch"}, "logits": {0: "batch"}},
        )
    return file.getvalue()


class _Guard:
    """Once it is entered, Python opens code and the given files, to read, and asks the system for nothing else.

    An attempt is refused, and remembered for `check` although a module swallows the error. This is Python watching
    Python: it says in a sentence what a module tried, and where there are no walls it is all there is.
    """

    def __init__(self, files: list[str]) -> None:
        self.files, self.active, self.attempt = set(files), False, ""
        sys.addaudithook(self._hook)

    def __enter__(self) -> "_Guard":
        self.active = True
        return self

    def __exit__(self, *error: object) -> None:  # it stays active
        self.check()

    def check(self) -> None:
        if self.attempt:
            raise _Refused(WEIGHTS, self.attempt)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.active:
            return
        if event == "open" and not self._may_open(*arguments):
            self._refuse(f"the module opens {Path(os.fsdecode(arguments[0])).name}, which is not its file.")
        if event.startswith(FORBIDDEN) and event not in LOOKING:
            self._refuse(f"the module asks the system for {event}, which a network does not need.")
        if event == "import" and str(arguments[0]).split(".")[0] in READERS:
            self._refuse(f"the module imports {arguments[0]}, which a network does not need.")

    def _may_open(self, path: Any, mode: Any, flags: int) -> bool:
        if isinstance(path, int) or path is None:
            return True
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND):
            return False
        text = os.fsdecode(path)
        try:
            real = os.path.realpath(text)
        except OSError:  # who may not look there may not read there
            return False
        is_code = os.path.isabs(text) and Path(real).suffix in CODE and real.startswith(CODE_PLACES)
        return is_code or text in self.files or text == os.devnull

    def _refuse(self, sentence: str) -> None:
        self.attempt = self.attempt or sentence
        raise PermissionError(sentence)
