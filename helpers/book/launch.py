"""Where a chapter can be opened: on this machine, on Binder, on Colab; as a student's version."""

import os
import re
import subprocess
from pathlib import Path
from urllib.parse import quote

from helpers.core import paths
from helpers.course import chapters, student

GITHUB = re.compile(r"github\.com[:/]([\w.-]+/[\w.-]+?)(?:\.git)?/?$")
PAGES = "gh-pages"  # the branch that the workflow writes the built site to
COLAB = """\
# Colab has none of the course's packages: this installs the pinned set and fetches the helpers. It takes some minutes.
import os, subprocess, sys

if not os.path.exists("course"):
    subprocess.run(["git", "clone", "--depth=1", "https://github.com/{repository}", "course"], check=True)
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", "-c", "course/requirements.lock", "-e", "course"], check=True
    )
sys.path.insert(0, os.path.abspath("course"))
"""


def repository() -> str:
    """Return "owner/name" on GitHub: the workflow's variable, or the clone's origin; "" if there is neither."""
    if given := os.environ.get("GITHUB_REPOSITORY", ""):
        return given
    asked = subprocess.run(["git", "remote", "get-url", "origin"], cwd=paths.ROOT, capture_output=True, text=True)
    found = GITHUB.search(asked.stdout.strip())
    return found[1] if found else ""


def links(name: str) -> dict[str, str]:
    """Return label and address of each way to open a chapter; Binder and Colab need a repository on GitHub."""
    found = {"Download": f"downloads/{name}.ipynb", "Student version": f"downloads/student/{name}.ipynb"}
    if here := repository():
        place = quote(f"lab/tree/notebooks/{name}.ipynb", safe="")
        found["Binder"] = f"https://mybinder.org/v2/gh/{here}/HEAD?urlpath={place}"
        found["Colab"] = f"https://colab.research.google.com/github/{here}/blob/{PAGES}/colab/{name}.ipynb"
    return found


def write(folder: Path) -> None:
    """Write what the buttons lead to into the built site: the notebooks, and their student and Colab versions."""
    import nbformat

    for source in chapters.sources():
        built = paths.NOTEBOOKS / f"{source.stem}.ipynb"
        if not built.exists():
            continue
        notebook = nbformat.read(built, as_version=4)
        versions = {"downloads": notebook, "downloads/student": student.student(source)}
        versions |= {"colab": for_colab(notebook)} if repository() else {}
        for place, version in versions.items():
            paths.write_atomically(folder / place / built.name, (nbformat.writes(version) + "\n").encode())


def for_colab(notebook: "nbformat.NotebookNode") -> "nbformat.NotebookNode":  # type: ignore[name-defined]  # noqa: F821
    """Return a copy of a notebook whose first cell brings the packages and the helpers to Colab."""
    import nbformat

    copy = nbformat.from_dict(notebook)
    cell = nbformat.v4.new_code_cell(COLAB.format(repository=repository()), id="colab-setup")
    copy.cells = [cell, *copy.cells]
    return copy
