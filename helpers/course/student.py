"""Student versions, without solutions, and the instructor's, from which nbgrader makes assignments."""

import ast
import re
from pathlib import Path
from typing import TYPE_CHECKING

from helpers.core import paths
from helpers.course.notebooks import read_source

if TYPE_CHECKING:
    from nbformat import NotebookNode

CHECK = re.compile(r"exercises\.check\(\s*\"(?P<id>\d\d\.\d)\"")
POINTS = 2  # of an exercise; the first of a notebook, its warm-up, has 1
SCHEMA = 3  # of nbgrader's metadata


def write(source: Path, folder: Path) -> list[Path]:
    """Write both versions of a source, into `student` and `instructor` below `folder`; return their paths."""
    import nbformat

    versions = {"student": student(source), "instructor": instructor(source)}
    written = [folder / name / f"{source.stem}.ipynb" for name in versions]
    for path, notebook in zip(written, versions.values(), strict=True):
        paths.write_atomically(path, (nbformat.writes(notebook) + "\n").encode())
    return written


def student(source: Path) -> "NotebookNode":
    """Return what a student gets: nbgrader's own preprocessor puts a stub in place of each solution."""
    from nbgrader.preprocessors import ClearSolutions

    return ClearSolutions(enforce_metadata=False).preprocess(instructor(source), {})[0]


def instructor(source: Path) -> "NotebookNode":
    """Return the source as nbgrader takes it: answers in cells of their own, checks and points in locked ones.

    Behind each check stands a grade cell: `exercises.points` gives the points of an exercise whose check was right.
    """
    notebook = read_source(source)
    notebook.cells = [part for cell in notebook.cells for part in _graded(cell)]
    return notebook


def _graded(cell: "NotebookNode") -> "list[NotebookNode]":
    """Return a cell, or its answer, its check and the grade apart, with nbgrader's metadata."""
    import nbformat

    if cell.cell_type != "code" or not ("### BEGIN SOLUTION" in cell.source or CHECK.search(cell.source)):
        return [cell]
    answer, check = _apart(cell.source)
    parts = []
    if answer:
        name = CHECK.search(check)["id"] if CHECK.search(check) else _defined(answer)  # type: ignore[index]
        kind, mark = ("answer", "solution") if "### BEGIN SOLUTION" in answer else ("measure", "locked")
        parts.append(_with(cell, cell.id, answer, f"{kind}-{name}", **{mark: True}))
    if check:
        ids = [match["id"] for match in CHECK.finditer(check)]
        parts.append(_with(cell, f"{cell.id}-check", check, f"check-{ids[0]}", locked=True))
        for each in dict.fromkeys(ids):
            points = 1 if each.endswith(".1") else POINTS
            grade = nbformat.v4.new_code_cell(id=f"{cell.id}-{each.replace('.', '-')}")
            code = f'exercises.points("{each}", of={points})'
            parts.append(_with(grade, grade.id, code, f"points-{each}", locked=True, grade=True, points=points))
    return parts


def _apart(code: str) -> tuple[str, str]:
    """Return the answer and, from the statement that checks it on, the rest of a cell; "" is what there is not."""
    lines = code.splitlines()
    for node in ast.parse(code).body:
        if CHECK.search("\n".join(lines[node.lineno - 1 : node.end_lineno])):
            first = node.lineno - 1
            return "\n".join(lines[:first]).strip(), "\n".join(lines[first:]).strip()
    return code, ""


def _defined(code: str) -> str:
    """Return the name of the first function or class of a cell, or of what it assigns."""
    first = next(node for node in ast.parse(code).body if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Assign))
    return first.name if not isinstance(first, ast.Assign) else ast.unparse(first.targets[0])


def _with(cell: "NotebookNode", id: str, code: str, grade_id: str, **nbgrader: bool | int) -> "NotebookNode":
    """Return a code cell with nbgrader's metadata: neither answer nor grade nor locked but for what is said."""
    import nbformat

    kinds = {"grade": False, "solution": False, "locked": False, "task": False} | nbgrader
    metadata = {"nbgrader": kinds | {"schema_version": SCHEMA, "grade_id": re.sub(r"\W", "-", grade_id)}}
    tags = {"tags": cell.metadata["tags"]} if cell.metadata.get("tags") else {}
    return nbformat.v4.new_code_cell(id=id, source=code, metadata=metadata | tags)
