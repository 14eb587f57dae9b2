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


class Manifest:
    """Names and shapes, in the order in which the tensors lie in the flat vector."""

    def __init__(self, tensors: Mapping[str, Sequence[int]]) -> None:
        """Raises:
        TensorError: there is none, a name is empty, or a shape is not one.
        """
        self.shapes: dict[str, tuple[int, ...]] = {}
        for name, shape in tensors.items():
            if not isinstance(name, str) or not name:
                raise TensorError(f"a tensor is called {name!r}, expected a string that is not empty")
            extents = tuple(int(extent) for extent in shape)
            if any(extent < 1 for extent in extents):
                raise TensorError(f"tensor {name} has the shape {list(extents)}, expected extents from 1")
            self.shapes[name] = extents
        if not self.shapes:
            raise TensorError("the model has no tensors")

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
            parts = [f"{what} {_names(names)}" for what, names in (("lacks", missing), ("has unknown", unknown)) if names]
            raise TensorError(f"{source} {' and '.join(parts)}; tensors() said {_names(self.shapes)}")
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
        try:
            found = load_file(path)
        except (OSError, SafetensorError) as error:
            raise ProtocolError(f"{path.name} from the agent cannot be read: {error}") from error
        self.check(found, f"{path.name} from the agent")
        return {name: np.array(found[name], dtype=np.float32, order="C") for name in self.shapes}

    def write(self, tensors: Tensors, path: Path, source: str) -> None:
        """Writes a file for the agent.

        Raises:
            TensorError: they are not the manifest's.
            Diverged: a value is not finite.
        """
        self.check(tensors, source)
        for name in self.shapes:
            if not np.isfinite(tensors[name]).all():
                raise Diverged(f"tensor {name} has values that are not finite")
        # asarray and not ascontiguousarray, which gives a scalar a dimension.
        save_file({name: np.asarray(tensors[name], order="C") for name in self.shapes}, path)

    def __len__(self) -> int:
        return sum(math.prod(shape) for shape in self.shapes.values())


def _names(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
