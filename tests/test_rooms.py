"""The house: rooms whose imports go down only, modules of a readable length, faces that show what they promise."""

import ast
import importlib
import re
import shutil
from pathlib import Path

import pytest

from helpers.core import identity, paths
from helpers.course import chapters

HELPERS = paths.ROOT / "helpers"
FILES = sorted(HELPERS.glob("*/*.py"))
NAMES = {f"{path.parent.name}.{path.stem}" for path in FILES}
ROOMS = re.findall(r"^\| `(\w+)` \|", (paths.ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.M)
FACED = [room for room in ROOMS if "__all__" in (HELPERS / room / "__init__.py").read_text(encoding="utf-8")]


def imported(path: Path) -> set[str]:
    """Return what a module imports of the helpers, anywhere in it: room.module, or room.__init__ for a face."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith("helpers"):
            continue
        base = (node.module or "").removeprefix("helpers").removeprefix(".")
        for alias in node.names:
            full = f"{base}.{alias.name}".lstrip(".")
            found.add(full if full in NAMES else base if base in NAMES else f"{(base or alias.name)}.__init__")
    return found


def test_contributing_lists_every_room_once():
    assert sorted(ROOMS) == sorted({path.parent.name for path in FILES})


@pytest.mark.parametrize("room", ROOMS)
def test_imports_go_down_only(room):
    below = set(ROOMS[: ROOMS.index(room) + 1])
    for path in (HELPERS / room).glob("*.py"):
        up = {name for name in imported(path) if name.partition(".")[0] not in below}
        assert not up, f"{path.name} imports from rooms above it"


def test_no_module_imports_itself_in_a_circle():
    uses = {f"{path.parent.name}.{path.stem}": imported(path) for path in FILES if path.stem != "__init__"}
    done: set[str] = set()

    def visit(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, " -> ".join([*way, name])
        if name in done or name not in uses:
            return
        for used in sorted(uses[name]):
            visit(used, (*way, name))
        done.add(name)

    for name in sorted(uses):
        visit(name, ())


@pytest.mark.parametrize("room", ROOMS)
def test_no_module_imports_the_face_of_its_own_room(room):
    inside = [path for path in (HELPERS / room).glob("*.py") if path.stem != "__init__"]
    assert [path.name for path in inside if f"{room}.__init__" in imported(path)] == []


def test_modules_have_a_readable_length():
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in HELPERS.rglob("*.py")}
    assert {str(path) for path, lines in lengths.items() if lines > 450} == set()
    tests = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in (paths.ROOT / "tests").rglob("*.py")}
    assert {str(path) for path, lines in tests.items() if lines > 700} == set()


@pytest.mark.parametrize("room", FACED)
def test_a_face_shows_what_it_promises(room):
    face = importlib.import_module(f"helpers.{room}")
    assert len(set(face.__all__)) == len(face.__all__)
    for name in face.__all__:
        assert not name.startswith("_") and getattr(face, name) is not None
    with pytest.raises(AttributeError):
        _ = face.no_such_name


@pytest.mark.parametrize("number", ["02", "09"])
def test_a_changed_hint_makes_one_notebook_stale(number, tmp_path):
    copy = shutil.copytree(HELPERS, tmp_path / "helpers", ignore=shutil.ignore_patterns("__pycache__"))

    def digests() -> dict[str, str]:
        return {
            source.stem: identity.sha256(
                source.read_bytes(), package=copy, extra=[f"helpers.exercises.notebook_{source.stem[:2]}"]
            )
            for source in chapters.sources()
        }

    before, path = digests(), copy / f"exercises/notebook_{number}.py"
    text = path.read_text(encoding="utf-8")
    changed = re.sub(r'hint="', 'hint="Look again. ', text, count=1)
    assert changed != text
    path.write_text(changed, encoding="utf-8")
    after = digests()
    assert [name[:2] for name in before if before[name] != after[name]] == [number]
