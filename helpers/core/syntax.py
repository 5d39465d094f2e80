"""What one module defines, imports and mentions, read from its text. Standard library only.

Whatever is uncertain counts as mentioned: annotations (unless they are strings), both branches of a condition, names
that a class body binds. Local variables and parameters do not count. A string counts as the code that it holds if it
imports something of the package, and as a module if it is one's dotted name.
"""

import ast
import textwrap
import warnings
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

__all__ = ["Mentions", "Module", "Origin", "Reference", "canonical", "mentions", "parsed"]

Origin = tuple[str, str]  # ("", name) in the module itself; (module, name) or (module, "") of an import
Reference = tuple[Origin, tuple[str, ...]]  # an origin and the attributes that follow it
Bindings = dict[str, set[Origin]]  # what a name may stand for; empty: a value that is made in this scope

Function = ast.FunctionDef | ast.AsyncFunctionDef
Import = ast.Import | ast.ImportFrom
CLOSED = (ast.Name, ast.Constant, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)  # end a scope's tree
# Methods that change their object and nothing else; `get` is there for X.get(name).append(value).
CHANGES = {"add", "append", "clear", "discard", "extend", "get", "insert", "pop"}
CHANGES |= {"remove", "reverse", "setdefault", "sort", "update"}


class Mentions(NamedTuple):
    """What code mentions apart from its own local variables, and the modules that it imports where it runs."""

    references: frozenset[Reference]
    loads: frozenset[str]


@dataclass(frozen=True, eq=False)
class Module:
    """A parsed module. A name has as its definition all statements that bind or change it."""

    package: str  # from which its relative imports start
    body: tuple[ast.stmt, ...]  # what runs at import
    definitions: dict[str, tuple[ast.stmt, ...]]
    decorators: dict[str, tuple[ast.expr, ...]]  # of functions and classes, those of a class's methods included
    imports: Bindings
    loose: tuple[ast.stmt, ...]  # of these, what is neither import nor definition
    public: frozenset[str]  # __all__
    lazy: dict[str, str]  # _LAZY: the modules that public names come from


@cache  # sixteen notebooks use the same modules
def parsed(code: bytes, package: str) -> Module:
    """Return the module with this text; `package` is where its relative imports start."""
    body, for_types = _without_type_checking(ast.parse(code).body)
    bindings = _bindings([*body, *for_types], package)
    definitions: dict[str, tuple[ast.stmt, ...]] = {}
    for statement in [*body, *for_types]:
        if not isinstance(statement, Import):
            for name in (_changed(statement) | set(_bindings([statement], package))) & set(bindings):
                definitions[name] = (*definitions.get(name, ()), statement)
    listed = [node for statement in definitions.pop("__all__", ()) for node in ast.walk(statement)]
    return Module(
        package,
        tuple(body),
        definitions,
        {name: tuple(_decorators(statements)) for name, statements in definitions.items()},
        {name: origins for name, origins in bindings.items() if origins},
        tuple(statement for statement in body if _is_loose(statement, bindings)),
        frozenset(node.value for node in listed if isinstance(node, ast.Constant) and isinstance(node.value, str)),
        _lazy(definitions.get("_LAZY", ())) if "__getattr__" in definitions else {},
    )


@cache
def mentions(nodes: tuple[ast.AST, ...], package: str) -> Mentions:
    """Return what code at the top of a module mentions."""
    reader = _Reader(package, [])
    for node in nodes:
        reader.visit(node)
    return Mentions(frozenset(reader.references), frozenset(reader.loads))


@cache
def canonical(statements: tuple[ast.stmt, ...]) -> str:
    """Return a text of statements that is the same in every Python version, without docstrings and comments."""
    return _canonical(list(statements))


# ---------------------------------------------------------------- private: statements at the top


def _without_type_checking(body: list[ast.stmt]) -> tuple[list[ast.stmt], list[ast.stmt]]:
    """Return the statements that run, and those under `if TYPE_CHECKING:`."""
    run: list[ast.stmt] = []
    for_types: list[ast.stmt] = []
    for statement in body:
        if isinstance(statement, ast.If) and ast.unparse(statement.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            for_types += statement.body
            run += statement.orelse
        else:
            run.append(statement)
    return run, for_types


def _is_loose(statement: ast.stmt, bindings: Bindings) -> bool:
    """Return whether a statement does something else at import than define or change names of its module."""
    if isinstance(statement, Import) or (isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)):
        return False
    names = _changed(statement)
    return not names or any(bindings.get(name) != set() for name in names)


