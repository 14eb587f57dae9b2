"""The header of a CSV file: which column is the label, which are features, and in what order.

``agent/src/shard/columns.rs`` does the same for native agents.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .errors import DataError

__all__ = ["NUMBER", "SPACE", "Columns", "check_dropped", "read_header", "warn_of_index"]

NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
"""A number as Rust reads it: no ``inf``, no ``_``, no digits of other scripts."""
SPACE = " \t\n\r\x0c"
"""White space around a field that does not belong to it."""
_COLUMNS_SHOWN = 12
# pandas writes a table's row index with an empty name, and reads that as `Unnamed: 0`.
_INDEX = re.compile(r"(Unnamed: [0-9.]*)?")


@dataclass(frozen=True)
class Columns:
    """The columns of a file.

    ``all`` has the names of all columns, and ``features`` the column of each feature in the order in which they are read.
    """

    all: list[str]
    label: int
    features: list[int]
    names: list[str]


def read_header(
    file: Path, line: int, header: Sequence[str], label: str, drop: Sequence[str], wanted: Sequence[str] | None
) -> Columns:
    names = [name.strip(SPACE) for name in header]
    at = _label(file, line, names, label)
    if label in drop:
        raise DataError(f"{file}, line {line}: column {_quoted(label)} holds the labels and cannot be dropped")
    features = [index for index, name in enumerate(names) if index != at and name not in drop]
    if not features:
        raise DataError(f"{file}, line {line}: there is no column beside the label")
    if wanted is not None:
        features = _in_order(file, names, features, list(wanted))
    return Columns(names, at, features, [names[index] for index in features])


def check_dropped(shards: Sequence[tuple[Path, list[str] | None]], drop: Sequence[str]) -> None:
    """Checks that each name is a column of one of ``shards``: of one file, or of a training and an evaluation shard.

    ``None`` stands for the columns of a shard that is not CSV.
    """
    absent = [name for name in drop if not any(name in (columns or ()) for _, columns in shards)]
    if not absent:
        return
    (file, columns), *others = shards
    text = f"{file} has no column {_quoted(absent[0])} to drop; its columns are {_listing(columns or [])}"
    for other, columns in others:
        what = "which is not CSV" if columns is None else f"whose columns are {_listing(columns)}"
        text += f"; nor has {other}, {what}"
    raise DataError(text)


def warn_of_index(file: Path, names: Sequence[str]) -> None:
    """Warns of features that look like a row index."""
    for name in names:
        if _INDEX.fullmatch(name):
            column = f"column {_quoted(name)}" if name else "a column without a name"
            text = f"{column} is used as a feature, but looks like a row index; leave it out with drop=[{name!r}]"
            warnings.warn(f"{file}: {text}", stacklevel=3)


def _label(file: Path, line: int, names: list[str], label: str) -> int:
    found = names.count(label)
    if found == 1:
        return names.index(label)
    if found > 1:
        raise DataError(f"{file}, line {line}: two columns are called {_quoted(label)}")
    if all(NUMBER.fullmatch(name) for name in names):
        expected = "expected a header row with column names"
        raise DataError(f"{file}, line {line}: the first line holds numbers, {expected}")
    raise DataError(f"{file} has no column {_quoted(label)}; its columns are {_listing(names)}")


def _in_order(file: Path, names: list[str], features: list[int], wanted: list[str]) -> list[int]:
    if [names[index] for index in features] == wanted:
        return features
    found = {names[index]: index for index in features}
    expected = set(wanted)
    missing = [name for name in wanted if name not in found]
    other = [names[index] for index in features if names[index] not in expected]
    what = ""
    if missing and other:
        what = f"it lacks {_listing(missing)} and has {_listing(other)} instead"
    elif missing:
        what = f"it lacks {_listing(missing)}"
    elif other:
        what = f"it has {_listing(other)} in addition"
    elif len(found) < len(features) or len(expected) < len(wanted):
        what = "a name is repeated, and the order is another, so columns cannot be matched by name"
    if what:
        raise DataError(f"{file} has other columns than the training shard: {what}")
    return [found[name] for name in wanted]


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _listing(names: list[str]) -> str:
    shown = [name[:40] or '""' for name in names[:_COLUMNS_SHOWN]]
    if len(names) > _COLUMNS_SHOWN:
        shown.append(f"and {len(names) - _COLUMNS_SHOWN} more, the last {_quoted(names[-1])}")
    return ", ".join(shown)
