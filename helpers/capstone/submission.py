"""What is handed to the judge: a file, and the source that goes with it. Both are read, and nothing is executed."""

import ast
import inspect
import linecache
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from helpers.capstone.answering import WEIGHTS

FILE = "one honest file"
LARGEST = 256 << 20  # bytes of a file
PICKLES = (b"PK\x03\x04", b"\x80")
MODULES = {
    "__future__",
    "collections",
    "dataclasses",
    "functools",
    "helpers",
    "itertools",
    "math",
    "numpy",
    "torch",
    "typing",
}
UNSEEN_READERS = {  # attributes of torch that open files unseen by Python, or (the last two) lead to modules that can
    "from_file", "jit", "ops", "load_library", "cpp_extension", "package", "PackageImporter", "_C", "sys",
}  # fmt: skip
BUILTINS = {"__import__", "eval", "exec", "compile", "getattr", "setattr", "delattr", "globals", "locals", "vars"}
DOMAINS = {"", "ai.onnx", "ai.onnx.ml", "com.microsoft"}
BY_CHANCE = {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}


class Refused(Exception):
    """A trick, or a mistake that looks like one: which criterion it breaks, and one sentence."""

    def __init__(self, criterion: str, sentence: str) -> None:
        super().__init__(sentence)
        self.criterion, self.sentence = criterion, sentence


def opened(submission: Path, build: Any) -> tuple[bytes, str]:
    """Return the content of the model's file and the source that goes with it.

    The source is "" for ONNX, and for a packed file that comes alone, as one of a network of the course may: see
    `files.load`. Raises Refused for what no honest submission is, FileNotFoundError if there is no such file,
    ValueError if `build` has no source.
    """
    path, source = submission, "" if build is None else source_of(build)
    if submission.is_dir():
        path, found = _in_folder(submission)
        source = found or source
    content = _content(path)
    if content.startswith(PICKLES):
        raise Refused(FILE, f"{path.name} is a pickle or a zip, which can hold code: write it with `files` or as ONNX.")
    if content.startswith(b"MCPACK"):
        _check_imports(source)
        return content, source
    check_graph(content)
    return content, ""


def _in_folder(folder: Path) -> tuple[Path, str]:
    names = sorted(path.name for path in folder.iterdir())
    if names in (["model.onnx"], ["model.pack"]):
        return folder / names[0], ""
    if names == ["model.pack", "model.py"]:
        try:
            return folder / "model.pack", _content(folder / "model.py").decode()
        except UnicodeDecodeError:
            raise Refused(FILE, "model.py is not a text in UTF-8.") from None
    raise Refused(
        FILE, f"the folder holds {', '.join(names) or 'nothing'}; allowed: model.onnx, model.pack, or it and model.py."
    )


def _content(path: Path) -> bytes:
    if path.exists() and not path.is_file():
        raise Refused(FILE, f"{path.name} is not a file.")
    if (size := path.stat().st_size) > LARGEST:
        raise Refused(FILE, f"{path.name} has {size:,} bytes; the judge opens {LARGEST:,} at most.")
    return path.read_bytes()


def source_of(build: Any) -> str:
    """Return source that defines `build`, of functions and classes, of which the last is called.

    Raises ValueError for what has no source that could be read.
    """
    if isinstance(build, str):
        return build
    parts = list(build) if isinstance(build, Sequence) else [build]
    source = "\n\n".join(map(_source_of, parts))
    return source if parts[-1].__name__ == "build" else f"{source}\n\nbuild = {parts[-1].__name__}\n"


def _source_of(part: Any) -> str:
    if not inspect.isclass(part):
        return textwrap.dedent(inspect.getsource(part))
    # Of a class in a notebook's cell `inspect` finds no file; its methods know theirs.
    methods = [value for value in vars(part).values() if inspect.isfunction(value)]
    lines = linecache.getlines(methods[0].__code__.co_filename) if methods else []
    for node in ast.walk(ast.parse("".join(lines))):
        if isinstance(node, ast.ClassDef) and node.name == part.__name__:
            return textwrap.dedent("".join(lines[node.lineno - 1 : node.end_lineno]))
    raise ValueError(f"build={part.__name__} has no source that could be read; allowed: source as a text")


def _check_imports(source: str) -> None:
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:  # nested too deeply, null bytes
        raise Refused(FILE, f"the source is not Python: {error}.") from None
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Attribute):
            names = [f"torch.{node.attr}"]
        elif isinstance(node, ast.Name) and node.id in BUILTINS:
            raise Refused(WEIGHTS, f"the source uses {node.id}, which a network does not need.")
        else:
            continue
        for name in names:
            if UNSEEN_READERS.intersection(name.split(".")):
                raise Refused(WEIGHTS, f"the source uses {name}, which can read files that no one sees it open.")
            if name.split(".")[0] not in MODULES or (
                name.startswith("helpers") and not f"{name}.".startswith("helpers.nets.")
            ):
                raise Refused(WEIGHTS, f"the source imports {name}; allowed: torch, numpy, math, helpers.nets.")


def check_graph(content: bytes, criterion: str = FILE) -> None:
    """Raise Refused by `criterion` unless this is a whole ONNX model, of known operators and without chance."""
    import onnx

    try:
        proto = onnx.load_from_string(content)
        known = bool(proto.graph.node)
    except Exception:  # protobuf's own classes
        known = False
    if not known:
        raise Refused(criterion, "this is neither a packed file nor an ONNX model.")
    for tensor in _parts(proto, onnx.TensorProto):
        if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data:
            raise Refused(
                criterion, f"{tensor.name!r} lies in another file: weights must be in the one that is weighed."
            )
    for node in _parts(proto, onnx.NodeProto):
        if node.domain not in DOMAINS:
            raise Refused(criterion, f"{node.op_type!r} is of {node.domain!r}, not an operator of ONNX Runtime's own.")
        if node.op_type in BY_CHANCE:
            raise Refused(criterion, f"{node.op_type!r} answers by chance.")


def _parts(message: Any, kind: type) -> Iterator[Any]:
    """Yield every `kind` in a protobuf message, however deep: in branches, loops, attributes and functions too."""
    if isinstance(message, kind):
        yield message
    for field, value in message.ListFields():
        if field.message_type is not None:
            for each in [value] if hasattr(value, "ListFields") else value:
                yield from _parts(each, kind)
