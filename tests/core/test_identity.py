import importlib
import random
import re
import sys
import time
from pathlib import Path

import pytest

from helpers.core import identity, paths

REAL = paths.ROOT / "helpers"
SOURCES = sorted((paths.ROOT / "notebooks/src").glob("[0-9][0-9]_*.py"))
FACE = {
    "pruning/__init__.py": 'from kit.pruning.masks import bake, mask\n\n__all__ = ["bake", "mask"]\n',
    "pruning/masks.py": (
        "def mask():\n    return _own(1111)\n\ndef _own(x):\n    return 1111\n\ndef bake():\n    return 9999\n"
    ),
    "pruning/other.py": "def mask():\n    return 9999\n",
}
LAZY = {
    "nets/__init__.py": (
        '_LAZY = {"resnet": "kit.nets.deep", "lenet": "kit.nets.small"}\n\n'
        "def __getattr__(name):\n    import importlib\n"
        "    return getattr(importlib.import_module(_LAZY[name]), name)\n"
    ),
    "nets/deep.py": "def resnet():\n    return 1111\n\ndef other():\n    return 9999\n",
    "nets/small.py": "if 9999:\n    lenet = 9999\n",
}
REGISTRY = {
    "shelf/__init__.py": "from kit.shelf import one\nfrom kit.shelf.registry import ALL\n",
    "shelf/registry.py": (
        "ALL = {}\n\ndef register(name):\n    def add(function):\n        ALL[name, 1111] = function\n"
        "        return function\n    return add\n"
    ),
    "shelf/one.py": (
        'from kit.shelf.registry import register\n\n@register("one")\ndef _one():\n    return _deep()\n\n'
        "def _deep():\n    return 1111\n\ndef _other():\n    return 9999\n"
    ),
    "shelf/two.py": 'from kit.shelf.registry import register\n\n@register("two")\ndef _two():\n    return 9999\n',
}


def one(text: str) -> dict[str, str]:
    """Return a package with one module, `a`."""
    return {"a.py": text}


