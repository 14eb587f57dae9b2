"""The cases of ``agent/tests/shards``, which the native reader runs too."""

from __future__ import annotations

import json
import random
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import anabranch
import anabranch.data

SHARDS = Path(__file__).parents[2] / "tests" / "shards"
CASES: list[dict[str, Any]] = json.loads((SHARDS / "cases.json").read_text())


def name(case: dict[str, Any]) -> str:
    others = [f"{kind}-{case[kind]}" for kind in ("train", "eval") if kind in case]
    return "-".join([case["file"], *others, *case.get("drop", []), *case.get("columns", [])])


def bits(value: float | str) -> int:
    """Returns the bits of a value, or those that stand for it in hexadecimal."""
    return int(value, 16) if isinstance(value, str) else int(np.float32(value).view(np.uint32))


@pytest.mark.filterwarnings("ignore:.*looks like a row index")
@pytest.mark.parametrize("case", CASES, ids=name)
def test_a_case_is_read_or_refused_as_the_native_reader_does(
    case: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = {"train": "eval", "eval": "train"}
    for other in shards.keys() & case.keys():
        for kind, file in ((other, case[other]), (shards[other], case["file"])):
            variable = "ANABRANCH_SHARD" if kind == "train" else "ANABRANCH_EVAL_SHARD"
            monkeypatch.setenv(variable, str(SHARDS / file))

    def read() -> Any:
        label, drop, columns = case.get("label", "label"), case.get("drop", []), case.get("columns")
        return anabranch.data.csv(SHARDS / case["file"], label, drop=drop, columns=columns)

    if "refused" not in case:
        inputs, labels = read()
        assert inputs.view(np.uint32).tolist() == [[bits(value) for value in row] for row in case["inputs"]]
        assert labels.tolist() == case["labels"]
        return
    with pytest.raises(anabranch.DataError) as refused:
        read()
    place = f"{case['file']}, line {case['line']}: " if "line" in case else case["file"]
    assert case["refused"] in str(refused.value) and place in str(refused.value)


def test_a_field_may_be_as_long_as_a_line(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("a,label\n" + "0" * 200_000 + "5,1\n")
    inputs, labels = anabranch.data.csv(tmp_path)
    assert inputs.tolist() == [[5.0]] and labels.tolist() == [1]


def test_every_block_of_rows_is_rounded_from_its_text(tmp_path: Path) -> None:
    """Beside a halfway point, a float64 between text and float32 rounds the wrong way."""
    draw = random.Random(3)
    drawn = [draw.randrange(0x7F7FFFFF) for _ in range(3000)]
    low = np.array(drawn, dtype=np.uint32).view(np.float32).astype(np.float64)
    high = (np.array(drawn, dtype=np.uint32) + 1).view(np.float32).astype(np.float64)
    halves = (low + high) / 2
    with (tmp_path / "x.csv").open("w") as file:
        file.write("a,label\n")
        for half in halves:
            digits, exponent = f"{half:.160e}".split("e")
            file.write(f"{digits}1e{exponent},0\n")
    inputs, _ = anabranch.data.csv(tmp_path)
    assert inputs[:, 0].view(np.uint32).tolist() == [value + 1 for value in drawn]


def test_a_row_index_is_warned_of_and_can_be_dropped() -> None:
    with pytest.warns(UserWarning, match="a column without a name is used as a feature, but looks like a row index"):
        anabranch.data.csv(SHARDS / "index.csv")
    with pytest.warns(UserWarning, match='column "Unnamed: 0" is used'):
        anabranch.data.csv(SHARDS / "index-named.csv", drop=["note"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        anabranch.data.csv(SHARDS / "index.csv", drop=[""])


def test_columns_of_the_evaluation_shard_go_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    reordered = SHARDS / "columns-reordered.csv"
    assert anabranch.data.columns(SHARDS / "columns.csv") == ["a", "b", "c"]
    assert anabranch.data.csv(reordered)[0].tolist() == [[3, 1, 2]]
    monkeypatch.setenv("ANABRANCH_SHARD", str(SHARDS / "columns.csv"))
    monkeypatch.setenv("ANABRANCH_EVAL_SHARD", str(reordered))
    assert anabranch.data.csv(reordered)[0].tolist() == [[1, 2, 3]]
    monkeypatch.setenv("ANABRANCH_EVAL_SHARD", str(SHARDS / "columns-other.csv"))
    with pytest.raises(anabranch.DataError, match="it lacks c and has d instead"):
        anabranch.data.csv(SHARDS / "columns-other.csv")


def test_a_column_to_drop_has_to_be_in_one_of_the_shards(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "images-idx3-ubyte").touch()
    monkeypatch.setenv("ANABRANCH_EVAL_SHARD", str(tmp_path))
    monkeypatch.setenv("ANABRANCH_SHARD", str(SHARDS / "index.csv"))
    assert anabranch.data.columns(SHARDS / "index.csv", drop=[""]) == ["a"]
    with pytest.raises(anabranch.DataError, match=f"no column \"z\" to drop; .*; nor has {tmp_path}, which is not CSV"):
        anabranch.data.columns(SHARDS / "index.csv", drop=["z"])
    # Another file has to have the column itself.
    with pytest.raises(anabranch.DataError, match="its columns are a, label$"):
        anabranch.data.csv(SHARDS / "index-left-out.csv", drop=[""])


def test_shards_of_another_kind_say_nothing_about_columns(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    reordered = SHARDS / "columns-reordered.csv"
    images, binary = tmp_path / "images" / "train-images-idx3-ubyte", tmp_path / "train.npz"
    images.parent.mkdir()
    images.write_bytes(bytes([0, 0, 8, 3]) + bytes(12))
    binary.write_bytes(bytes(range(256)))
    shards = [tmp_path, SHARDS / "cases.json", images, images.parent, binary]
    for train, evaluation in (*((train, reordered) for train in shards), (reordered, tmp_path)):
        monkeypatch.setenv("ANABRANCH_SHARD", str(train))
        monkeypatch.setenv("ANABRANCH_EVAL_SHARD", str(evaluation))
        assert anabranch.data.csv(reordered)[0].tolist() == [[3, 1, 2]]


@pytest.mark.parametrize("name", ["train.data", "train.csv.bak", "images.data"])
def test_columns_go_by_name_whatever_the_training_shard_is_called(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str) -> None:
    train, reordered = tmp_path / name, SHARDS / "columns-reordered.csv"
    train.write_bytes((SHARDS / "columns.csv").read_bytes())
    monkeypatch.setenv("ANABRANCH_SHARD", str(train))
    monkeypatch.setenv("ANABRANCH_EVAL_SHARD", str(reordered))
    assert anabranch.data.csv(reordered)[0].tolist() == [[1, 2, 3]]
    monkeypatch.setenv("ANABRANCH_EVAL_SHARD", str(SHARDS / "columns-other.csv"))
    with pytest.raises(anabranch.DataError, match="it lacks c and has d instead"):
        anabranch.data.csv(SHARDS / "columns-other.csv")


def test_a_column_to_drop_may_be_in_a_training_shard_of_any_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    train, evaluation = tmp_path / "train.data", SHARDS / "index-left-out.csv"
    train.write_bytes((SHARDS / "index.csv").read_bytes())
    monkeypatch.setenv("ANABRANCH_SHARD", str(train))
    monkeypatch.setenv("ANABRANCH_EVAL_SHARD", str(evaluation))
    assert anabranch.data.csv(evaluation, drop=[""])[0].tolist() == [[7]]
    with pytest.raises(anabranch.DataError, match='no column "z" to drop; .*; nor has .*train.data, whose columns are "", a, label'):
        anabranch.data.csv(evaluation, drop=["z"])
