"""Trainers in numpy terms, and the loop that answers the agent."""

from __future__ import annotations

import math
import os
import sys
import time
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from ._stages import Stages, StageServer
from ._tensors import Manifest, Tensors
from ._wire import EXIT_MISUSE, STEP_S, Wire, exit_with, number
from .errors import Diverged, Fatal, ProtocolError, Stopped, TensorError
from .spec import Metrics, Plan, RoundContext, Run, whole_number

PROTOCOL = 1
"""The protocol version that this package speaks."""
_MESSAGE_CHARS = 4000


class Round:
    """One round of training, as ``Trainer.train`` sees it."""

    def __init__(self, plan: Plan, seed: int, wire: Wire, request: int, context: RoundContext) -> None:
        self.plan = plan
        """What to do. ``plan.optimizer.lr`` is the learning rate of this round: ``[train.schedule]`` is in it."""
        self.version = context.version
        """The model version that ``base`` is."""
        self.number = context.number
        """Number of this round among those of this agent, from 0: the leases that the agent was granted before in this run,
        those that came to nothing included. A restart does not change it."""
        self.progress = context.progress
        """How far the run is, in [0, 1]: ``version`` over ``target.versions`` of ``run.toml``. ``None`` without that target."""
        self.lr_factor = context.lr_factor
        """What ``[train.schedule]`` has multiplied ``plan.optimizer.lr`` with, in [0, 1]; 1 without a schedule."""
        self.micro_batch = plan.batch_size
        """Examples to compute at once: the batch, or less after rounds that ran out of memory. Sum the gradients of a batch's
        parts, each weighted by its share, before the optimizer's step."""
        self.seed = seed
        """Decides which examples are drawn; an unsigned 64-bit integer."""
        self.steps = 0
        """Steps reported so far."""
        self.examples = 0
        """Examples in them, repetitions counted."""
        self._wire, self._request = wire, request
        self._loss_sum, self._last_loss = 0.0, 0.0
        self._sent_at, self._sent_steps = -math.inf, 0
        self._looks = False

    @property
    def stopped(self) -> bool:
        """Whether the agent asked to stop. Look before each step, and return from ``train`` when it is true."""
        self._looks = True
        return self._wire.is_stopped(self._request)

    @property
    def mean_loss(self) -> float:
        """Mean of the steps' losses; 0 before the first."""
        return self._loss_sum / self.steps if self.steps else 0.0

    def step(self, loss: float, examples: int) -> None:
        """Reports an optimizer step.

        Args:
            loss: mean loss over the step's batch.
            examples: examples in the batch, at least 1.

        Raises:
            Diverged: the loss is not finite.
            Stopped: the agent asked to stop, and this loop has never looked at ``stopped``.
            ValueError: more steps than ``plan.local_steps``, or no examples.
        """
        loss, examples = float(loss), int(examples)
        if self.steps >= self.plan.local_steps:
            raise ValueError(f"step {self.steps + 1} of a round of {self.plan.local_steps} (plan.local_steps)")
        if examples < 1:
            raise ValueError(f"a step of {examples} examples, expected at least 1")
        self.steps += 1
        self.examples += examples
        if not math.isfinite(loss):
            raise Diverged(f"the loss is {number(loss)} at step {self.steps}")
        self._loss_sum += loss
        self._last_loss = loss
        if self.steps in (1, self.plan.local_steps) or time.monotonic() - self._sent_at >= STEP_S:
            self._report()
        if not self._looks and self._wire.is_stopped(self._request):
            raise Stopped("the agent asked to stop")

    def _report(self) -> None:
        """Tells of all steps so far, unless that was said already."""
        if self.steps > self._sent_steps:
            self._sent_at, self._sent_steps = time.monotonic(), self.steps
            message = {"type": "step", "id": self._request, "step": self.steps, "examples": self.examples}
            self._wire.send({**message, "loss": number(self._last_loss)})


