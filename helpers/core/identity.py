"""Which code of the helpers a notebook uses."""

import ast
import hashlib
from collections.abc import Iterable
from functools import cache
from typing import Any

from helpers.core import paths

HELPERS = paths.ROOT / "helpers"
# Set-up and building: nothing that a notebook measures depends on them, so a change there makes none stale.
NOT_HASHED = {"__init__", "environment", "notebooks"}


def modules_sha256(names: Iterable[str]) -> str:
    """Return the SHA-256 of the code of these helpers modules and of those that they import, directly or not.

    Docstrings, comments and layout do not count, nor do the modules that only set up and build.
    """
    code = "\n".join(f"{name}: {_canonical_code(_code(name))}" for name in sorted(_closure(names)))
    return hashlib.sha256(code.encode()).hexdigest()


def _code(name: str) -> bytes:
    return (HELPERS / f"{name}.py").read_bytes()


def _closure(names: Iterable[str]) -> set[str]:
    """Return these modules and all that they import from helpers, at the top or inside functions."""
    found: set[str] = set()
    waiting = set(names) - NOT_HASHED
    while waiting:
        name = waiting.pop()
        found.add(name)
        waiting |= imported(_code(name)) - found - NOT_HASHED
    return found


def imported(code: bytes) -> set[str]:
    """Return the helpers modules that `code` imports, wherever the statement stands."""
    return {name for name in _named(code) if (HELPERS / f"{name}.py").exists()}


@cache  # sixteen notebooks import the same twenty modules
def _named(code: bytes) -> frozenset[str]:
    """Return what `code` imports from helpers, modules and other names."""
    dotted: set[str] = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            dotted |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = "helpers" if node.level else node.module or ""
            module = f"helpers.{node.module}" if node.level and node.module else package
            dotted |= {module} | {f"{module}.{alias.name}" for alias in node.names}
    return frozenset(name.split(".")[1] for name in dotted if name.startswith("helpers."))


@cache
def _canonical_code(code: bytes) -> str:
    return _canonical(ast.parse(code))


def _canonical(node: Any) -> str:
    """Return a text of a syntax tree that is the same in every Python version; docstrings are left out."""
    if isinstance(node, list):
        return f"[{','.join(map(_canonical, node))}]"
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = dict(ast.iter_fields(node))
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        fields["body"] = node.body[1:] if ast.get_docstring(node, clean=False) is not None else node.body
    kept = (f"{name}={_canonical(value)}" for name, value in fields.items() if value not in (None, []))
    return f"{type(node).__name__}({','.join(kept)})"
