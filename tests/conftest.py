"""What holds for every test: tensor shapes of helpers are checked, and nothing is written into build/."""

from collections.abc import Callable
from typing import Any, get_args

import pytest
import torch
from beartype import BeartypeConf, beartype
from beartype.roar import BeartypeDecorHintPepUnsupportedException
from jaxtyping import AbstractArray, config, install_import_hook


def check_shapes(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return `function` with those annotations checked in each call that mypy cannot: shapes and dtypes.

    The others stay unchecked, so that tests can pass what is wrong and see the error that a reader sees.
    """
    annotations = function.__annotations__
    function.__annotations__ = {name: hint for name, hint in annotations.items() if _has_shape(hint)}
    try:
        return beartype(conf=BeartypeConf(is_pep484_tower=True))(function)
    except BeartypeDecorHintPepUnsupportedException:  # beartype 0.23 knows no generic named tuples
        return function
    finally:
        function.__annotations__ = annotations


def _has_shape(hint: Any) -> bool:
    is_array = isinstance(hint, type) and issubclass(hint, AbstractArray)
    return is_array or any(_has_shape(inner) for inner in get_args(hint))


# Before helpers is imported, so that all of its functions are checked.
install_import_hook("helpers", "tests.conftest.check_shapes")


def pytest_configure() -> None:
    torch.set_num_threads(1)  # small tensors: a second thread only adds noise


@pytest.fixture
def unchecked_shapes():
    """Let a test pass an array of a wrong shape or dtype, to see the error that a reader sees."""
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)


@pytest.fixture(autouse=True)
def _own_build_folder(tmp_path, monkeypatch):
    """Keep a test from reading or writing this machine's own results."""
    monkeypatch.setenv("COURSE_BUILD_DIR", str(tmp_path / "build"))
    for name in ("COURSE_PROFILE", "PROFILE"):
        monkeypatch.delenv(name, raising=False)