class Trainer(ABC):
    """Trains and judges a model. Called from one thread at a time; an exception costs the round, not the process.

    Tensors are float32 numpy arrays by name. Load the data before ``serve``: the agent waits 120 s for it.
    """

    train_examples: int = 0
    """Examples to train on; 0 for a trainer that only evaluates."""
    eval_examples: int = 0
    """Examples to evaluate on; 0 for a trainer that does not."""
    proximal: bool = False
    """Whether ``train`` adds ``plan.proximal_mu * (w - w_base)`` to each gradient. Without it the agent refuses to train for a
    run with ``merge.strategy = "fedprox"``."""

    def prepare(self, run: Run) -> None:
        """What the run is about, before everything else. A trainer with a model of its own may ignore it."""

    @abstractmethod
    def tensors(self) -> Mapping[str, Sequence[int]]:
        """Names and shapes, in the order in which they lie in the run's flat vector. A scalar has the shape ``()``."""

    @abstractmethod
    def initial(self, seed: int) -> Tensors:
        """Returns the model before any training: the same bits for the same seed, or a model of its own, such as a
        pretrained one. Only the agent that begins the run is asked."""

    @abstractmethod
    def train(self, base: Tensors, plan: Plan, round: Round) -> Tensors:
        """Takes ``plan.local_steps`` steps from ``base``, calls ``round.step`` after each, and returns the model.

        The arrays of ``base`` are the trainer's own: it may train in place. After a stop, what it returns is not read.
        """

    def evaluate(self, model: Tensors) -> Metrics:
        """How good ``model`` is on the evaluation data; called only where ``eval_examples`` is above 0."""
        raise NotImplementedError("this trainer has eval_examples but no evaluate()")


def serve(trainer: Trainer) -> None:
    """Answers the agent until it leaves. Returns when the agent ends in order; when it is gone the process ends at once.

    Standard output belongs to the protocol from here on: what is printed goes to standard error, and that to the
    agent's log. Started without an agent, the process says so and ends with exit code 2.
    """
    _Server(trainer).run()


