"""The tensors of a PyTorch model that a run shares.

``SharedModel`` reads the state dict afresh each time, by name: a tensor that a training loop puts in the place of another
one is read like the first. ``Structure`` puts a model back together after a round or an evaluation that failed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ._tensors import Tensors, named
from .errors import TensorError

COMPILED = "_orig_mod."
"""What ``torch.compile`` puts into the names of a compiled module's tensors."""


def unwrapped(model: Any) -> Any:
    """Returns the module inside ``torch.compile``, ``DataParallel`` and ``DistributedDataParallel``."""
    wrappers = (torch.nn.DataParallel, torch.nn.parallel.DistributedDataParallel)
    while True:
        if isinstance(model, wrappers):
            model = model.module
        elif isinstance(getattr(model, "_orig_mod", None), torch.nn.Module):
            model = model._orig_mod
        else:
            return model


def as_f32(tensor: Any) -> NDArray[np.float32]:
    """Returns the values as a float32 array of its own, in main memory."""
    values: NDArray[np.float32] = tensor.detach().to(device="cpu", dtype=torch.float32, copy=True).contiguous().numpy()
    return values


@dataclass
class _Found:
    """What one reading of a state dict found."""

    state: Mapping[str, Any]
    """The state dict itself."""
    shared: dict[str, Any] = field(default_factory=dict)
    """The tensors of the manifest, in the order of the state dict."""
    ties: dict[str, str] = field(default_factory=dict)
    """Further names of shared tensors, with the first name of each."""
    local: set[str] = field(default_factory=set)
    """Names of the tensors that ``local`` keeps in this process."""