def _changed(statement: ast.stmt) -> set[str]:
    """Return the names that a simple statement defines or changes; "" stands for anything else."""
    match statement:
        case ast.Assign(targets=targets) | ast.Delete(targets=targets):
            return set().union(*map(_roots, targets))
        case ast.AugAssign(target=target) | ast.AnnAssign(target=target):
            return _roots(target)
        case ast.Expr(value=ast.Call(func=ast.Attribute(value=inner, attr=method))) if method in CHANGES:
            return _roots(inner)
    alias = getattr(statement, "name", None)  # type X = ..., from Python 3.12 on
    return {alias.id} if isinstance(alias, ast.Name) else set(_stored(statement))


def _roots(node: ast.expr) -> set[str]:
    """Return the names that hold what is assigned to: X for X[0].y, X and Y for X, *Y."""
    match node:
        case ast.Name(id=name):
            return {name}
        case ast.Tuple(elts=parts) | ast.List(elts=parts):
            return set().union(*map(_roots, parts))
        case ast.Attribute(value=inner) | ast.Subscript(value=inner) | ast.Starred(value=inner):
            return _roots(inner)
        case ast.Call(func=ast.Attribute(value=inner, attr=method)) if method in CHANGES:
            return _roots(inner)
    return {""}


def _decorators(statements: Iterable[ast.stmt]) -> Iterator[ast.expr]:
    for node in statements:
        if isinstance(node, Function | ast.ClassDef):
            yield from node.decorator_list
        if isinstance(node, ast.ClassDef):
            yield from _decorators(node.body)


def _lazy(statements: Iterable[ast.stmt]) -> dict[str, str]:
    found: dict[str, str] = {}
    for statement in statements:
        with suppress(AttributeError, TypeError, ValueError):  # no dict of constants: unknown names, no error
            value = dict(ast.literal_eval(statement.value))  # type: ignore[attr-defined]
            found |= {name: module for name, module in value.items() if isinstance(module, str)}
    return found


# ---------------------------------------------------------------- private: scopes


def _own(nodes: Iterable[ast.AST]) -> Iterator[ast.AST]:
    """Yield the nodes of one scope, without those of the scopes inside it."""
    waiting = list(nodes)
    while waiting:
        node = waiting.pop()
        yield node
        if isinstance(node, ast.comprehension):
            waiting += [node.iter, *node.ifs]
        elif not isinstance(node, CLOSED):
            waiting += ast.iter_child_nodes(node)


def _bindings(nodes: Iterable[ast.AST], package: str) -> Bindings:
    """Return what the names may stand for that one scope binds."""
    found: Bindings = {}
    elsewhere: Bindings = {}
    outer: set[str] = set()
    for node in _own(nodes):
        if isinstance(node, Import):
            for name, origin in _imported(node, package):
                found.setdefault(name, set()).add(origin)
        elif isinstance(node, ast.Global):
            elsewhere |= {name: {("", name)} for name in node.names}
        elif isinstance(node, ast.Nonlocal):
            outer |= set(node.names)
        else:
            for name in _stored(node):
                found.setdefault(name, set())
    return {name: origins for name, origins in (found | elsewhere).items() if name not in outer}


def _stored(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Name):
        return [] if isinstance(node.ctx, ast.Load) else [node.id]
    match node:
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
            return [name]
        case ast.ExceptHandler(name=str(name)) | ast.MatchAs(name=str(name)) | ast.MatchStar(name=str(name)):
            return [name]
        case ast.MatchMapping(rest=str(name)):
            return [name]
    return []


def _imported(node: Import, package: str) -> Iterator[tuple[str, Origin]]:
    """Yield the names that an import binds, and what they stand for."""
    for alias in node.names:
        first = alias.name.partition(".")[0]
        if isinstance(node, ast.ImportFrom):
            yield alias.asname or alias.name, (_absolute(node, package), alias.name)
        else:
            yield alias.asname or first, (alias.name if alias.asname else first, "")


