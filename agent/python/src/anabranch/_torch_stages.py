"""The passes of a PyTorch model that is computed in parts."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ._stages import Array, Draw, Part, StageRound
from ._tensors import Tensors, named
from ._torch_data import batches, part_of
from ._torch_model import COMPILED, as_f32
from .errors import ProtocolError, TensorError

Loss = Callable[[Any, Any], Any]
"""``loss_fn(output, targets)``: the mean over the examples of a micro-batch."""


@dataclass
class _InFlight:
    """A micro-batch that went forward through a part."""

    input: Any
    """The output of the part before; none of the first part."""
    output: Any
    """The part's output; of the last part the loss."""


class StagedModel:
    """Consecutive modules, of which each part computes some. The targets of its examples stay here."""

    def __init__(self, modules: Sequence[Any], loss_fn: Loss | None, data: Any) -> None:
        """Raises:
        TensorError: a module has no parameter, a frozen one, one that is not float32, a float buffer in its state dict, or one that
            another module has too.
        """
        self._modules, self._loss_fn, self._data = list(modules), loss_fn, data
        self._parameters = [_parameters(index, module) for index, module in enumerate(self._modules)]
        _refuse_shared(self._parameters)
        self._round: StageRound | None = None
        self._in_flight: dict[tuple[int, int], _InFlight] = {}
        self._micro_batches: Iterator[Any] = iter(())
        self._targets: dict[int, Any] = {}

    def tensors(self) -> list[int]:
        """How many tensors each module has."""
        return [len(parameters) for parameters in self._parameters]

    def begin(self, round: StageRound, device: Any) -> None:
        """Begins a round.

        Raises:
            ValueError: the first part is here, and there are no examples or no loss.
        """
        self.drop()
        if round.draw is not None:
            if self._data is None or self._loss_fn is None:
                raise ValueError("run_stages() was given no data or no loss_fn, and this agent owns a round")
            self._micro_batches = _micro_batches(self._data, round.draw, device)
        self._round = round

    def drop(self) -> None:
        """Ends the round: nothing of it stays in memory."""
        self._round = None
        self._in_flight.clear()
        self._targets.clear()
        self._micro_batches = iter(())

    def load(self, part: Part, weights: Tensors) -> None:
        """Loads the weights of a part for all passes that follow, also the backward passes of what is in flight."""
        for name, parameter in self._of(part):
            # `data` has no version that autograd compares: what is in flight goes backward with these values.
            parameter.data.copy_(torch.from_numpy(weights[name]))

    def forward(self, part: Part, micro_batch: int, examples: int, input: Array | None, device: Any) -> Array | float:
        """Computes a micro-batch; see ``Stages.forward``."""
        assert self._round is not None, "checked by the server"
        leaf = None
        if input is None:
            output = self._next(micro_batch, examples)
        else:
            output = leaf = torch.from_numpy(input).to(device).requires_grad_(True)
        with torch.enable_grad():
            for index in range(part.first, part.end):
                # Whatever is drawn is the same in every attempt at the round, wherever the model is cut.
                torch.manual_seed(_seed(self._round.number, micro_batch, index))
                output = self._modules[index](output)
                _check(index, output, (examples, *self._round.outputs[index]))
            if part.end == len(self._modules):
                output = self._loss(output, micro_batch)
        self._in_flight[part.part, micro_batch] = _InFlight(leaf, output)
        return float(output.detach()) if part.end == len(self._modules) else as_f32(output)

    def backward(self, part: Part, micro_batch: int, slope: Array | None) -> tuple[Tensors, Array | None]:
        """Computes the gradients of a micro-batch; see ``Stages.backward``."""
        flight = self._in_flight.pop((part.part, micro_batch), None)
        if flight is None:
            raise ProtocolError(f"the agent asks for the backward pass of micro-batch {micro_batch}, which is not in flight")
        own = list(self._of(part))
        wanted = [parameter for _, parameter in own] + ([] if flight.input is None else [flight.input])
        slopes = None if slope is None else torch.from_numpy(slope).to(flight.output.device)
        found = torch.autograd.grad(flight.output, wanted, slopes, allow_unused=True)
        # A parameter that a pass does not use has no gradient.
        gradients = [as_f32(torch.zeros_like(of) if gradient is None else gradient) for of, gradient in zip(wanted, found)]
        tensors = {name: gradient for (name, _), gradient in zip(own, gradients)}
        return tensors, None if flight.input is None else gradients[-1]

    def _of(self, part: Part) -> Iterator[tuple[str, Any]]:
        for parameters in self._parameters[part.first : part.end]:
            yield from parameters.items()

    def _next(self, micro_batch: int, examples: int) -> Any:
        try:
            inputs, targets = next(self._micro_batches)
        except StopIteration:
            raise ProtocolError(f"the agent asks for micro-batch {micro_batch}, and the round has no more") from None
        if len(inputs) != examples:
            raise ProtocolError(f"the agent asks for {examples} examples of a micro-batch of {len(inputs)}")
        self._targets[micro_batch] = targets
        return inputs

    def _loss(self, output: Any, micro_batch: int) -> Any:
        if micro_batch not in self._targets or self._loss_fn is None:
            raise ProtocolError(f"the targets of micro-batch {micro_batch} are not here: the last part belongs to their owner")
        loss = self._loss_fn(output, self._targets.pop(micro_batch))
        if not isinstance(loss, torch.Tensor) or loss.numel() != 1:
            kind = f"a tensor of the shape {list(loss.shape)}" if isinstance(loss, torch.Tensor) else f"a {type(loss).__name__}"
            raise TypeError(f"loss_fn returned {kind}, expected a tensor with one value: the mean over the examples")
        return loss


