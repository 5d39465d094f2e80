"""pyproject.toml, requirements.lock, environment.yml, README, licences and CI, held against each other."""

import ast
import os
import re
import shutil
import socket
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions, version

import pytest
import yaml
from jupyter_client.provisioning.local_provisioner import LocalPortCache
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

import helpers
from helpers.book import readme
from helpers.core import paths
from helpers.course import chapters, setup
from helpers.fetching import catalogue

PROJECT = tomllib.loads((paths.ROOT / "pyproject.toml").read_text())["project"]
DIRECT = {canonicalize_name(r.name): r for r in map(Requirement, PROJECT["dependencies"])}
OPTIONAL = [Requirement(r) for group in PROJECT["optional-dependencies"].values() for r in group]
PINS = setup.read_lock()
CONDA = yaml.safe_load((paths.ROOT / "environment.yml").read_text())
README = (paths.ROOT / "README.md").read_text()
COMMANDS = {"course", "test", "lab", "notebooks", "student", "book", "check", "mutants", "clean"}


# ---------------------------------------------------------------- dependencies


@pytest.mark.parametrize(
    "name", ["torch", "torchvision", "torchtext", "jupyterlab", "matplotlib", "nbval", "papermill"]
)
def test_the_required_packages_are_direct_dependencies(name):
    assert name in DIRECT


@pytest.mark.parametrize("requirement", [*DIRECT.values(), *OPTIONAL], ids=str)
def test_the_lock_pins_each_dependency_as_pyproject_allows(requirement):
    assert requirement.specifier.contains(PINS[canonicalize_name(requirement.name)])


@pytest.mark.parametrize("name", DIRECT)
def test_what_is_installed_is_what_the_lock_says(name):
    assert version(name).split("+")[0] == PINS[name]


def test_the_lock_is_complete():
    """Whatever a pinned package needs on this platform is pinned as well."""
    from importlib.metadata import PackageNotFoundError, requires

    needed = set()
    for name in PINS:
        try:
            requirements = [Requirement(text) for text in requires(name) or []]
        except PackageNotFoundError:  # another platform's, or the optional npm
            continue
        markers = [r for r in requirements if r.marker is None or r.marker.evaluate({"extra": ""})]
        needed |= {canonicalize_name(r.name) for r in markers}
    assert needed - set(PINS) == set()


def test_the_lock_is_sorted_and_has_no_local_or_editable_lines():
    lines = [line for line in setup.LOCK.read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.!]+", line) for line in lines)
    names = [canonicalize_name(line.split("==")[0]) for line in lines]
    assert names == sorted(set(names))


def test_conda_uses_the_same_constraints_and_a_python_that_is_allowed():
    conda = [item for item in CONDA["dependencies"] if isinstance(item, str)]
    pip = next(item["pip"] for item in CONDA["dependencies"] if isinstance(item, dict))
    assert pip == ["-c requirements.lock", "-e ."]
    python = next(item.split("=")[1] for item in conda if item.startswith("python="))
    assert "pip" in conda and SpecifierSet(PROJECT["requires-python"]).contains(python)
    assert CONDA["name"] == PROJECT["name"]


def test_the_oldest_python_is_the_same_everywhere():
    oldest = ".".join(map(str, setup.OLDEST))
    tools = tomllib.loads((paths.ROOT / "pyproject.toml").read_text())["tool"]
    assert PROJECT["requires-python"] == f">={oldest}"
    assert tools["ruff"]["target-version"] == "py" + oldest.replace(".", "")
    assert tools["mypy"]["python_version"] == oldest
    assert f"Python {oldest} or newer" in README