def _absolute(node: ast.ImportFrom, package: str) -> str:
    parts = package.split(".")[: 1 - node.level or None] if node.level else []
    return ".".join([*parts, *filter(None, [node.module])])


class _Reader(ast.NodeVisitor):
    def __init__(self, package: str, scopes: list[Bindings]) -> None:
        self.package, self.scopes = package, scopes
        self.references: set[Reference] = set()
        self.loads: set[str] = set()

    def _note(self, name: str, attributes: tuple[str, ...] = ()) -> None:
        found = next((scope[name] for scope in reversed(self.scopes) if name in scope), {("", name)})
        self.references |= {(origin, attributes) for origin in found}

    def _inside(self, scope: Bindings, nodes: Iterable[ast.AST]) -> None:
        self.scopes.append(scope)
        for node in nodes:
            self.visit(node)
        self.scopes.pop()

    def visit_Name(self, node: ast.Name) -> None:
        self._note(node.id)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        attributes, inner = [node.attr], node.value
        while isinstance(inner, ast.Attribute):
            attributes.insert(0, inner.attr)
            inner = inner.value
        if isinstance(inner, ast.Name):
            self._note(inner.id, tuple(attributes))
        else:
            self.visit(inner)

    def visit_Compare(self, node: ast.Compare) -> None:
        if not (isinstance(node.left, ast.Name) and node.left.id == "__name__"):  # == "__main__"
            self.generic_visit(node)

    def visit_Import(self, node: ast.Import) -> None:
        self.loads |= {alias.name for alias in node.names}

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        module = _absolute(node, self.package)
        self.loads |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
        if node.names[0].name == "*":
            self.references.add(((module, ""), ()))

    def visit_Expr(self, node: ast.Expr) -> None:
        if not isinstance(node.value, ast.Constant):  # a docstring
            self.visit(node.value)

    def visit_Constant(self, node: ast.Constant) -> None:
        if isinstance(node.value, str):
            self._note_text(node.value)

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        self._note_text("".join(str(part.value) if isinstance(part, ast.Constant) else "_" for part in node.values))
        self.generic_visit(node)

    def _note_text(self, text: str) -> None:
        top = self.package.partition(".")[0]
        if top not in text:
            return
        if text.startswith(f"{top}.") and text.replace(".", "").isidentifier():
            self.references.add(((text, ""), ()))
            return
        with suppress(SyntaxError, ValueError), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about escapes in a text that may be no code
            body = ast.parse(textwrap.dedent(text)).body
            reader = _Reader(top, [_bindings(body, top)])
            for node in body:
                reader.visit(node)
            self.references |= {reference for reference in reader.references if reference[0][0]}
            self.loads |= reader.loads

    def _visit_function(self, node: Any) -> None:
        body = node.body if isinstance(node.body, list) else [node.body]
        parameters: Bindings = {
            each.arg: set() for each in ast.iter_child_nodes(node.args) if isinstance(each, ast.arg)
        }
        for part in ast.iter_child_nodes(node):
            if part not in body:  # decorators, default values, annotations
                self.visit(part)
        self._inside(parameters | _bindings(body, self.package), body)

    visit_FunctionDef = visit_AsyncFunctionDef = visit_Lambda = _visit_function

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        for part in _own(node.body):  # its methods do not see these names; who has the class does
            if isinstance(part, Import):
                self.references |= {(origin, ()) for _, origin in _imported(part, self.package)}
        self.generic_visit(node)

    def _visit_comprehension(self, node: Any) -> None:
        self.visit(node.generators[0].iter)
        targets = [each for generator in node.generators for each in ast.walk(generator.target)]
        self._inside({name: set() for each in targets for name in _stored(each)}, ast.iter_child_nodes(node))

    visit_ListComp = visit_SetComp = visit_DictComp = visit_GeneratorExp = _visit_comprehension


# ---------------------------------------------------------------- private: what is hashed


def _canonical(node: Any) -> str:
    if isinstance(node, list):
        return f"[{','.join(map(_canonical, node))}]"
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = dict(ast.iter_fields(node))
    if isinstance(node, Function | ast.ClassDef):
        fields["body"] = node.body[1:] if ast.get_docstring(node, clean=False) is not None else node.body
    kept = (f"{name}={_canonical(value)}" for name, value in fields.items() if value not in (None, []))
    return f"{type(node).__name__}({','.join(kept)})"
