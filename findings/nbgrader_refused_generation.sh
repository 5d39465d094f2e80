#!/usr/bin/env bash
# nbgrader 0.9.6, generate_assignment --force after a submission was graded, with another set of graded cells.
#
# Expected: it refuses, since submissions belong to the old cells, and leaves the released version as it was.
# Seen:     it refuses, and the folder with the released version is gone.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check nbgrader==0.9.6 ipykernel
export PATH="$folder/venv/bin:$PATH" # nbgrader starts alembic by name
mkdir -p "$folder/course/source/one" && cd "$folder/course"
cat > make.py <<'PY'
import sys

import nbformat


def graded(name):
    marks = dict(grade=True, solution=True, locked=False, task=False, points=1, grade_id=name, schema_version=3)
    code = "### BEGIN SOLUTION\nx = 1\n### END SOLUTION"
    return nbformat.v4.new_code_cell(code, metadata={"nbgrader": marks})


nbformat.write(nbformat.v4.new_notebook(cells=[graded(name) for name in sys.argv[1:]]), "source/one/one.ipynb")
PY
echo 'c = get_config(); c.CourseDirectory.course_id = "course"' > nbgrader_config.py
python make.py a b
nbgrader generate_assignment one > log.txt 2>&1
echo "released: $(ls release/one)" | tee seen.txt
mkdir -p submitted/ann/one && cp release/one/one.ipynb submitted/ann/one/
nbgrader autograde one >> log.txt 2>&1
python make.py a c
nbgrader generate_assignment one --force >> log.txt 2>&1 || true
echo "refused: $(grep -c 'RuntimeError: Cannot add or remove cells' log.txt)" | tee -a seen.txt
echo "released: $(ls release/one 2> /dev/null || echo nothing)" | tee -a seen.txt
printf 'released: one.ipynb\nrefused: 1\nreleased: nothing\n' | diff - seen.txt && echo "as described"
