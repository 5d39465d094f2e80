"""Fingerprints of data, functions and networks: equal in every process, and different where a training may differ.

`of` follows what a function computes with: its bytecode, defaults and closure, and the globals that it reads, as far as
they are the course's, a notebook's or the reader's. Functions of installed libraries count by name and version. Names,
comments, docstrings and line numbers do not count; nor does what is only known in a call, such as an attribute by a
name that is computed, an environment variable or a file.
"""

import copyreg
import enum
import functools
import hashlib
import platform
import struct
import sys
import weakref
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path, PurePath
from types import (
    BuiltinFunctionType,
    ClassMethodDescriptorType,
    CodeType,
    FunctionType,
    GetSetDescriptorType,
    MappingProxyType,
    MemberDescriptorType,
    MethodDescriptorType,
    MethodType,
    MethodWrapperType,
    ModuleType,
    WrapperDescriptorType,
)
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn.parameter import is_lazy

from helpers.training.code import (
    CACHES,
    MISSING,
    SCALARS,
    StandIn,
    chains,
    has_docstring,
    held,
    imported,
    imports,
    is_found_by_name,
    is_library,
    is_of_hidden_object,
    is_open,
    resolved,
    unwrapped,
    without_numbers,
)

ALLOWED = "numbers, texts, tensors, arrays, networks, and functions, containers and objects made of them"
CHUNK = 2**24  # bytes; each chunk of a tensor is hashed by a thread of its own
DEEPEST = 60  # containers in containers
NAMED = (PurePath, np.dtype, torch.dtype, torch.device, torch.layout, torch.memory_format)


@dataclass(frozen=True)
class Network:
    """A network whose mode, training or evaluation, does not count."""

    model: nn.Module


def of(parts: Mapping[str, Any], *, key: str = "") -> str:
    """Return the fingerprint of all `parts`, by name, and of `key`: 64 hexadecimal digits.

    What cannot be told from others, such as a lock or an open file, `key` stands for, unless it is empty. Raises
    ValueError otherwise, naming the part.
    """
    digest = _Digest(lenient=key != "")
    digest.write(key, "key")
    for name, value in parts.items():
        digest.write(name, "parts")
        digest.write(value, name)
    return digest.hexdigest()


