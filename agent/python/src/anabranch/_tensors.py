"""The manifest and the tensor files."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from .errors import Diverged, ProtocolError, TensorError

Tensors = Mapping[str, NDArray[np.float32]]
"""Tensors by name."""
MANIFEST_TENSORS = 4096
"""Tensors in a manifest, at most; this bound and those below are the agent's (``common/src/limits.rs``)."""
TENSOR_DIMS = 8
"""Dimensions of one tensor, at most."""
TENSOR_NAME_BYTES = 256
"""Bytes of a tensor's name in UTF-8, at most."""
MODEL_PARAMS = 1 << 30
"""Parameters of a model, at most."""


class Manifest:
    """Names and shapes, in the order in which the tensors lie in the flat vector."""

    def __init__(self, tensors: Mapping[str, Sequence[int]]) -> None:
        """Raises:
        TensorError: there is none, a name is empty, a shape is not one, or the model is beyond a bound of the agent.
        """
        self.shapes: dict[str, tuple[int, ...]] = {}
        for name, shape in tensors.items():
            if not isinstance(name, str) or not name:
                raise TensorError(f"a tensor is called {name!r}, expected a string that is not empty")
            if (length := len(name.encode())) > TENSOR_NAME_BYTES:
                most = f"a name has at most {TENSOR_NAME_BYTES}: shorten it"
                raise TensorError(f"the name of tensor {name[:80]}... has {length} bytes, {most}")
            extents = tuple(int(extent) for extent in shape)
            if any(extent < 1 for extent in extents):
                raise TensorError(f"tensor {name} has the shape {list(extents)}, expected extents from 1")
            if len(extents) > TENSOR_DIMS:
                most = f"a tensor has at most {TENSOR_DIMS}: reshape it"
                raise TensorError(f"tensor {name} has {len(extents)} dimensions, {most}")
            self.shapes[name] = extents
        if not self.shapes:
            raise TensorError("the model has no tensors")
        if len(self.shapes) > MANIFEST_TENSORS:
            most = f"a run takes at most {MANIFEST_TENSORS}: stack small ones into one, or keep frozen ones out of the model"
            raise TensorError(f"the model has {len(self.shapes)} tensors, {most}")
        if len(self) > MODEL_PARAMS:
            most = f"a run takes at most {MODEL_PARAMS}: keep frozen ones out of the model"
            raise TensorError(f"the model has {len(self)} parameters, {most}")

    def describe(self) -> list[dict[str, Any]]:
        """As ``prepared`` tells it."""
        return [{"name": name, "shape": list(shape)} for name, shape in self.shapes.items()]

    def check(self, tensors: Tensors, source: str) -> None:
        """Raises:
        TensorError: names, shapes or element types are not the manifest's.
        """
        missing = [name for name in self.shapes if name not in tensors]
        unknown = [name for name in tensors if name not in self.shapes]
        if missing or unknown:
            parts = [f"{what} {named(names)}" for what, names in (("lacks", missing), ("has unknown", unknown)) if names]
            raise TensorError(f"{source} {' and '.join(parts)}; tensors() said {named(self.shapes)}")
        for name, shape in self.shapes.items():
            tensor = tensors[name]
            # Arithmetic on an array without dimensions gives a numpy scalar.
            if not isinstance(tensor, (np.ndarray, np.generic)):
                found = type(tensor).__name__
                raise TensorError(f"{source}: tensor {name} is a {found}, expected a numpy array")
            if tensor.dtype != np.float32:
                remedy = "convert it with .astype(numpy.float32)"
                raise TensorError(f"{source}: tensor {name} is {tensor.dtype}, expected float32: {remedy}")
            if tensor.shape != shape:
                found = list(tensor.shape)
                raise TensorError(f"{source}: tensor {name} has the shape {found}, expected {list(shape)}")

    def read(self, path: Path) -> dict[str, NDArray[np.float32]]:
        """The tensors of a file that the agent wrote, in the manifest's order; the arrays may be written to.

        Raises:
            TensorError: they are not the manifest's.
            ProtocolError: the file cannot be read.
        """
        found = _load(path)
        self.check(found, f"{path.name} from the agent")
        return {name: np.array(found[name], dtype=np.float32, order="C") for name in self.shapes}

    def write(self, tensors: Tensors, path: Path, source: str, *, finite: bool = True) -> None:
        """Writes a file for the agent, whose values have to be finite unless ``finite`` is false.

        Raises:
            TensorError: they are not the manifest's.
            Diverged: a value is not finite.
        """
        self.check(tensors, source)
        bad = [name for name in self.shapes if finite and not np.isfinite(tensors[name]).all()]
        if bad:
            which = f"tensor {bad[0]} has" if len(bad) == 1 else f"tensors {named(bad)} have"
            raise Diverged(f"{which} values that are not finite")
        # asarray and not ascontiguousarray, which gives a scalar a dimension.
        save_file({name: np.asarray(tensors[name], order="C") for name in self.shapes}, path)

    def __len__(self) -> int:
        return sum(math.prod(shape) for shape in self.shapes.values())


def read_only(path: Path, name: str) -> NDArray[np.float32]:
    """Returns the only tensor, called ``name``, of a file that the agent wrote; the array may be written to.

    Raises:
        TensorError: it holds another one.
        ProtocolError: the file cannot be read.
    """
    found = _load(path)
    if list(found) != [name] or found[name].dtype != np.float32:
        raise TensorError(f"{path.name} from the agent holds {named(found)}, expected one float32 tensor called {name}")
    return np.array(found[name], dtype=np.float32, order="C")


def _load(path: Path) -> dict[str, NDArray[Any]]:
    try:
        return dict(load_file(path))
    except (OSError, SafetensorError) as error:
        raise ProtocolError(f"{path.name} from the agent cannot be read: {error}") from error


def named(names: Iterable[str]) -> str:
    """Returns the names for people: the first six, and how many more there are."""
    names = list(names)
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