class _Server:
    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self._wire = Wire()
        self._dir = Path()
        self._manifest: Manifest | None = None
        self._stages = StageServer(trainer, self._file) if isinstance(trainer, Stages) else None

    def run(self) -> None:
        self._hello(self._wire.hello())
        self._wire.start()
        while (message := self._wire.receive())["type"] != "exit":
            self._answer(message)

    def _hello(self, message: dict[str, Any]) -> None:
        low, high = message.get("min_protocol"), message.get("max_protocol")
        if not isinstance(low, int) or not isinstance(high, int) or not low <= PROTOCOL <= high:
            versions = f"the agent speaks trainer protocol {low} to {high}, this package {PROTOCOL}"
            exit_with(EXIT_MISUSE, f"{versions}: install the `anabranch` package of the agent's release")
        if not isinstance(message.get("dir"), str) or not os.path.isdir(message["dir"]):
            exit_with(EXIT_MISUSE, f"the agent's directory for tensors, {message.get('dir')!r}, does not exist")
        self._dir = Path(message["dir"])
        counts = int(self._trainer.train_examples), int(self._trainer.eval_examples)
        if min(counts) < 0 or (max(counts) == 0 and self._stages is None):
            what = f"train_examples is {counts[0]} and eval_examples {counts[1]}"
            exit_with(EXIT_MISUSE, f"{what}: a trainer needs examples to train on, to evaluate on, or both")
        name = os.path.basename(sys.argv[0] if sys.argv else "") or "python"
        answer = {"type": "hello", "protocol": PROTOCOL, "name": name[:64]}
        stages = {} if self._stages is None else {"stages": True}
        self._wire.send({**answer, "train_examples": counts[0], "eval_examples": counts[1], **stages})

    def _answer(self, message: dict[str, Any]) -> None:
        handlers: dict[str, Callable[[int, dict[str, Any]], dict[str, Any]]] = {
            "prepare": self._prepare,
            "initial": self._initial,
            "train": self._train,
            "evaluate": self._evaluate,
        }
        if (stages := self._stages) is not None:
            parts = {"stages": stages.begin, "weights": stages.weights, "forward": stages.forward, "backward": stages.backward}
            handlers.update(parts)
        kind, request = message["type"], message["id"]
        handler = handlers.get(kind)
        if handler is None:
            exit_with(3, f"the agent sent a message of type {kind!r}, which trainer protocol {PROTOCOL} does not have")
        try:
            answer = handler(request, message)
        except (Fatal, MemoryError):
            _end_with_traceback()
        except Diverged as error:
            answer = _failed("diverged", str(error))
        except Exception as error:
            traceback.print_exc()
            # PyTorch's torch.OutOfMemoryError of a GPU, without importing PyTorch.
            kind = "memory" if type(error).__name__ == "OutOfMemoryError" else "error"
            answer = _failed(kind, f"{type(error).__name__}: {error}")
        self._wire.answered()
        self._send(request, answer)

    def _send(self, request: int, answer: dict[str, Any]) -> None:
        try:
            self._wire.send({"type": answer.pop("type"), "id": request, **answer})
        except ProtocolError as error:
            failed = _failed("error", f"names and shapes of the model's tensors are too long: {error}; shorten the names")
            self._wire.send({"type": failed.pop("type"), "id": request, **failed})

    def _prepare(self, request: int, message: dict[str, Any]) -> dict[str, Any]:
        run = Run.parse(message.get("run"))
        self._trainer.prepare(run)
        self._manifest = Manifest(self._trainer.tensors())
        proximal = {"proximal": True} if self._trainer.proximal else {}
        modules = {} if self._stages is None else self._stages.prepare(run, self._manifest)
        return {"type": "prepared", "tensors": self._manifest.describe(), **proximal, **modules}

    def _initial(self, request: int, message: dict[str, Any]) -> dict[str, Any]:
        manifest, out = self._ready(), self._file(message, "out")
        made = self._trainer.initial(whole_number(message, "seed", "initial"))
        try:
            manifest.write(made, out, "the result of initial()")
        except Diverged as error:
            # Nothing has trained yet.
            raise TensorError(f"the initial model is unusable: {error}") from error
        return {"type": "initial"}

    def _train(self, request: int, message: dict[str, Any]) -> dict[str, Any]:
        manifest, out = self._ready(), self._file(message, "out")
        plan = Plan.parse(message.get("plan"))
        seed = whole_number(message, "seed", "train")
        round = Round(plan, seed, self._wire, request, RoundContext.parse(message))
        if message.get("max_micro_batch") is not None:
            round.micro_batch = min(plan.batch_size, whole_number(message, "max_micro_batch", "train", 1))
        end: Tensors | None = None
        try:
            end = self._trainer.train(manifest.read(self._file(message, "base")), plan, round)
        except Stopped:
            pass
        # A stop that came with the last step changes nothing: the round is done.
        stopped = self._wire.is_stopped(request) and (end is None or round.steps < plan.local_steps)
        if not stopped:
            if end is None:
                raise RuntimeError("train() raised Stopped or returned None, but the agent asked for no stop")
            if round.steps == 0:
                raise RuntimeError("train() reported no step: call round.step(loss, examples) after each optimizer step")
            manifest.write(end, out, "the result of train()")
        round._report()
        counts = {"steps": round.steps, "num_examples": round.examples, "mean_loss": number(round.mean_loss)}
        return {"type": "trained", **counts, "stopped": stopped}

    def _evaluate(self, request: int, message: dict[str, Any]) -> dict[str, Any]:
        metrics = self._trainer.evaluate(self._ready().read(self._file(message, "model")))
        if missing := [key for key in ("accuracy", "loss", "num_examples") if not hasattr(metrics, key)]:
            what = f"a {type(metrics).__name__} without {', '.join(missing)}"
            raise TypeError(f"evaluate() returned {what}, expected anabranch.Metrics(accuracy, loss, num_examples)")
        accuracy, loss, examples = float(metrics.accuracy), float(metrics.loss), int(metrics.num_examples)
        if not math.isfinite(loss) or not math.isfinite(accuracy):
            raise Diverged(f"evaluation gave the loss {number(loss)} and the accuracy {number(accuracy)}")
        if not 0.0 <= accuracy <= 1.0 or examples < 1:
            expected = "expected an accuracy in [0, 1] and at least one example"
            raise ValueError(f"evaluate() gave the accuracy {accuracy} over {examples} examples, {expected}")
        return {"type": "evaluated", "accuracy": accuracy, "loss": loss, "num_examples": examples}

    def _ready(self) -> Manifest:
        if self._manifest is None:
            raise ProtocolError("the agent sent no `prepare`, or it failed")
        return self._manifest

    def _file(self, message: dict[str, Any], key: str) -> Path:
        name = message.get(key)
        if not isinstance(name, str) or name in ("", ".", "..") or "/" in name or "\0" in name:
            raise ProtocolError(f"the agent's {key} is {name!r}, expected the name of a file in its directory")
        return self._dir / name


def _failed(kind: str, message: str) -> dict[str, Any]:
    return {"type": "failed", "kind": kind, "message": message[:_MESSAGE_CHARS]}


def _end_with_traceback() -> NoReturn:
    traceback.print_exc()
    sys.stderr.flush()
    os._exit(1)
