from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from driver import Driver

Start = Callable[..., Driver]


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
