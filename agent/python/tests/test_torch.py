"""anabranch.torch: what becomes of a model's tensors, and of an ordinary loop."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Start, require_torch

require_torch()

import torch  # noqa: E402

import anabranch  # noqa: E402
import anabranch.torch  # noqa: E402

TEN_LINES = """
import torch, anabranch.torch
from torch import nn
from torch.nn import functional as F

x = torch.randn(256, 8, generator=torch.Generator().manual_seed(1)); y = (x.sum(1) > 0).long()
torch.manual_seed(3)
model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))

def train(model, round):
    optimizer = round.optimizer(model)
    for x_batch, y_batch in round.batches((x, y)):
        loss = F.cross_entropy(model(x_batch), y_batch)
        optimizer.zero_grad(); loss.backward(); optimizer.step()
        round.step(loss, len(x_batch))

def evaluate(model):
    logits = model(x)
    return (logits.argmax(1) == y).float().mean(), F.cross_entropy(logits, y), len(y)

def run(model, train=train, evaluate=evaluate, **other):
    anabranch.torch.run(model, train, evaluate, train_examples=256, eval_examples=256, **other)
"""


def script(body: str) -> str:
    return TEN_LINES + body


def names(prepared: dict[str, Any]) -> list[str]:
    return [tensor["name"] for tensor in prepared["tensors"]]


def test_ten_lines_learn(start: Start) -> None:
    child = start(script("run(model)"))
    assert names(child.prepare()) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    model = child.initial(7)
    before = child.evaluate(model)
    losses = []
    for seed in range(3):
        child.train(model, seed=seed, batch_size=32)
        steps, answer = child.answer()
        assert answer["steps"] == 20 and answer["num_examples"] == 640 and steps[-1]["step"] == 20
        losses.append(answer["mean_loss"])
        model = child.end()
    after = child.evaluate(model)
    assert losses[0] > losses[1] > losses[2] and after["loss"] < 0.5 * before["loss"]
    assert after["accuracy"] > 0.9 and after["num_examples"] == 256


def test_the_same_seed_gives_the_same_bits(start: Start) -> None:
    child = start(script("make = lambda: nn.Sequential(nn.Dropout(0.5), nn.Linear(8, 2))\nrun(make(), init=make)"))
    child.prepare()
    first, again, other = child.initial(2**64 - 1), child.initial(2**64 - 1), child.initial(1)
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert not np.array_equal(first["1.weight"], other["1.weight"])
    ends = []
    for seed in (5, 5, 6):
        child.train(first, seed=seed)
        child.answer()
        ends.append(child.end()["1.weight"])
    assert np.array_equal(ends[0], ends[1]) and not np.array_equal(ends[0], ends[2])


def test_init_makes_the_initial_model(start: Start) -> None:
    make = "make = lambda: nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))\n"
    child = start(script(make + "run(make(), init=make)"))
    child.prepare()
    found = child.initial(11)
    torch.manual_seed(11)
    expected = torch.nn.Linear(8, 16).weight.detach().numpy()
    assert np.array_equal(found["0.weight"], expected)


def test_a_pretrained_model_is_taken_as_it_is_passed(start: Start) -> None:
    body = """
model = nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
with torch.no_grad():
    for at, tensor in enumerate(model.state_dict().values()): tensor.fill_(at + 1)
model[0].requires_grad_(False)
run(model)
"""
    child = start(script(body))
    child.prepare()
    found = child.initial(7)
    assert {name: set(values.flat) for name, values in found.items()} == {
        "0.weight": {1}, "0.bias": {2}, "1.weight": {3}, "1.bias": {4}, "1.running_mean": {5}, "1.running_var": {6},
        "2.weight": {8}, "2.bias": {9},
    }  # fmt: skip
    child.train(found)
    assert child.answer()[1]["type"] == "trained"
    assert np.array_equal(child.end()["0.weight"], found["0.weight"]), "a frozen layer stays as it is"


def test_a_model_that_was_overwritten_begins_no_run(start: Start) -> None:
    child = start(script("run(model)"))
    child.prepare()
    child.evaluate(child.initial(1))
    child.ask("initial", seed=1, out="again.safetensors")
    assert child.wait() == 1
    assert "a fresh process has to begin the run" in child.log()


def test_batch_norm_statistics_are_averaged_and_counters_stay(start: Start) -> None:
    body = """
model = nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
def counting(model, round):
    train(model, round)
    print('batches tracked:', int(model[1].num_batches_tracked), float(model[1].running_var.min()) >= 0)
run(model, counting)
"""
    child = start(script(body))
    prepared = child.prepare()
    assert names(prepared)[2:6] == ["1.weight", "1.bias", "1.running_mean", "1.running_var"]
    assert not any("num_batches_tracked" in name for name in names(prepared))
    base = child.initial(3)
    assert base["1.running_mean"].tolist() == [0] * 4 and base["1.running_var"].tolist() == [1] * 4
    base["1.running_var"][0] = -0.5
    assert child.evaluate(base)["type"] == "evaluated", "a variance below zero is read as zero"
    child.train(base)
    child.answer()
    end = child.end()
    assert np.abs(end["1.running_mean"]).max() > 1e-3 and end["1.running_var"].min() >= 0
    child.train(base)
    child.answer()
    log = child.log_after_end()
    assert "batches tracked: 20 True" in log and "batches tracked: 40 True" in log


def test_tied_weights_appear_once_and_stay_tied(start: Start) -> None:
    body = """
model = nn.Sequential(nn.Linear(8, 8, bias=False), nn.ReLU(), nn.Linear(8, 8, bias=False), nn.Linear(8, 2))
model[2].weight = model[0].weight
def tied(model, round):
    train(model, round); assert model[2].weight is model[0].weight
run(model, tied)
"""
    child = start(script(body))
    assert names(child.prepare()) == ["0.weight", "3.weight", "3.bias"]
    base = child.initial(1)
    child.train(base)
    assert child.answer()[1]["type"] == "trained"
    assert not np.array_equal(child.end()["0.weight"], base["0.weight"])


@pytest.mark.parametrize("kind", ["bfloat16", "double"])
def test_other_float_types_travel_as_float32(start: Start, kind: str) -> None:
    body = f"""
x = x.to(torch.{kind}); run(nn.Sequential(nn.Linear(8, 2)).to(torch.{kind}))
"""
    child = start(script(body))
    child.prepare()
    base = {name: tensor + np.float32(1e-4) for name, tensor in child.initial(1).items()}
    child.train(base, optimizer={"kind": "sgd", "lr": 1e-30})
    assert child.answer()[1]["type"] == "trained"
    end = child.end()
    assert all(np.allclose(end[name], base[name], rtol=1e-6, atol=1e-7) for name in base), "rounding is no training"
    child.train(base)
    child.answer()
    assert not np.allclose(child.end()["0.weight"], base["0.weight"], atol=1e-2)


@pytest.mark.parametrize(
    ("spec", "made"),
    [
        ({"kind": "sgd", "lr": 0.5, "momentum": 0.25}, "SGD 0.5 0.25"),
        ({"kind": "adamw", "lr": 0.5, "weight_decay": 0.125, "beta_1": 0.75, "beta_2": 0.5}, "AdamW 0.5 (0.75, 0.5) 0.125"),
        ({"kind": "lion", "lr": 0.5}, "the run's optimizer is 'lion', this package has sgd and adamw"),
    ],
)
def test_the_run_chooses_the_optimizer(start: Start, spec: dict[str, Any], made: str) -> None:
    body = """
def told(model, round):
    o = round.optimizer(model); g = o.param_groups[0]
    print('made', type(o).__name__, g['lr'], *([g['momentum']] if 'momentum' in g else [g['betas'], g['weight_decay']]))
    train(model, round)
run(model, told)
"""
    child = start(script(body))
    child.prepare()
    child.train(child.initial(1), optimizer=spec)
    answer = child.answer()[1]
    assert answer["type"] == "failed" and made in answer["message"] if spec["kind"] == "lion" else f"made {made}" in child.log_after_end()


def test_optimizer_state_is_kept_where_the_run_says_so(start: Start) -> None:
    body = """
