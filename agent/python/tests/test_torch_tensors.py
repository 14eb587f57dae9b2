"""anabranch.torch: tensors that a loop puts in the place of others, and models that cannot be read or written."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from conftest import Start, require_torch

require_torch()

import torch
from torch import nn

import anabranch
import anabranch.torch
from anabranch._torch_model import SharedModel, Structure

PARTS = """
import torch, anabranch, anabranch.torch
from torch import nn
from torch.nn import functional as F
from torch.optim.swa_utils import update_bn

torch.manual_seed(3)
x = torch.randn(64, 8); y = (x.sum(1) > 0).long()

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.norm, self.b = nn.Linear(8, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)
    def forward(self, x): return self.b(torch.relu(self.norm(self.a(x))))

model = Model()

def train(model, round):
    optimizer = round.optimizer(model)
    for x_batch, y_batch in round.batches((x, y)):
        loss = F.cross_entropy(model(x_batch), y_batch)
        optimizer.zero_grad(); loss.backward(); optimizer.step()
        round.step(loss, len(x_batch))

def told(model):
    print('holds', *(f'{name}={float(t.double().sum()):.6f}' for name, t in model.state_dict().items() if t.is_floating_point()))

def evaluate(model):
    told(model); return 0.5, F.cross_entropy(model(x), y), len(y)

def run(model, train=train, evaluate=evaluate, **other):
    anabranch.torch.run(model, train, evaluate, train_examples=64, eval_examples=64, **other)
"""

SUBSTITUTES = {
    "update_bn": "update_bn(x.split(8), model)",
    "half_and_back": "model.half(); model.float()",
    "double_and_back": "model.double(); model.float()",
    "a_new_module": "model.b = nn.Linear(4, 2); nn.init.constant_(model.b.weight, 0.25)",
    "a_module_in_another_order": "b = model.b; del model.a; del model.b; model.b = b; model.a = nn.Linear(8, 4)",
    "a_new_parameter": "model.a.weight = nn.Parameter(torch.ones(4, 8))",
    "new_data": "model.a.weight.data = torch.ones(4, 8)",
    "a_loaded_state": "model.load_state_dict({name: torch.zeros_like(t) for name, t in model.state_dict().items()})",
}


def cases(changes: list[str], indent: int) -> str:
    """Python that makes the change whose number is ``case``."""
    lines = [f"if case == {number}: {change}" for number, change in enumerate(changes)]
    return "\n".join(" " * indent + line for line in lines)


def test_what_takes_the_place_of_a_tensor_is_sent(start: Start) -> None:
    body = f"""
def swap(model, round):
    case = round.seed
    train(model, round)
{cases(list(SUBSTITUTES.values()), 4)}
    told(model)
run(model, swap)
"""
    child = start(PARTS + body)
    child.prepare()
    model = child.initial(1)
    ends = []
    for case, how in enumerate(SUBSTITUTES):
        child.train(model, seed=case)
        answer = child.answer()[1]
        assert answer["type"] == "trained", (how, answer)
        model = child.end()
        ends.append({name: float(values.astype(np.float64).sum()) for name, values in model.items()})
        assert child.evaluate(model)["type"] == "evaluated", how
    held = [line.split()[1:] for line in child.log_after_end().splitlines() if line.startswith("holds")]
    for case, how in enumerate(SUBSTITUTES):
        trained, evaluated = (dict(entry.split("=") for entry in held[2 * case + at]) for at in (0, 1))
        assert trained == evaluated, f"{how}: what the agent was sent is not what was trained"
        assert {name: f"{value:.6f}" for name, value in ends[case].items()}.keys() == trained.keys()
        assert all(abs(float(trained[name]) - value) < 1e-4 for name, value in ends[case].items()), how
    assert ends[list(SUBSTITUTES).index("a_loaded_state")]["a.weight"] == 0
    assert ends[list(SUBSTITUTES).index("new_data")]["a.weight"] == 32


OTHER = {
    "a_type": ("model.half()", "a.bias is float16, expected float32"),
    "a_shape": ("model.b = nn.Linear(4, 3)", "b.bias has the shape [3], expected [2]"),
    "a_name": ("model.c = model.b; del model.b", "b.bias is gone, b.weight is gone, c.bias is new, c.weight is new"),
    "a_tie": ("model.norm.bias = model.a.bias", "norm.bias has become the same tensor as a.bias"),
    "an_unseen_parameter": ("model.a.register_parameter('c', nn.Parameter(torch.ones(2)))", "a.c is new"),
}


def test_a_round_that_changes_names_shapes_or_types_fails_and_the_next_one_works(start: Start) -> None:
    body = f"""
