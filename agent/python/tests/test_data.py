"""Shards are read as native agents read them, and damage is named."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import anabranch
import anabranch.data


def idx_bytes(array: NDArray[Any]) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.astype(np.uint8).tobytes()


IMAGES = np.arange(3 * 2 * 4).reshape(3, 2, 4)
LABELS = np.array([7, 0, 255])


def test_idx_plain_and_gzipped(tmp_path: Path) -> None:
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx_bytes(IMAGES))
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx_bytes(LABELS)))
    for path in (tmp_path, tmp_path / "train-images-idx3-ubyte"):
        images, labels = anabranch.data.idx(path)
        assert np.array_equal(images, IMAGES) and images.dtype == np.uint8
        assert np.array_equal(labels, LABELS) and labels.dtype == np.int64


@pytest.mark.parametrize(
    ("images", "labels", "says"),
    [
        (idx_bytes(IMAGES)[:-1], idx_bytes(LABELS), "holds 23 bytes of values, its header promises 24"),
        (idx_bytes(IMAGES), idx_bytes(LABELS[:2]), "holds 2 labels for the 3 images"),
        (b"PNG....", idx_bytes(LABELS), "expected an IDX header"),
        (gzip.compress(idx_bytes(IMAGES))[:-9], idx_bytes(LABELS), "cannot be read"),
        (idx_bytes(IMAGES[:0]), idx_bytes(LABELS[:0]), "holds no examples"),
        (idx_bytes(IMAGES), None, "has no labels file beside it"),
    ],
)
def test_damaged_idx_is_named(tmp_path: Path, images: bytes, labels: bytes | None, says: str) -> None:
    (tmp_path / "train-images-idx3-ubyte").write_bytes(images)
    if labels is not None:
        (tmp_path / "train-labels-idx1-ubyte").write_bytes(labels)
    with pytest.raises(anabranch.DataError, match=says):
        anabranch.data.idx(tmp_path)


def test_hidden_images_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx_bytes(IMAGES))
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx_bytes(LABELS))
    (tmp_path / "._train-images-idx3-ubyte").write_bytes(b"Mac OS X")
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(b"not looked at")
    images, _ = anabranch.data.idx(tmp_path)
    assert np.array_equal(images, IMAGES)


def test_csv_plain_and_gzipped(tmp_path: Path) -> None:
    text = "\ufeffa,kind,b\r\n1,3,2.5\r\n\r\n-4,0,1e3\r\n".encode()
    (tmp_path / "rows.csv").write_bytes(text)
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "rows.csv.gz").write_bytes(gzip.compress(text))
    for path in (tmp_path / "rows.csv", tmp_path / "more", tmp_path / "more" / "rows.csv.gz"):
        values, labels = anabranch.data.csv(path, label="kind")
        assert values.tolist() == [[1, 2.5], [-4, 1000]] and values.dtype == np.float32
        assert labels.tolist() == [3, 0] and labels.dtype == np.int64


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a,b\n1,2\n", 'has no column "label"; its columns are a, b'),
        ("label,label\n1,2\n", "two columns are called"),
        ("label\n1\n", "there is no column beside the label"),
        ("a,label\n1,2\n3\n", "line 3: 1 columns, expected 2"),
        ("a,label\n1,-2\n", "line 2: label '-2' is not a whole number from 0"),
        ("a,label\n1,2\nnan,2\n", "line 3: column 1 holds 'nan', expected a finite number"),
        ("a,label\n", "holds no examples"),
    ],
)
def test_damaged_csv_is_named_with_its_line(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "rows.csv").write_text(text)
    with pytest.raises(anabranch.DataError, match=says):
        anabranch.data.csv(tmp_path)


def test_an_ambiguous_folder_is_refused(tmp_path: Path) -> None:
    for name in ("a.csv", "b.csv"):
        (tmp_path / name).write_text("a,label\n1,2\n")
    with pytest.raises(anabranch.DataError, match="name one of them"):
        anabranch.data.csv(tmp_path)
    with pytest.raises(anabranch.DataError, match="does not exist"):
        anabranch.data.idx(tmp_path / "absent")


@pytest.mark.parametrize("value", ["0", "two", "-1", "1.5"])
def test_a_bad_number_is_named(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    for name, read in (("ANABRANCH_THREADS", anabranch.threads), ("ANABRANCH_MAX_MEMORY", anabranch.max_memory)):
        monkeypatch.setenv(name, value)
        with pytest.raises(ValueError, match=name):
            read()