class SharedModel:
    """The shared tensors of a model: which they are, how they are read, and how they are overwritten."""

    def __init__(self, model: Any, local: Sequence[str] = ()) -> None:
        """
        Args:
            model: wrapped or not.
            local: patterns (``fnmatch``) of tensors that stay in this process: buffers and frozen parameters.

        Raises:
            TensorError: a tensor cannot be averaged, or training it could not be seen in the state dict.
            ValueError: a pattern of ``local`` fits no tensor.
        """
        if isinstance(local, str):
            raise ValueError(f"local is the string {local!r}, expected a list of patterns: local=[{local!r}]")
        self.module = unwrapped(model)
        self._local = tuple(local)
        self._has_copies = False
        found = self._found()
        unused = [pattern for pattern in self._local if not any(fnmatchcase(name, pattern) for name in found.local)]
        if unused:
            raise ValueError(f"local= names {named(unused)}, which fits no tensor of the model's state dict")
        if not found.shared:
            raise TensorError("the model has no float tensor in its state dict: there is nothing to train together")
        self._layout = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in found.shared.items()}
        self._ties = found.ties
        self._has_copies = self._holds_copies(found)
        self._check_sent(found)
        _check_overlap(found.shared)

    @property
    def device(self) -> Any:
        """Where the model is."""
        return next(iter(self._found().shared.values())).device

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Returns names and shapes in the order of the state dict."""
        return {name: shape for name, (shape, _) in self._layout.items()}

    def values(self) -> dict[str, NDArray[np.float32]]:
        """Returns the shared tensors as float32.

        Raises:
            TensorError: a value is not finite.
        """
        self.check_finite()
        return {name: as_f32(tensor) for name, tensor in self._found().shared.items()}

    def read(self, function: str) -> dict[str, Any]:
        """Returns the shared tensors as ``function`` left them.

        Raises:
            TensorError: it changed names, shapes, types, or which tensors are one.
        """
        found = self._found()
        differences = self._differences(found)
        if differences:
            kept = "names, shapes and types have to stay as they were when anabranch.torch.run was called"
            raise TensorError(f"{function} changed the tensors of the model: {named(differences)}; {kept}")
        self._check_sent(found)
        return found.shared

    def load(self, tensors: Tensors) -> dict[str, NDArray[np.float32]]:
        """Overwrites the shared tensors and removes all gradients.

        Returns:
            What tensors of another type than float32 hold after rounding.

        Raises:
            TensorError: names, shapes or types are no longer those of the manifest.
        """
        found, rounded = self._found(), {}
        differences = self._differences(found)
        if differences:
            raise TensorError(f"the tensors of the model have changed between two requests: {named(differences)}")
        with torch.no_grad():
            for name, target in found.shared.items():
                target.copy_(_as_loaded(name, tensors[name], target.dtype))
                if target.dtype != torch.float32:
                    rounded[name] = as_f32(target)
        if self._has_copies:
            self.module.load_state_dict(found.state)
        for parameter in self.module.parameters():
            parameter.grad = None
        return rounded

    def changed(self, tensors: Tensors) -> list[str]:
        """Returns the names of the shared tensors that no longer hold what ``load`` wrote; one pass over the model."""
        names = []
        for name, found in self.read("eval_fn").items():
            wanted = _as_loaded(name, tensors[name], found.dtype)
            found = found.detach().to("cpu")
            if not torch.equal(found, wanted):
                both_nan = (found != found) & (wanted != wanted)
                if not bool(((found == wanted) | both_nan).all()):
                    names.append(name)
        return names

    def check_finite(self) -> None:
        """Checks that the values are finite: others would make every agent's model useless once averaged.

        Raises:
            TensorError: names the tensors that hold other values, and says what to do about them.
        """
        parameters = {name.replace(COMPILED, ""): _storage(tensor) for name, tensor in self.module.named_parameters()}
        storages = set(parameters.values())
        bad: dict[bool, list[str]] = {True: [], False: []}
        for name, tensor in self._found().shared.items():
            if not bool(torch.isfinite(tensor).all()):
                bad[name in parameters or _storage(tensor) in storages].append(name)
        if bad[False]:
            remedy = "keep them in this process with anabranch.torch.run(..., local=[...]) or persistent=False"
            raise TensorError(f"buffers with values that are not finite cannot be averaged: {named(bad[False])}; {remedy}")
        if bad[True]:
            raise TensorError(f"the model's parameters hold values that are not finite: {named(bad[True])}")

    def _found(self) -> _Found:
        found = _Found(self.module.state_dict())
        places: dict[object, str] = {}
        for full_name, tensor in found.state.items():
            name = full_name.replace(COMPILED, "")
            if not isinstance(tensor, torch.Tensor):
                continue
            if any(fnmatchcase(name, pattern) for pattern in self._local):
                found.local.add(name)
                continue
            _check_kind(name, tensor)
            if not tensor.is_floating_point() or tensor.numel() == 0:
                continue
            _check_memory(name, tensor)
            place = (tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype)
            first = places.setdefault(place, name)
            if first != name:
                found.ties[name] = first
            elif name in found.shared:
                raise TensorError(f"two tensors of the state dict are called {name} (without {COMPILED!r})")
            else:
                found.shared[name] = tensor
        return found

    def _differences(self, found: _Found) -> list[str]:
        told = []
        for name in self._layout.keys() - found.shared.keys():
            now = found.ties.get(name)
            told.append(f"{name} is gone" if now is None else f"{name} has become the same tensor as {now}")
        for name in found.shared.keys() - self._layout.keys():
            before = self._ties.get(name)
            told.append(f"{name} is new" if before is None else f"{name} is no longer the same tensor as {before}")
        for name, (shape, dtype) in self._layout.items():
            tensor = found.shared.get(name)
            if tensor is not None and tuple(tensor.shape) != shape:
                told.append(f"{name} has the shape {list(tensor.shape)}, expected {list(shape)}")
            elif tensor is not None and tensor.dtype != dtype:
                told.append(f"{name} is {_type(tensor.dtype)}, expected {_type(dtype)}")
        return sorted(told)

    def _holds_copies(self, found: _Found) -> bool:
        """Returns whether the state dict holds copies of the model's tensors, which only ``load_state_dict`` writes back.

        Raises:
            TensorError: that method does not write them back either.
        """
        own = {_storage(tensor) for tensors in (self.module.parameters(), self.module.buffers()) for tensor in tensors}
        copies = [name for name, tensor in found.shared.items() if _storage(tensor) not in own]
        if not copies:
            return False
        # Other values than each tensor has, where it holds zeros too.
        state = {name.replace(COMPILED, ""): name for name in found.state}
        probe = dict(found.state)
        for name in copies:
            probe[state[name]] = (found.shared[name] == 0).to(found.shared[name].dtype)
        what = f"state_dict() of {type(self.module).__name__} holds copies of {named(copies)}"
        try:
            self.module.load_state_dict(probe)
            again = self._found().shared
            lost = [name for name in copies if name not in again or not torch.equal(again[name], probe[state[name]])]
            self.module.load_state_dict(found.state)
        except (RuntimeError, TypeError, KeyError) as error:
            raise TensorError(f"{what}, and load_state_dict() refuses what state_dict() gave: {error}") from error
        if lost:
            raise TensorError(f"{what}, and load_state_dict() does not write {named(lost)} back into the model")
        return True

    def _check_sent(self, found: _Found) -> None:
        """Raises:
        TensorError: a parameter that is trained is not among the shared tensors.
        """
        sent = {_storage(tensor) for tensor in found.shared.values()}
        for full_name, parameter in self.module.named_parameters():
            name = full_name.replace(COMPILED, "")
            if not parameter.requires_grad or parameter.numel() == 0:
                continue
            if name in found.local:
                remedy = "only buffers and parameters with requires_grad=False can be local"
                raise TensorError(f"{name} is declared local and needs a gradient: {remedy}")
            if not self._has_copies and _storage(parameter) not in sent:
                remedy = "add it, or set requires_grad=False"
                raise TensorError(f"{name} needs a gradient and is not in the model's state dict: {remedy}")


class Structure:
    """The modules, parameters and buffers of a model, and their modes, as they were. Holds no copy of any value."""

    def __init__(self, model: Any) -> None:
        self._modules: list[tuple[Any, bool, list[tuple[dict[str, Any], dict[str, Any]]]]] = []
        for module in model.modules():
            # The tables of a TorchScript module are no dictionaries; they stay as they are.
            tables = [getattr(module, name, None) for name in ("_modules", "_parameters", "_buffers")]
            kept = [(table, dict(table)) for table in tables if isinstance(table, dict)]
            self._modules.append((module, module.training, kept))
        self._parameters = [(tensor, tensor.data, tensor.requires_grad) for tensor in model.parameters()]

    def restore(self) -> None:
        """Puts every module, parameter and buffer back in its place. Values that were changed in place stay changed."""
        for module, training, tables in self._modules:
            for table, kept in tables:
                if len(table) != len(kept) or any(table.get(name) is not value for name, value in kept.items()):
                    table.clear()
                    table.update(kept)
            if module.training != training:
                module.training = training
        for tensor, data, requires_grad in self._parameters:
            if (tensor.data_ptr(), tensor.dtype, tensor.shape) != (data.data_ptr(), data.dtype, data.shape):
                tensor.data = data
            if tensor.requires_grad != requires_grad:
                tensor.requires_grad_(requires_grad)


def _check_kind(name: str, tensor: Any) -> None:
    if isinstance(tensor, torch.nn.parameter.UninitializedTensorMixin):
        raise TensorError(f"{name} has no shape yet: pass a batch through the lazy model before anabranch.torch.run")
    if tensor.is_complex():
        raise TensorError(f"{name} is complex, which cannot be averaged: keep it as two real tensors")
    if tensor.is_quantized:
        raise TensorError(f"{name} is quantized, which cannot be averaged: train the model in floating point")


def _check_memory(name: str, tensor: Any) -> None:
    if tensor.layout != torch.strided:
        raise TensorError(f"{name} is sparse, which cannot be averaged: store it with .to_dense()")
    if tensor.device.type == "meta":
        raise TensorError(f"{name} is on the meta device and has no values: load them before anabranch.torch.run")
    if tensor.is_inference():
        raise TensorError(f"{name} was made under torch.inference_mode() and cannot be overwritten: use torch.no_grad()")
    if any(step == 0 and extent > 1 for step, extent in zip(tensor.stride(), tensor.shape)):
        raise TensorError(f"{name} is expanded, its elements share memory: store it with .contiguous()")


def _check_overlap(tensors: Mapping[str, Any]) -> None:
    spans = []
    for name, tensor in tensors.items():
        last = sum((extent - 1) * step for extent, step in zip(tensor.shape, tensor.stride()))
        begin = tensor.data_ptr()
        spans.append((str(tensor.device), begin, begin + (last + 1) * tensor.element_size(), name))
    spans.sort()
    for (device, _, end, name), (other_device, begin, _, other) in zip(spans, spans[1:]):
        if device == other_device and begin < end:
            remedy = "share all of it under both names, or give each its own memory with .clone()"
            raise TensorError(f"{name} and {other} share memory in part, so that averaging would change both: {remedy}")


def _as_loaded(name: str, values: NDArray[np.float32], dtype: Any) -> Any:
    """Returns what ``load`` writes: rounded to the tensor's type, a variance below zero as zero."""
    tensor = torch.from_numpy(values).to(dtype)
    return tensor.clamp(min=0.0) if name.rpartition(".")[2] == "running_var" else tensor


def _storage(tensor: Any) -> tuple[str, int]:
    """Returns what tensors that share memory have in common; PyTorch before 2.0 has no ``untyped_storage``."""
    storage = tensor.untyped_storage() if hasattr(tensor, "untyped_storage") else tensor.storage()
    return str(tensor.device), storage.data_ptr()


def _type(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")