def change(model, round):
    case = round.seed
    train(model, round)
{cases([change for change, _ in OTHER.values()], 4)}
run(model, change)
"""
    child = start(PARTS + body)
    child.prepare()
    base = child.initial(1)
    for case, (how, (_, says)) in enumerate(OTHER.items()):
        child.train(base, seed=case)
        answer = child.answer()[1]
        assert (answer["type"], answer["kind"]) == ("failed", "error"), how
        assert "train_fn changed the tensors of the model: " in answer["message"] and says in answer["message"], answer
        child.train(base, seed=len(OTHER))
        assert child.answer()[1]["type"] == "trained", f"{how}: the model has its tensors back"
        assert child.evaluate(child.end())["type"] == "evaluated", how


def test_a_round_that_fails_between_two_types_leaves_the_model_whole(start: Start) -> None:
    body = """
def halved(model, round):
    if round.seed == 1:
        model.half(); model.b = nn.Linear(1, 1); raise ValueError('in between')
    train(model, round)
run(model, halved)
"""
    child = start(PARTS + body)
    child.prepare()
    base = child.initial(1)
    for seed, kind in ((1, "failed"), (2, "trained")):
        child.train(base, seed=seed)
        answer = child.answer()[1]
        assert answer["type"] == kind, answer


UTILS = "from torch.nn import utils; from torch.nn.utils import parametrizations, parametrize, prune\n"

REGISTERED = {
    "prune": ("prune.l1_unstructured(model.b, 'weight', 0.5)", "prune.remove(model.b, 'weight')"),
    "weight_norm": ("utils.weight_norm(model.b)", "utils.remove_weight_norm(model.b)"),
    "spectral_norm": ("utils.spectral_norm(model.b)", "utils.remove_spectral_norm(model.b)"),
    "orthogonal": ("parametrizations.orthogonal(model.b)", "parametrize.remove_parametrizations(model.b, 'weight')"),
    "parametrize": (
        "parametrize.register_parametrization(model.b, 'weight', nn.Softplus())",
        "parametrize.remove_parametrizations(model.b, 'weight')",
    ),
}
"""What puts something in the place of a weight, and what removes it."""

HOOKS = """
def scaling(*found): return found[-1] * 3 + 1
def leave_hooks(model):
    model.register_forward_hook(scaling); model.b.register_forward_pre_hook(lambda module, given: (given[0] * 0,))
    model.b.register_full_backward_hook(lambda module, given, taken: (given[0] * 0,))
    model._register_state_dict_hook(lambda module, state, *other: state.clear())
    model._register_load_state_dict_pre_hook(lambda state, *other: state.clear())
    model.a.register_buffer('unseen', torch.ones(1), persistent=False)
"""


BROKEN = {
    "hooks": ("", "leave_hooks(model)"),
    **{how: ("", register) for how, (register, _) in REGISTERED.items()},
    **{f"remove_{how}": registered for how, registered in REGISTERED.items()},
    "another_tensor_parametrized": (REGISTERED["parametrize"][0], REGISTERED["parametrize"][0].replace("weight", "bias")),
}


@pytest.mark.parametrize("how", BROKEN)
def test_what_a_function_registers_or_removes_is_undone(how: str) -> None:
    before, change = BROKEN[how]
    scope: dict[str, Any] = {}
    exec(PARTS + UTILS + HOOKS + before, scope)
    model, x = scope["model"].eval(), scope["x"]
    kept, found = {name: tensor.clone() for name, tensor in model.state_dict().items()}, model(x)
    for _ in range(2):
        structure = Structure(model)
        exec(change, scope)
        structure.restore()
        model.load_state_dict(kept)
        assert torch.equal(model(x), found), "nothing of it is left"
        model(x).sum().backward()
        assert all(float(tensor.grad.abs().sum()) > 0 for tensor in model.b.parameters())


def test_a_round_that_registers_something_and_fails_leaves_the_model_as_it_was(start: Start) -> None:
    changes = [*(register for register, _ in REGISTERED.values()), "leave_hooks(model)"]
    body = f"""
def registering(model, round):
    case = round.seed
{cases(changes, 4)}
    train(model, round)
    if case < {len(changes)}: raise ValueError('after it')