def imported(path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add((node.module or "").split(".")[0])
    return names - set(sys.stdlib_module_names) - {"helpers", "tests"}


APART = {  # imported by helpers/tools only, in environments of their own
    "ai_edge_litert",
    "ai_edge_quantizer",
    "aimet_torch",
    "brevitas",
    "executorch",
    "iree",
    "litert_torch",
    "mct_quantizers",
    "model_compression_toolkit",
    "modelopt",
    "ncnn",
    "neural_compressor",
    "nncf",
    "pnnx",
    "tvm",
}


def test_what_the_tools_bring_is_imported_by_their_own_modules_only():
    files = [path for path in (paths.ROOT / "helpers").rglob("*.py") if path.parent.name != "tools"]
    assert not {name for path in files for name in imported(path)} & APART
    assert all(
        any(name in imported(path) for path in (paths.ROOT / "helpers" / "tools").glob("*.py")) for name in APART
    )


def test_whatever_is_imported_is_a_declared_dependency():
    providers = packages_distributions()
    files = [*(paths.ROOT / "helpers").rglob("*.py"), *(paths.ROOT / "tests").rglob("*.py"), *chapters.sources()]
    modules = {name for path in files for name in imported(path)} - {"cycler", *APART}  # cycler: a part of matplotlib
    declared = {*DIRECT, *(canonicalize_name(r.name) for r in OPTIONAL)}
    unknown = {name for name in modules if not {canonicalize_name(p) for p in providers.get(name, [])} & declared}
    assert unknown == set()


# ---------------------------------------------------------------- commands and CI


def test_make_only_passes_its_targets_on():
    text = (paths.ROOT / "Makefile").read_text()
    targets = re.search(r"^(course .*):$", text, re.M)
    assert targets and set(targets[1].split()) == COMMANDS
    assert "$(PYTHON) -m helpers $@ $(ARGS)" in text


def documented() -> set[str]:
    """Return each command that stands as code in the documentation: after `make` or `-m helpers`."""
    found: set[str] = set()
    for path in ("README.md", "CONTRIBUTING.md"):
        code = re.findall(r"```.*?```|`[^`\n]+`", (paths.ROOT / path).read_text(), re.S)
        found |= {name for part in code for name in re.findall(r"(?:\bmake|-m helpers) (\w+)", part)}
    return found


def test_every_command_that_is_documented_exists_and_the_two_are():
    shown = subprocess.run([sys.executable, "-m", "helpers", "--help"], cwd=paths.ROOT, capture_output=True, text=True)
    commands = set(re.findall(r"^    (\w+)(?:  |$)", shown.stdout, re.M))
    assert {"course", "test"} < documented() <= commands


def test_ci_runs_the_readmes_test_command():
    assert "make test" in README
    assert (paths.ROOT / ".ci/run").read_text().splitlines()[-1] == "exec make test"
    assert (paths.ROOT / ".ci/run").stat().st_mode & 0o111
    job = yaml.safe_load((paths.ROOT / ".github/workflows/ci.yml").read_text())["jobs"]["test"]
    assert "make test" in [step.get("run") for step in job["steps"]]
    tried = {tuple(map(int, python.split("."))) for python in job["strategy"]["matrix"]["python"]}
    tested = {(3, minor) for minor in range(setup.OLDEST[1], setup.NEWEST_TESTED[1] + 1)}
    assert tried - tested <= {(3, setup.NEWEST_TESTED[1] + 1)} and tested <= tried, "and the next one, which may fail"


def test_what_runs_write_is_ignored_by_git():
    ignored = (paths.ROOT / ".gitignore").read_text().splitlines()
    assert {"build/", "data/raw/", ".venv/"} <= set(ignored)


def git(folder, *arguments: str) -> str:
    alone = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
    who = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "init.defaultBranch=main", "-c", "commit.gpgsign=false"]
    command = ["git", *who, *arguments]
    return subprocess.run(
        command, cwd=folder, env=os.environ | alone, check=True, capture_output=True, text=True
    ).stdout


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
@pytest.mark.parametrize("setting", ["core.autocrlf=true", "core.eol=crlf", "core.autocrlf=input"])
def test_a_clone_has_the_same_bytes_whatever_git_does_with_line_ends(setting, tmp_path):
    patterns = ["data/checkpoints/*.txt", "data/checkpoints/*.json", "data/results/quick/*.json", "notebooks/src/*.py"]
    patterns += ["helpers/*/*.py", "*.md", "*.lock", "*.toml", ".ci/run", "Makefile", "notebooks/14*.ipynb"]
    files = [path for pattern in patterns for path in paths.ROOT.glob(pattern)]
    files += sorted(paths.ROOT.glob("data/models/*"), key=lambda path: path.stat().st_size)[:3]
    files += sorted(paths.ROOT.glob("data/checkpoints/*.safetensors"), key=lambda path: path.stat().st_size)[:1]
    original = tmp_path / "original"
    for path in [*files, paths.ROOT / ".gitattributes"]:
        target = original / path.relative_to(paths.ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    (original / "data/models/text.pack").write_bytes(b"looks like\na text\r\n")
    for arguments in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "a"]):
        git(original, *arguments)
    git(tmp_path, "-c", setting, "clone", "-q", "original", "clone")
    git(tmp_path / "clone", "config", *setting.split("="))
    assert git(tmp_path / "clone", "status", "--porcelain") == ""
    copies = [path for path in original.rglob("*") if path.is_file() and ".git" not in path.parts]
    assert len(copies) > 80
    for path in copies:
        assert (tmp_path / "clone" / path.relative_to(original)).read_bytes() == path.read_bytes(), path