def told(model, round):
    print('state', len(round.optimizer(model).state)); train(model, round)
    if round.seed == 9: raise ValueError('broken round')
run(model, told)
"""
    child = start(script(body))
    child.prepare()
    base = child.initial(1)
    for seed, keep in ((1, False), (2, False), (3, True), (4, True), (9, True), (5, True)):
        child.train(base, seed=seed, keep_optimizer_state=keep)
        child.answer()
    states = [line for line in child.log_after_end().splitlines() if line.startswith("state")]
    # The third round takes over what the second made; after the broken one everything begins afresh.
    assert states == ["state 0", "state 0", "state 4", "state 4", "state 4", "state 0"]


def test_a_schedule_changes_the_rate_and_keeps_the_state(start: Start) -> None:
    """The plan brings the rate of its round: a kept optimizer goes on at that rate, and at 0 the model stays as it is."""
    body = """
def told(model, round):
    o = round.optimizer(model); print('rate', o.param_groups[0]['lr'], len(o.state), round.version, round.number, round.lr_factor)
    train(model, round)
run(model, told)
"""
    child = start(script(body))
    child.prepare()
    base = child.initial(1)
    for number, factor in enumerate((1.0, 0.5, 0.0)):
        spec = {"kind": "sgd", "lr": 0.5 * factor, "momentum": 0.9}
        child.train(base, context={"number": number, "lr_factor": factor}, optimizer=spec, keep_optimizer_state=True)
        assert child.answer()[1]["type"] == "trained"
    end = child.end()
    assert all(end[name].tobytes() == base[name].tobytes() for name in base)
    rates = [line for line in child.log_after_end().splitlines() if line.startswith("rate")]
    assert rates == ["rate 0.5 0 250 0 1.0", "rate 0.25 4 250 1 0.5", "rate 0.0 4 250 2 0.0"]


PROXIMAL = """
from torch import optim
class Point(nn.Module):
    def __init__(self):
        super().__init__(); self.w = nn.Parameter(torch.zeros(2))

def pull(model, round):
    # The gradient of (w - 1)^2 / 2 is w - 1.
    optimizer = OPTIMIZER
    def loss():
        optimizer.zero_grad(); loss = ((model.w - 1) ** 2).sum() / 2; loss.backward(); return loss
    for _ in range(round.plan.local_steps):
        round.step(STEP, 1)
run(Point(), pull)
"""


@pytest.mark.parametrize("optimizer", ["round.optimizer(model)", "round.proximal(optim.SGD(model.parameters(), lr=0.5))"])
@pytest.mark.parametrize("step", ["(loss(), optimizer.step())[0]", "optimizer.step(loss)"])
def test_the_proximal_term_is_in_every_gradient(start: Start, optimizer: str, step: str) -> None:
    child = start(script(PROXIMAL.replace("OPTIMIZER", optimizer).replace("STEP", step)))
    assert child.prepare()["proximal"] is True
    base = {"w": np.array([3.0, -1.0], dtype=np.float32)}
    for mu in (0.0, 0.5, 0.25, 0.0):
        expected = base["w"].copy()
        for _ in range(3):
            expected -= 0.5 * ((expected - 1) + mu * (expected - base["w"]))
        child.train(base, local_steps=3, proximal_mu=mu, optimizer={"kind": "sgd", "lr": 0.5, "momentum": 0.0}, keep_optimizer_state=True)
        assert child.answer()[1]["type"] == "trained"
        assert np.allclose(child.end()["w"], expected, rtol=0, atol=1e-6), f"mu {mu}"


def test_a_loop_without_the_proximal_term_is_told(start: Start) -> None:
    child = start(script(PROXIMAL.replace("OPTIMIZER", "optim.SGD(model.parameters(), lr=0.5)").replace("STEP", "optimizer.step(loss)")))
    child.prepare()
    base = {"w": np.zeros(2, dtype=np.float32)}
    child.train(base, local_steps=1, proximal_mu=0.5)
    answer = child.answer()[1]
    assert answer["type"] == "failed" and "round.proximal(optimizer)" in answer["message"]
    child.train(base, local_steps=1)
    assert child.answer()[1]["type"] == "trained"


def test_batches_are_seeded_exact_and_cover_the_data(start: Start) -> None:
    body = """