run(model, registering)
"""
    child = start(PARTS + UTILS + HOOKS + body)
    child.prepare()
    base = child.initial(1)
    ends = []
    for case, change in enumerate(changes):
        child.train(base, seed=case)
        assert child.answer()[1]["message"] == "ValueError: after it", change
        child.train(base, seed=99)
        assert child.answer()[1]["type"] == "trained", change
        ends.append(child.end())
        assert all(np.array_equal(ends[0][name], ends[-1][name]) for name in base), change
    assert child.evaluate(base)["type"] == "evaluated"


EVALUATIONS = {
    "update_bn": ("update_bn(x.split(8), model)", "eval_fn changed the values of norm.running_mean, norm.running_var"),
    "in_place": ("model.a.weight.data.add_(1)", "eval_fn changed the values of a.weight: evaluate a copy"),
    "training_mode": ("model.train(); model(x)", "eval_fn changed the values of norm.running_mean, norm.running_var"),
    "half": ("model.half()", "eval_fn changed the tensors of the model: a.bias is float16, expected float32"),
    "a_module": ("model.b = nn.Linear(4, 3)", "b.bias has the shape [3], expected [2]"),
    "a_module_of_the_same_shape": ("model.b = nn.Linear(4, 2)", "eval_fn changed the values of b.weight, b.bias"),
    "a_new_one": ("model.register_buffer('c', torch.ones(1))", "c is new"),
}


def test_an_evaluation_that_changes_the_model_fails_and_says_so(start: Start) -> None:
    body = f"""
case = -1
def changing(model):
    global case
    case += 1
    found = evaluate(model)
{cases([change for change, _ in EVALUATIONS.values()], 4)}
    return found
run(model, evaluate=changing)
"""
    child = start(PARTS + body)
    child.prepare()
    base = child.initial(1)
    for how, (_, says) in EVALUATIONS.items():
        answer = child.evaluate(base)
        assert (answer["type"], answer["kind"]) == ("failed", "error") and says in answer["message"], (how, answer)
        child.train(base)
        assert child.answer()[1]["type"] == "trained", f"{how}: training goes on with the model as it was"
        assert set(child.end()) == set(base)
    assert child.evaluate(base)["type"] == "evaluated"


@pytest.mark.parametrize("kind", ["float32", "bfloat16", "float64"])
def test_an_evaluation_may_change_what_it_puts_back_and_modes_are_restored(start: Start, kind: str) -> None:
    body = f"""
x = x.to(torch.{kind}); model.to(torch.{kind}); model.a.requires_grad_(False)
def modes(model):
    return [module.training for module in model.modules()] + [tensor.requires_grad for tensor in model.parameters()]
def careful(model):
    assert not any(module.training for module in model.modules())
    kept = {{name: tensor.clone() for name, tensor in model.state_dict().items()}}
    update_bn(x.split(8), model); model.train(); model.requires_grad_(True); model.b.requires_grad_(False)
    found = evaluate(model)
    model.load_state_dict(kept)
    return found
def seen(model, round):
    print('modes', *modes(model)); train(model, round)
before = modes(model)
print('before', *before)
run(model, seen, careful)
"""
    child = start(PARTS + body)
    child.prepare()
    base = child.initial(1)
    base["norm.running_var"][0] = -0.5
    assert child.evaluate(base)["type"] == "evaluated", child.log_after_end()
    child.train(base)
    assert child.answer()[1]["type"] == "trained"
    lines = child.log_after_end().splitlines()
    modes = {line.split()[0]: line.split()[1:] for line in lines if line.startswith(("modes", "before"))}
    assert modes["modes"] == modes["before"]


COPIES = """
class Copying(Model):
    def state_dict(self, *args, **kwargs):
        return {name: tensor.clone() for name, tensor in super().state_dict(*args, **kwargs).items()}
