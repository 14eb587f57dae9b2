"""anabranch.torch.run_stages: a model in parts has the gradients of the whole model."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from conftest import Start, require_torch
from driver import PLAN, Driver
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

require_torch()

import torch  # noqa: E402
from torch import nn  # noqa: E402

import anabranch  # noqa: E402
import anabranch.torch  # noqa: E402

Tensors = dict[str, NDArray[np.float32]]

SCRIPT = """
import torch, anabranch.torch
from torch import nn
from torch.nn import functional as F

x = torch.randn(64, 8, generator=torch.Generator().manual_seed(1)); y = (x.sum(1) > 0).long()
torch.manual_seed(3)
def make(): return [nn.Sequential(nn.Linear(8, 16), nn.Tanh()), nn.Sequential(nn.Linear(16, 12), nn.Tanh()), nn.Linear(12, 2)]
def evaluate(model):
    logits = model(x)
    return (logits.argmax(1) == y).float().mean(), F.cross_entropy(logits, y), len(y)
modules, loss, data = make(), F.cross_entropy, (x, y)
"""
RUN = "anabranch.torch.run_stages(modules, loss, data, evaluate, eval_examples=64)\n"
ROWS = [{"parameters": 144, "output": [16]}, {"parameters": 204, "output": [12]}, {"parameters": 26, "output": [2]}]
DRAW = {"seed": 2**64 - 1, "local_steps": 2, "batch_size": 8, "micro_batch": 3}


def prepare(child: Driver, rows: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    """hello and prepare, of a run with the table of the modules."""
    hello = child.hello()
    assert hello["stages"] is True, hello
    model = {"kind": "custom", "modules": ROWS if rows is None else rows}
    child.ask("prepare", run={"name": "test", "seed": 7, "model": model, "train": PLAN})
    return child.answer()[1]


def begin(child: Driver, ends: list[int], parts: list[int], draw: dict[str, int] | None = None) -> None:
    listed = [{"part": part, "first": ends[part - 1] if part else 0, "end": ends[part]} for part in parts]
    child.ask("stages", round=81, parts=listed, **({"draw": draw} if draw is not None else {}))
    answer = child.answer()[1]
    assert answer["type"] == "stages", answer


class Parts:
    """The parts of a model at a child, as an agent drives them."""

    def __init__(self, child: Driver, ends: list[int], names: list[list[str]]) -> None:
        self.child, self.ends, self.names = child, ends, names

    def load(self, part: int, model: Tensors) -> None:
        first = self.ends[part - 1] if part else 0
        own = [name for module in self.names[first : self.ends[part]] for name in module]
        save_file({name: model[name] for name in own}, self.child.dir / "weights.safetensors")
        self.child.ask("weights", part=part, weights="weights.safetensors")
        answer = self.child.answer()[1]
        assert answer["type"] == "weights", answer

    def load_and_forward(self, model: Tensors) -> None:
        """All parts, with one micro-batch of three examples."""
        for part in range(len(self.ends)):
            self.load(part, model)
        output = None
        for part in range(len(self.ends)):
            output = self.forward(part, 0, 3, output)

    def forward(self, part: int, micro_batch: int, examples: int, input: NDArray[Any] | None = None) -> Any:
        """The output, or the loss of the last part."""
        answer = self.ask_forward(part, micro_batch, examples, input)
        assert answer["type"] == "forward", answer
        return answer["loss"] if "loss" in answer else load_file(self.child.dir / "output.safetensors")["activations"]

    def ask_forward(self, part: int, micro_batch: int, examples: int, input: NDArray[Any] | None = None) -> dict[str, Any]:
        files = {}
        if input is not None:
            save_file({"activations": input}, self.child.dir / "input.safetensors")
            files["input"] = "input.safetensors"
        if part < len(self.ends) - 1:
            files["out"] = "output.safetensors"
        self.child.ask("forward", part=part, micro_batch=micro_batch, examples=examples, **files)
        return self.child.answer()[1]

    def backward(self, part: int, micro_batch: int, slope: NDArray[Any] | None = None) -> tuple[Tensors, NDArray[Any] | None]:
        answer = self.ask_backward(part, micro_batch, slope)
        assert answer["type"] == "backward", answer
        of_input = load_file(self.child.dir / "of-input.safetensors")["activations"] if part else None
        return dict(load_file(self.child.dir / "gradient.safetensors")), of_input

    def ask_backward(self, part: int, micro_batch: int, slope: NDArray[Any] | None = None) -> dict[str, Any]:
        files = {"of_input": "of-input.safetensors"} if part else {}
        if slope is not None:
            save_file({"activations": slope}, self.child.dir / "slope.safetensors")
            files["slope"] = "slope.safetensors"
        self.child.ask("backward", part=part, micro_batch=micro_batch, out="gradient.safetensors", **files)
        return self.child.answer()[1]


def names_of(prepared: dict[str, Any]) -> list[list[str]]:
    names = [tensor["name"] for tensor in prepared["tensors"]]
    counts = prepared["modules"]
    return [names[sum(counts[:at]) : sum(counts[: at + 1])] for at in range(len(counts))]


def whole() -> Any:
    return nn.Sequential(nn.Sequential(nn.Linear(8, 16), nn.Tanh()), nn.Sequential(nn.Linear(16, 12), nn.Tanh()), nn.Linear(12, 2))


def expected(model: Tensors, inputs: Any, targets: Any) -> tuple[float, Tensors]:
    """Loss and gradient of the whole model."""
    here = whole()
    here.load_state_dict({name: torch.from_numpy(values) for name, values in model.items()})
    loss = nn.functional.cross_entropy(here(inputs), targets)
    loss.backward()
    return float(loss), {name: parameter.grad.numpy() for name, parameter in here.named_parameters()}


def drawn(micro_batches: int) -> list[tuple[Any, Any]]:
    """The first micro-batches, of 3, 3 and 2 of 8 examples, as the child draws them."""
    x = torch.randn(64, 8, generator=torch.Generator().manual_seed(1))
    y = (x.sum(1) > 0).long()
    order = torch.randperm(64, generator=torch.Generator().manual_seed(DRAW["seed"]))
    parts = [order[start : start + size] for start, size in ((0, 3), (3, 3), (6, 2), (8, 3), (11, 3), (14, 2))]
    return [(x[part], y[part]) for part in parts[:micro_batches]]


def close(found: Tensors, wanted: Tensors) -> bool:
    return set(found) == set(wanted) and all(np.allclose(found[name], wanted[name], rtol=1e-5, atol=1e-7) for name in found)


@pytest.mark.parametrize("ends", [[1, 2, 3], [1, 3], [2, 3]])
def test_a_model_in_parts_has_the_gradient_of_the_whole_model(start: Start, ends: list[int]) -> None:
    child = start(SCRIPT + RUN)
    prepared = prepare(child)
    assert prepared["modules"] == [2, 2, 2] and prepared["proximal"] is True
    model = child.initial(7)
    last = len(ends) - 1
    begin(child, ends, list(range(len(ends))), DRAW)
    parts = Parts(child, ends, names_of(prepared))
    for part in range(len(ends)):
        parts.load(part, model)
    for number, (inputs, targets) in enumerate(drawn(6)):
        output = None
        for part in range(len(ends)):
            output = parts.forward(part, number, len(inputs), output)
        found: Tensors = {}
        slope: NDArray[Any] | None = None
        for part in range(last, -1, -1):
            gradient, slope = parts.backward(part, number, slope)
            found.update(gradient)
        loss, wanted = expected(model, inputs, targets)
        assert output == pytest.approx(loss, rel=1e-6) and close(found, wanted)


def test_a_backward_pass_has_the_weights_that_were_loaded_last(start: Start) -> None:
    """As with burn: the activations of the forward pass, and the weights of now."""
    child = start(SCRIPT + RUN)
    prepared = prepare(child)
    first = child.initial(7)
    second = {name: values * np.float32(0.5) for name, values in first.items()}
    begin(child, [1, 2, 3], [0, 1, 2], DRAW)
    parts = Parts(child, [1, 2, 3], names_of(prepared))
    parts.load_and_forward(first)
    gradient, slope = parts.backward(2, 0)
    parts.load(2, second)
    assert slope is not None
    inputs, targets = drawn(1)[0]
    _, wanted = expected(first, inputs, targets)
    assert np.allclose(gradient["2.weight"], wanted["2.weight"], rtol=1e-5, atol=1e-7)
    parts.load(1, second)
    _, of_input = parts.backward(1, 0, slope)
    parts.load(1, first)
    # Twice the same micro-batch, with the weights of the forward pass.
    begin(child, [1, 2, 3], [0, 1, 2], DRAW)
    parts.load_and_forward(first)
    _, slope = parts.backward(2, 0)
    _, as_forwarded = parts.backward(1, 0, slope)
    assert of_input is not None and as_forwarded is not None
    assert np.allclose(2 * of_input, as_forwarded, rtol=1e-5, atol=1e-8), "the gradient by the input is linear in the weight"


def test_what_is_drawn_in_a_pass_depends_on_the_micro_batch_and_not_on_the_cut(start: Start) -> None:
    body = "modules[1] = nn.Sequential(nn.Linear(16, 12), nn.Dropout(0.5))\n"
    child = start(SCRIPT + body + RUN)
    prepared = prepare(child)
    model = child.initial(7)
    losses = []
    for ends in ([1, 2, 3], [2, 3]):
        parts = Parts(child, ends, names_of(prepared))
        begin(child, ends, list(range(len(ends))), DRAW)
        found = []
        for number in range(2):
            output = None
            for part in range(len(ends)):
                if number == 0:
                    parts.load(part, model)
                output = parts.forward(part, number, 3, output)
            found.append(output)
        losses.append(found)
    assert losses[0] == losses[1]
    assert losses[0][0] != pytest.approx(expected(model, *drawn(1)[0])[0], rel=1e-6), "the module drops values"


def test_the_whole_model_is_trained_too_and_in_the_same_micro_batches(start: Start) -> None:
    child = start(SCRIPT + RUN)
    prepare(child)
    base = child.initial(7)
    ends = []
    for most in (8, 3):
        context = {"max_micro_batch": most}
        child.train(base, seed=DRAW["seed"], context=context, local_steps=1, optimizer={"kind": "sgd", "lr": 0.25})
        steps, answer = child.answer()
        assert (answer["steps"], answer["num_examples"], len(steps)) == (1, 8, 1)
        ends.append(child.end())
    inputs = torch.cat([inputs for inputs, _ in drawn(3)])
    targets = torch.cat([targets for _, targets in drawn(3)])
    _, gradient = expected(base, inputs, targets)
    wanted = {name: base[name] - np.float32(0.25) * gradient[name] for name in base}
    assert close(ends[0], wanted) and close(ends[1], wanted)
    assert child.evaluate(base)["num_examples"] == 64


def test_a_helper_needs_no_data(start: Start) -> None:
    child = start(SCRIPT + "anabranch.torch.run_stages(modules, None)\n")
    prepared = prepare(child)
    model = child.initial(7)
    begin(child, [1, 2, 3], [1])
    parts = Parts(child, [1, 2, 3], names_of(prepared))
    parts.load(1, model)
    output = parts.forward(1, 0, 3, np.ones((3, 16), np.float32))
    assert output.shape == (3, 12)
    gradient, of_input = parts.backward(1, 0, np.ones((3, 12), np.float32))
    assert set(gradient) == {"1.0.weight", "1.0.bias"} and of_input is not None and of_input.shape == (3, 16)
    child.ask("stages", round=82, parts=[{"part": 0, "first": 0, "end": 1}], draw=DRAW)
    answer = child.answer()[1]
    assert answer["type"] == "failed" and "no data or no loss_fn" in answer["message"]


def test_what_the_agent_may_not_ask_fails_and_the_child_lives(start: Start) -> None:
    child = start(SCRIPT + RUN)
    prepared = prepare(child)
    parts = Parts(child, [1, 2, 3], names_of(prepared))
    model = child.initial(7)

    def told(answer: dict[str, Any]) -> str:
        assert answer["type"] == "failed", answer
        return str(answer["message"])

    assert "no `stages` has named" in told(parts.ask_forward(1, 0, 3, np.ones((3, 16), np.float32)))
    child.ask("stages", round=1, parts=[{"part": 0, "first": 2, "end": 4}])
    assert "the run has 3" in told(child.answer()[1])
    child.ask("stages", round=1, parts=[])
    assert "expected a list of objects" in told(child.answer()[1])
    begin(child, [1, 2, 3], [0, 1, 2], DRAW)
    for part in range(3):
        parts.load(part, model)
    assert "activations of the shape [3, 15]" in told(parts.ask_forward(1, 0, 3, np.ones((3, 15), np.float32)))
    assert "which is not in flight" in told(parts.ask_backward(1, 0, np.ones((3, 12), np.float32)))
    assert "targets of micro-batch 5 are not here" in told(parts.ask_forward(2, 5, 3, np.ones((3, 12), np.float32)))
    assert "4 examples of a micro-batch of 3" in told(parts.ask_forward(0, 0, 4))
    begin(child, [1, 2, 3], [0, 1, 2], DRAW)
    for number, (inputs, _) in enumerate(drawn(6)):
        parts.forward(0, number, len(inputs))
    assert "the round has no more" in told(parts.ask_forward(0, 6, 3))
    assert child.evaluate(model)["type"] == "evaluated"


def test_values_that_are_not_finite_are_passed_on_for_the_owner_to_see(start: Start) -> None:
    child = start(SCRIPT + "loss = lambda output, targets: F.cross_entropy(output, targets) * float('inf')\n" + RUN)
    prepared = prepare(child)
    parts = Parts(child, [1, 2, 3], names_of(prepared))
    model = child.initial(7)
    begin(child, [1, 2, 3], [0, 1, 2], DRAW)
    output = None
    for part in range(3):
        parts.load(part, model)
        output = parts.forward(part, 0, 3, output)
    assert output == "Infinity"
    gradient, slope = parts.backward(2, 0)
    assert not np.isfinite(gradient["2.weight"]).all()
    gradient, slope = parts.backward(1, 0, slope)
    assert slope is not None and not np.isfinite(slope).all()
    output = parts.forward(0, 1, 3)
    output[0, 0] = np.nan
    assert np.isnan(parts.forward(1, 1, 3, output)[0]).all()


def test_a_table_that_is_not_the_models_fails_with_the_module(start: Start) -> None:
    child = start(SCRIPT + RUN)
    rows = [ROWS[0], {"parameters": 204, "output": [3, 4]}, ROWS[2]]
    prepared = prepare(child, rows)
    parts = Parts(child, [2, 3], names_of(prepared))
    begin(child, [2, 3], [0, 1], DRAW)
    parts.load(0, child_model(child))
    answer = parts.ask_forward(0, 0, 3)
    assert answer["type"] == "failed"
    assert "module 1 returned the shape [3, 12], expected [3, 3, 4]" in answer["message"], answer


def child_model(child: Driver) -> Tensors:
    here = whole()
    return {name: tensor.detach().numpy() for name, tensor in here.state_dict().items()}


def test_the_rows_of_a_model_are_printed_for_run_toml() -> None:
    rows = anabranch.torch.module_rows([nn.Conv2d(1, 3, 3), nn.Sequential(nn.Flatten(), nn.Linear(108, 5))], torch.ones(2, 1, 8, 8))
    lines = ["modules = [", "    { parameters = 30, output = [3, 6, 6] },", "    { parameters = 545, output = [5] },", "]"]
    assert rows == "\n".join(lines)


SHARED = nn.Linear(4, 4)
FROZEN = nn.Linear(4, 4).requires_grad_(False)


@pytest.mark.parametrize(
    ("modules", "told"),
    [
        ([nn.Linear(4, 4), nn.ReLU()], "module 1 has no parameters: put it together with the one before it"),
        ([nn.Linear(4, 4), FROZEN], "1.weight is frozen"),
        ([nn.Linear(4, 4).double()], "0.weight is torch.float64, expected float32"),
        ([nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))], "module 0 has float buffers, which no gradient moves"),
        ([SHARED, nn.Sequential(nn.Tanh(), SHARED)], "1.1.weight is the same tensor as 0.weight"),
    ],
)
def test_modules_that_cannot_be_computed_in_parts_are_refused_by_name(modules: list[Any], told: str) -> None:
    with pytest.raises(anabranch.TensorError) as error:
        anabranch.torch.run_stages(modules, nn.functional.mse_loss, (torch.ones(2, 4), torch.ones(2, 4)))
    assert told in str(error.value)


def test_arguments_that_do_not_fit_each_other_are_refused() -> None:
    data = (torch.ones(2, 4), torch.ones(2, 4))
    modules, loss = [nn.Linear(4, 4)], nn.functional.mse_loss
    with pytest.raises(ValueError, match="no loss_fn"):
        anabranch.torch.run_stages(modules, None, data)
    with pytest.raises(ValueError, match="no modules"):
        anabranch.torch.run_stages([], loss, data)
    with pytest.raises(ValueError, match="no eval_fn"):
        anabranch.torch.run_stages(modules, None, eval_examples=3)
    with pytest.raises(ValueError, match=r"lengths \[1, 2\]"):
        anabranch.torch.run_stages(modules, loss, (data[0], data[1][:1]))