# In each case 1111 stands where a change must be seen, 9999 where it must not; the code follows the package.
CASES = {
    "used and unused": (one("def f():\n    return 1111\n\ndef g():\n    return 9999\n"), "from kit import a\na.f()"),
    "from import": (one("def f():\n    return 1111\n\ndef g():\n    return 9999\n"), "from kit.a import f as h\nh()"),
    "import as": (one("def f():\n    return 1111\n\ndef g():\n    return 9999\n"), "import kit.a as b\nb.f()"),
    "dotted chain": (FACE, "import kit.pruning\nkit.pruning.mask()"),
    "dotted chain of another import": (FACE, "import kit\nfrom kit import pruning\nkit.pruning.mask()"),
    "face": (FACE, "from kit import pruning\npruning.mask()"),
    "name from a face": (FACE, "from kit.pruning import mask\nmask()"),
    "face in a function": (FACE, "def f():\n    from kit import pruning as p\n    return p.mask()\nf()"),
    "behind a face": (FACE, "from kit.pruning import masks\nmasks.mask()"),
    "lazy face": (LAZY, "from kit import nets\nnets.resnet()"),
    "name from a lazy face": (LAZY, "from kit.nets import resnet\nresnet()"),
    "re-export of a lazy face": (
        {**LAZY, "top.py": "from kit.nets import resnet as net\n"},
        "from kit import top\ntop.net()",
    ),
    "submodule": (
        {"data/__init__.py": "from kit.data.core import Split\n", "data/core.py": "class Split:\n    x = 9999\n"}
        | {"data/text.py": "def batches():\n    return 1111\n\ndef g():\n    return 9999\n"},
        "from kit.data import text\ntext.batches()",
    ),
    "alias": (one("def f():\n    return 1111\n\ng = f\nh = 9999\n"), "from kit import a\na.g()"),
    "renamed re-export": (
        {"a.py": "def f():\n    return 1111\n\ndef g():\n    return 9999\n", "b.py": "from .a import f as g\n"},
        "from kit import b\nb.g()",
    ),
    "relative imports": (
        {"p/__init__.py": "from .q import f\n", "p/q.py": "from ..a import g\n\ndef f():\n    return g()\n"}
        | {"a.py": "def g():\n    return 1111\n\ndef f():\n    return 9999\n"},
        "from kit.p import f\nf()",
    ),
    "cycle": (
        {
            "a.py": "from kit import b\n\ndef f(n):\n    return n and b.g(n - 1, 1111)\n\ndef h():\n    return 9999\n",
            "b.py": "from kit import a\n\ndef g(n, m):\n    return a.f(n) + 1111\n\ndef h():\n    return 9999\n",
        },
        "from kit import a\na.f(3)",
    ),
    "nested function": (
        one("def f():\n    def inner():\n        return lambda: g()\n    return inner\n\ndef g():\n    return 1111\n"),
        "from kit import a\na.f()",
    ),
    "default argument": (one("def g():\n    return 1111\n\ndef f(g=g()):\n    return g\n"), "from kit import a\na.f()"),
    "default that is a lambda": (
        one("def g():\n    return 1111\n\ndef f(x=lambda g: g):\n    return g()\n"),
        "from kit import a\na.f()",
    ),
    "outside decorator": (
        one("from functools import cache\n\n@cache\ndef f():\n    return 9999\n\ndef g():\n    return 1111\n"),
        "from kit import a\na.g()",
    ),
    "own decorator": (
        one("def twice(f):\n    return 1111\n\n@twice\ndef f():\n    return 1111\n\ndef g():\n    return 9999\n"),
        "from kit import a\na.f()",
    ),
    "context manager as decorator": (
        one(
            "import contextlib\n\n@contextlib.contextmanager\ndef plain():\n    yield 9999\n\n"
            "@plain()\ndef f():\n    return 9999\n\ndef g():\n    return 1111\n"
        ),
        "from kit import a\na.g()",
    ),
    "base class": (
        one(
            "class Base:\n    x = 1111\n\nclass A(Base):\n    def m(self):\n        return 1111\n\n"
            "class B(Base):\n    y = 9999\n"
        ),
        "from kit.a import A\nA()",
    ),
    "class is whole": (
        one("class A:\n    def m(self):\n        return g()\n\ndef g():\n    return 1111\n"),
        "import kit.a\nkit.a.A",
    ),
    "import in a class": (
        {"a.py": "class A:\n    from kit.b import g\n", "b.py": "def g():\n    return 1111\n\nx = 9999\n"},
        "from kit.a import A\nA.g()",
    ),
    "constant": (one("X = 1111\nY = 9999\n\ndef f():\n    return X\n"), "from kit import a\na.f()"),
    "constant with all changes": (
        one(
            'X = {}\nX["a"] = 1111\nX |= {"b": 1111}\nX.update(c=1111)\nX.setdefault("d", []).append(1111)\n'
            "X.e, Z = 1111, 1111\ndel X[1111]\nY = {}\nY[1] = 9999\nY.update(a=9999)\n"
        ),
        "from kit import a\na.X",
    ),
    "several constants": (one("X, (Y, *Z) = 1111, (1111, 1111)\nV = W = 9999\n"), "from kit import a\na.Z"),
    "table of functions": (
        one('def f():\n    return 1111\n\ndef g():\n    return 9999\n\nT = {"f": f}\n'),
        "from kit.a import T\nT['f']()",
    ),
    "f-string": (
        one('X = 1111\nW = 1111\nY = 9999\n\ndef f():\n    return f"{X:{W}} Y"\n'),
        "from kit import a\na.f()",
    ),
    "comprehension": (one("X = [1111]\nY = 9999\n\ndef f():\n    return [Y for Y in X]\n"), "from kit import a\na.f()"),
    "name after a comprehension": (
        one("X = 1111\nY = 9999\n\ndef f():\n    z = [X for X in range(3)], {Y: 1 for Y in ()}\n    return X, z\n"),
        "from kit import a\na.f()",
    ),
    "first iterable": (one("x = [1111]\n\ndef f():\n    return [x for x in x]\n"), "from kit import a\na.f()"),
    "shadowed": (
        one(
            "x = y = z = w = v = u = t = 9999\n\ndef f(x, *y, z=1, **w):\n    v = 1\n    for u in (): pass\n"
            "    with open('') as t: pass\n    return x, y, z, w, v, u, t, 1111\n"
        ),
        "from kit import a\na.f(1)",
    ),
    "shadowed in part": (
        one("x = 1111\n\ndef f():\n    def g(x):\n        return x\n    return g(x), lambda x: x\n"),
        "from kit import a\na.f()",
    ),
    "shadowed by a match or an error": (
        one(
            "x = y = e = 9999\n\ndef f(v):\n    match v:\n        case [x, *y]: return x, y\n"
            "    try: pass\n    except OSError as e: return e\n    return 1111\n"
        ),
        "from kit import a\na.f(1)",
    ),
    "seen from an inner function": (
        one("x = 9999\n\ndef f():\n    x = 1111\n    def g():\n        return x\n    return g()\n"),
        "from kit import a\na.f()",
    ),
    "class body does not shadow": (
        one("def g():\n    return 1111\n\nclass A:\n    def g(self):\n        return g()\n"),
        "from kit import a\na.A().g()",
    ),
    "global": (one("X = 1111\n\ndef f():\n    global X\n    X += 1\n"), "from kit import a\na.f()"),
    "parameter that is also an import": (
        {"a.py": "def f(b=None):\n    from kit import b\n    return b.g()\n", "b.py": "def g():\n    return 1111\n"},
        "from kit import a\na.f()",
    ),
    "annotation": (
        one("Names = 1111\n\ndef f(x: Names) -> 'Other': ...\n\nOther = 9999\n"),
        "from kit import a\na.f(1)",
    ),
    "under TYPE_CHECKING": (
        {
            "a.py": (
                "import typing\nif typing.TYPE_CHECKING:\n    from kit import b\n\ndef f(x: 'b.C'):\n    return 1111\n"
            ),
            "b.py": "print(9999)\n\nclass C:\n    x = 9999\n",
        },
        "from kit import a\na.f(1)",
    ),
    "not under TYPE_CHECKING": (
        {
            "a.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    pass\nelse:\n    from kit import b\n",
            "b.py": "print(1111)\nx = 9999\n",
        },
        "from kit import a",
    ),
    "getattr of a module": (
        {"a.py": "def f():\n    return 1111\n\ndef g():\n    return 1111\n", "b.py": "def f():\n    return 9999\n"},
        "from kit import a, b\ngetattr(a, 'f')()",
    ),
    "vars of a face": (
        {
            **FACE,
            "pruning/masks.py": "def mask():\n    return 1111\n",
            "pruning/other.py": "def f():\n    return 1111\n",
        },
        "from kit import pruning\nvars(pruning)",
    ),
    "passed along in a helper": (
        {"a.py": "from kit import b\n\ndef f(name):\n    return getattr(b, name)\n", "b.py": "X = 1111\nY = 1111\n"},
        "from kit import a\na.f('X')",
    ),
    "module under another name": (one("X = 1111\nY = 1111\n"), "from kit import a\nb = a\nb.X"),
    "re-exports of a whole module": (
        {"a.py": "from kit.b import f\nfrom kit import b\n", "b.py": "def f():\n    return 1111\n\nX = 9999\n"},
        "from kit import a\nvars(a)",
    ),
    "module in __all__ of a whole module": (
        {"a.py": "from kit import b\n__all__ = ['b']\n", "b.py": "def f():\n    return 1111\n"},
        "from kit import a\nvars(a)",
    ),
    "star import": (one("X = 1111\nY = 1111\n"), "from kit.a import *\nX"),
    "through a star import": (
        {"a.py": "X = 1111\n_Y = 1111\n", "b.py": "from kit.a import *\nZ = 9999\n\ndef f():\n    return X\n"},
        "from kit import b\nb.f(), b.X",
    ),
    "unknown attribute": (one("X = 1111\n\ndef __getattr__(name):\n    return 1111\n"), "from kit import a\na.Q"),
    "dunder attribute": (one("X = 9999\nY = 1111\n"), "from kit import a\na.__file__, a.__all__, a.Y"),
    "__dict__": (one("X = 1111\n"), "from kit import a\na.__dict__['X']"),
    "outside attribute": (one("import os\nX = 9999\nY = 1111\n"), "from kit import a\na.os.getcwd(), a.Y"),
    "globals": (one("X = 1111\n\ndef f():\n    return globals()['X']\n"), "from kit import a\na.f()"),
    "own name": (
        one("import sys\nX = 1111\n\ndef f():\n    return sys.modules[__name__].X\n"),
        "from kit import a\na.f()",
    ),
    "main block": (
        one("X = 9999\nif __name__ == '__main__':\n    print(1111)\n\ndef f(): ...\n"),
        "from kit import a\na.f()",
    ),
    "code in a string": (
        one("def f():\n    return 1111\n\ndef g():\n    return 9999\n"),
        "run('''\n  import sys\n  from kit import a\n  a.f(sys)\n''')",
    ),
    "code in an f-string": (
        {"a.py": "def f(x):\n    return 1111\n\ndef g():\n    return 9999\n"}
        | {"b.py": 'def run(x):\n    return f"from kit import a; a.f({x!r})"\n'},
        "from kit import b\nb.run(1)",
    ),
    "module in a string": (
        {"a.py": "def f():\n    return 1111\n", "b.py": "X = 9999\n"},
        "import importlib\nimportlib.import_module('kit.a').f(), 'about kit.b'",
    ),
    "what an import runs": (
        {
            "a.py": "from kit import b\n\ndef f():\n    return 1111\n",
            "b.py": (
                "for i in range(1111):\n    print(X)\nprint(_y())\nX = 1111\nZ = 9999\n\ndef _y():\n    return 1111\n"
            ),
        },
        "from kit import a\na.f()",
    ),
    "what an import in an unused function runs": (
        {"a.py": "X = 1111\n\ndef f():\n    import kit.b\n", "b.py": "print(9999)\n"},
        "from kit import a\na.X",
    ),
    "defined under a condition": (
        one("try:\n    X = 1111\nexcept OSError:\n    X = 1111\nY = 9999\n"),
        "from kit.a import X\nX",
    ),
    "change of something outside": (
        one("import os\nos.environ['x'] = '1111'\nos.path.sep = 1111\n\ndef f(): ...\n"),
        "from kit import a\na.f",
    ),
    "change of another module's table": (
        {"a.py": "T = {}\n", "b.py": "from kit.a import T\nT['x'] = 1111\n\ndef f(): ...\n"},
        "from kit import b\nb.f()",
    ),
    "registry": (REGISTRY, "from kit import shelf\nshelf.ALL"),
    "registry behind": (REGISTRY, "from kit.shelf.registry import ALL\nALL"),
    "registered class and method": (
        one(
            "def register(f):\n    return 1111\n\n@register\nclass A:\n    x = 1111\n\n"
            "class B:\n    @register\n    def m(self):\n        return 1111\n\nclass C:\n    x = 9999\n"
        ),
        "import kit.a",
    ),
    "docstring and comment": (
        one('"""9999"""\n# 9999\n"""9999"""\n\ndef f():\n    """9999."""\n    # 9999\n    return 1111\n'),
        "from kit import a\na.f()",
    ),
    "__all__": (
        one("__all__ = ['f', '9999']\n__all__ += ['9999']\n\ndef f():\n    return 1111\n"),
        "from kit import a\na.f()",
    ),
    "folder without a face": ({"p/a.py": "X = 1111\nY = 9999\n"}, "from kit.p import a\na.X"),
    "module that does not exist": (one("from kit import gone\nX = 1111\n"), "import kit.none\nfrom kit import a\na.X"),
}