"""


def test_a_state_dict_of_copies_is_trained_and_read(start: Start) -> None:
    child = start(PARTS + COPIES + "run(Copying())\n")
    child.prepare()
    base = {name: np.full_like(values, 0.5) for name, values in child.initial(1).items()}
    assert child.evaluate(base)["type"] == "evaluated"
    child.train(base)
    assert child.answer()[1]["type"] == "trained"
    end = child.end()
    assert not np.array_equal(end["b.bias"], base["b.bias"])
    assert float(np.abs(end["a.weight"] - 0.5).max()) < 0.5, "it was trained from what the agent sent"
    assert "holds a.weight=16.000000" in child.log_after_end(), "and evaluated there too"


class Copying(nn.Linear):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__(2, 2)

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return {name: tensor.clone() for name, tensor in super().state_dict(*args, **kwargs).items()}


class Unloadable(Copying):
    def load_state_dict(self, *args: Any, **kwargs: Any) -> None:
        pass


class Renamed(Copying):
    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return {f"model.{name}": tensor for name, tensor in super().state_dict(*args, **kwargs).items()}


class Without(nn.Linear):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__(2, 2)

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return {name: tensor for name, tensor in super().state_dict(*args, **kwargs).items() if name != "bias"}


class CopiesWithout(Copying):
    """Copies the state dict and leaves the bias out."""

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return {name: tensor for name, tensor in super().state_dict(*args, **kwargs).items() if name != "bias"}

    def load_state_dict(self, state: Any, strict: bool = True) -> Any:
        return super().load_state_dict(state, strict=False)


class Cut(nn.Module):  # type: ignore[misc]
    """Its state dict has the elements of one parameter in several tensors, copied or not."""

    def __init__(self, copies: bool, **parts: slice) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.arange(20.0))
        self._copies, self._parts = copies, parts

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        views = {name: self.w.detach()[part] for name, part in self._parts.items()}
        return {name: view.clone() if self._copies else view for name, view in views.items()}

    def load_state_dict(self, state: Any, strict: bool = True) -> None:
        with torch.no_grad():
            for name, part in self._parts.items():
                self.w[part].copy_(state[name])


class Flat(nn.Linear):  # type: ignore[misc]
    """Weight and bias lie in one memory, as in the RNNs of cuDNN, and the state dict has the weight alone."""

    def __init__(self) -> None:
        super().__init__(2, 2)
        flat = torch.randn(6)
        self.weight.data, self.bias.data = flat[:4].view(2, 2), flat[4:]

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return {name: tensor for name, tensor in super().state_dict(*args, **kwargs).items() if name != "bias"}


class RenamedBack(Renamed):
    def load_state_dict(self, state: Any, strict: bool = True) -> Any:
        return super().load_state_dict({name.removeprefix("model."): tensor for name, tensor in state.items()})


@pytest.mark.parametrize("copies", [False, True])
def test_a_parameter_may_be_sent_in_parts(copies: bool) -> None:
    model = Cut(copies, head=slice(0, 7), tail=slice(7, 20))
    shared = SharedModel(model)
    assert shared.shapes() == {"head": (7,), "tail": (13,)}
    assert model.w.tolist() == list(range(20))
    assert list(shared.read("train_fn")) == ["head", "tail"]


def test_copies_may_have_other_names_than_the_parameters() -> None:
    shared = SharedModel(RenamedBack())
    assert list(shared.shapes()) == list(shared.read("train_fn")) == ["model.weight", "model.bias"]


def test_a_parameter_that_needs_a_gradient_after_the_round_has_to_be_sent() -> None:
    model = CopiesWithout()
    model.bias.requires_grad_(False)
    shared = SharedModel(model)
    model.bias.requires_grad_(True)
    with pytest.raises(anabranch.TensorError, match="bias needs a gradient and is not in the model's state dict"):
        shared.read("train_fn")


def test_probing_copies_leaves_the_model_as_it_was() -> None:
    model = Copying()
    before = model.weight.clone()
    SharedModel(model)
    assert torch.equal(model.weight, before)


def with_buffer(value: Any, model: Any = None) -> Any:
    model = nn.Linear(2, 2) if model is None else model
    model.register_buffer("mask", value)
    return model


def tied_in_part() -> Any:
    model = nn.Sequential(nn.Linear(2, 3, bias=False), nn.Linear(3, 2, bias=False))
    model[1].weight = nn.Parameter(model[0].weight.data.t())
    return model


def not_finite() -> Any:
    model = nn.Linear(2, 2)
    model.weight.data[0, 0] = float("nan")
    return model


UNUSABLE = {
    "copies": (Unloadable, r"state_dict\(\) of Unloadable holds copies of weight, bias, and load_state_dict\(\) does not write"),
    "copies_renamed": (Renamed, r"state_dict\(\) of Renamed holds copies of model.weight, model.bias, and load_state_dict\(\) refuses"),
    "not_in_the_state": (Without, "bias needs a gradient and is not in the model's state dict"),
    "not_among_the_copies": (CopiesWithout, "bias needs a gradient and is not in the model's state dict"),
    "a_view_of_a_part": (lambda: Cut(False, w=slice(0, 10)), "w needs a gradient and is only in part in the model's state dict: add the rest"),
    "a_copy_of_a_part": (lambda: Cut(True, w=slice(0, 10)), "w needs a gradient and is only in part in the model's state dict: add the rest"),
    "memory_of_another_parameter": (Flat, "bias needs a gradient and is not in the model's state dict"),
    "minus_infinity": (lambda: with_buffer(torch.full((2, 2), -np.inf)), r"not finite cannot be averaged: mask; .*local=\[...\]"),
    "nan": (not_finite, "the model's parameters hold values that are not finite: weight"),
    "expanded": (lambda: with_buffer(torch.ones(1).expand(4)), "mask is expanded"),
    "sparse": (lambda: with_buffer(torch.eye(2).to_sparse()), "mask is sparse"),
    "meta": (lambda: nn.Linear(2, 2, device="meta"), "weight is on the meta device"),
    "tied_in_part": (tied_in_part, "share memory in part"),
    "nine_dimensions": (lambda: with_buffer(torch.ones([1] * 9)), "tensor mask has 9 dimensions, a tensor has at most 8"),
    "a_long_name": (lambda: nn.ModuleDict({"n" * 250: nn.Linear(2, 2)}), "has 257 bytes, a name has at most 256"),
}  # fmt: skip


@pytest.mark.parametrize("what", UNUSABLE)
def test_a_model_that_cannot_be_shared_is_refused_at_the_start(what: str) -> None:
    make, says = UNUSABLE[what]
    with pytest.raises(anabranch.TensorError, match=says):
        anabranch.torch.run(make(), lambda model, round: None, train_examples=1)


@pytest.mark.parametrize(
    ("local", "says"),
    [
        (["mask", "*.msk"], r"local= names \*.msk, which fits no tensor"),
        ("mask", r"expected a list of patterns: local=\['mask'\]"),
        (["mask", "weight"], "weight is declared local and needs a gradient"),
    ],
)
def test_local_names_buffers_and_frozen_parameters(local: Any, says: str) -> None:
    with pytest.raises((anabranch.TensorError, ValueError), match=says):
        anabranch.torch.run(with_buffer(torch.ones(2)), lambda model, round: None, train_examples=1, local=local)


def test_local_tensors_stay_as_the_model_made_them(start: Start) -> None:
    body = """
