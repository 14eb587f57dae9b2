"""What the agent's command line says, before the first message."""

from __future__ import annotations

import os
from pathlib import Path


def _path(name: str) -> Path | None:
    value = os.environ.get(name)
    return Path(value) if value else None


def shard() -> Path | None:
    """Where the data to train on lies (``--shard``), or ``None``: then the trainer has data of its own or only evaluates."""
    return _path("ANABRANCH_SHARD")


def eval_shard() -> Path | None:
    """Where the data to evaluate on lies (``--eval-shard``), or ``None``."""
    return _path("ANABRANCH_EVAL_SHARD")


def threads() -> int | None:
    """Threads that the trainer should use (``--threads``), or ``None`` where the agent says nothing.

    Raises:
        ValueError: ``ANABRANCH_THREADS`` is no whole number from 1.
    """
    return _whole("ANABRANCH_THREADS")


def max_memory() -> int | None:
    """Bytes that this process should have in memory at most (``--max-memory``), or ``None`` where the agent says nothing.

    Raises:
        ValueError: ``ANABRANCH_MAX_MEMORY`` is no whole number from 1.
    """
    return _whole("ANABRANCH_MAX_MEMORY")


def _whole(name: str) -> int | None:
    value = os.environ.get(name)
    if not value:
        return None
    if not value.isascii() or not value.isdigit() or int(value) < 1:
        raise ValueError(f"{name} is {value!r}, expected a whole number from 1")
    return int(value)