@pytest.mark.skipif(not (paths.ROOT / ".git").exists() or shutil.which("git") is None, reason="needs git and a clone")
def test_every_tracked_text_has_line_feeds_alone_and_other_files_are_marked():
    for line in git(paths.ROOT, "ls-files", "--eol").splitlines():
        kinds, _, name = line.partition("\t")
        stored, _, attribute = kinds.split(maxsplit=2)
        assert stored == "i/lf" or (stored == "i/-text" and attribute.strip() == "attr/-text") or stored == "i/none", (
            name
        )


# ---------------------------------------------------------------- README, licences, citation


def test_the_readmes_generated_parts_are_up_to_date():
    assert readme.render(README) == README, "run python -m helpers readme"


@pytest.mark.parametrize("text", ["", README.replace("<!-- generated: map -->", ""), README + README])
def test_a_readme_without_its_marks_is_refused(text):
    with pytest.raises(ValueError, match="has not exactly one part <!-- generated: map -->"):
        readme.render(text)


def test_generated_parts_replace_only_themselves():
    text = (
        "a\n<!-- generated: map -->\n<!-- end -->\nb\n<!-- generated: picture -->\n| of yesterday |\n<!-- end -->\nc\n"
    )
    once = readme.render(text)
    assert readme.render(once) == once
    assert once.startswith("a\n<!-- generated: map -->\n| notebook |") and once.endswith("\n<!-- end -->\nc\n")
    assert "\n<!-- end -->\nb\n<!-- generated: picture -->\n![" in once and "of yesterday" not in once


def test_every_notebook_is_in_the_curriculum_and_linked_if_it_is_built():
    curriculum = chapters.curriculum()
    assert list(curriculum) == [source.stem for source in chapters.sources()]
    assert curriculum["02_prune_weights"] == "How many does it really need?"
    for name in curriculum:
        assert (f"(notebooks/{name}.ipynb)" in README) == (paths.ROOT / f"notebooks/{name}.ipynb").exists()


def test_local_links_lead_somewhere():
    for path in ("README.md", "CONTRIBUTING.md"):
        for link in re.findall(r"\]\(([^)]+)\)", (paths.ROOT / path).read_text()):
            assert link.startswith("https://") or (paths.ROOT / link).exists(), link


def test_the_readme_names_every_dataset_with_its_source():
    for dataset in catalogue.DATASETS.values():
        for package in filter(None, [dataset.npm, dataset.python_package]):
            name, number = re.split("@|==", package)
            assert f"`{name}` {number}" in README


def test_licences_and_citation():
    assert "Apache License" in (paths.ROOT / "LICENSE").read_text()
    assert "CC BY 4.0" in (paths.ROOT / "LICENSE-prose").read_text()
    citation = yaml.safe_load((paths.ROOT / "CITATION.cff").read_text())
    assert citation["version"] == helpers.__version__
    assert set(citation["license"]) == set(PROJECT["license"].split(" AND "))


def test_kernels_of_two_test_processes_never_share_a_port():
    pick = "import conftest, sys; from jupyter_client.provisioning.local_provisioner import LocalPortCache as cache; \
conftest.pytest_configure(); print(*(cache.instance().find_available_port('127.0.0.1') for _ in range(10)))"
    running = [
        subprocess.Popen([sys.executable, "-c", pick], cwd=paths.ROOT, stdout=subprocess.PIPE, text=True) for _ in "ab"
    ]
    one, two = ([int(port) for port in process.communicate()[0].split()] for process in running)
    assert len({*one, *two}) == 20 and all(20_000 <= port < 32_000 for port in [*one, *two])


def test_a_kernel_gets_no_port_that_is_taken():
    cache = LocalPortCache.instance()
    following = cache.find_available_port("127.0.0.1") + 1
    assert 20_000 < following <= 32_000, "the root's conftest.py holds in this process, too"
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", following))
        assert cache.find_available_port("127.0.0.1") != following
