from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from driver import Driver

Start = Callable[..., Driver]


def require_torch() -> None:
    """Skips the tests of a module where PyTorch is absent; in CI that is an error. Call it before ``import torch``."""
    try:
        importlib.import_module("torch")
    except ImportError as error:
        if os.environ.get("CI") == "true":
            raise RuntimeError("PyTorch is absent, and CI has to test anabranch.torch") from error
        pytest.skip(f"PyTorch is absent ({error}): anabranch.torch is not tested", allow_module_level=True)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts children that do not outlive the test: ``start(source, env)``."""
    children: list[Driver] = []

    def begin(source: str, env: dict[str, str] | None = None) -> Driver:
        children.append(Driver(tmp_path, source, env))
        return children[-1]

    yield begin
    for child in children:
        child.quit()
