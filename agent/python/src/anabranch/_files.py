"""Finds the files of a data set and opens them, as ``agent/src/shard/source.rs`` does."""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, cast

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
        content = io.BufferedReader(_GzipReader(path), _CHUNK_BYTES) if compressed else open(path, "rb")
        return cast("IO[bytes]", content)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}") from error


_CHUNK_BYTES = 1 << 17
_GZIP = 16 + zlib.MAX_WBITS
"""Makes zlib expect a header of gzip, and compare checksum and length."""


class _GzipReader(io.RawIOBase):
    """Decompresses gzip members up to the end of the file, as ``flate2::bufread::MultiGzDecoder`` does.

    Python's ``gzip`` passes over zero bytes after the last member, which are left over from a damaged download or disk.
    Reading raises ``OSError`` for damaged data.
    """

    def __init__(self, path: Path) -> None:
        self._file = open(path, "rb")
        self._member = zlib.decompressobj(_GZIP)
        self._compressed = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while True:
            self._compressed = self._compressed or self._file.read(_CHUNK_BYTES)
            if self._member.eof:
                if not self._compressed:
                    return 0
                self._member = zlib.decompressobj(_GZIP)
            if not self._compressed:
                raise _damaged("unexpected end of file")
            try:
                content = self._member.decompress(self._compressed, len(buffer))
            except zlib.error as error:
                raise _damaged(str(error)) from error
            self._compressed = self._member.unused_data or self._member.unconsumed_tail
            if content:
                buffer[: len(content)] = content
                return len(content)

    def close(self) -> None:
        self._file.close()
        super().close()


def _damaged(what: str) -> OSError:
    return OSError(f"the compressed data are damaged or cut off ({what})")