class Masked(Model):
    def __init__(self):
        super().__init__()
        self.register_buffer('mask', torch.full((4,), -torch.inf)); self.a.requires_grad_(False)
    def forward(self, x): return super().forward(x)
def seen(model, round):
    train(model, round); assert bool(torch.isinf(model.mask).all())
    print('kept', float(model.a.weight.sum()), int(model.norm.num_batches_tracked))
model = Masked()
print('kept', float(model.a.weight.sum()))
run(model, seen, local=['ma?k', 'a.*'])
"""
    child = start(PARTS + body)
    names = [tensor["name"] for tensor in child.prepare()["tensors"]]
    assert names == ["norm.weight", "norm.bias", "norm.running_mean", "norm.running_var", "b.weight", "b.bias"]
    base = child.initial(1)
    for seed in (1, 2):
        child.train(base, seed=seed)
        assert child.answer()[1]["type"] == "trained"
    kept = [line.split()[1:] for line in child.log_after_end().splitlines() if line.startswith("kept")]
    assert kept[0][0] == kept[1][0] == kept[2][0] and [line[1] for line in kept[1:]] == ["20", "40"]


MADE = """
model.register_buffer('mask', torch.zeros(4))
def made(model, round):
    train(model, round)
    with torch.no_grad():
        if round.seed in (0, 2): model.mask.fill_(-torch.inf)
        if round.seed in (1, 2): model.b.bias.fill_(torch.nan)
        if round.seed == 3: model.norm.running_var.fill_(torch.inf)
run(model, made)
"""


def test_a_buffer_that_a_round_makes_infinite_is_no_divergence(start: Start) -> None:
    child = start(PARTS + MADE)
    child.prepare()
    base = child.initial(1)
    for seed, kind, says in (
        (0, "error", "buffers with values that are not finite cannot be averaged: mask; keep them in this process with"),
        (1, "diverged", "tensor b.bias has values that are not finite"),
        (2, "diverged", "tensors mask, b.bias have values that are not finite"),
        (3, "diverged", "tensor norm.running_var has values that are not finite"),
    ):
        child.train(base, seed=seed)
        answer = child.answer()[1]
        assert (answer["type"], answer["kind"]) == ("failed", kind) and says in answer["message"], answer
    child.train(base, seed=4)
    assert child.answer()[1]["type"] == "trained"


def test_an_evaluation_leaves_buffers_of_this_process_and_hooks_as_they_were(start: Start) -> None:
    body = """
