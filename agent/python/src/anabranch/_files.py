"""Finds the files of a data set and opens them, as ``agent/src/shard/source.rs`` does."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import IO, cast

from .errors import DataError

__all__ = ["is_csv", "is_images", "open_content", "the_only"]


def is_csv(name: str) -> bool:
    return name.lower().endswith((".csv", ".csv.gz"))


def is_images(name: str) -> bool:
    return "images" in name and "idx" in name


def the_only(folder: Path, wanted: Callable[[str], bool], expected: str) -> Path:
    """Returns the data set in ``folder``, or the one for training beside one for tests.

    Files whose name begins with a dot are passed over.
    """
    files = [file for file in folder.iterdir() if not file.name.startswith(".") and wanted(file.name)]
    # A file and the same file compressed are one.
    files = sorted(file for file in files if file.suffix != ".gz" or file.with_suffix("") not in files)
    training = [file for file in files if not file.name.lower().startswith(("t10k", "test"))]
    found = training or files
    if not found:
        raise DataError(f"{folder} holds no {expected}")
    if len(found) > 1:
        names = ", ".join(file.name for file in found[:10])
        raise DataError(f"{folder} holds several data sets ({names}): name one of them")
    return found[0]


def open_content(path: Path) -> IO[bytes]:
    """Opens a file for reading, decompressed where it is gzip."""
    try:
        with open(path, "rb") as file:
            compressed = file.read(2) == b"\x1f\x8b"
        content = gzip.open(path, "rb") if compressed else open(path, "rb")
        return cast("IO[bytes]", content)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}") from error
