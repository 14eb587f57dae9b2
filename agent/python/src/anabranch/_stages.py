"""A model that is computed in parts, pass by pass: the requests of the protocol, whatever the framework.

The agent keeps the weights and the optimizer of a part, and hands activations and gradients on to the other members of a pod.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._tensors import Manifest, Tensors, read_only
from ._wire import number
from .errors import ProtocolError, TensorError
from .spec import Run, whole_number

Array = NDArray[np.float32]
ACTIVATIONS = "activations"
"""Name of the only tensor in a file with activations or their gradient."""


@dataclass(frozen=True)
class Part:
    """Consecutive modules of the model."""

    part: int
    """Which part of the model, from 0."""
    first: int
    """Its first module, from 0."""
    end: int
    """The module before which it ends."""


@dataclass(frozen=True)
class Draw:
    """Which examples the first part draws."""

    seed: int
    """Decides which; an unsigned 64-bit integer."""
    local_steps: int
    """Steps of the round."""
    batch_size: int
    """Examples of a step."""
    micro_batch: int
    """Examples of a micro-batch; the last one of a step may have fewer."""


@dataclass(frozen=True)
class StageRound:
    """A round of which some parts are computed here."""

    number: int
    """A number of the round's own, the same at every agent that computes a part of it."""
    parts: tuple[Part, ...]
    """The parts."""
    draw: Draw | None
    """Which examples to draw, where the first part is among them."""
    outputs: tuple[tuple[int, ...], ...]
    """Shape of each module's output for one example, as the run's ``model.modules`` says."""

    @classmethod
    def parse(cls, message: Mapping[str, Any], outputs: tuple[tuple[int, ...], ...]) -> StageRound:
        """From the protocol's ``stages`` message.

        Raises:
            ProtocolError: a key is missing or of another type, or a part is none of a model of so many modules.
        """
        listed = message.get("parts")
        if not isinstance(listed, list) or not listed or not all(isinstance(part, dict) for part in listed):
            raise ProtocolError(f"stages.parts is {listed!r}, expected a list of objects")
        parts = tuple(Part(*(whole_number(part, key, "stages.parts") for key in ("part", "first", "end"))) for part in listed)
        for part in parts:
            if not part.first < part.end <= len(outputs):
                raise ProtocolError(f"part {part.part} has the modules {part.first} to {part.end}, the run has {len(outputs)}")
        draw, found = None, message.get("draw")
        if isinstance(found, dict):
            seed = whole_number(found, "seed", "stages.draw")
            sizes = (whole_number(found, key, "stages.draw", 1) for key in ("local_steps", "batch_size", "micro_batch"))
            draw = Draw(seed, *sizes)
        return cls(whole_number(message, "round", "stages"), parts, draw, outputs)


class Stages(ABC):
    """What a trainer that computes its model in parts does beside the rest of a trainer. Passes are of the round that began last."""

    @abstractmethod
    def module_tensors(self) -> Sequence[int]:
        """How many of the trainer's tensors belong to each module, in their order."""

    @abstractmethod
    def begin(self, round: StageRound) -> None:
        """Begins a round; what is left of an earlier one goes."""

    @abstractmethod
    def load_part(self, part: Part, weights: Tensors) -> None:
        """Loads the weights of a part. All passes that follow have them, also the backward passes of micro-batches that were
        forwarded with others."""

    @abstractmethod
    def forward(self, part: Part, micro_batch: int, examples: int, input: Array | None) -> Array | float:
        """Computes a micro-batch.

        Args:
            part: where.
            micro_batch: number of the micro-batch in the round. They come in order.
            examples: how many it has.
            input: output of the part before; the first part draws its examples.

        Returns:
            The output; of the last part the mean loss.
        """

    @abstractmethod
    def backward(self, part: Part, micro_batch: int, slope: Array | None) -> tuple[Tensors, Array | None]:
        """Computes the gradients of the mean loss of a micro-batch that was forwarded, given the gradient of its output; the last
        part knows the latter. Micro-batches come in the order in which they were forwarded.

        Returns:
            The gradients of the part's tensors, and of its input; none of the first part's.
        """


