"""What the code of a function mentions, and what is a library's."""

import dis
import functools
import importlib
import sys
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from types import BuiltinFunctionType, CellType, CodeType, FunctionType, MethodType, ModuleType, SimpleNamespace
from typing import Any

CHECKERS = ("beartype", "jaxtyping")  # their wrappers change no result
SCALARS = (bool, int, float, complex, str, bytes, type(None), type(...), type(NotImplemented))
CACHES = (functools.cached_property, functools.singledispatchmethod)


@dataclass(frozen=True)
class StandIn:
    """A function, and what counts in its place: `counts`, and nothing of the function itself."""

    function: Callable[..., Any]
    counts: Any

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function."""
        return self.function(*args, **kwargs)


MISSING = object()


def is_library(module: str) -> bool:
    """Return whether a module belongs to Python or to an installed library, other than the course."""
    top = str(module).partition(".")[0]
    if top in ("", "__main__", "helpers"):
        return False
    return _is_installed(top, getattr(sys.modules.get(top), "__file__", None))


@functools.cache
def _is_installed(top: str, file: str | None) -> bool:
    if file is None:
        return top in sys.stdlib_module_names
    folders = [Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib")]
    installed = {"site-packages", "dist-packages"} & set(Path(file).parts)
    return bool(installed) or any(Path(file).is_relative_to(folder) for folder in folders)


def unwrapped(value: Any) -> Any:
    """Return the function that a checker of arguments has wrapped, and any other value as it is."""
    while isinstance(value, FunctionType) and hasattr(value, "__wrapped__"):
        module, file = str(value.__globals__.get("__name__", "")), value.__code__.co_filename
        if module.partition(".")[0] not in CHECKERS and not file.startswith("<@beartype"):
            break
        value = value.__wrapped__
    return value


def is_found_by_name(function: FunctionType) -> bool:
    """Return whether a library has the function under its name: then its closure is as fixed as its code."""
    if not is_library(function.__module__ or ""):
        return False
    found: Any = sys.modules.get(function.__module__)
    for name in function.__qualname__.split("."):
        found = getattr(found, name, None)
    return found is function


def is_of_hidden_object(value: Any) -> bool:
    """Return whether a library hands out this method as a function, such as `random.random`: its object does not count.

    Such are the global random states, which are others in each process.
    """
    if not isinstance(value, MethodType | BuiltinFunctionType) or isinstance(value.__self__, ModuleType | type):
        return False
    module = type(value.__self__).__module__
    return is_library(module) and getattr(sys.modules.get(module), value.__name__, None) == value


def held(cell: CellType) -> list[Any]:
    """Return what a function's closure holds, in a list, which is empty where nothing has been assigned yet."""
    try:
        return [cell.cell_contents]
    except ValueError:
        return []


def has_docstring(code: CodeType) -> bool:
    """Return whether the first constant of a function's code is its docstring."""
    return bool(code.co_consts) and isinstance(code.co_consts[0], str) and not code.co_name.startswith("<")


def _instructions(code: CodeType) -> Iterator[list[dis.Instruction]]:
    """Yield the instructions of a function, and of each function and class body in it."""
    yield [step for step in dis.get_instructions(code) if step.opname not in ("EXTENDED_ARG", "CACHE", "PUSH_NULL")]
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _instructions(constant)


def chains(code: CodeType) -> Iterator[tuple[str, ...]]:
    """Yield each global that the code reads, with the attributes read from it at once: ("torch", "nn", "Linear")."""
    for steps in _instructions(code):
        for start, step in enumerate(steps):
            if step.opname in ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS"):
                chain = [step.argval]
                for following in steps[start + 1 :]:
                    if following.opname not in ("LOAD_ATTR", "LOAD_METHOD"):
                        break
                    chain.append(following.argval)
                yield tuple(chain)


def resolved(scope: dict[str, Any], chain: tuple[str, ...]) -> tuple[str, Any, ModuleType | None]:
    """Return name, value and module of the last part of the chain that is found in modules or a table of settings."""
    builtins = sys.modules["builtins"]
    name, owner = chain[0], None if chain[0] in scope else builtins
    value = scope.get(name, getattr(builtins, name, MISSING))
    for attribute in chain[1:]:
        if not isinstance(value, ModuleType) and not _is_setting(value, attribute):
            break
        owner = value if isinstance(value, ModuleType) else None
        name, value = attribute, getattr(value, attribute, MISSING)
    return name, value, owner


def _is_setting(value: Any, name: str) -> bool:
    """Return whether the name is a field of a plain table, so that its other fields do not count."""
    plain = type(value) is SimpleNamespace or (is_dataclass(value) and not isinstance(value, type))
    return plain and name in getattr(value, "__dict__", ())


def imports(code: CodeType) -> Iterator[tuple[int, str, str]]:
    """Yield level, module and name (or "") of what the code imports itself."""
    for steps in _instructions(code):
        for place, step in enumerate(steps):
            if step.opname == "IMPORT_NAME":
                for name in steps[place - 1].argval or ("",):
                    yield steps[place - 2].argval, step.argval, name


def imported(scope: dict[str, Any], level: int, name: str, attribute: str) -> tuple[str, Any, ModuleType | None]:
    """Return name, value and module of what an import in a function finds."""
    try:
        module = importlib.import_module("." * level + name, scope.get("__package__"))
        if attribute in ("", "*"):
            return name, module, None
        if not hasattr(module, attribute):
            return attribute, importlib.import_module(f"{module.__name__}.{attribute}"), None
        return attribute, getattr(module, attribute), module
    except Exception:  # not installed here, or whatever its own code raises
        return name, MISSING, None


def is_open(value: Any) -> bool:
    """Return whether what a library's name stands for is a number, a function or a class, which may be replaced."""
    return type(value) in SCALARS or isinstance(value, FunctionType | MethodType | BuiltinFunctionType | type | StandIn)


def without_numbers(name: str, value: Any) -> Any:
    """Return hooks without the numbers by which torch removes them: these count all hooks of a process."""
    if isinstance(value, dict) and "hooks" in name:
        return list(value.values())
    return list(value.items()) if name in ("_parameters", "_buffers", "_modules") else value