def module_rows(modules: Sequence[Any], inputs: Any) -> str:
    """Returns the table ``model.modules`` of ``run.toml`` for these modules, from what they make of ``inputs``, a batch."""
    rows, output = [], inputs
    with torch.no_grad():
        for index, module in enumerate(modules):
            parameters = sum(parameter.numel() for parameter in _parameters(index, module).values())
            output = module(output)
            _check(index, output, (len(inputs), *output.shape[1:]))
            rows.append(f"    {{ parameters = {parameters}, output = {list(output.shape[1:])} }},")
    return "\n".join(["modules = [", *rows, "]"])


def _micro_batches(data: Any, draw: Draw, device: Any) -> Iterator[Any]:
    for batch in batches(data, seed=draw.seed, steps=draw.local_steps, batch_size=draw.batch_size, device=device):
        for start in range(0, draw.batch_size, draw.micro_batch):
            yield part_of(batch, start, min(start + draw.micro_batch, draw.batch_size))


def _seed(round: int, micro_batch: int, module: int) -> int:
    text = f"{round}/{micro_batch}/{module}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1


def _check(index: int, output: Any, expected: tuple[int, ...]) -> None:
    if not isinstance(output, torch.Tensor):
        raise TypeError(f"module {index} returned a {type(output).__name__}, expected one tensor")
    if output.dim() < 2 or tuple(output.shape) != expected:
        remedy = "model.modules of run.toml has the shape of an example's output, the examples come first"
        raise TensorError(f"module {index} returned the shape {list(output.shape)}, expected {list(expected)}: {remedy}")
    if output.dtype != torch.float32:
        raise TensorError(f"module {index} returned {output.dtype}, expected float32: convert it in the module")


def _parameters(index: int, module: Any) -> dict[str, Any]:
    """Returns the parameters of a module by their name in ``nn.Sequential``."""
    if not isinstance(module, torch.nn.Module):
        raise TypeError(f"module {index} is a {type(module).__name__}, expected a torch.nn.Module")
    parameters = {f"{index}.{name.replace(COMPILED, '')}": parameter for name, parameter in module.named_parameters()}
    if not parameters:
        raise TensorError(f"module {index} has no parameters: put it together with the one before it in an nn.Sequential")
    for name, parameter in parameters.items():
        if not parameter.requires_grad:
            raise TensorError(f"{name} is frozen, and the agent's optimizer would move it: run_stages takes trained parameters")
        if parameter.dtype != torch.float32:
            raise TensorError(f"{name} is {parameter.dtype}, expected float32: run_stages takes models of float32")
    places = {parameter.data_ptr() for parameter in parameters.values()}
    state = {name: tensor for name, tensor in module.state_dict().items() if isinstance(tensor, torch.Tensor)}
    others = [name for name, tensor in state.items() if tensor.is_floating_point() and tensor.data_ptr() not in places]
    if others:
        remedy = "take a module without them (GroupNorm in place of BatchNorm), or persistent=False"
        raise TensorError(f"module {index} has float buffers, which no gradient moves: {named(others)}: {remedy}")
    return parameters


def _refuse_shared(modules: Sequence[dict[str, Any]]) -> None:
    owners: dict[int, str] = {}
    for parameters in modules:
        for name, parameter in parameters.items():
            first = owners.setdefault(parameter.data_ptr(), name)
            if first != name:
                remedy = "put both uses into one module, or use run()"
                raise TensorError(f"{name} is the same tensor as {first}: modules that share a tensor cannot be parted: {remedy}")
