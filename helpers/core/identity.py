"""Which definitions of a package some code reaches, and one SHA-256 over them. Standard library only.

A definition is a top-level function, class or constant; a constant is every statement that assigns or changes it. From
the code on, each name and each `module.name` is followed to its definition, through faces, re-exports and aliases, and
on through what that definition mentions. Where the text does not tell which definition is meant, more is counted:

- A module that is passed along, read with `getattr` or `vars`, star-imported, named in a string, or asked for a name
  that it does not have counts whole; a package, with all its modules. So does a module that uses `globals`, `eval`,
  `exec` or its `__name__`.
- What an import runs counts as soon as the module is imported: loops, conditions, calls, and the definitions with a
  decorator from the package, which may register them. A context manager as a decorator only wraps.

Not followed: names made at run time (`importlib.import_module(f"...")`), registration by `__init_subclass__` or in
`X = register(...)`, and constants that are changed under another name.
"""

import ast
import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from helpers.core.paths import ROOT
from helpers.core.syntax import Module, Origin, Reference, canonical, mentions, parsed

__all__ = ["NOT_HASHED", "of_notebook", "sha256", "used"]

HELPERS = ROOT / "helpers"

# Set-up and building: nothing that a notebook measures depends on them, so a change there makes none stale.
NOT_HASHED = frozenset(["helpers.__init__", "helpers.course", "helpers.core.identity", "helpers.core.syntax"])
NAMESPACES = {"globals", "eval", "exec", "__name__"}  # lead to any name of the module that mentions them


class _Target(NamedTuple):
    kind: str  # definition, module, whole (all of a module) or outside
    module: str
    name: str = ""


def used(code: bytes, *, package: Path) -> set[tuple[str, str]]:
    """Return the definitions of the package that `code` reaches, as (dotted module, name)."""
    return _Reach(code, package, frozenset()).used


def sha256(code: bytes, *, package: Path, not_hashed: frozenset[str] = NOT_HASHED, extra: Iterable[str] = ()) -> str:
    """Return the SHA-256 of the definitions that `code` reaches, and of what the import of their modules runs.

    Docstrings, comments, layout, the order of definitions and the Python version do not count; which definition a name
    stands for does. `extra` are dotted modules that count whole. `not_hashed` are modules and packages that are neither
    counted nor followed; "helpers.__init__" is that file alone. Raises ValueError for an extra that is no module.
    """
    reach = _Reach(code, package, not_hashed, extra)
    parts = {f"{module}.{name}": reach.unit(module).definitions[name] for module, name in reach.used}
    parts |= {f"{module}:": reach.unit(module).loose for module in reach.active}
    lines = [f"{place} {canonical(statements)}" for place, statements in parts.items() if statements]
    return hashlib.sha256("\n".join(sorted([*lines, *reach.links])).encode()).hexdigest()


def of_notebook(source: Path, *, package: Path = HELPERS) -> str:
    """Return the SHA-256 of the helpers that a notebook's source uses, the exercises of its number included."""
    exercises = sorted(package.glob(f"exercises/notebook_{source.stem[:2]}.py"))
    whole = [f"{package.name}.exercises.{path.stem}" for path in exercises]
    return sha256(source.read_bytes(), package=package, extra=whole)


# ---------------------------------------------------------------- private