def write(folder: Path, files: dict[str, str]) -> Path:
    """Write a package `kit` and return it."""
    package = folder / "kit"
    for name, text in {"__init__.py": "", **files}.items():
        path = package / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return package


def changes(files: dict[str, str], number: str):
    """Yield the files with each occurrence of a number changed in turn."""
    for name, text in files.items():
        for found in re.finditer(number, text):
            yield {**files, name: text[: found.start()] + "5555" + text[found.end() :]}


@pytest.mark.parametrize("case", CASES)
def test_a_change_is_seen_if_it_is_reached_and_only_then(case, tmp_path):
    files, code = CASES[case]
    before = identity.sha256(code.encode(), package=write(tmp_path, files))
    assert any("1111" in text for text in files.values())
    for changed in changes(files, "1111"):
        assert identity.sha256(code.encode(), package=write(tmp_path, changed)) != before, changed
    for changed in changes(files, "9999"):
        assert identity.sha256(code.encode(), package=write(tmp_path, changed)) == before, changed


def digest(folder: Path, files: dict[str, str], code: str = "from kit import a\na.f()", **options) -> str:
    return identity.sha256(code.encode(), package=write(folder, files), **options)


def test_used_are_modules_and_names_through_faces(tmp_path):
    package = write(tmp_path, FACE)
    found = identity.used(b"from kit import pruning\npruning.mask()", package=package)
    assert found == {("kit.pruning.masks", "mask"), ("kit.pruning.masks", "_own")}


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("from math import floor as g", "from math import ceil as g"),
        ("from kit.b import x as g, y as h", "from kit.b import y as g, x as h"),
        ("import kit.b as g", "import kit.c as g"),
    ],
)
def test_what_a_name_stands_for_counts(tmp_path, before, after):
    others = {"b.py": "def x(): ...\ndef y(): ...\n", "c.py": "def x(): ...\ndef y(): ...\n"}
    body = "\n\ndef f():\n    h = 1 if 'h' else 0\n    return g.x, k()\n\ndef k():\n    return h\n"
    assert digest(tmp_path, {**others, "a.py": before + body}) != digest(tmp_path, {**others, "a.py": after + body})