class _Digest:
    """One fingerprint in the making.

    Functions, classes and objects get a number where they are first met, and are written when all before them is: so
    recursion ends. What is immutable, and the content of tensors and containers, counts by value.
    """

    def __init__(self, *, lenient: bool = False) -> None:
        self.lenient, self.hash = lenient, hashlib.sha256()
        self.path: list[str] = []
        self.depth = 0
        self.modeless: set[int] = set()  # ids of the modules whose mode does not count
        self.met: dict[int, tuple[int, Any]] = {}  # with the object, so that its id is not used again
        self.contents: dict[int, tuple[Any, bytes]] = {}  # of tensors
        self.waiting: list[tuple[Any, list[str]]] = []

    def hexdigest(self) -> str:
        """Write what is waiting, and return the digest."""
        for value, path in self.waiting:  # grows on the way
            self.path, self.depth = list(path), 0
            self._write_object(value)
        self.waiting.clear()
        return self.hash.hexdigest()

    def write(self, value: Any, where: str) -> None:
        """Add `value`, found at `where` in what is being written."""
        self.path.append(where)
        self.depth += 1
        if self.depth > DEEPEST:
            self._refuse(value)
        else:
            self._write(value)
        self.depth -= 1
        self.path.pop()

    def _put(self, kind: str, content: bytes | str = b"") -> None:
        content = content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content
        for part in (kind.encode(), content):
            self.hash.update(struct.pack("<q", len(part)))
            self.hash.update(part)

    def _refuse(self, value: Any) -> None:
        kind = f"{type(value).__module__}.{type(value).__qualname__}"
        if not self.lenient:
            place = f" ({' > '.join(self.path[1:][-6:])})" if self.path[1:] else ""
            said = f"{self.path[0]} holds a {kind}{place}, of which nobody can say whether it has changed"
            raise ValueError(f"{said}; allowed: {ALLOWED}; or a key=... that names it, to be changed by hand")
        self._put("named by key", kind)

    # ------------------------------------------------------------ values

    def _write(self, value: Any) -> None:
        """Add a value by its kind."""
        if type(value) in SCALARS:
            self._put("scalar", repr(value))
        elif isinstance(value, enum.Enum):
            self.write(type(value), "class")
            self.write([value.name, value.value], "member")
        elif isinstance(value, Tensor):
            self._tensor(value)
        elif isinstance(value, np.ndarray | np.generic):
            self._array(np.asarray(value))
        elif isinstance(value, NAMED):
            self._put("path" if isinstance(value, PurePath) else type(value).__name__, str(value))
        elif isinstance(value, Network):
            self.modeless |= {id(module) for module in value.model.modules()}
            self.write(value.model, "network")
        elif isinstance(value, weakref.ref):
            self.write(value(), "referent")
        elif isinstance(value, ContextVar):
            self.write(value.get(None), "context")  # its name may hold an address
        elif isinstance(value, torch.Generator):
            self.write(value.get_state(), "state")
        elif isinstance(value, ModuleType):
            self._module(value)
        elif not self._container(value) and not self._callable(value):
            self._later(value)

    def _container(self, value: Any) -> bool:
        """Add a container that holds nothing but its elements; return whether it is one."""
        kind = type(value)
        if kind in (list, tuple, torch.Size):
            self._several(kind.__name__, value)
        elif kind in (set, frozenset):
            self._several(kind.__name__, sorted(map(self._alone, value)))
        elif kind is OrderedDict:
            self._several("OrderedDict", list(value.items()))
        elif kind in (dict, MappingProxyType):
            self._put("dict", str(len(value)))
            for digest, name in sorted(((self._alone(name), name) for name in value), key=lambda pair: pair[0]):
                self._put("key", digest)
                self.write(value[name], repr(name) if type(name) in SCALARS else "a value")
        else:
            return False
        return True

    def _several(self, kind: str, values: Sequence[Any]) -> None:
        if {*map(type, values)} <= {*SCALARS}:  # thousands of words or tokens at once
            self._put(f"scalars in {kind}", repr(list(values)))
            return
        self._put(kind, str(len(values)))
        for number, value in enumerate(values):
            self.write(value, str(number))

    def _alone(self, value: Any) -> str:
        """Return the digest of one element of a set, whatever the others are."""
        alone = _Digest(lenient=self.lenient)
        alone.path, alone.depth = list(self.path), self.depth
        alone.write(value, "an element")
        return alone.hexdigest()

    def _callable(self, value: Any) -> bool:
        """Add what is known by the parts that it is made of; return whether it is such a value."""
        kind = type(value)
        if kind is StandIn:
            self.write(value.counts, "what it stands for")
        elif kind is functools.partial:
            self.write([value.func, value.args, value.keywords, vars(value)], "partial")
        elif is_of_hidden_object(value):
            self._put("name", value.__name__)
            self._library(type(value.__self__).__module__)
        elif isinstance(value, MethodType):
            self.write([value.__func__, value.__self__], value.__name__)
        elif kind is property:
            self.write([value.fget, value.fset, value.fdel], "property")
        elif kind in (staticmethod, classmethod):
            self._put(kind.__name__)
            self.write(value.__func__, "method")
        elif isinstance(value, CACHES):
            self.write(getattr(value, "func", None), "method")
        elif kind is functools._lru_cache_wrapper:
            self.write([value.__wrapped__, value.cache_parameters()], value.__name__)
        else:
            return self._builtin(value)
        return True

    def _builtin(self, value: Any) -> bool:
        """Add a function or method written in C; return whether it is one."""
        if isinstance(value, BuiltinFunctionType | MethodWrapperType):
            owner = value.__self__
            self._put("builtin", value.__qualname__)
            if isinstance(owner, ModuleType) or owner is None:
                self._library(f"{getattr(value, '__module__', None) or getattr(owner, '__name__', '')}")
            else:
                self.write(owner, value.__name__)
        elif isinstance(value, MethodDescriptorType | WrapperDescriptorType | ClassMethodDescriptorType):
            self._put("builtin", value.__qualname__)
            self._library(value.__objclass__.__module__)
        elif isinstance(value, MemberDescriptorType | GetSetDescriptorType):
            self._put("slot", value.__name__)
        else:
            return False
        return True

    def _library(self, module: str) -> None:
        top = module.partition(".")[0]
        python = top in sys.stdlib_module_names
        version = platform.python_version() if python else getattr(sys.modules.get(top), "__version__", "")
        self._put("library", f"{module} {version}")

    def _module(self, module: ModuleType) -> None:
        """Add a module as a whole: of a library its version, of others their text."""
        self._put("module", module.__name__)
        if is_library(module.__name__):
            self._library(module.__name__)
        elif (file := getattr(module, "__file__", None)) and Path(file).is_file():
            self._put("text", Path(file).read_bytes())
        else:
            self._refuse(module)

    # ------------------------------------------------------------ tensors

    def _tensor(self, tensor: Tensor) -> None:
        if type(tensor) not in (Tensor, nn.Parameter) and hasattr(tensor, "__tensor_flatten__"):
            names, context = tensor.__tensor_flatten__()
            inner = {name: getattr(tensor, name) for name in names}
            self.write([type(tensor), tensor.shape, inner, context], "tensor")
            return
        if is_lazy(tensor) or tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_meta:
            self._refuse(tensor)
            return
        self._put(type(tensor).__qualname__, f"{tensor.dtype} {tuple(tensor.shape)} {tensor.requires_grad}")
        if isinstance(tensor, nn.Parameter):  # two layers may share one
            self._put("parameter", str(self._number(tensor)))
        if id(tensor) not in self.contents:
            self.contents[id(tensor)] = (tensor, _content(tensor))
        self._put("content", self.contents[id(tensor)][1])

    def _array(self, array: np.ndarray) -> None:
        self._put("array", f"{array.dtype.str} {array.shape}")
        if array.dtype.hasobject:
            self.write(array.tolist(), "objects")
        else:
            self._put("content", _hashed(np.frombuffer(np.ascontiguousarray(array), np.uint8)))

    # ------------------------------------------------------------ what has an identity

    def _later(self, value: Any) -> None:
        """Add the number of a function, a class or an object, and see to it that it is written once."""
        value = unwrapped(value)
        if id(value) not in self.met:
            self.waiting.append((value, self.path[:1] + self.path[1:][-6:]))
        self._put("object", str(self._number(value)))

    def _number(self, value: Any) -> int:
        return self.met.setdefault(id(value), (len(self.met), value))[0]

    def _write_object(self, value: Any) -> None:
        if isinstance(value, FunctionType):
            self._function(value)
        elif isinstance(value, type):
            self._class(value)
        elif isinstance(value, nn.Module):
            self._network(value)
        else:
            self._instance(value)

    def _function(self, function: FunctionType) -> None:
        """Add a function: its code, and all that the code finds outside."""
        module = function.__globals__.get("__name__", "")
        self._put("function")
        if is_found_by_name(function):
            self._put("name", function.__qualname__)
            self._library(function.__module__)
            return
        if is_library(module):
            self._put("name", function.__qualname__)
            self._library(module)
        else:
            self._code(function.__code__, function.__doc__)
            self._globals(function)
            self.write([function.__defaults__, function.__kwdefaults__], "defaults")
            self.write({name: value for name, value in vars(function).items() if name != "__wrapped__"}, "attributes")
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            self.write(held(cell), name)

    def _code(self, code: CodeType, doc: str | None = None) -> None:
        counts = [code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags]
        names = [code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars]
        self.write([code.co_code, code.co_exceptiontable, counts, names], "code")
        for number, constant in enumerate(code.co_consts):
            if isinstance(constant, CodeType):
                self._code(constant, constant.co_consts[0] if has_docstring(constant) else None)
            else:
                self.write(None if number == 0 and doc is not None and constant == doc else constant, "constants")

    def _globals(self, function: FunctionType) -> None:
        """Add the globals that the function, or one in it, reads."""
        for chain in sorted(set(chains(function.__code__))):
            self._put("global", ".".join(chain))
            self._reached(*resolved(function.__globals__, chain))
        for level, module, name in sorted(set(imports(function.__code__))):
            self._put("import", f"{level} {module} {name}")
            self._reached(*imported(function.__globals__, level, module, name))

    def _reached(self, name: str, value: Any, owner: ModuleType | None) -> None:
        """Add what a name stands for; a library's own object, other than a function or a number, by name."""
        if value is MISSING:
            self._put("missing")
        elif owner is None or not is_library(owner.__name__) or is_open(value):
            self.write(value, name)
        else:
            self._library(f"{owner.__name__}.{name}")

    def _class(self, kind: type) -> None:
        for base in kind.__mro__[1:]:
            if not is_library(base.__module__):
                self.write(base, "base")
            else:
                self._put("base", base.__qualname__)
                self._library(base.__module__)
        self._put("class", kind.__qualname__)
        if is_library(kind.__module__):
            self._library(kind.__module__)
            return
        counted = _counts_in_class
        if issubclass(kind, enum.Enum):
            self.write([(name, member.value) for name, member in kind.__members__.items()], kind.__qualname__)
            counted = _counts_beside_members
        for name in sorted(vars(kind)):
            if counted(name, vars(kind)[name]):
                self._put("attribute", name)
                self.write(vars(kind)[name], f"{kind.__qualname__}.{name}")

    def _network(self, module: nn.Module) -> None:
        """Add a network: its class, its state, its layers in their order, and its hooks in theirs."""
        if isinstance(module, GraphModule):
            self._put("graph", module.code)
            kept = {name: vars(module)[name] for name in ("training", "_parameters", "_buffers", "_modules")}
        else:
            self.write(type(module), "class")
            kept = {name: value for name, value in vars(module).items() if not _is_computed(module, name)}
        if type(module).get_extra_state is not nn.Module.get_extra_state:
            kept["extra state"] = module.get_extra_state()
        for name in sorted(kept):
            if name != "training" or id(module) not in self.modeless:
                self._put("attribute", name)
                self.write(without_numbers(name, kept[name]), name)

    def _instance(self, value: Any) -> None:
        """Add any other object: its class, its attributes, and what it would be pickled as."""
        self.write(type(value), "class")
        own = not is_library(type(value).__module__)
        try:
            state = copyreg.dispatch_table.get(type(value), lambda value: value.__reduce_ex__(4))(value)
        except Exception:  # whatever its class raises
            self._refuse(value)
            return
        if own and hasattr(value, "__dict__"):
            self.write(vars(value), type(value).__qualname__)
        if isinstance(state, str):
            self._put("pickled", state)
        else:
            made, *rest = state
            rest[2:4] = [None if items is None else list(items) for items in rest[2:4]]
            self.write([made, rest], type(value).__qualname__)


