"""For each exercise the right, the empty and the plausible wrong answers.

To add an exercise, add its case to `CASES` in the `notebook_NN.py` beside this file. The right answer is taken from the
notebook's own solution.
"""

import ast
import re
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import jupytext
import pytest
from nbgrader.preprocessors import ClearSolutions

from helpers import exercises
from helpers.core import paths

SOURCES = sorted((paths.NOTEBOOKS / "src").glob("[0-9][0-9]_*.py"))
CHECK = re.compile(r"exercises\.check\(\s*\"(?P<id>[^\"]+)\"\s*,\s*(?P<name>\w+)")
NOTEBOOKS = [f"tests.exercises.{path.stem}" for path in sorted(Path(__file__).parent.glob("notebook_*.py"))]
CASES = {id: case for name in NOTEBOOKS for id, case in import_module(name).CASES.items()}


def in_notebooks() -> dict[str, Any]:
    """Return id → source file of each exercise that a notebook checks."""
    return {match["id"]: path for path in SOURCES for match in CHECK.finditer(path.read_text())}


@cache
def answer(exercise_id: str, *, cleared: bool) -> Any:
    """Return the notebook's own answer to an exercise, or with `cleared` what a student finds.

    Of the notebook, its imports, functions, classes and literal constants are executed, and nothing else.
    """
    notebook = jupytext.read(in_notebooks()[exercise_id])
    if cleared:
        notebook.metadata.setdefault("kernelspec", {})["language"] = "python"
        notebook, _ = ClearSolutions(enforce_metadata=False).preprocess(notebook, {})
    code = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    tree = ast.parse(re.sub(r"^[%!].*$", "", code, flags=re.MULTILINE))
    tree.body = [node for node in tree.body if is_definition(node)]
    namespace: dict[str, Any] = {"__name__": "notebook"}
    exec(compile(tree, str(in_notebooks()[exercise_id]), "exec"), namespace)
    names = [match["name"] for match in CHECK.finditer(code) if match["id"] == exercise_id]
    return namespace[names[0]]


def is_definition(node: ast.stmt) -> bool:
    """Return whether a statement imports, defines, or names a literal."""
    if isinstance(node, ast.Assign):
        computed = any(isinstance(part, ast.Name | ast.Call) for part in ast.walk(node.value))
        return not computed and all(isinstance(target, ast.Name) for target in node.targets)
    return isinstance(node, ast.Import | ast.ImportFrom | ast.FunctionDef | ast.ClassDef)


def test_each_exercise_has_a_case_a_check_and_a_place():
    assert set(exercises.registered()) == set(CASES)
    missing = {id for id in CASES if any(p.name.startswith(id[:2]) for p in SOURCES)} - set(in_notebooks())
    assert not missing, "these exercises stand in no notebook"
    assert set(in_notebooks()) <= set(CASES), "these exercises have no check"


def test_each_notebook_has_three_to_five_exercises_with_marked_solutions():
    for path in SOURCES:
        ids = [id for id, source in in_notebooks().items() if source == path]
        text = path.read_text()
        assert 3 <= len(ids) <= 5, path.name
        assert text.count("### BEGIN SOLUTION") == text.count("### END SOLUTION") == len(ids), path.name


@pytest.mark.parametrize("exercise_id", sorted(CASES.keys() & in_notebooks()))
def test_the_solution_is_right(exercise_id):
    feedback = exercises.check(exercise_id, answer(exercise_id, cleared=False), **CASES[exercise_id].given)
    assert feedback.right, feedback


@pytest.mark.parametrize("exercise_id", sorted(CASES.keys() & in_notebooks()))
def test_the_empty_answer_is_called_empty(exercise_id):
    feedback = exercises.check(exercise_id, answer(exercise_id, cleared=True), **CASES[exercise_id].given)
    assert not feedback.right
    assert "still empty" in feedback.sentence


@pytest.mark.parametrize("exercise_id", CASES)
def test_wrong_answers_get_hints_of_their_own(exercise_id):
    case = CASES[exercise_id]
    hints = []
    for wrong, words in case.wrong:
        feedback = exercises.check(exercise_id, wrong, **case.given)
        assert not feedback.right, f"{exercise_id} accepts the wrong answer whose hint says {words!r}"
        assert "raised" not in feedback.sentence, feedback
        assert words in feedback.hint, feedback
        hints.append(feedback.hint)
    assert len(set(hints)) == len(hints) >= 2


@pytest.mark.parametrize("exercise_id", CASES)
@pytest.mark.parametrize("nonsense", [None, 3, "text", lambda *a, **k: None, lambda *a, **k: "text"])
def test_nonsense_is_answered(exercise_id, nonsense):
    feedback = exercises.check(exercise_id, nonsense, **CASES[exercise_id].given)
    assert not feedback.right
    assert feedback.sentence