class Rows(torch.utils.data.Dataset):
    def __len__(self): return 10
    def __getitem__(self, i): return {'row': torch.tensor(i), 'label': i % 2}
rows = torch.arange(10)
def seen(model, round):
    tensor = [batch.tolist() for batch in round.batches(rows)]
    torch.rand(7)
    pair = [batch[0].tolist() for batch in round.batches((rows, rows))]
    loaded = [batch['row'].tolist() for batch in round.batches(Rows())]
    workers = [batch['row'].tolist() for batch in round.batches(Rows(), num_workers=1)]
    assert tensor == pair == loaded == workers, (tensor, loaded)
    assert [len(batch) for batch in tensor] == [4] * 5 and sorted(sum(tensor, [])) == sorted([*range(10)] * 2)
    print('batches', round.seed, tensor)
    try: round.batches((rows, rows[1:]))
    except ValueError as error: print(error)
    round.step(1.0, 4)
run(model, seen)
"""
    child = start(script(body))
    child.prepare()
    base = child.initial(1)
    for seed in (2**64 - 1, 2**64 - 1, 8):
        child.train(base, seed=seed, local_steps=5, batch_size=4)
        assert child.answer()[1]["type"] == "trained"
    log = child.log_after_end()
    drawn = [line.split(" ", 2)[2] for line in log.splitlines() if line.startswith("batches ")]
    assert len(drawn) == 3 and drawn[0] == drawn[1] != drawn[2]
    assert "expected one above 0" in log


def test_a_stop_ends_the_batches(start: Start) -> None:
    child = start(script("run(model)"))
    child.prepare()
    child.train(child.initial(1), local_steps=10_000_000)
    assert child.next()["step"] == 1
    child.send({"type": "stop", "id": child.request})
    answer = child.answer()[1]
    assert answer["stopped"] is True and 1 <= answer["steps"] < 10_000_000


def test_a_loss_that_is_nan_is_told_as_diverged(start: Start) -> None:
    child = start(script("run(model)"))
    child.prepare()
    base = child.initial(1)
    child.train(base, optimizer={"kind": "sgd", "lr": 1e30})
    assert child.answer()[1]["kind"] == "diverged"
    child.train(base)
    assert child.answer()[1]["type"] == "trained", "nothing of it is left"


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (lambda: torch.nn.Flatten(), "the model has no float tensor in its state dict"),
        (lambda: torch.nn.LazyLinear(3), "pass a batch through the lazy model"),
        (lambda: torch.nn.Linear(2, 2).to(torch.complex64), "weight is complex"),
    ],
)
def test_models_that_cannot_be_averaged_are_refused(model: Any, says: str) -> None:
    with pytest.raises(anabranch.TensorError, match=says):
        anabranch.torch.run(model(), lambda model, round: None, train_examples=1)


def test_examples_without_a_function_are_refused() -> None:
    with pytest.raises(ValueError, match="eval_examples is 3, but there is no eval_fn"):
        anabranch.torch.run(torch.nn.Linear(1, 1), lambda model, round: None, train_examples=1, eval_examples=3)


def test_evaluations_may_take_several_forms(start: Start) -> None:
    forms = "[anabranch.Metrics(0.5, 1.0, 3), {'accuracy': 0.5, 'loss': torch.tensor(1.0), 'num_examples': 3}, (0.5, 1.0, 3)]"
    child = start(script(f"forms = {forms}\nrun(model, evaluate=lambda model: forms.pop())"))
    child.prepare()
    model = child.initial(1)
    for _ in range(3):
        answer = child.evaluate(model)
        assert (answer["accuracy"], answer["loss"], answer["num_examples"]) == (0.5, 1.0, 3)


@pytest.mark.parametrize(
    ("returned", "says"),
    [
        ("{'acc': 0.97, 'loss': 0.1}", "eval_fn returned unknown acc; the keys are accuracy, loss, num_examples"),
        ("{'accuracy': 0.97, 'loss': 0.1, 'f1': 0.5}", "eval_fn returned unknown f1"),
        ("{'accuracy': 0.97}", "eval_fn returned no loss (it has accuracy)"),
        ("{'accuracy': None, 'loss': 0.1}", "eval_fn returned the accuracy None, expected a number"),
        ("{'accuracy': 0.5, 'loss': 'low'}", "eval_fn returned the loss 'low', expected a number"),
        ("(0.5, 0.1, None)", "eval_fn returned the num_examples None, expected a number"),
        ("(0.5, torch.ones(2))", "eval_fn returned the loss tensor([1., 1.]), expected a number"),
        ("anabranch.Metrics(None, 0.1, 5)", "eval_fn returned the accuracy None, expected a number"),
    ],
)
def test_keys_of_an_evaluation_that_are_unknown_or_missing_are_named(start: Start, returned: str, says: str) -> None:
    child = start(script(f"run(model, evaluate=lambda model: {returned})"))
    child.prepare()
    answer = child.evaluate(child.initial(1))
    assert (answer["type"], answer["kind"]) == ("failed", "error")
    assert says in answer["message"]


def test_a_model_without_accuracy_is_judged_by_its_loss_and_told_once(start: Start) -> None:
    child = start(script("run(model, evaluate=lambda model: {'loss': 0.5})"))
    child.prepare()
    model = child.initial(1)
    for _ in range(2):
        answer = child.evaluate(model)
        assert (answer["accuracy"], answer["loss"], answer["num_examples"]) == (0.0, 0.5, 256)
    told = "anabranch: eval_fn returned no accuracy, which counts as 0: a run never reaches target.accuracy"
    assert child.log_after_end().count(told) == 1


def test_the_mnist_example_has_the_native_manifest_and_learns(start: Start, tmp_path: Path) -> None:
    draw = np.random.default_rng(1)
    labels = draw.integers(0, 10, 500).astype(np.uint8)
    images = draw.integers(0, 60, (500, 28, 28)).astype(np.uint8)
    for image, label in zip(images, labels):
        image[2 * label : 2 * label + 8] += 180
    header = bytes([0, 0, 8, 3]) + struct.pack(">3I", 500, 28, 28)
    (tmp_path / "train-images-idx3-ubyte").write_bytes(header + images.tobytes())
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(bytes([0, 0, 8, 1]) + struct.pack(">I", 500) + labels.tobytes())
    source = Path(__file__).parents[3] / "examples" / "pytorch_mnist" / "train.py"
    env = {"ANABRANCH_SHARD": str(tmp_path), "ANABRANCH_EVAL_SHARD": str(tmp_path), "ANABRANCH_THREADS": "1"}
    child = start(source.read_text(), env)
    tensors = child.prepare()["tensors"]
    assert [(tensor["name"], tensor["shape"]) for tensor in tensors] == [
        ("conv1.weight", [16, 1, 3, 3]), ("conv1.bias", [16]), ("conv2.weight", [32, 16, 3, 3]), ("conv2.bias", [32]),
        ("fc1.weight", [128, 1568]), ("fc1.bias", [128]), ("fc2.weight", [10, 128]), ("fc2.bias", [10]),
    ]  # fmt: skip
    model = child.initial(1)
    before = child.evaluate(model)
    child.train(model, local_steps=40, batch_size=16, optimizer={"kind": "sgd", "lr": 0.05, "momentum": 0.9})
    assert child.answer()[1]["type"] == "trained"
    assert child.evaluate(child.end())["loss"] < 0.8 * before["loss"]


def test_threads_are_the_agents(start: Start) -> None:
    child = start(script("run(model, lambda m, r: print('threads', torch.get_num_threads()) or train(m, r))"), {"ANABRANCH_THREADS": "1"})
    child.prepare()
    child.train(child.initial(1))
    child.answer()
    assert "threads 1" in child.log_after_end()
