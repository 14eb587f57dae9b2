"""Reads CSV exactly as ``agent/src/shard/csv.rs`` does: ``agent/tests/shards`` holds cases that both run."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from decimal import Decimal
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from ._columns import NUMBER, SPACE, Columns, read_header
from .errors import DataError

__all__ = ["Table"]

_LINE_BYTES = 1 << 20
_LARGEST_LABEL = 2**32 - 2
# Numbers from here on are rounded to infinity: halfway between the largest float32 and the next power of two.
_OVERFLOW = float(2**128 - 2**103)
_LABEL = re.compile(r"\+?0*([0-9]{1,10})")
# Fields of these characters alone are read alike by `float` and by Rust.
_PLAIN = re.compile(r"[0-9+\-.eE \t\r\n\x0c]*")
# Rows that are converted at once.
_ROWS = 1024


class Table:
    """A file whose header has been read."""

    def __init__(
        self, file: Path, content: IO[bytes], label: str, drop: Sequence[str], columns: Sequence[str] | None
    ) -> None:
        self._file = file
        self._ended = False
        self._records = self._read(content)
        line, header = next(self._records, (0, None))
        if header is None:
            raise DataError(f"{file} holds no examples")
        self.columns: Columns = read_header(file, line, header, label, drop, columns)

    def rows(self) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Reads all rows."""
        blocks: list[NDArray[np.float32]] = []
        texts: list[list[str]] = []
        values: list[list[float]] = []
        labels: list[int] = []
        for line, row in self._records:
            label, row_texts, row_values = self._parse(line, row)
            labels.append(label)
            texts.append(row_texts)
            values.append(row_values)
            if len(values) == _ROWS:
                blocks.append(_rounded(texts, values))
                texts, values = [], []
        if values:
            blocks.append(_rounded(texts, values))
        if not blocks:
            raise DataError(f"{self._file} holds no examples")
        return np.concatenate(blocks), np.asarray(labels, dtype=np.int64)

    def _read(self, content: IO[bytes]) -> Iterator[tuple[int, list[str]]]:
        """Yields the records that are not blank, each with its line."""
        # The bound is that of a line; the csv module's own is an eighth of it.
        csv.field_size_limit(max(csv.field_size_limit(), _LINE_BYTES))
        reader = csv.reader(self._lines(content))
        while True:
            line = reader.line_num + 1
            try:
                record = next(reader, None)
            except csv.Error as error:
                raise DataError(f"{self._file}, line {line}: cannot be read as CSV ({error})") from error
            if record is None:
                return
            # Every line has an end, so the reader needs that of the file within a record only where a quote is open.
            if self._ended:
                raise DataError(f"{self._file}, line {line}: a quote is opened and never closed")
            if len(record) > 1 or (record and record[0].strip(SPACE)):
                yield line, record

    def _lines(self, content: IO[bytes]) -> Iterator[str]:
        """Yields lines, each with one LF at its end."""
        number = 0
        while line := self._line(content):
            number += 1
            if number == 1:
                if line.startswith((b"\xff\xfe", b"\xfe\xff")):
                    raise DataError(f"{self._file}, line 1: the file is UTF-16, expected UTF-8")
                line = line.removeprefix(b"\xef\xbb\xbf")
            text = line.removesuffix(b"\n").rstrip(b"\r")
            if b"\0" in text:
                raise DataError(f"{self._file}, line {number}: a NUL byte, expected text")
            if b"\r" in text:
                what = "a carriage return within a line, expected LF or CRLF line ends"
                raise DataError(f"{self._file}, line {number}: {what}")
            yield text.decode("utf-8", "replace") + "\n"
        self._ended = True

    def _line(self, content: IO[bytes]) -> bytes:
        try:
            line = content.readline(_LINE_BYTES + 1)
        except OSError as error:
            raise DataError(f"{self._file} cannot be read: {error}") from error
        if len(line) > _LINE_BYTES:
            raise DataError(f"{self._file} is too large: a line has more than {_LINE_BYTES} bytes")
        return line

    def _parse(self, line: int, row: list[str]) -> tuple[int, list[str], list[float]]:
        columns = self.columns
        if len(row) != len(columns.all):
            what = f"{len(row)} columns, expected {len(columns.all)} as in the header"
            raise DataError(f"{self._file}, line {line}: {what}")
        label = row[columns.label].strip(SPACE)
        match = _LABEL.fullmatch(label)
        if match is None or int(match[1]) > _LARGEST_LABEL:
            raise DataError(f"{self._file}, line {line}: label {label[:40]!r} is not a whole number from 0")
        texts = [row[column] for column in columns.features]
        try:
            values = [float(text) for text in texts] if _PLAIN.fullmatch("".join(texts)) else []
        except ValueError:
            values = []
        if values and all(-_OVERFLOW < value < _OVERFLOW for value in values):
            return int(match[1]), texts, values
        values = [self._value(line, column, row[column].strip(SPACE)) for column in columns.features]
        return int(match[1]), texts, values

    def _value(self, line: int, column: int, text: str) -> float:
        value = float(text) if NUMBER.fullmatch(text) else float("nan")
        # Text just below the bound may round to it as a float64.
        if abs(value) < _OVERFLOW or (abs(value) == _OVERFLOW and Decimal(text).copy_abs() < Decimal(_OVERFLOW)):
            return value
        raise DataError(f"{self._file}, line {line}: column {column + 1} holds {text[:40]!r}, expected a finite number")


def _rounded(texts: list[list[str]], values: list[list[float]]) -> NDArray[np.float32]:
    """Rounds once, from the text.

    Rounding to float64 and then to float32 differs where the float64 lies halfway between two float32s.
    """
    exact = np.asarray(values, dtype=np.float64)
    with np.errstate(over="ignore", under="ignore"):
        rounded = exact.astype(np.float32)
        near = rounded.astype(np.float64)
        towards = np.where(exact > near, np.inf, -np.inf).astype(np.float32)
        far = np.nextafter(rounded, towards).astype(np.float64)
        halfway = np.isinf(rounded) | ((exact != near) & ((near + far) / 2 == exact))
    for at in np.argwhere(halfway):
        row, column = int(at[0]), int(at[1])
        text, middle = Decimal(texts[row][column].strip(SPACE)), Decimal(float(exact[row, column]))
        if text != middle:
            choose = max if text > middle else min
            rounded[row, column] = choose(near[row, column], far[row, column])
    return rounded
