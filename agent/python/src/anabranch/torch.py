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
except ImportError as _error:
    raise ImportError(f"anabranch.torch needs PyTorch ({_error}); install it with: pip install torch") from _error

from ._proximal import ProximalTerm
from ._serve import Round, Trainer, serve
from ._stages import Array, Part, StageRound, Stages
from ._tensors import Manifest, Tensors, named
from ._torch_data import batches, examples, part_of
from ._torch_model import SharedModel, Structure, as_f32
from ._torch_stages import Loss, StagedModel, module_rows
from .environment import threads
from .errors import Fatal, TensorError
from .spec import Metrics, Optimizer, Plan

__all__ = ["TorchRound", "module_rows", "run", "run_stages"]

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


def run_stages(
    modules: Sequence[torch.nn.Module],
    loss_fn: Loss | None,
    data: Any = None,
    eval_fn: Callable[[Any], EvalResult] | None = None,
    *,
    eval_examples: int = 0,
    init: Callable[[], Sequence[torch.nn.Module]] | None = None,
) -> None:
    """Trains ``modules``, each of which takes the output of the one before it, under an agent until the agent leaves.

    In a run with ``[pod]`` an agent with ``--pod-listen`` computes some of the modules, and other agents the others; the agent
    keeps weights and optimizer. Everywhere else the whole model is trained here, as ``run`` does. ``run.toml`` needs
    ``model.kind = "custom"`` and the table ``model.modules``, which ``module_rows(modules, inputs)`` returns.

    Args:
        modules: on the device to train on. Each takes one tensor and returns one float32 tensor, with the examples in the first
            dimension. Each has a parameter; all are float32 and trained, belong to one module, and there are no float buffers
            in the state dict. The model is ``nn.Sequential(*modules)``.
        loss_fn: ``loss_fn(output, targets)`` gives the mean loss of a micro-batch, a tensor with one value. Unless each example
            weighs the same in it, the loss of a batch depends on its micro-batches.
        data: pairs of inputs and targets to train on: a tuple of two tensors of equal length, or a map-style ``Dataset`` of such
            pairs. Without it, and without ``eval_fn``, this agent only helps others. Targets may be of any type. They stay in
            this process.
        eval_fn: as in ``run``, given ``nn.Sequential(*modules)``.
        eval_examples: as in ``run``.
        init: makes the modules that version 0 has; as in ``run``.

    Raises:
        TensorError: a module cannot be computed in a part; the text says which, why, and what to do.
        ValueError: ``data`` without ``loss_fn``, without an example or of different lengths, ``eval_examples`` without
            ``eval_fn``, or no modules.
    """
    if data is not None and loss_fn is None:
        raise ValueError("there is data to train on, but no loss_fn")
    if eval_examples > 0 and eval_fn is None:
        raise ValueError(f"eval_examples is {eval_examples}, but there is no eval_fn")
    if not modules:
        raise ValueError("there are no modules")
    count = threads()
    if count is not None:
        torch.set_num_threads(count)
    trainer = _StagedTrainer(modules, loss_fn, data, eval_fn, init)
    trainer.train_examples, trainer.eval_examples = 0 if data is None else examples(data), eval_examples
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
        plan = self.plan
        drawn = batches(
            data,
            seed=self.seed,
            steps=plan.local_steps,
            batch_size=plan.batch_size,
            device=self.device,
            num_workers=num_workers,
            collate_fn=collate_fn,
        )
        return self._until_stopped(drawn)

    def step(self, loss: Any, examples: int) -> None:
        """Reports an optimizer step; see ``Round.step``.

        Args:
            loss: mean loss over the batch, a number or a tensor with one.
            examples: examples in the batch.
        """
        self._round.step(float(loss), examples)

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


class _StagedTrainer(_TorchTrainer, Stages):
    """Trains the whole model as ``run`` does, and computes parts of it."""

    def __init__(
        self,
        modules: Sequence[torch.nn.Module],
        loss_fn: Loss | None,
        data: Any,
        eval_fn: Callable[[Any], EvalResult] | None,
        init: Callable[[], Sequence[torch.nn.Module]] | None,
    ) -> None:
        def whole() -> torch.nn.Module:
            assert init is not None, "only called where it is given"
            return torch.nn.Sequential(*init())

        def train(model: Any, round: TorchRound) -> None:
            optimizer = round.optimizer(model)
            for batch in round.batches(data):
                optimizer.zero_grad()
                loss = _gradient(model, loss_fn, batch, round)
                optimizer.step()
                round.step(loss, round.plan.batch_size)

        self._staged = StagedModel(modules, loss_fn, data)
        self._sequential = torch.nn.Sequential(*modules)
        super().__init__(self._sequential, train, eval_fn, None if init is None else whole, ())

    def train(self, base: Tensors, plan: Plan, round: Round) -> Tensors:
        self._staged.drop()
        return super().train(base, plan, round)

    def evaluate(self, model: Tensors) -> Metrics:
        self._staged.drop()
        return super().evaluate(model)

    def module_tensors(self) -> Sequence[int]:
        return self._staged.tensors()

    def begin(self, round: StageRound) -> None:
        self._is_loaded = True
        self._sequential.train()
        self._staged.begin(round, self._place())

    def load_part(self, part: Part, weights: Tensors) -> None:
        self._guarded(lambda: self._staged.load(part, weights))

    def forward(self, part: Part, micro_batch: int, examples: int, input: Array | None) -> Array | float:
        found: Array | float = self._guarded(lambda: self._staged.forward(part, micro_batch, examples, input, self._place()))
        return found

    def backward(self, part: Part, micro_batch: int, slope: Array | None) -> tuple[Tensors, Array | None]:
        found: tuple[Tensors, Array | None] = self._guarded(lambda: self._staged.backward(part, micro_batch, slope))
        return found

    def _place(self) -> Any:
        return next(self._sequential.parameters()).device


def _gradient(model: Any, loss_fn: Loss | None, batch: Any, round: TorchRound) -> float:
    """Adds the gradient of a batch's mean loss, in micro-batches that fit, and returns the loss."""
    assert loss_fn is not None, "checked by run_stages()"
    size, total = round.plan.batch_size, 0.0
    for start in range(0, size, round.micro_batch):
        end = min(start + round.micro_batch, size)
        inputs, targets = part_of(batch, start, end)
        loss = loss_fn(model(inputs), targets) * ((end - start) / size)
        loss.backward()
        total += float(loss.detach())
    return total


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