def test_layout_order_and_unused_imports_do_not_count(tmp_path):
    same = [
        "import os\nX = 1\n\ndef f():\n    return X\n",
        "def f() :\n\n    return (X)\nimport sys\n\n\nX=1\n",
        "from os import path\n__all__ = ['f']\nX = 0x1\ndef f(): return X\ndef g(): return os\n",
    ]
    assert len({digest(tmp_path, {"a.py": text}) for text in same}) == 1


def test_a_lazy_face_counts_as_one_that_is_not(tmp_path):
    code = "from kit import nets\nnets.resnet()"
    eager = {**LAZY, "nets/__init__.py": "from kit.nets.deep import resnet\n"}
    assert digest(tmp_path, LAZY, code) == digest(tmp_path, eager, code)


@pytest.mark.parametrize(
    "lazy", ["_LAZY = dict(resnet='kit.nets.deep')\n", "_LAZY = {n: 'kit.nets.' + n for n in ()}\n"]
)
def test_a_lazy_face_of_another_form_counts_whole(tmp_path, lazy):
    files = {**LAZY, "nets/__init__.py": lazy + "\ndef __getattr__(name):\n    return 1\n"}
    found = identity.used(b"from kit import nets\nnets.resnet()", package=write(tmp_path, files))
    assert {("kit.nets.deep", "other"), ("kit.nets.small", "lenet"), ("kit.nets", "__getattr__")} <= found