class StageServer:
    """Answers the requests for parts."""

    def __init__(self, stages: Stages, file: Callable[[dict[str, Any], str], Path]) -> None:
        """
        Args:
            stages: what computes.
            file: the path that a message names at a key.
        """
        self._stages, self._file = stages, file
        self._outputs: tuple[tuple[int, ...], ...] = ()
        self._tensors: list[dict[str, tuple[int, ...]]] = []
        self._round: StageRound | None = None

    def prepare(self, run: Run, manifest: Manifest) -> dict[str, Any]:
        """What ``prepared`` says besides.

        Raises:
            TensorError: the modules do not have all tensors.
        """
        counts, shapes = [int(count) for count in self._stages.module_tensors()], list(manifest.shapes.items())
        if sum(counts) != len(shapes):
            raise TensorError(f"the modules have {sum(counts)} tensors, tensors() said {len(shapes)}")
        self._tensors = [dict(shapes[sum(counts[:at]) : sum(counts[: at + 1])]) for at in range(len(counts))]
        rows = run.model.get("modules") or []
        self._outputs = tuple(tuple(int(extent) for extent in row["output"]) for row in rows)
        return {"modules": counts}

    def begin(self, request: int, message: dict[str, Any]) -> dict[str, Any]:
        """Answers ``stages``."""
        self._round = None
        round = StageRound.parse(message, self._outputs)
        self._stages.begin(round)
        self._round = round
        return {"type": "stages"}

    def weights(self, request: int, message: dict[str, Any]) -> dict[str, Any]:
        """Answers ``weights``."""
        _, part = self._part(message)
        self._stages.load_part(part, self._weights(part).read(self._file(message, "weights")))
        return {"type": "weights"}

    def forward(self, request: int, message: dict[str, Any]) -> dict[str, Any]:
        """Answers ``forward``."""
        round, part = self._part(message)
        micro_batch, examples = (whole_number(message, key, "forward", least) for key, least in (("micro_batch", 0), ("examples", 1)))
        input = None
        if part.first > 0:
            input = read_only(self._file(message, "input"), ACTIVATIONS)
            if input.shape != (expected := (examples, *round.outputs[part.first - 1])):
                raise TensorError(f"activations of the shape {list(input.shape)} from the agent, expected {list(expected)}")
        output = self._stages.forward(part, micro_batch, examples, input)
        if isinstance(output, float):
            return {"type": "forward", "loss": number(output)}
        shape = (examples, *round.outputs[part.end - 1])
        _write(shape, output, self._file(message, "out"), "the output of forward()")
        return {"type": "forward"}

    def backward(self, request: int, message: dict[str, Any]) -> dict[str, Any]:
        """Answers ``backward``."""
        round, part = self._part(message)
        slope = None
        if part.end < len(round.outputs):
            slope = read_only(self._file(message, "slope"), ACTIVATIONS)
        gradients, of_input = self._stages.backward(part, whole_number(message, "micro_batch", "backward"), slope)
        # Where training diverges, the owner of the round sees it by the loss.
        self._weights(part).write(gradients, self._file(message, "out"), "the gradients of backward()", finite=False)
        if part.first > 0:
            if of_input is None:
                raise TensorError(f"backward() returned no gradient of the input of part {part.part}")
            shape = (len(of_input), *round.outputs[part.first - 1])
            _write(shape, of_input, self._file(message, "of_input"), "the gradient of the input")
        return {"type": "backward"}

    def _part(self, message: dict[str, Any]) -> tuple[StageRound, Part]:
        asked = whole_number(message, "part", message["type"])
        found = [part for part in self._round.parts if part.part == asked] if self._round is not None else []
        if self._round is None or not found:
            raise ProtocolError(f"the agent asks for part {asked}, which no `stages` has named")
        return self._round, found[0]

    def _weights(self, part: Part) -> Manifest:
        tensors: dict[str, tuple[int, ...]] = {}
        for own in self._tensors[part.first : part.end]:
            tensors.update(own)
        return Manifest(tensors)


def _write(shape: tuple[int, ...], values: Array, path: Path, source: str) -> None:
    Manifest({ACTIVATIONS: shape}).write({ACTIVATIONS: values}, path, source, finite=False)
