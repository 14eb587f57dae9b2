"""PyTorch: an ordinary training loop made federated.

| tensor of ``model.state_dict()`` | what becomes of it |
|---|---|
| float parameter or float buffer (BatchNorm's ``running_mean``, ``running_var``) | in the manifest, averaged |
| half, bfloat16 or double | the same, as float32; what training changed is added to the float32 base, so that rounding the base to the model's type is not taken for training |
| integer or boolean buffer (``num_batches_tracked``) | stays in this process |
| buffer or frozen parameter that ``local`` names | stays in this process, as the model made it |
| the same tensor under two names (tied weights) | once, under the first name |
| buffer with ``persistent=False``, extra state that is no tensor | not in the state dict: stays in this process |

The manifest has the order of the state dict. A ``running_var`` that merging brought below zero is read as zero. Tensors are
read by name after every round, so that a loop may put others in their place; ``torch.compile``'s ``_orig_mod`` and the
``module`` of ``DataParallel`` are no part of a name.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar, Union

import numpy as np

try:
    import torch
    from torch.utils.data import DataLoader
except ImportError as _error:
    raise ImportError(f"anabranch.torch needs PyTorch ({_error}); install it with: pip install torch") from _error

from ._proximal import ProximalTerm
from ._serve import Round, Trainer, serve
from ._tensors import Manifest, Tensors, named
from ._torch_model import SharedModel, Structure, as_f32
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
    local: Sequence[str] = (),
) -> None:
    """Trains ``model`` under an agent until the agent leaves.

    Args:
        model: on the device to train on. Where this agent begins the run, its values are version 0. Its tensors are
            overwritten at the start of every round.
        train_fn: ``train_fn(model, round)`` trains in place: ``round.optimizer(model)``, ``round.batches(data)``,
            ``round.step(loss, examples)``. The whole model is in training mode. Names, shapes and types of its tensors
            have to be the same afterwards.
        eval_fn: ``eval_fn(model)`` gives a ``Metrics``, a mapping with ``accuracy``, ``loss`` and ``num_examples``, or
            the three in this order; another key is an error. Called in evaluation mode and without gradients.
            ``num_examples`` defaults to ``eval_examples``. A mapping without ``accuracy`` is for models for which
            accuracy has no meaning: it counts as 0, so such a run needs ``target.loss``. It has to leave names, shapes,
            types and values of the tensors as they were. Modes, ``requires_grad``, hooks, and the values of integer and
            ``local`` buffers are restored.
        train_examples: examples to train on; 0 where this agent only evaluates.
        eval_examples: examples to evaluate on; 0 where this agent does not (``eval_fn`` is then not called).
        init: makes version 0 in place of ``model``'s values; called with PyTorch, numpy and ``random`` seeded with the
            run's seed where this agent begins the run.
        local: patterns (``fnmatch``) of buffers and frozen parameters that stay in this process, such as a causal mask of
            ``-inf``: ``local=["*.mask"]``.

    Raises:
        TensorError: the model has no float tensor, one that cannot be averaged, or a trained one outside its state dict.
        ValueError: ``train_examples`` without ``train_fn``, ``eval_examples`` without ``eval_fn``, or a pattern of
            ``local`` that fits no tensor.
    """
    if train_examples > 0 and train_fn is None:
        raise ValueError(f"train_examples is {train_examples}, but there is no train_fn")
    if eval_examples > 0 and eval_fn is None:
        raise ValueError(f"eval_examples is {eval_examples}, but there is no eval_fn")
    count = threads()
    if count is not None:
        torch.set_num_threads(count)
    trainer = _TorchTrainer(model, train_fn, eval_fn, init, local)
    trainer.train_examples, trainer.eval_examples = train_examples, eval_examples
    # What the agent would refuse later is said before it waits for anything.
    Manifest(trainer.tensors())
    serve(trainer)


class TorchRound:
    """One round of training, as ``train_fn`` sees it. PyTorch, numpy and ``random`` are seeded from ``seed``."""

    def __init__(self, round: Round, trainer: _TorchTrainer) -> None:
        self._round, self._trainer = round, trainer
        self.plan: Plan = round.plan
        """``local_steps``, ``batch_size``, ``optimizer``."""
        self.micro_batch: int = round.micro_batch
        """Examples to compute at once, at most ``plan.batch_size``; less after rounds that ran out of memory."""
        self.version: int = round.version
        """The model version that this round starts from."""
        self.number: int = round.number
        """Number of this round among those of this agent, from 0; see ``Round.number``."""
        self.progress: float | None = round.progress
        """How far the run is, in [0, 1]; ``None`` in a run without ``target.versions``."""
        self.lr_factor: float = round.lr_factor
        """What ``[train.schedule]`` has multiplied ``plan.optimizer.lr`` with: for an optimizer of your own."""
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

        Its learning rate is that of this round, with ``[train.schedule]`` in it. With ``plan.keep_optimizer_state`` it is
        the optimizer of the round before, state included, while nothing but the rate of the run's optimizer has changed,
        and none of the parameters. In a run with ``merge.strategy = "fedprox"`` its steps add the proximal term.

        Raises:
            ValueError: the run has an optimizer of another kind, or nothing needs a gradient.
        """
        given = model.parameters() if isinstance(model, torch.nn.Module) else model
        params = [param for param in given if param.requires_grad]
        if not params:
            raise ValueError("no parameter of the model needs a gradient (requires_grad)")
        return self.proximal(self._trainer.optimizer(self.plan, params))

    def proximal(self, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        """Returns an optimizer of your own whose steps add the proximal term of ``merge.strategy = "fedprox"``:
        ``plan.proximal_mu * (w - w_base)`` to each gradient. In a run with another strategy its steps stay as they are.

        Raises:
            ValueError: the optimizer has a parameter that the model did not have when the round began.
        """
        if self._trainer.term is not None:
            self._trainer.term.add_to(optimizer)
        return optimizer

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
    proximal = True

    def __init__(
        self,
        model: torch.nn.Module,
        train_fn: Callable[[Any, TorchRound], object] | None,
        eval_fn: Callable[[Any], EvalResult] | None,
        init: Callable[[], torch.nn.Module] | None,
        local: Sequence[str],
    ) -> None:
        self._model, self._train_fn, self._eval_fn, self._init, self._local = model, train_fn, eval_fn, init, local
        self._shared = SharedModel(model, local)
        if init is None:
            self._shared.check_finite()
        self._is_loaded, self._was_told, self._was_told_of_accuracy = False, False, False
        self._optimizer: tuple[Optimizer, list[int], torch.optim.Optimizer] | None = None
        self.term: ProximalTerm | None = None
        """FedProx's term in this round."""

    @property
    def device(self) -> torch.device:
        return self._shared.device

    def tensors(self) -> Mapping[str, Sequence[int]]:
        return self._shared.shapes()

    def initial(self, seed: int) -> Tensors:
        if self._init is not None:
            _seed_all(seed)
            return SharedModel(self._init(), self._local).values()
        if self._is_loaded:
            raise Fatal("the model no longer has the values that it was passed with: a fresh process has to begin the run")
        return self._shared.values()

    def train(self, base: Tensors, plan: Plan, round: Round) -> Tensors:
        started = self._load(base)
        _seed_all(round.seed)
        structure = Structure(self._model)
        self._model.train()
        self.term = ProximalTerm(self._model, plan.proximal_mu) if plan.proximal_mu > 0 else None
        try:
            self._guarded(lambda: self._run_train_fn(round))
            tensors = self._shared.read("train_fn")
            self._shared.check_buffers(tensors)
        except Exception:
            # The state may hold what broke this round: the next one begins without, and with the same modules.
            self._optimizer = None
            structure.restore()
            raise
        finally:
            if self.term is not None:
                self.term.remove()
                self.term = None
        end = {}
        for name, tensor in tensors.items():
            values = as_f32(tensor)
            end[name] = np.asarray(base[name] + (values - started[name])) if name in started else values
        self._tell_if_unchanged(base, end, round)
        return end

    def evaluate(self, model: Tensors) -> Metrics:
        assert self._eval_fn is not None, "checked by run()"
        self._load(model)
        structure, buffers = Structure(self._model), self._shared.local_buffers()
        self._model.eval()
        try:
            with torch.no_grad():
                found = self._guarded(lambda: self._eval_fn and self._eval_fn(self._model))
            changed = self._shared.changed(model)
        finally:
            structure.restore()
            with torch.no_grad():
                for buffer, values in buffers:
                    buffer.copy_(values)
        if changed:
            remedy = "evaluate a copy (copy.deepcopy(model)), or restore what it changes"
            raise TensorError(f"eval_fn changed the values of {named(changed)}: {remedy}")
        self._tell_of_accuracy(found)
        return _metrics(found, self.eval_examples)

    def _run_train_fn(self, round: Round) -> None:
        assert self._train_fn is not None, "checked by run()"
        returned = self._train_fn(self._model, TorchRound(round, self))
        is_other = isinstance(returned, torch.nn.Module) and returned not in (self._model, self._shared.module)
        is_state = isinstance(returned, Mapping) and returned.keys() >= self._shared.shapes().keys()
        if is_other or is_state:
            kind = type(returned).__name__
            raise TypeError(f"train_fn returned a {kind}, which is not read: train the model that it is given, in place")
        if self.term is not None and not self.term.is_added and not round.stopped:
            remedy = "use round.optimizer(model), or round.proximal(optimizer) for one of your own"
            raise ValueError(f"the run has merge.strategy = \"fedprox\", and train_fn did not add its term: {remedy}")

    def _tell_if_unchanged(self, base: Tensors, end: Tensors, round: Round) -> None:
        if self._was_told or round.steps == 0 or any(not np.array_equal(end[name], base[name]) for name in base):
            return
        self._was_told = True
        ask = "does it train the model that it is given, and not a copy?"
        print(f"anabranch: train_fn reported {round.steps} steps and changed no tensor: {ask}", file=sys.stderr)

    def _tell_of_accuracy(self, found: Any) -> None:
        if self._was_told_of_accuracy or not isinstance(found, Mapping) or "accuracy" in found or "loss" not in found:
            return
        self._was_told_of_accuracy = True
        what = "eval_fn returned no accuracy, which counts as 0"
        print(f"anabranch: {what}: a run never reaches target.accuracy, set target.loss instead", file=sys.stderr)

    def _load(self, tensors: Tensors) -> dict[str, Any]:
        self._is_loaded = True
        return self._shared.load(tensors)

    def optimizer(self, plan: Plan, params: list[Any]) -> torch.optim.Optimizer:
        same = [id(param) for param in params]
        if plan.keep_optimizer_state and self._optimizer is not None:
            spec, kept, optimizer = self._optimizer
            if kept == same and replace(spec, lr=plan.optimizer.lr) == plan.optimizer:
                for group in optimizer.param_groups if spec.lr != plan.optimizer.lr else ():
                    group["lr"] = plan.optimizer.lr
                self._optimizer = (plan.optimizer, same, optimizer)
                return optimizer
        made = _make_optimizer(plan.optimizer, params)
        self._optimizer = (plan.optimizer, same, made)
        return made

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


def _seed_all(seed: int) -> None:
    torch.manual_seed(seed)
    np.random.seed(seed & 0xFFFF_FFFF)
    random.seed(seed)


def _make_optimizer(spec: Optimizer, params: list[Any]) -> Any:
    if spec.kind == "sgd":
        return torch.optim.SGD(params, lr=spec.lr, momentum=spec.momentum)
    if spec.kind == "adamw":
        betas = (spec.beta_1, spec.beta_2)
        return torch.optim.AdamW(params, lr=spec.lr, betas=betas, weight_decay=spec.weight_decay, eps=1e-8)
    raise ValueError(f"the run's optimizer is {spec.kind!r}, this package has sgd and adamw: build it from round.plan")


def _metrics(found: Any, eval_examples: int) -> Metrics:
    keys = ("accuracy", "loss", "num_examples")
    if isinstance(found, Metrics):
        values = {key: getattr(found, key) for key in keys}
    elif isinstance(found, Mapping):
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
    values = {"accuracy": 0.0, "num_examples": eval_examples, **values}
    return Metrics(_number(values, "accuracy", float), _number(values, "loss", float), _number(values, "num_examples", int))


_Number = TypeVar("_Number", int, float)


def _number(values: Mapping[str, Any], key: str, kind: Callable[[Any], _Number]) -> _Number:
    value = values[key]
    is_one = not isinstance(value, torch.Tensor) or value.numel() == 1
    try:
        if is_one:
            return kind(value)
    except (TypeError, ValueError, OverflowError):
        pass
    raise TypeError(f"eval_fn returned the {key} {repr(value)[:80]}, expected a number")


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