def test_extra_modules_count_whole(tmp_path):
    files = {
        "a.py": "def f(): ...\n",
        "more/__init__.py": "",
        "more/x.py": "X = 1\n",
        "more/y.py": "def g():\n    return 1\n",
    }
    changed = {**files, "more/y.py": "def g():\n    return 2\n"}
    assert digest(tmp_path, files) == digest(tmp_path, changed)
    for extra in (["kit.more.y"], ["kit.more"]):
        assert digest(tmp_path, files, extra=extra) != digest(tmp_path, changed, extra=extra)
    assert digest(tmp_path, files, extra=["kit.more.x"]) == digest(tmp_path, changed, extra=["kit.more.x"])
    with pytest.raises(ValueError, match="kit.mroe is not a module of"):
        digest(tmp_path, files, extra=["kit.mroe"])


@pytest.mark.parametrize(
    ("hidden", "is_seen"), [("kit.setup", False), ("kit", False), ("kit.set", True), ("kit.setup.x", True)]
)
def test_what_only_sets_up_is_neither_counted_nor_followed(tmp_path, hidden, is_seen):
    files = {"a.py": "from kit import setup\n\ndef f():\n    return setup.g()\n"}
    files |= {
        "setup.py": "from kit import deep\nprint(1)\n\ndef g():\n    return deep.h()\n",
        "deep.py": "def h():\n    return 1\n",
    }
    for code in ("from kit import a\na.f()", "from kit import setup\nsetup.g()", "from kit import setup\nvars(setup)"):
        for name in ("setup.py", "deep.py"):
            changed = {**files, name: files[name].replace("1", "2")}
            options = {"code": code, "not_hashed": frozenset([hidden])}
            assert (digest(tmp_path, files, **options) != digest(tmp_path, changed, **options)) == is_seen


