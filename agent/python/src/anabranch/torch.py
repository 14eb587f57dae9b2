"""PyTorch: an ordinary training loop made federated.

| tensor of ``model.state_dict()`` | what becomes of it |
|---|---|
| float parameter or float buffer (BatchNorm's ``running_mean``, ``running_var``) | in the manifest, averaged |
| half, bfloat16 or double | the same, as float32; what training changed is added to the float32 base, so that rounding the base to the model's type is not taken for training |
| integer or boolean buffer (``num_batches_tracked``) | stays in this process |
| the same tensor under two names (tied weights) | once, under the first name |
| buffer with ``persistent=False``, extra state that is no tensor | not in the state dict: stays in this process |

The manifest has the order of the state dict. A ``running_var`` that merging brought below zero is read as zero.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Union

import numpy as np

try:
    import torch
    from torch.utils.data import DataLoader
except ImportError as _error:
    raise ImportError(f"anabranch.torch needs PyTorch ({_error}); install it with: pip install torch") from _error

from ._serve import Round, Trainer, serve
from ._tensors import Tensors
from .environment import threads
from .errors import Fatal, TensorError
from .spec import Metrics, Optimizer, Plan

__all__ = ["TorchRound", "run"]

EvalResult = Union[Metrics, Mapping[str, Any], Sequence[Any]]
"""What an ``eval_fn`` may return."""


def run(
    model: torch.nn.Module,
    train_fn: Callable[[Any, TorchRound], object] | None,
    eval_fn: Callable[[Any], EvalResult] | None = None,
    *,
    train_examples: int,
    eval_examples: int = 0,
    init: Callable[[], torch.nn.Module] | None = None,
) -> None:
    """Trains ``model`` under an agent until the agent leaves.

    Args:
        model: on the device to train on. Its tensors are overwritten at the start of every round.
        train_fn: ``train_fn(model, round)`` trains in place: ``round.optimizer(model)``, ``round.batches(data)``,
            ``round.step(loss, examples)``. The model is in training mode.
        eval_fn: ``eval_fn(model)`` gives a ``Metrics``, a mapping with ``accuracy``, ``loss`` and ``num_examples``, or
            the three in this order; another key is an error. Called in evaluation mode and without gradients.
            ``num_examples`` defaults to ``eval_examples``. A mapping without ``accuracy`` is for models for which
            accuracy has no meaning: it counts as 0, so such a run needs ``target.loss``.
        train_examples: examples to train on; 0 where this agent only evaluates.
        eval_examples: examples to evaluate on; 0 where this agent does not (``eval_fn`` is then not called).
        init: makes a fresh model; called with PyTorch, numpy and ``random`` seeded where this agent begins the run.
            Without it, ``reset_parameters()`` of every module of ``model`` is called in the same way.

    Raises:
        TensorError: the model has no float tensor, or one that cannot be averaged.
        ValueError: ``train_examples`` without ``train_fn``, or ``eval_examples`` without ``eval_fn``.
    """
    if train_examples > 0 and train_fn is None:
        raise ValueError(f"train_examples is {train_examples}, but there is no train_fn")
    if eval_examples > 0 and eval_fn is None:
        raise ValueError(f"eval_examples is {eval_examples}, but there is no eval_fn")
    count = threads()
    if count is not None:
        torch.set_num_threads(count)
    trainer = _TorchTrainer(model, train_fn, eval_fn, init)
    trainer.train_examples, trainer.eval_examples = train_examples, eval_examples
    serve(trainer)


class TorchRound:
    """One round of training, as ``train_fn`` sees it. PyTorch, numpy and ``random`` are seeded from ``seed``."""

    def __init__(self, round: Round, trainer: _TorchTrainer) -> None:
        self._round, self._trainer = round, trainer
        self.plan: Plan = round.plan
        """``local_steps``, ``batch_size``, ``optimizer``."""
        self.micro_batch: int = round.micro_batch
        """Examples to compute at once, at most ``plan.batch_size``; less after rounds that ran out of memory."""
        self.seed: int = round.seed
        """Decides which examples are drawn; an unsigned 64-bit integer."""
        self.device: torch.device = trainer.device
        """Where the model is."""

    @property
    def stopped(self) -> bool:
        """Whether the agent asked to stop. A loop over ``batches`` need not look."""
        return self._round.stopped

    def optimizer(self, model: torch.nn.Module | Iterable[Any]) -> torch.optim.Optimizer:
        """The run's optimizer, SGD or AdamW, over the parameters of ``model`` (or those given) that need a gradient.

        With ``plan.keep_optimizer_state`` it is that of the round before, state included, while neither the run's
        optimizer nor the parameters have changed.

        Raises:
            ValueError: the run has an optimizer of another kind, or nothing needs a gradient.
        """
        given = model.parameters() if isinstance(model, torch.nn.Module) else model
        params = [param for param in given if param.requires_grad]
        if not params:
            raise ValueError("no parameter of the model needs a gradient (requires_grad)")
        return self._trainer.optimizer(self.plan, params)

    def batches(self, data: Any, *, num_workers: int = 0, collate_fn: Callable[[list[Any]], Any] | None = None) -> Iterator[Any]:
        """Exactly ``plan.local_steps`` batches of ``plan.batch_size`` examples, on the model's device; fewer where the
        agent asks to stop: then the loop simply ends.

        Examples come in random order, each once before any comes again, drawn with ``seed`` alone: the same seed and
        data give the same batches, whatever else draws random numbers.

        Args:
            data: a tensor, or a tuple of tensors of equal length (a batch is then a tuple of them), or a map-style
                ``Dataset`` (a batch is then what ``collate_fn`` makes of its examples).
            num_workers: processes that load examples of a ``Dataset``.
            collate_fn: puts examples of a ``Dataset`` together; PyTorch's own by default.

        Raises:
            ValueError: there is no example, or tensors differ in length.
        """
        tensors = [data] if isinstance(data, torch.Tensor) else data
        are_tensors = isinstance(tensors, (tuple, list)) and all(isinstance(part, torch.Tensor) for part in tensors)
        lengths = {len(part) for part in tensors} if are_tensors else {len(data)}
        if len(lengths) != 1 or 0 in lengths:
            raise ValueError(f"batches() was given data of the lengths {sorted(lengths)}, expected one above 0")
        generator = torch.Generator().manual_seed(self.seed)
        draws = self._draws(lengths.pop(), generator)
        if not are_tensors:
            options: dict[str, Any] = {"num_workers": num_workers, "collate_fn": collate_fn}
            indices = [batch.tolist() for batch in draws]
            loader = DataLoader(data, batch_sampler=indices, generator=generator, **options)
            return self._until_stopped(_to(batch, self.device) for batch in loader)
        parts = ([part[batch.to(part.device)].to(self.device) for part in tensors] for batch in draws)
        return self._until_stopped(part[0] if isinstance(data, torch.Tensor) else tuple(part) for part in parts)

    def step(self, loss: Any, examples: int) -> None:
        """Reports an optimizer step; see ``Round.step``.

        Args:
            loss: mean loss over the batch, a number or a tensor with one.
            examples: examples in the batch.
        """
        self._round.step(float(loss), examples)

    def _draws(self, length: int, generator: torch.Generator) -> Iterator[torch.Tensor]:
        pool = torch.randperm(length, generator=generator)
        for _ in range(self.plan.local_steps):
            while len(pool) < self.plan.batch_size:
                pool = torch.cat([pool, torch.randperm(length, generator=generator)])
            yield pool[: self.plan.batch_size]
            pool = pool[self.plan.batch_size :]

    def _until_stopped(self, batches: Iterator[Any]) -> Iterator[Any]:
        while not self.stopped:
            try:
                batch = next(batches)
            except StopIteration:
                return
            yield batch


class _TorchTrainer(Trainer):
    def __init__(
        self,
        model: torch.nn.Module,
        train_fn: Callable[[Any, TorchRound], object] | None,
        eval_fn: Callable[[Any], EvalResult] | None,
        init: Callable[[], torch.nn.Module] | None,
    ) -> None:
        self._model, self._train_fn, self._eval_fn, self._init = model, train_fn, eval_fn, init
        self._shared = _shared_tensors(model)
        self._optimizer: tuple[Optimizer, list[int], torch.optim.Optimizer] | None = None

    @property
    def device(self) -> torch.device:
        return next(iter(self._shared.values())).device

    def tensors(self) -> Mapping[str, Sequence[int]]:
        return {name: tuple(tensor.shape) for name, tensor in self._shared.items()}

    def initial(self, seed: int) -> Tensors:
        _seed_all(seed)
        if self._init is not None:
            fresh = _shared_tensors(self._init())
            return {name: _as_f32(tensor) for name, tensor in fresh.items()}
        kept = _reset(_unwrapped(self._model))
        if kept:
            names = ", ".join(kept[:6]) + (", ..." if len(kept) > 6 else "")
            hint = "keep the values they were made with, whatever the seed: pass init= to anabranch.torch.run"
            print(f"anabranch: modules without reset_parameters() {hint} ({names})", file=sys.stderr)
        return {name: _as_f32(tensor) for name, tensor in self._shared.items()}

    def train(self, base: Tensors, plan: Plan, round: Round) -> Tensors:
        assert self._train_fn is not None, "checked by run()"
        started = self._load(base)
        _seed_all(round.seed)
        self._model.train()
        try:
            self._guarded(lambda: self._train_fn and self._train_fn(self._model, TorchRound(round, self)))
        except Exception:
            # The state may hold what broke this round: the next one begins without.
            self._optimizer = None
            raise
        end = {}
        for name, tensor in self._shared.items():
            values = _as_f32(tensor)
            end[name] = np.asarray(base[name] + (values - started[name])) if name in started else values
        return end

    def evaluate(self, model: Tensors) -> Metrics:
        assert self._eval_fn is not None, "checked by run()"
        self._load(model)
        self._model.eval()
        with torch.no_grad():
            found = self._guarded(lambda: self._eval_fn and self._eval_fn(self._model))
        return _metrics(found, self.eval_examples)

    def optimizer(self, plan: Plan, params: list[Any]) -> torch.optim.Optimizer:
        same = [id(param) for param in params]
        if plan.keep_optimizer_state and self._optimizer is not None and self._optimizer[:2] == (plan.optimizer, same):
            return self._optimizer[2]
        made = _make_optimizer(plan.optimizer, params)
        self._optimizer = (plan.optimizer, same, made)
        return made

    def _load(self, tensors: Tensors) -> dict[str, Any]:
        """Copies into the model; gives what the tensors of another type than float32 hold after that."""
        variances = _variances(_unwrapped(self._model))
        rounded = {}
        with torch.no_grad():
            for name, target in self._shared.items():
                target.copy_(torch.from_numpy(tensors[name]))
                if id(target) in variances:
                    target.clamp_(min=0.0)
                target.grad = None
                if target.dtype != torch.float32:
                    rounded[name] = _as_f32(target)
        return rounded

    def _guarded(self, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except RuntimeError as error:
            # After such an error every later call on the device fails too; running out of memory is another matter.
            if type(error).__name__ == "AcceleratorError" or str(error).startswith(("CUDA error", "HIP error")):
                raise Fatal("the device no longer works in this process") from error
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            raise


def _unwrapped(model: torch.nn.Module) -> Any:
    """The module inside ``torch.compile``'s, whose state dict has other names."""
    return getattr(model, "_orig_mod", model)


