"""What a run asks of a trainer, and what a trainer answers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .errors import ProtocolError


def _section(value: object, what: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ProtocolError(f"{what} is {value!r}, expected an object")
    return value


def _number(section: Mapping[str, Any], key: str, what: str, default: float | None = None) -> float:
    value = section.get(key, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ProtocolError(f"{what}.{key} is {value!r}, expected a number")
    return float(value)


def whole_number(section: Mapping[str, Any], key: str, what: str, least: int = 0) -> int:
    """The integer at ``key``.

    Raises:
        ProtocolError: there is none, or one below ``least``.
    """
    value = section.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ProtocolError(f"{what}.{key} is {value!r}, expected an integer from {least}")
    return value


@dataclass(frozen=True)
class Optimizer:
    """``train.optimizer`` of ``run.toml``. Keys that the kind does not have keep their default."""

    kind: str
    """``"sgd"`` (heavy ball, in PyTorch's form) or ``"adamw"`` (Loshchilov and Hutter 2019, eta = 1)."""
    lr: float
    """Learning rate."""
    momentum: float = 0.0
    """Of SGD, in [0, 1)."""
    weight_decay: float = 0.0
    """Of AdamW."""
    beta_1: float = 0.9
    """Decay of AdamW's first moment."""
    beta_2: float = 0.999
    """Decay of AdamW's second moment."""

    @classmethod
    def parse(cls, value: object) -> Optimizer:
        """From the protocol's JSON.

        Raises:
            ProtocolError: a key is missing or of another type.
        """
        section = _section(value, "plan.optimizer")
        kind = section.get("kind")
        if not isinstance(kind, str):
            raise ProtocolError(f"plan.optimizer.kind is {kind!r}, expected a string")

        def number(key: str, default: float | None = None) -> float:
            return _number(section, key, "plan.optimizer", default)

        betas = number("beta_1", 0.9), number("beta_2", 0.999)
        return cls(kind.lower(), number("lr"), number("momentum", 0.0), number("weight_decay", 0.0), *betas)


@dataclass(frozen=True)
class Plan:
    """Local training in one round: ``[train]`` of ``run.toml``, or what the round's lease says instead."""

    local_steps: int
    """Optimizer steps in a round."""
    batch_size: int
    """Examples in a step."""
    optimizer: Optimizer
    """The optimizer."""
    keep_optimizer_state: bool = False
    """Keep momentum and the like from one round to the next."""
    proximal_mu: float = 0.0
    """FedProx: add ``proximal_mu * (w - w_base)`` to each gradient. Above 0 only for a trainer that has ``proximal``."""

    @classmethod
    def parse(cls, value: object) -> Plan:
        """From the protocol's JSON.

        Raises:
            ProtocolError: a key is missing or of another type.
        """
        section = _section(value, "plan")
        steps, batch = (whole_number(section, key, "plan", 1) for key in ("local_steps", "batch_size"))
        keep = section.get("keep_optimizer_state", False) is True
        mu = _number(section, "proximal_mu", "plan", 0.0)
        return cls(steps, batch, Optimizer.parse(section.get("optimizer")), keep, mu)


@dataclass(frozen=True)
class RoundContext:
    """Where in the run a round is."""

    version: int
    """The model version that is trained from."""
    number: int
    """Number of the round among those of its agent, from 0."""
    progress: float | None = None
    """How far the run is, in [0, 1]; ``None`` in a run without ``target.versions``."""
    lr_factor: float = 1.0
    """What the schedule has multiplied the learning rate with, in [0, 1]."""

    @classmethod
    def parse(cls, message: Mapping[str, Any]) -> RoundContext:
        """From the protocol's ``train`` message.

        Raises:
            ProtocolError: a key is missing or of another type.
        """
        progress = None if message.get("progress") is None else _number(message, "progress", "train")
        version, number = (whole_number(message, key, "train") for key in ("version", "number"))
        return cls(version, number, progress, _number(message, "lr_factor", "train"))


@dataclass(frozen=True)
class Run:
    """What ``prepare`` says of the run."""

    name: str
    """For people."""
    seed: int
    """``run.seed``."""
    model: Mapping[str, Any] = field(default_factory=dict)
    """``[model]`` of ``run.toml`` as it stands. A trainer with a model of its own may ignore it."""
    train: Plan | None = None
    """``[train]`` of ``run.toml``. Every round brings a plan of its own."""

    @classmethod
    def parse(cls, value: object) -> Run:
        """From the protocol's JSON.

        Raises:
            ProtocolError: a section is missing or of another type.
        """
        section = _section(value, "run")
        train = section.get("train")
        return cls(
            str(section.get("name", "")),
            whole_number(section, "seed", "run") if "seed" in section else 0,
            _section(section.get("model", {}), "run.model"),
            None if train is None else Plan.parse(train),
        )


@dataclass(frozen=True)
class Metrics:
    """How good a model is on the evaluation data."""

    accuracy: float
    """Share of right answers, in [0, 1]; 0 where accuracy has no meaning."""
    loss: float
    """Mean loss, in nats."""
    num_examples: int
    """Examples it was measured on, at least 1."""