class _Reach:
    def __init__(self, code: bytes, package: Path, not_hashed: frozenset[str], extra: Iterable[str] = ()) -> None:
        self.not_hashed = not_hashed
        self.files = dict(_files(package))
        self.units: dict[str, Module] = {"": parsed(code, package.name)}  # "" is the code itself
        self.used: set[tuple[str, str]] = set()
        self.active: set[str] = set()  # modules that are imported
        self.whole: set[str] = set()
        self.links: set[str] = set()  # which definition a name stands for
        self.seen: set[tuple[str, Reference]] = set()
        self.waiting: list[tuple[str, str]] = []
        self._follow("", self.unit("").body)
        for module in extra:
            if module not in self.files:
                raise ValueError(f"{module} is not a module of {package}")
            self._take(module)
        while self.waiting:
            module, name = self.waiting.pop()
            self._import(module)
            self._follow(module, self.unit(module).definitions[name])

    def unit(self, module: str) -> Module:
        """Return a module of the package."""
        if module not in self.units:
            file = self.files[module]
            is_face = file is None or file.name == "__init__.py"
            code = file.read_bytes() if file else b""
            self.units[module] = parsed(code, module if is_face else module.rpartition(".")[0])
        return self.units[module]

    def _follow(self, module: str, nodes: tuple[ast.AST, ...]) -> None:
        """Count what code of a module mentions."""
        found = mentions(nodes, self.unit(module).package)
        for reference in found.references:
            if (module, reference) not in self.seen:
                self.seen.add((module, reference))
                self._count(module, reference)
        for loaded in found.loads:
            self._import(loaded)

    def _count(self, module: str, reference: Reference) -> None:
        (base, name), attributes = reference
        targets = self._resolved(module, reference)
        if targets:
            meant = ", ".join(sorted(map(" ".join, targets)))
            self.links.add(f"{module} {base}:{'.'.join([name, *attributes])} = {meant}")
        for target in targets:
            self._add(target)

    def _add(self, target: _Target) -> None:
        kind, module, name = target
        if kind == "whole":
            self._take(module)
        elif kind == "definition" and module and not self._is_hidden(module) and (module, name) not in self.used:
            self.used.add((module, name))
            self.waiting.append((module, name))

    def _is_hidden(self, module: str) -> bool:
        parts = module.split(".")
        around = {".".join(parts[: 1 + i]) for i in range(len(parts))}
        return not self.not_hashed.isdisjoint({*around, f"{module}.__init__"})

    def _import(self, module: str) -> None:
        """Count what the import of a module runs, and that of the packages around it."""
        if module not in self.files or module in self.active:
            return
        self._import(module.rpartition(".")[0])
        if self._is_hidden(module):
            return
        self.active.add(module)
        unit = self.unit(module)
        self._follow(module, (*unit.loose, *_imports(unit)))
        for name, decorators in unit.decorators.items():
            if self._is_registered(module, decorators):
                self._add(_Target("definition", module, name))

    def _is_registered(self, module: str, decorators: tuple[ast.expr, ...]) -> bool:
        references = mentions(decorators, self.unit(module).package).references
        targets = {target for reference in references for target in self._resolved(module, reference)}
        return any(target.kind != "outside" and not self._is_context_manager(target) for target in targets)

    def _is_context_manager(self, target: _Target) -> bool:
        decorators = self.unit(target.module).decorators.get(target.name, ())
        return any(ast.unparse(each).endswith("contextmanager") for each in decorators)

    def _take(self, module: str) -> None:
        """Count a whole module; of a package, all its modules."""
        for each in sorted(self.files):
            if f"{each}.".startswith(f"{module}.") and each not in self.whole and not self._is_hidden(each):
                self.whole.add(each)
                self._import(each)
                self._add_all(each)

    def _add_all(self, module: str) -> None:
        """Count what attributes of a module may give: definitions, and the modules that it lists in __all__."""
        unit = self.unit(module)
        for name in {*unit.definitions, *unit.imports, *unit.lazy} - {"*"}:
            for target in self._lookup(module, name):
                if target.kind != "module":
                    self._add(target)
                elif name in unit.public:
                    self._take(target.module)

    def _resolved(self, module: str, reference: Reference) -> set[_Target]:
        """Return what a reference stands for in a module; a module without an attribute behind it counts whole."""
        origin, attributes = reference
        targets = self._meant(module, origin, frozenset())
        for name in attributes:
            modules = {target for target in targets if target.kind == "module"}
            targets = (targets - modules).union(*(self._lookup(each.module, name) for each in modules))
        return {target._replace(kind="whole") if target.kind == "module" else target for target in targets}

    def _meant(self, module: str, origin: Origin, seen: frozenset[Origin]) -> set[_Target]:
        """Return what a name or an import stands for in a module."""
        base, name = origin
        if base and base not in self.files:
            return {_Target("outside", base, name)}
        if base:
            return self._lookup(base, name, seen) if name else {_Target("module", base)}
        unit = self.unit(module)
        if name in unit.definitions or name in unit.imports or f"{module}.{name}" in self.files:
            return self._lookup(module, name, seen)
        return {_Target("whole", module)} if name in NAMESPACES else self._starred(module, name, seen)

    def _lookup(self, module: str, name: str, seen: frozenset[Origin] = frozenset()) -> set[_Target]:
        """Return what `module.name` stands for: the whole module if it has no such name."""
        if (module, name) in seen:
            return set()
        seen |= {(module, name)}
        unit = self.unit(module)
        found = {_Target("definition", module, name)} if name in unit.definitions else set()
        found = found.union(*(self._meant(module, origin, seen) for origin in unit.imports.get(name, ())))
        if found:
            return found
        if unit.lazy.get(name) in self.files:
            found |= self._lookup(unit.lazy[name], name, seen)
        if f"{module}.{name}" in self.files:
            found.add(_Target("module", f"{module}.{name}"))
        found |= self._starred(module, name, seen)
        if found or (name.startswith("__") and name.endswith("__") and name != "__dict__"):
            return found
        return {_Target("whole", module)}

    def _starred(self, module: str, name: str, seen: frozenset[Origin]) -> set[_Target]:
        sources = [source for source, _ in self.unit(module).imports.get("*", ()) if source in self.files]
        found = {target for source in sources for target in self._lookup(source, name, seen)}
        return {target for target in found if target.kind != "whole"}


def _imports(unit: Module) -> Iterator[ast.stmt]:
    return (statement for statement in unit.body if isinstance(statement, ast.Import | ast.ImportFrom))


def _files(package: Path) -> Iterator[tuple[str, Path | None]]:
    """Yield the dotted modules of a package with their files; a folder without __init__.py has none."""
    for path in package.rglob("*.py"):
        parts = path.relative_to(package.parent).with_suffix("").parts
        for folder in (parts[:length] for length in range(1, len(parts))):
            if not package.parent.joinpath(*folder, "__init__.py").exists():
                yield ".".join(folder), None
        yield ".".join(parts).removesuffix(".__init__"), path
