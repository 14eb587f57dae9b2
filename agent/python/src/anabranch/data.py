"""Reads the shards that a native agent reads, so that Python and native agents train on the same files.

Values are as they stand in the file: the model's ``input_scale`` is for the trainer to apply.
"""

from __future__ import annotations

import csv as _csv
import gzip
import math
import zlib
from pathlib import Path
from typing import IO, cast

import numpy as np
from numpy.typing import NDArray

from .errors import DataError

__all__ = ["csv", "idx"]

_LARGEST_LABEL = 2**32 - 2


def idx(path: str | Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images and labels in IDX, the format of MNIST.

    Args:
        path: an images file (``*images*idx3-ubyte``, plain or ``.gz``) with its labels file beside it, or a directory
            with exactly one.

    Returns:
        The images, ``[examples, height, width]``, and the labels, ``[examples]``.

    Raises:
        DataError: nothing suitable is there, or a file is damaged.
    """
    images_path = _images_file(Path(path))
    plain = images_path.name.removesuffix(".gz").replace("images", "labels").replace("idx3", "idx1")
    tries = [images_path.with_name(plain), images_path.with_name(plain + ".gz")]
    labels_path = next((file for file in tries if file.exists()), None)
    if labels_path is None:
        raise DataError(f"{images_path} has no labels file beside it ({plain} or {plain}.gz)")
    images, labels = _idx_array(images_path, range(2, 5)), _idx_array(labels_path, range(1, 2))
    if len(images) != len(labels):
        raise DataError(f"{labels_path} holds {len(labels)} labels for the {len(images)} images beside it")
    if len(images) == 0:
        raise DataError(f"{images_path} holds no example")
    return images, labels.astype(np.int64)


def csv(path: str | Path, label: str = "label") -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Rows of numbers with one column of labels; the first line names the columns.

    Args:
        path: a ``.csv`` or ``.csv.gz`` file, or a directory with exactly one.
        label: name of the label column; labels are whole numbers from 0.

    Returns:
        The values of all other columns in their order, ``[examples, columns]``, and the labels, ``[examples]``.

    Raises:
        DataError: nothing suitable is there, or a line is not as the header promises.
    """
    file = _csv_file(Path(path))
    values: list[list[float]] = []
    labels: list[int] = []
    with _open(file) as content:
        lines = (line.decode("utf-8", "replace") for line in content)
        try:
            reader = _csv.reader(lines)
            names = [name.removeprefix("\ufeff").strip() for name in next(reader, [])]
            at = _label_column(file, names, label)
            for row in reader:
                if row and row != [""]:
                    label_value, row_values = _csv_row(file, reader.line_num, row, len(names), at)
                    labels.append(label_value)
                    values.append(row_values)
        except (_csv.Error, OSError, EOFError, zlib.error) as error:
            raise DataError(f"{file} cannot be read: {error}") from error
    if not labels:
        raise DataError(f"{file} holds no example")
    return np.asarray(values, dtype=np.float32), np.asarray(labels, dtype=np.int64)


def _only(path: Path, found: list[Path], expected: str) -> Path:
    # A file and the same file compressed are one.
    found = sorted(file for file in found if file.suffix != ".gz" or file.with_suffix("") not in found)
    if not found:
        raise DataError(f"{path} holds no {expected}")
    if len(found) > 1:
        names = ", ".join(file.name for file in found[:5])
        raise DataError(f"{path} holds {len(found)} of {expected} ({names}); name one of them")
    return found[0]


def _images_file(path: Path) -> Path:
    if path.is_dir():
        files = [file for file in path.iterdir() if "images" in file.name and "idx" in file.name]
        return _only(path, files, "IDX images file (*images*idx3-ubyte, plain or .gz)")
    if not path.exists():
        raise DataError(f"{path} does not exist")
    if "images" not in path.name:
        raise DataError(f"{path} is not an IDX images file (*images*idx3-ubyte, plain or .gz)")
    return path


def _csv_file(path: Path) -> Path:
    if path.is_dir():
        files = [file for file in path.iterdir() if file.name.endswith((".csv", ".csv.gz"))]
        return _only(path, files, ".csv or .csv.gz file")
    if not path.exists():
        raise DataError(f"{path} does not exist")
    return path


def _open(path: Path) -> IO[bytes]:
    try:
        with open(path, "rb") as file:
            compressed = file.read(2) == b"\x1f\x8b"
        content = gzip.open(path, "rb") if compressed else open(path, "rb")
        return cast("IO[bytes]", content)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}") from error


def _idx_array(path: Path, dims: range) -> NDArray[np.uint8]:
    with _open(path) as file:
        try:
            content = file.read()
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"{path} cannot be read: {error}") from error
    if len(content) < 4 or content[:3] != b"\0\0\x08" or content[3] not in dims:
        expected = f"an IDX header for bytes in {dims.start} to {dims.stop - 1} dimensions"
        raise DataError(f"{path} starts with {content[:4].hex(' ')}, expected {expected}")
    start = 4 + 4 * content[3]
    shape = [int.from_bytes(content[at : at + 4], "big") for at in range(4, start, 4)]
    promised = math.prod(shape)
    if len(content) != start + promised:
        held = max(len(content) - start, 0)
        raise DataError(f"{path} holds {held} bytes of values, its header promises {promised} ({shape})")
    return np.frombuffer(content, dtype=np.uint8, offset=start).reshape(shape).copy()


def _label_column(file: Path, names: list[str], label: str) -> int:
    if names.count(label) != 1:
        shown = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
        found = "no column" if label not in names else "more than one column"
        raise DataError(f"{file}, line 1: {found} is called {label!r} (columns: {shown})")
    if len(names) < 2:
        raise DataError(f"{file}, line 1: there is no column beside the label")
    return names.index(label)


def _csv_row(file: Path, line: int, row: list[str], columns: int, at: int) -> tuple[int, list[float]]:
    if len(row) != columns:
        raise DataError(f"{file}, line {line}: {len(row)} columns, expected {columns} as in the header")
    text = row[at].strip()
    if not (text.isascii() and text.isdigit()) or int(text) > _LARGEST_LABEL:
        raise DataError(f"{file}, line {line}: label {text[:40]!r} is not a whole number from 0")
    values = []
    for column, field in enumerate(row):
        if column == at:
            continue
        try:
            value = float(field)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise DataError(f"{file}, line {line}: column {column + 1} holds {field[:40]!r}, expected a finite number")
        values.append(value)
    return int(text), values
