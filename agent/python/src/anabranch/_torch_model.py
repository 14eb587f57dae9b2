"""The tensors of a PyTorch model that a run shares.

``SharedModel`` reads the state dict afresh each time, by name: a tensor that a training loop puts in the place of another
one is read like the first. ``Structure`` puts a model back together after a round or an evaluation that failed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
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
        self._written: set[str] = set()
        self.device: Any = None
        """Where the model is, from the first ``load`` on."""
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
        self.device = next(iter(found.shared.values())).device
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
        shared = self._found().shared
        bad, buffers = [name for name, tensor in shared.items() if not _is_finite(tensor)], self._buffers(shared)
        self._refuse([name for name in bad if name in buffers])
        if bad:
            raise TensorError(f"the model's parameters hold values that are not finite: {named(bad)}")

    def check_buffers(self, shared: Mapping[str, Any]) -> None:
        """Checks that a round made no buffer that cannot be averaged, such as a causal mask of ``-inf``.

        Statistics of BatchNorm follow the activations, and other buffers may follow the parameters. Values of these that
        are not finite are a divergence, and pass.

        Raises:
            TensorError: names the buffers, and says what to do about them.
        """
        names = [name for name in self._buffers(shared) if name.rpartition(".")[2] not in ("running_mean", "running_var")]
        bad = [name for name in names if not _is_finite(shared[name])]
        if bad and all(_is_finite(parameter) for parameter in self.module.parameters()):
            self._refuse(bad)

    def local_buffers(self) -> list[tuple[Any, Any]]:
        """Returns the integer, boolean and ``local`` buffers, each with a copy of its values."""
        found = []
        for full_name, tensor in self.module.named_buffers():
            is_local = any(fnmatchcase(full_name.replace(COMPILED, ""), pattern) for pattern in self._local)
            # Others cannot be written to, or have no values.
            is_plain = tensor.layout == torch.strided and not tensor.is_inference() and tensor.device.type != "meta"
            if (is_local or not tensor.is_floating_point()) and is_plain:
                found.append((tensor, tensor.detach().clone()))
        return found

    def _buffers(self, shared: Mapping[str, Any]) -> list[str]:
        """Returns the names of the shared tensors that are no parameters."""
        parameters = {name.replace(COMPILED, ""): _storage(tensor) for name, tensor in self.module.named_parameters()}
        storages = set(parameters.values())
        return [name for name, tensor in shared.items() if name not in parameters and _storage(tensor) not in storages]

    def _refuse(self, buffers: list[str]) -> None:
        if buffers:
            remedy = "keep them in this process with anabranch.torch.run(..., local=[...]) or persistent=False"
            raise TensorError(f"buffers with values that are not finite cannot be averaged: {named(buffers)}; {remedy}")

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

        Remembers in ``_written`` which trained parameters it writes, where names or shapes do not tell.

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
        before = {name: tensor.detach().clone() for name, tensor in self._trained() if not _is_named(found, name, tensor)}
        try:
            self.module.load_state_dict(probe)
            self._written = {name for name, tensor in self._trained() if name in before and _differs(tensor, before[name])}
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
        sent = _Spans(found.shared.values())
        for name, parameter in self._trained():
            if name in found.local:
                remedy = "only buffers and parameters with requires_grad=False can be local"
                raise TensorError(f"{name} is declared local and needs a gradient: {remedy}")
            if self._has_copies and (name in self._written or _is_named(found, name, parameter)):
                continue
            if (share := sent.share_of(parameter)) < 1:
                is_part = share > 0 or name in found.shared
                what, rest = ("is only in part", "the rest") if is_part else ("is not", "it")
                remedy = f"add {rest}, or set requires_grad=False"
                raise TensorError(f"{name} needs a gradient and {what} in the model's state dict: {remedy}")

    def _trained(self) -> Iterator[tuple[str, Any]]:
        """Yields the parameters that need a gradient, by name."""
        for name, parameter in self.module.named_parameters():
            if parameter.requires_grad and parameter.numel() > 0:
                yield name.replace(COMPILED, ""), parameter


class _Spans:
    """The memory of tensors that do not overlap."""

    def __init__(self, tensors: Iterable[Any]) -> None:
        self._spans: dict[object, list[tuple[int, int, int]]] = {}
        for tensor in tensors:
            self._spans.setdefault(_storage(tensor), []).append(_span(tensor))
        self._whole = {begin: size for spans in self._spans.values() for begin, _, size in spans}

    def share_of(self, tensor: Any) -> float:
        """Returns which share of ``tensor`` lies in this memory, from 0 to 1."""
        begin, end, size = _span(tensor)
        spans = self._spans.get(_storage(tensor), [])
        # Nearly all tensors lie here as they are; many of them may have one storage.
        if spans and self._whole.get(begin) == size:
            return 1.0
        overlaps = (min(held, min(end, other_end) - max(begin, other)) for other, other_end, held in spans)
        return min(1.0, sum(max(0, overlap) for overlap in overlaps) / min(size, end - begin))


class Structure:
    """The modules, parameters and buffers of a model, their modes and hooks, as they were. Holds no copy of any value."""

    def __init__(self, model: Any) -> None:
        self._modules = [_ModuleState(module) for module in model.modules()]
        self._parameters = [(tensor, tensor.data, tensor.requires_grad) for tensor in model.parameters()]

    def restore(self) -> None:
        """Puts every module, parameter, buffer and hook back in its place.

        Values that were changed in place stay changed, and so do attributes of a module that PyTorch does not know.
        """
        for module in self._modules:
            module.restore()
        for tensor, data, requires_grad in self._parameters:
            if (tensor.data_ptr(), tensor.dtype, tensor.shape) != (data.data_ptr(), data.dtype, data.shape):
                tensor.data = data
            if tensor.requires_grad != requires_grad:
                tensor.requires_grad_(requires_grad)


class _ModuleState:
    """The tables, modes and class of a module."""

    def __init__(self, module: Any) -> None:
        self._module = module
        # A parametrization gives the module a class of its own, with a property in the place of the tensor.
        self._class, self._properties = type(module), _properties(type(module))
        known = vars(torch.nn.Module())
        # The tables of a TorchScript module are no dictionaries; they stay as they are.
        tables = [getattr(module, name, None) for name, value in known.items() if isinstance(value, (dict, set))]
        self._tables = [(table, table.copy()) for table in tables if isinstance(table, (dict, set))]
        modes = [name for name, value in known.items() if value is None or isinstance(value, bool)]
        self._modes = {name: getattr(module, name) for name in modes if hasattr(module, name)}
        self._attributes = dict(vars(module))

    def restore(self) -> None:
        module = self._module
        if type(module) is not self._class:
            module.__class__ = self._class
        for name in _properties(self._class).keys() - self._properties.keys():
            delattr(self._class, name)
        for name in self._properties.keys() - _properties(self._class).keys():
            setattr(self._class, name, self._properties[name])
        # Pruning and weight_norm put a plain attribute in the place of a parameter; removing them does the reverse.
        moved = self._registered()
        for table, kept in self._tables:
            if not _is_same(table, kept):
                table.clear()
                table.update(kept)
        attributes = vars(module)
        for name in self._registered() & (attributes.keys() - self._attributes.keys()):
            del attributes[name]
        for name in moved & (self._attributes.keys() - attributes.keys()):
            attributes[name] = self._attributes[name]
        for name, mode in self._modes.items():
            if getattr(module, name) is not mode:
                setattr(module, name, mode)

    def _registered(self) -> set[Any]:
        return {name for table, _ in self._tables for name in table}


def _properties(cls: type) -> dict[str, property]:
    return {name: value for name, value in vars(cls).items() if isinstance(value, property)}


def _is_same(table: Any, other: Any) -> bool:
    if isinstance(table, set):
        return bool(table == other)
    return list(table) == list(other) and all(table[name] is value for name, value in other.items())


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
        begin, end, _ = _span(tensor)
        spans.append((str(tensor.device), begin, end, name))
    spans.sort()
    for (device, _, end, name), (other_device, begin, _, other) in zip(spans, spans[1:]):
        if device == other_device and begin < end:
            remedy = "share all of it under both names, or give each its own memory with .clone()"
            raise TensorError(f"{name} and {other} share memory in part, so that averaging would change both: {remedy}")


def _is_finite(tensor: Any) -> bool:
    return bool(torch.isfinite(tensor).all())


def _is_named(found: _Found, name: str, parameter: Any) -> bool:
    """Returns whether the state dict has the parameter's name, with its shape."""
    tensor = found.shared.get(found.ties.get(name, name))
    return tensor is not None and tensor.shape == parameter.shape


def _differs(tensor: Any, other: Any) -> bool:
    """Returns whether no element is the same."""
    return tensor.shape == other.shape and bool((tensor.detach() != other).all())


def _as_loaded(name: str, values: NDArray[np.float32], dtype: Any) -> Any:
    """Returns what ``load`` writes: rounded to the tensor's type, a variance below zero as zero."""
    tensor = torch.from_numpy(values).to(dtype)
    return tensor.clamp(min=0.0) if name.rpartition(".")[2] == "running_var" else tensor


def _span(tensor: Any) -> tuple[int, int, int]:
    """Returns the first address, the one after the last, and how many bytes between them are elements."""
    last = sum((extent - 1) * step for extent, step in zip(tensor.shape, tensor.stride()))
    begin, size = tensor.data_ptr(), tensor.element_size()
    return begin, begin + (last + 1) * size, tensor.numel() * size


def _storage(tensor: Any) -> tuple[str, int]:
    """Returns what tensors that share memory have in common; PyTorch before 2.0 has no ``untyped_storage``."""
    storage = tensor.untyped_storage() if hasattr(tensor, "untyped_storage") else tensor.storage()
    return str(tensor.device), storage.data_ptr()


def _type(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")

