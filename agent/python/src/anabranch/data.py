"""Reads the shards that a native agent reads, so that Python and native agents train on the same files.

Values are as they stand in the file: the model's ``input_scale`` is for the trainer to apply.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from . import environment
from ._columns import Columns, check_dropped, warn_of_index
from ._files import is_csv, is_images, open_content, the_only
from ._rows import Table
from .errors import DataError

__all__ = ["columns", "csv", "idx"]


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
        raise DataError(f"{images_path} holds no examples")
    return images, labels.astype(np.int64)


def csv(
    path: str | Path, label: str = "label", *, drop: Sequence[str] = (), columns: Sequence[str] | None = None
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Rows of numbers with one column of labels; the first line that is not blank names the columns.

    Args:
        path: a ``.csv`` or ``.csv.gz`` file, or a directory with exactly one.
        label: name of the label column; labels are whole numbers from 0.
        drop: names of columns that are left out; ``""`` is a column without a name. Of the agent's training and
            evaluation shards one has to have the column.
        columns: names of the features in the order in which they are read, as ``anabranch.data.columns`` returns them
            for another file. Without it, the agent's evaluation shard has the order of its training shard, and any
            other file its own.

    Returns:
        The values of all other columns, ``[examples, columns]``, and the labels, ``[examples]``.

    Raises:
        DataError: nothing suitable is there, a line is not as the header promises, or the columns are others.
    """
    file = _csv_file(Path(path))
    _check_dropped(file, label, drop)
    if columns is None:
        columns = _training_columns(file, label, drop)
    with open_content(file) as content:
        table = Table(file, content, label, drop, columns)
        warn_of_index(file, table.columns.names)
        return table.rows()


def columns(path: str | Path, label: str = "label", *, drop: Sequence[str] = ()) -> list[str]:
    """Names of the features of a CSV file, in their order.

    Args:
        path: a ``.csv`` or ``.csv.gz`` file, or a directory with exactly one.
        label: name of the label column.
        drop: names of columns that are left out, as ``anabranch.data.csv`` takes them.

    Raises:
        DataError: nothing suitable is there, or the header is damaged.
    """
    file = _csv_file(Path(path))
    _check_dropped(file, label, drop)
    return _read_columns(file, label, drop).names


def _read_columns(file: Path, label: str, drop: Sequence[str]) -> Columns:
    with open_content(file) as content:
        return Table(file, content, label, drop, None).columns


def _check_dropped(file: Path, label: str, drop: Sequence[str]) -> None:
    if not drop:
        return
    shards: list[tuple[Path, list[str] | None]] = [(file, _read_columns(file, label, drop).all)]
    for shard in _other_shard(file):
        header = _header(shard, label, drop)
        shards.append((shard, None if header is None else header.all))
    check_dropped(shards, drop)


def _header(shard: Path, label: str, drop: Sequence[str]) -> Columns | None:
    """Returns the columns of one of the agent's shards, or ``None`` if the shard is not CSV.

    A CSV file may have any name. Only a name that ends in ``.csv`` or ``.csv.gz`` makes a damaged header an error.
    """
    if is_images(shard.name) and not is_csv(shard.name):
        return None
    try:
        return _read_columns(shard, label, drop)
    except DataError:
        if is_csv(shard.name):
            raise
        return None


def _other_shard(file: Path) -> list[Path]:
    """The agent's evaluation shard where ``file`` is its training shard, and the reverse."""
    train, evaluation = environment.shard(), environment.eval_shard()
    if train is None or evaluation is None:
        return []
    for shard, other in ((train, evaluation), (evaluation, train)):
        try:
            if not file.samefile(_csv_file(shard)):
                continue
        except DataError:
            continue
        try:
            return [_csv_file(other)]
        except DataError:
            return [other]
    return []


def _training_columns(file: Path, label: str, drop: Sequence[str]) -> list[str] | None:
    """Returns the columns of the agent's training shard if ``file`` is its evaluation shard, and both are CSV."""
    train, evaluation = environment.shard(), environment.eval_shard()
    if train is None or evaluation is None:
        return None
    try:
        train_file, evaluation_file = _csv_file(train), _csv_file(evaluation)
    except DataError:
        return None
    if not file.samefile(evaluation_file):
        return None
    header = _header(train_file, label, drop)
    return None if header is None else header.names


def _images_file(path: Path) -> Path:
    if path.is_dir():
        return the_only(path, is_images, "IDX images file (*images*idx3-ubyte, plain or .gz)")
    if not path.exists():
        raise DataError(f"{path} does not exist")
    if "images" not in path.name:
        raise DataError(f"{path} is not an IDX images file (*images*idx3-ubyte, plain or .gz)")
    return path


def _csv_file(path: Path) -> Path:
    if path.is_dir():
        return the_only(path, is_csv, ".csv or .csv.gz file")
    if not path.exists():
        raise DataError(f"{path} does not exist")
    return path


def _idx_array(path: Path, dims: range) -> NDArray[np.uint8]:
    with open_content(path) as file:
        try:
            content = file.read()
        except OSError as error:
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