model.register_buffer('mask', torch.full((4,), -torch.inf)); model.register_buffer('seen', torch.tensor(3))
model.register_buffer('same', torch.ones(2, dtype=torch.bool), persistent=False)
def leaving(model):
    result = evaluate(model)
    print('before', model.mask.tolist(), int(model.seen), model.same.tolist(), float(result[1]))
    model.mask.fill_(1); model.seen += 1; model.same = torch.zeros(5); model.norm.num_batches_tracked.data.add_(2)
    model.register_forward_hook(scaling); model.b.register_forward_pre_hook(lambda module, given: (given[0] * 0,))
    if calls.append(1) or len(calls) == 2: raise ValueError('after it')
    return result
calls = []
def told_after(model, round):
    print('tracked', int(model.norm.num_batches_tracked)); train(model, round)
run(model, told_after, leaving, local=['mask'])
"""
    child = start(PARTS + HOOKS + body)
    child.prepare()
    base = child.initial(1)
    assert [child.evaluate(base)["type"] for _ in range(3)] == ["evaluated", "failed", "evaluated"]
    child.train(base)
    assert child.answer()[1]["type"] == "trained"
    lines = child.log_after_end().splitlines()
    before = [line for line in lines if line.startswith("before")]
    assert len(before) == 3 and len(set(before)) == 1 and "[-inf, -inf, -inf, -inf] 3 [True, True]" in before[0], before
    assert "tracked 0" in lines


def test_a_local_tensor_that_is_thawed_fails_the_round(start: Start) -> None:
    body = """
model.a.requires_grad_(False)
def thawing(model, round):
    model.a.requires_grad_(True); train(model, round)
run(model, thawing, local=['a.*'])
"""
    child = start(PARTS + body)
    child.prepare()
    child.train(child.initial(1))
    assert "a.weight is declared local and needs a gradient" in child.answer()[1]["message"]


class Wrapper(nn.Module):  # type: ignore[misc]
    """A stand-in for what ``torch.compile`` returns since PyTorch 2.0."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self._orig_mod = inner


@pytest.mark.parametrize(
    "wrap",
    [
        lambda model: model,
        Wrapper,
        nn.DataParallel,
        lambda model: nn.DataParallel(Wrapper(model)),
        lambda model: nn.Sequential(Wrapper(model[0]), model[1]),
    ],
)
def test_wrappers_do_not_change_names(wrap: Any) -> None:
    wrapped = SharedModel(wrap(nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))))
    assert list(wrapped.shapes()) == ["0.weight", "0.bias", "1.weight", "1.bias"]


def test_parametrizations_are_shared_under_their_own_names(start: Start) -> None:
    body = """
nn.utils.parametrizations.spectral_norm(model.b); nn.utils.weight_norm(model.a)
run(model)
"""
    child = start(PARTS + body)
    names = [tensor["name"] for tensor in child.prepare()["tensors"]]
    assert "b.parametrizations.weight.original" in names and "a.weight_g" in names
    base = child.initial(1)
    child.train(base)
    assert child.answer()[1]["type"] == "trained"
    end = child.end()
    assert all(not np.array_equal(end[name], base[name]) for name in names if name.startswith(("a.weight", "b.param")))


@pytest.mark.parametrize(
    ("returned", "says"),
    [("copy.deepcopy(model)", "train_fn returned a Model, which is not read"), ("model.state_dict()", "train_fn returned a OrderedDict")],
)
def test_a_model_that_train_fn_returns_is_refused(start: Start, returned: str, says: str) -> None:
    child = start(PARTS + f"import copy\ndef functional(model, round):\n    train(model, round); return {returned}\nrun(model, functional)\n")
    child.prepare()
    child.train(child.initial(1))
    assert says in child.answer()[1]["message"]


def test_a_round_that_trains_a_copy_is_told(start: Start) -> None:
    child = start(PARTS + "import copy\nrun(model, lambda model, round: train(copy.deepcopy(model), round))\n")
    child.prepare()
    base = child.initial(1)
    for _ in range(2):
        child.train(base)
        assert child.answer()[1]["type"] == "trained"
    told = "train_fn reported 20 steps and changed no tensor: does it train the model that it is given, and not a copy?"
    assert child.log_after_end().count(told) == 1