def _shared_tensors(model: torch.nn.Module) -> dict[str, Any]:
    """The tensors of the manifest: every float tensor of the state dict, once."""
    found: dict[str, Any] = {}
    seen: set[object] = set()
    for name, tensor in _unwrapped(model).state_dict(keep_vars=True).items():
        if not isinstance(tensor, torch.Tensor):
            continue
        if isinstance(tensor, torch.nn.parameter.UninitializedTensorMixin):
            raise TensorError(f"{name} has no shape yet: pass a batch through the lazy model before anabranch.torch.run")
        if tensor.is_complex():
            raise TensorError(f"{name} is complex, which cannot be averaged: keep it as two real tensors")
        if not tensor.is_floating_point() or tensor.numel() == 0:
            continue
        place = (tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype)
        if id(tensor) in seen or place in seen:
            continue
        seen.update((id(tensor), place))
        found[name] = tensor
    if not found:
        raise TensorError("the model has no float tensor in its state dict: there is nothing to train together")
    return found


def _variances(model: Any) -> set[int]:
    return {id(module.running_var) for module in model.modules() if getattr(module, "running_var", None) is not None}


def _as_f32(tensor: Any) -> Any:
    return tensor.detach().to(device="cpu", dtype=torch.float32, copy=True).contiguous().numpy()


