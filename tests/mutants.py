"""Break the helpers on purpose, one line at a time, and see whether their tests notice: `make mutants`.

    python tests/mutants.py measure.latency pruning.removal --count 20 --seed 0

For each module, `count` single changes are drawn from all that can be made in its syntax tree: a comparison, a number,
a sign, a branch never or always taken, a statement or a keyword left out. Each is made in a copy of the project, where
its tests run until the first failure, those that call the changed function before the others: its own test file, or
all of its room where it has none. A change that no test notices is printed with its line.
Linux and macOS only: each run is forked from a process that has imported PyTorch already.
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # not this folder: it has rooms named as modules of Python are
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import argparse
import ast
import contextlib
import importlib
import io
import json
import multiprocessing
import os
import random
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from importlib.metadata import entry_points
from types import FrameType
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent
PRELOADED = (
    "torch",
    "torchvision",
    "torch_pruning",
    "onnxruntime",
    "pandas",
    "scipy.stats",
    "sklearn.cluster",
    "tqdm.auto",
)
CALLS = "calls.json"  # in a copy of the project: which tests call which function
COMPARED = {ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq}
COMPARED |= {ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In}
COMBINED = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult}
COMBINED |= {ast.And: ast.Or, ast.Or: ast.And, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.Mod: ast.Mult}
RENAMED = {"min": "max", "max": "min", "any": "all", "all": "any", "amin": "amax", "amax": "amin", "ceil": "floor"}
RENAMED |= {"floor": "ceil", "equal": "allclose", "zeros": "ones", "ones": "zeros", "argmax": "argmin"}
UNTOUCHED = (ast.Raise, ast.JoinedStr, ast.Import, ast.ImportFrom, ast.AnnAssign, ast.Assert)


class Mutant(NamedTuple):
    """A changed source, and what was changed: in which function, in which line, what it was and what it is."""

    source: str
    scope: str
    line: int
    before: str
    after: str


def mutants(source: str) -> list[Mutant]:
    """Return every mutant of a module: its source with one change."""
    tree, found = ast.parse(source), []
    scopes = dict(_scopes(tree, ""))
    for node, field, new in _changes(tree):
        old = getattr(node, field)
        line = getattr(old[0] if isinstance(old, list) and old else old, "lineno", getattr(node, "lineno", 0))
        shown = node if isinstance(node, ast.expr) else old
        before = _text(shown)
        setattr(node, field, new)
        after = _text(node if isinstance(node, ast.expr) else new)
        found.append(Mutant(ast.unparse(tree), scopes[node], line or getattr(node, "lineno", 0), before, after))
        setattr(node, field, old)
    return found


def _scopes(node: ast.AST, scope: str) -> Iterator[tuple[ast.AST, str]]:
    """Yield every node with the qualified name of the function that it stands in, "" outside of all."""
    yield node, scope
    for child in ast.iter_child_nodes(node):
        inner = f"{scope}.<locals>" if isinstance(node, ast.FunctionDef) else scope
        named = isinstance(child, ast.FunctionDef | ast.ClassDef)
        yield from _scopes(child, f"{inner}.{child.name}".lstrip(".") if named else scope)


def _text(node: object) -> str:
    if isinstance(node, list):
        return "; ".join(map(_text, node)) or "(nothing)"
    text = ast.unparse(node) if isinstance(node, ast.AST) else str(node)
    return text.splitlines()[0][:110] if text else "(nothing)"


def _changes(node: ast.AST) -> Iterator[tuple[ast.AST, str, object]]:
    """Yield (node, field, new value) for every single change below `node`."""
    if isinstance(node, UNTOUCHED):
        return
    yield from _changes_of(node)
    for field, value in ast.iter_fields(node):
        if field in ("annotation", "returns", "decorator_list", "type_params", "bases"):
            continue
        children = value if isinstance(value, list) else [value]
        for place, child in enumerate(children):
            if not isinstance(child, ast.AST):
                continue
            if isinstance(child, ast.Constant):
                for constant in _constants(child):
                    new = [*children[:place], constant, *children[place + 1 :]] if isinstance(value, list) else constant
                    yield node, field, new
            if isinstance(child, ast.Expr) and isinstance(child.value, ast.Call) and isinstance(value, list):
                yield node, field, [*children[:place], ast.copy_location(ast.Pass(), child), *children[place + 1 :]]
            yield from _changes(child)


def _changes_of(node: ast.AST) -> Iterator[tuple[ast.AST, str, object]]:
    if isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in COMPARED:
        yield node, "ops", [COMPARED[type(node.ops[0])]()]
    if isinstance(node, ast.BinOp | ast.BoolOp | ast.AugAssign) and type(node.op) in COMBINED:
        yield node, "op", COMBINED[type(node.op)]()
    if isinstance(node, ast.If | ast.IfExp | ast.While):
        yield node, "test", ast.copy_location(ast.Constant(False), node.test)
        if not isinstance(node, ast.While):
            yield node, "test", ast.copy_location(ast.Constant(True), node.test)
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and node.id in RENAMED:
        yield node, "id", RENAMED[node.id]
    if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load) and node.attr in RENAMED:
        yield node, "attr", RENAMED[node.attr]
    if isinstance(node, ast.Call):
        for place, keyword in enumerate(node.keywords):
            if keyword.arg:
                yield node, "keywords", [*node.keywords[:place], *node.keywords[place + 1 :]]


def _constants(constant: ast.Constant) -> list[ast.Constant]:
    value = constant.value
    if isinstance(value, bool):
        return [ast.copy_location(ast.Constant(not value), constant)]
    if isinstance(value, int | float):
        return [ast.copy_location(ast.Constant(value + 1 if isinstance(value, int) else value * 1.5), constant)]
    return []


# ---------------------------------------------------------------- trying them


class Watch:
    """A plugin of pytest that writes down which tests call which functions of a module."""

    def __init__(self, path: Path) -> None:
        self.path, self.test = str(path), ""
        self.calls: dict[str, list[str]] = {}

    def _note(self, frame: FrameType, event: str, argument: object) -> None:
        if frame.f_code.co_filename == self.path:
            tests = self.calls.setdefault(frame.f_code.co_qualname, [])
            if self.test not in tests[-1:]:
                tests.append(self.test)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        """Watch one test, its fixtures included."""
        self.test = item.nodeid
        sys.setprofile(self._note)
        try:
            return (yield)
        finally:
            sys.setprofile(None)


def file_of(module: str, project: Path) -> Path:
    """Return the file of a module, such as measure.latency."""
    return project / "helpers" / f"{module.replace('.', '/')}.py"


def own_tests(module: str) -> str:
    """Return its test file; a module that has none is tested by its room."""
    room, _, name = module.partition(".")
    own = f"tests/{room}/test_{name}.py"
    return own if (ROOT / own).exists() else f"tests/{room}"


def passes(project: Path, module: str, source: str, tests: Sequence[str] = (), *, seconds: float) -> bool:
    """Return whether these tests of `module`, or all, pass with this source, within `seconds`."""
    file_of(module, project).write_text(source, encoding="utf-8")
    process = multiprocessing.get_context("fork").Process(target=_test, args=(project, module, tests))
    process.start()
    process.join(seconds)
    if process.is_alive():
        process.kill()
        process.join()
        return False
    return process.exitcode == 0


def _test(project: Path, module: str, tests: Sequence[str]) -> None:
    """Run tests in the copy, in this process, which has imported nothing of the project yet."""
    os.setpgrp()
    os.chdir(project)
    elsewhere = [path for path in sys.path if Path(path or ".").resolve() not in (ROOT, ROOT / "tests")]
    sys.path[:] = [str(project), *elsewhere]
    sys.dont_write_bytecode = True
    watch = Watch(file_of(module, project))
    options = ["-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", "-m", "not notebook and not browser"]
    options += ["-W", "ignore:Module already imported"]
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        code = pytest.main([*options, *(tests or [own_tests(module)])], plugins=[] if tests else [watch])
        loaded = Path(getattr(sys.modules.get(f"helpers.{module}"), "__file__", None) or "")
    if not tests and not (project / CALLS).exists():
        (project / CALLS).write_text(json.dumps(watch.calls), encoding="utf-8")
    os._exit(int(code) if project in loaded.parents else 99)


def survives(project: Path, module: str, mutant: Mutant, *, seconds: float) -> bool:
    """Return whether no test notices: first those that call the changed function, then, if need be, all."""
    calls = json.loads((project / CALLS).read_text(encoding="utf-8"))
    near = [test for test in calls.get(mutant.scope, []) if test]
    if near and not passes(project, module, mutant.source, near, seconds=seconds):
        return False
    return passes(project, module, mutant.source, seconds=seconds)


def project_copy(folder: Path) -> Path:
    """Make a copy of what tests read, the data as links, and return its path."""
    for name in ("helpers", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for path in ROOT.iterdir():
        if path.name not in ("helpers", "tests", ".git", ".venv", "build") and not (folder / path.name).exists():
            (folder / path.name).symlink_to(path)
    return folder.resolve()


def main() -> int:
    """Try the mutants of the modules named on the command line; return 1 if fewer than nine in ten were noticed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("module", nargs="*", help="such as measure.latency; default: all")
    parser.add_argument("--count", type=int, default=10, help="mutants of each module")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    known = [f"{p.parent.name}.{p.stem}" for p in sorted((ROOT / "helpers").glob("*/[!_]*.py"))]
    if unknown := sorted(set(args.module) - set(known)):
        parser.error(f"module={unknown[0]!r} is unknown; allowed: {', '.join(known)}")
    os.environ["OMP_NUM_THREADS"] = "1"
    plugins = [plugin.module for plugin in entry_points(group="pytest11")]
    for name in (*PRELOADED, *plugins):
        with contextlib.redirect_stderr(io.StringIO()):
            importlib.import_module(name)
    tried = noticed = 0
    for module in args.module or known:
        source = file_of(module, ROOT).read_text(encoding="utf-8")
        drawn = mutants(source)
        drawn = random.Random(args.seed).sample(drawn, min(args.count, len(drawn)))
        with tempfile.TemporaryDirectory() as folder:
            project, began = project_copy(Path(folder)), time.monotonic()
            if not passes(project, module, ast.unparse(ast.parse(source)), seconds=600):
                print(f"{module}: its tests fail without any change", flush=True)
                return 1
            limit = 30 + 5 * (time.monotonic() - began)
            left = [m for m in drawn if survives(project, module, m, seconds=limit)]
        print(f"{module}: {len(drawn) - len(left)} of {len(drawn)} noticed", flush=True)
        for mutant in left:
            print(
                f"  {file_of(module, ROOT).relative_to(ROOT)}:{mutant.line}: {mutant.before}  ->  {mutant.after}",
                flush=True,
            )
        tried, noticed = tried + len(drawn), noticed + len(drawn) - len(left)
    print(f"{noticed} of {tried} mutants noticed")
    return 0 if noticed >= 0.9 * tried else 1


if __name__ == "__main__":
    sys.exit(main())