@torch.no_grad()
def _content(tensor: Tensor) -> bytes:
    plain = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
    return _hashed(plain.flatten().view(torch.uint8).numpy())


def _hashed(content: Any) -> bytes:
    """Return the digest of the digests of all chunks, which threads hash side by side."""
    chunks = [content[start : start + CHUNK] for start in range(0, len(content), CHUNK)]
    if len(chunks) < 2:
        return hashlib.sha256(content).digest()
    with ThreadPoolExecutor(max_workers=8) as pool:
        return hashlib.sha256(b"".join(pool.map(lambda chunk: hashlib.sha256(chunk).digest(), chunks))).digest()


def _counts_in_class(name: str, value: Any) -> bool:
    if isinstance(value, MemberDescriptorType | GetSetDescriptorType) or name in ("__repr__", "_abc_impl"):
        return False
    hidden = name.startswith("__") and name.endswith("__")
    return not hidden or isinstance(value, FunctionType | staticmethod | classmethod | property)


def _counts_beside_members(name: str, value: Any) -> bool:
    """Return whether an attribute of an Enum was written by its author: a method or a property."""
    made = ("_generate_next_value_", "__new__", "__new_member__", "_new_member_", "_use_args_")
    return name not in made and isinstance(value, FunctionType | staticmethod | classmethod | property)


def _is_computed(module: nn.Module, name: str) -> bool:
    """Return whether torch's own hooks compute this attribute from parameters, such as `weight` from `weight_orig`."""
    parts = (f"{name}_orig", f"{name}_g")
    return isinstance(vars(module)[name], Tensor) and any(part in module._parameters for part in parts)