def _seed_all(seed: int) -> None:
    torch.manual_seed(seed)
    np.random.seed(seed & 0xFFFF_FFFF)
    random.seed(seed)


def _reset(model: Any) -> list[str]:
    """Draws every module's parameters again, children first as at construction; gives those that cannot be."""
    kept: list[str] = []
    names = {id(module): name for name, module in model.named_modules()}

    def reset(module: Any) -> None:
        again = getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
        if callable(again):
            again()
        elif next(module.parameters(recurse=False), None) is not None:
            kept.append(names[id(module)] or type(module).__name__)

    with torch.no_grad():
        model.apply(reset)
    return kept


def _make_optimizer(spec: Optimizer, params: list[Any]) -> Any:
    if spec.kind == "sgd":
        return torch.optim.SGD(params, lr=spec.lr, momentum=spec.momentum)
    if spec.kind == "adamw":
        betas = (spec.beta_1, spec.beta_2)
        return torch.optim.AdamW(params, lr=spec.lr, betas=betas, weight_decay=spec.weight_decay, eps=1e-8)
    raise ValueError(f"the run's optimizer is {spec.kind!r}, this package has sgd and adamw: build it from round.plan")


def _metrics(found: Any, eval_examples: int) -> Metrics:
    if isinstance(found, Metrics):
        return found
    keys = ("accuracy", "loss", "num_examples")
    if isinstance(found, Mapping):
        values = dict(found)
    elif isinstance(found, (tuple, list)) and 2 <= len(found) <= 3:
        values = dict(zip(keys, found))
    else:
        kind = type(found).__name__
        raise TypeError(f"eval_fn returned a {kind}, expected Metrics, a mapping or a tuple (accuracy, loss, num_examples)")
    if unknown := [str(key) for key in values if key not in keys]:
        raise TypeError(f"eval_fn returned unknown {', '.join(unknown)}; the keys are {', '.join(keys)}")
    if "loss" not in values:
        raise TypeError(f"eval_fn returned no loss (it has {', '.join(map(str, values))})")
    examples = int(values.get("num_examples", eval_examples))
    return Metrics(float(values.get("accuracy", 0.0)), float(values["loss"]), examples)


def _to(value: Any, device: torch.device) -> Any:
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, Mapping):
        return {key: _to(part, device) for key, part in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_to(part, device) for part in value))
    if isinstance(value, (tuple, list)):
        return type(value)(_to(part, device) for part in value)
    return value
