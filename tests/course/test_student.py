"""Student versions, and what nbgrader itself makes of a right, an empty, a wrong and a mixed submission."""

import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import nbformat
import pytest
from nbgrader.api import Gradebook
from nbgrader.preprocessors import CheckCellMetadata

from helpers.core import paths
from helpers.course import chapters, student
from helpers.course.notebooks import read_source
from tests.exercises.test_answers import CASES

SOURCES = chapters.sources()
NAMES = [source.stem for source in SOURCES]
TINY = """\
# %% [markdown]
# # Tiny

# %%
from helpers import exercises
def double(x):
    \"""Return twice x.\"""
    ### BEGIN SOLUTION
    return 2 * x
    ### END SOLUTION


exercises.check("02.2", double, measured=144_568)
"""


@pytest.fixture
def tiny(tmp_path):
    source = tmp_path / "90_tiny.py"
    source.write_text(TINY)
    return source


def test_an_answer_its_check_and_its_grade_are_cells_of_their_own(tiny):
    _, answer, check, grade = student.instructor(tiny).cells
    assert answer.source.endswith("### END SOLUTION") and check.source.startswith("exercises.check(")
    assert grade.source == 'exercises.points("02.2", of=2)'
    kinds = [{k for k in ("solution", "locked", "grade") if c.metadata.nbgrader[k]} for c in (answer, check, grade)]
    assert kinds == [{"solution"}, {"locked"}, {"locked", "grade"}]
    assert [c.metadata.nbgrader.grade_id for c in (answer, check, grade)] == [
        "answer-02-2",
        "check-02-2",
        "points-02-2",
    ]


def test_a_student_finds_a_stub_where_the_solution_was(tiny):
    answer = student.student(tiny).cells[1]
    assert answer.source.splitlines()[1:] == [
        "def double(x):",
        '    """Return twice x."""',
        "    # YOUR CODE HERE",
        "    raise NotImplementedError()",
    ]


def test_both_versions_are_written(tiny, tmp_path):
    written = student.write(tiny, tmp_path)
    assert [path.relative_to(tmp_path).as_posix() for path in written] == [
        "student/90_tiny.ipynb",
        "instructor/90_tiny.ipynb",
    ]
    solved = ["2 * x" in path.read_text() for path in written]
    assert solved == [False, True]


@pytest.mark.parametrize("source", SOURCES, ids=NAMES)
def test_real_versions_are_nbgraders_and_hold_no_solution(source):
    """Each exercise has one answer, one check and one grade; nbgrader's own checks of metadata pass."""
    for notebook in (student.instructor(source), student.student(source)):
        CheckCellMetadata().preprocess(notebook, {})
        graded = [cell for cell in notebook.cells if cell.metadata.get("nbgrader", {}).get("grade")]
        ids = [cell.metadata.nbgrader.grade_id.removeprefix("points-").replace("-", ".") for cell in graded]
        assert sorted(ids) == sorted(id for id in CASES if id.startswith(source.stem[:2]))
        answers = [cell for cell in notebook.cells if cell.metadata.get("nbgrader", {}).get("solution")]
        assert len(answers) >= len(ids)
        for cell in notebook.cells:
            if cell.cell_type == "code" and not cell.source.startswith("%"):
                compile(cell.source, source.name, "exec", flags=0)
    assert all("SOLUTION" not in cell.source for cell in notebook.cells)
    code = "\n".join(cell.source for cell in read_source(source).cells if cell.cell_type == "code")
    shown = re.sub(r"[ \t]*### BEGIN SOLUTION.*?### END SOLUTION", "", code, flags=re.DOTALL)
    given = [line for cell in notebook.cells for line in cell.source.splitlines()]
    assert Counter(filter(None, shown.splitlines())) - Counter(given) == Counter(), "a student loses no other line"


# ---------------------------------------------------------------- nbgrader itself

IDS = sorted(CASES)
SUBMISSIONS = {  # how each of the exercises is answered
    "right": lambda place: "right",
    "empty": lambda place: "empty",
    "mixed": lambda place: "wrong" if place % 4 else "right",
}
HEAD = """\
# %%
import sys; sys.path.insert(0, ROOT)
from helpers import exercises
from tests.exercises.test_answers import CASES, answer
def empty(*args, **given):
    raise NotImplementedError()
def answered(id, how):
    if how == "empty":
        return empty
    return answer(id, cleared=False) if how == "right" else CASES[id].wrong[0][0]
"""


def submission(how, path: Path) -> None:
    """Write a notebook with all exercises of the course, each answered as `how` says for its place."""
    text = [HEAD.replace("ROOT", repr(str(paths.ROOT)))]
    for place, id in enumerate(IDS):
        name = f"answer_{id.replace('.', '_')}"
        text.append(f"# %%\n### BEGIN SOLUTION\n{name} = {how(place)!r}\n### END SOLUTION\n")
        text.append(f'# %%\nexercises.check("{id}", answered("{id}", {name}), **CASES["{id}"].given)\n')
    source = path.with_suffix(".py")
    paths.write_atomically(source, "\n".join(text).encode())
    notebook = student.instructor(source)
    notebook.metadata["kernelspec"] = {"display_name": "Python 3", "language": "python", "name": "python3"}
    nbformat.write(notebook, path)
    source.unlink()


@pytest.mark.slow
def test_nbgrader_gives_full_points_none_and_those_of_the_right_answers(tmp_path, monkeypatch):
    submission(lambda place: "right", tmp_path / "source/all/all.ipynb")
    for name, how in SUBMISSIONS.items():
        submission(how, tmp_path / f"submitted/{name}/all/all.ipynb")
    search = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # it starts `alembic` by name
    environment = os.environ | {"PYTHONPATH": str(paths.ROOT), "OMP_NUM_THREADS": "1", "PATH": search}
    for command in ("generate_assignment", "autograde"):
        run = [sys.executable, "-m", "nbgrader", command, "all", "--create", "--CourseDirectory.root=."]
        run += ["--ExecutePreprocessor.timeout=300"] if command == "autograde" else []
        done = subprocess.run(run, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
    monkeypatch.setenv("PATH", search)
    with Gradebook(f"sqlite:///{tmp_path}/gradebook.db") as gradebook:
        scores = {name: gradebook.find_submission("all", name).score for name in SUBMISSIONS}
    points = {id: 1 if id.endswith(".1") else student.POINTS for id in IDS}
    assert scores["right"] == sum(points.values()) and scores["empty"] == 0
    assert scores["mixed"] == sum(points[id] for place, id in enumerate(IDS) if place % 4 == 0)