def test_a_face_alone_can_be_left_out(tmp_path):
    code = "import kit\nkit.a.f(), kit.VERSION"
    files = {"__init__.py": "VERSION = 1\n", "a.py": "def f():\n    return 1\n"}
    for name, is_seen in (("__init__.py", False), ("a.py", True)):
        changed = {**files, name: files[name].replace("1", "2")}
        both = [digest(tmp_path, each, code, not_hashed=frozenset({"kit.__init__"})) for each in (files, changed)]
        assert (both[0] != both[1]) == is_seen


def test_a_module_that_cannot_be_parsed_is_an_error(tmp_path):
    with pytest.raises(SyntaxError):
        digest(tmp_path, {"a.py": "def f(:\n"})


# ---------------------------------------------------------------- what runs is counted


def drawn(seed: int) -> tuple[dict[str, str], str]:
    """Return a random package whose functions call each other in all ways, and code that calls some of them."""
    draw = random.Random(seed)
    modules = [f"{room}.m{i}" for room in ("p", "q") for i in range(3)]
    functions = [(module, f"f{i}") for module in modules for i in range(4)]
    texts = {module: "T = {}\n" for module in modules}
    for i, (module, name) in enumerate(functions):
        lines = []
        for other, called in draw.sample(functions[:i], min(i, draw.randrange(3))):
            room, file = other.split(".")
            ways = [
                f"from kit.{other} import {called} as g\n    g()",
                f"import kit.{other}\n    kit.{other}.{called}()",
                f"from kit.{room} import {file} as m\n    m.{called}()",
                f"from kit import {room}\n    {room}.{file}_{called}()",
                f"from kit.{room} import {file} as m\n    getattr(m, '{called}')()",
                f"import kit.{other} as m\n    [m.T['{called}']() for T in range(1)]",
            ]
            lines.append(draw.choice(ways))
            if other == module:
                lines[-1] = draw.choice([f"{called}()", f"(lambda T: {called}())(1)", f"T['{called}']()"])
        body = "\n    ".join(lines) or "pass"
        texts[module] += f"\ndef {name}():\n    {body}\n\nT['{name}'] = {name}\n"
    files = {f"{module.replace('.', '/')}.py": text for module, text in texts.items()}
    for room in ("p", "q"):
        own = [(module, name) for module, name in functions if module.startswith(room)]
        lines = [f"from kit.{module} import {name} as {module[2:]}_{name}" for module, name in own]
        lazy = {f"{module[2:]}_{name}": f"kit.{room}.lazily" for module, name in own}
        files[f"{room}/lazily.py"] = "\n".join(lines)
        get = (
            "import importlib\n\ndef __getattr__(name):\n    if name not in _LAZY:\n        raise AttributeError(name)"
        )
        get += "\n    return getattr(importlib.import_module(_LAZY[name]), name)"
        files[f"{room}/__init__.py"] = f"_LAZY = {lazy}\n\n{get}\n" if draw.random() < 0.5 else "\n".join(lines)
    calls = draw.sample([(module, name) for module, name in functions if module.startswith("q")], 2)
    return files, "\n".join(f"import kit.{module}\nkit.{module}.{name}()" for module, name in calls)


def ran(code: str, package: Path) -> set[tuple[str, str]]:
    """Run code and return the definitions of the package of which something ran."""
    found = set()

    def note(frame, event, _):
        path = Path(frame.f_code.co_filename)
        name = frame.f_code.co_qualname.partition(".")[0]
        if event == "call" and package in path.parents and not name.startswith("<"):
            parts = path.relative_to(package.parent).with_suffix("").parts
            found.add((".".join(parts).removesuffix(".__init__"), name))

    sys.setprofile(note)
    try:
        exec(compile(code, "code", "exec"), {})
    finally:
        sys.setprofile(None)
    return found


@pytest.mark.parametrize("seed", range(25))
def test_all_that_runs_is_used(seed, tmp_path, monkeypatch):
    files, code = drawn(seed)
    package = write(tmp_path, files)
    monkeypatch.syspath_prepend(tmp_path)
    for name in [each for each in sys.modules if each.partition(".")[0] == "kit"]:
        del sys.modules[name]
    importlib.invalidate_caches()
    executed = {(module, name) for module, name in ran(code, package) if name != "__getattr__"}
    found = identity.used(code.encode(), package=package)
    assert executed and executed <= found
    if not re.search(r"getattr\(m|T\['f\d'\]\(", "".join(files.values())):
        assert executed == found


PRUNING = """
import tempfile
from pathlib import Path
import torch
from helpers import files, measure, nets, pruning, quantization

torch.manual_seed(0)
model = nets.lenet5()
pruned = pruning.bake(pruning.mask(model, pruning.layer_masks(model, 0.5)))
measure.count_macs(pruned, torch.zeros(1, 1, 28, 28))
with tempfile.TemporaryDirectory() as folder:
    files.write_sparse(pruned, Path(folder) / "sparse")
    files.load_into(nets.lenet5(), Path(folder) / "sparse")
    files.write_quantized(quantization.quantize_model(pruned, weights=4), Path(folder) / "codes")
"""


def test_all_that_runs_of_the_helpers_is_used():
    exec(PRUNING, {})  # once before: what imports run is another question
    executed = ran(PRUNING, REAL)
    assert len(executed) > 30
    assert executed <= identity.used(PRUNING.encode(), package=REAL)


# ---------------------------------------------------------------- the course's own notebooks


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)
def test_what_a_notebook_names_is_used(source):
    code = source.read_text(encoding="utf-8")
    imports = " ".join(re.findall(r"^from helpers import (\([^)]*\)|.*)", code, re.M))
    modules = {path.name for path in REAL.iterdir()} & set(re.findall(r"\w+", imports))
    named = set(re.findall(rf"(?<![\w.\"'])({'|'.join(modules)})\.([a-zA-Z]\w*)", without_prose(code)))
    found = identity.used(code.encode(), package=REAL)
    assert len(named) > 10
    modules_used = {room for room, _ in found}
    for module, name in named:
        defined = any(room.startswith(f"helpers.{module}.") and each == name for room, each in found)
        assert defined or f"helpers.{module}.{name}" in modules_used, name


def without_prose(code: str) -> str:
    return "\n".join(line for line in code.splitlines() if not line.startswith("#"))


def test_all_notebooks_take_few_seconds():
    start = time.process_time()
    found = {identity.sha256(source.read_bytes(), package=REAL) for source in SOURCES}
    assert time.process_time() - start < 25  # one on a quick machine that does nothing else, twelve on a slow busy one
    assert len(found) == len(SOURCES) >= 20
