"""The protocol as an agent sees it, with a trainer that needs nothing but numpy."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import Start
from driver import CONTEXT, DEADLINE_S, PLAN

from anabranch import _tensors, _wire

LINEAR = '''
import os, sys, threading, time
import numpy as np
import anabranch
from anabranch import _wire

class Linear(anabranch.Trainer):
    """Least squares: y = x w + b."""
    train_examples = 64
    eval_examples = 16

    def __init__(self):
        draw = np.random.default_rng(1)
        self.x = draw.normal(size=(64, 3)).astype(np.float32)
        self.y = self.x @ np.float32([1, -2, 3]) + np.float32(0.5)

    def tensors(self):
        return {"w": (3,), "b": ()}

    def initial(self, seed):
        draw = np.random.default_rng(seed)
        return {"w": draw.normal(size=3).astype(np.float32), "b": np.float32(draw.normal()) * np.ones((), np.float32)}

    def each(self, round):
        pass

    def train(self, base, plan, round):
        draw = np.random.default_rng(round.seed)
        w, b = base["w"], base["b"]
        for _ in range(plan.local_steps):
            at = draw.integers(0, 64, plan.batch_size)
            error = self.x[at] @ w + b - self.y[at]
            w -= plan.optimizer.lr * (self.x[at].T @ error) / len(at)
            b -= plan.optimizer.lr * error.mean()
            self.each(round)
            round.step((error**2).mean(), len(at))
        return {"w": w, "b": b}

    def evaluate(self, model):
        error = self.x @ model["w"] + model["b"] - self.y
        return anabranch.Metrics(0.25, float((error**2).mean()), 16)

T = Linear
'''
SERVE = "\nanabranch.serve(T())\n"
BASE = {"w": np.zeros(3, np.float32), "b": np.zeros((), np.float32)}


def trainer(body: str) -> str:
    """A script with a trainer that differs from the linear one in ``body``."""
    return LINEAR + "\nclass T(Linear):\n    train_examples = 64\n" + body + SERVE


def test_hello_names_the_script_and_its_examples(start: Start) -> None:
    answer = start(LINEAR + SERVE).hello(min_protocol=1, max_protocol=9)
    assert answer == {"type": "hello", "protocol": 1, "name": "train.py", "train_examples": 64, "eval_examples": 16}


def test_no_common_version_ends_with_both_versions(start: Start) -> None:
    child = start(LINEAR + SERVE)
    child.send({"type": "hello", "min_protocol": 2, "max_protocol": 3, "dir": str(child.dir)})
    assert child.wait() == 2
    assert "the agent speaks trainer protocol 2 to 3, this package 1" in child.log()


def test_started_by_hand_says_how_to_start(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(LINEAR + SERVE)
    terminal, side = pty.openpty()
    try:
        for given in (side, subprocess.DEVNULL):
            done = subprocess.run([sys.executable, script], stdin=given, capture_output=True, text=True, timeout=DEADLINE_S)
            assert done.returncode == 2 and done.stdout == ""
            assert "this program is a trainer; start it with: anabranch-agent run --dir DIR -- python3 train.py" in done.stderr
            assert "Traceback" not in done.stderr
    finally:
        os.close(terminal)
        os.close(side)


def test_a_trainer_without_examples_is_refused(start: Start) -> None:
    child = start(trainer("    train_examples = 0\n    eval_examples = 0\n"))
    child.send({"type": "hello", "min_protocol": 1, "max_protocol": 1, "dir": str(child.dir)})
    assert child.wait() == 2
    assert "train_examples is 0 and eval_examples 0" in child.log()


def test_prepare_gives_the_manifest_in_order_and_the_run(start: Start) -> None:
    child = start(trainer("    def prepare(self, run): print(run.name, run.seed, run.model['kind'], run.train.batch_size)\n"))
    answer = child.prepare()
    assert answer["tensors"] == [{"name": "w", "shape": [3]}, {"name": "b", "shape": []}]
    assert "test 7 custom 8" in child.log_after_end()


@pytest.mark.parametrize("body, says", [("    proximal = True\n", True), ("    proximal = False\n", None)])
def test_a_trainer_says_whether_it_adds_the_proximal_term(start: Start, body: str, says: bool | None) -> None:
    assert start(trainer(body)).prepare().get("proximal") is says


def test_a_plan_has_the_strength_of_the_proximal_term(start: Start) -> None:
    child = start(trainer("    def each(self, round): print(f'mu {round.plan.proximal_mu}', file=sys.stderr)\n"))
    child.prepare()
    child.train(BASE, local_steps=1, proximal_mu=0.25)
    assert child.answer()[1]["type"] == "trained"
    child.train(BASE, local_steps=1)
    assert child.answer()[1]["type"] == "trained"
    log = child.log_after_end()
    assert "mu 0.25\n" in log and "mu 0.0\n" in log


def test_initial_is_the_same_for_the_same_seed(start: Start) -> None:
    child = start(LINEAR + SERVE)
    child.prepare()
    first, again, other = child.initial(2**64 - 1), child.initial(2**64 - 1), child.initial(3)
    assert all(first[name].tobytes() == again[name].tobytes() for name in ("w", "b"))
    assert first["b"].shape == () and not np.array_equal(first["w"], other["w"])


def test_training_moves_the_model_and_counts(start: Start) -> None:
    child = start(LINEAR + SERVE)
    child.prepare()
    child.train(BASE, local_steps=200)
    steps, answer = child.answer()
    assert answer["steps"] == 200 and answer["num_examples"] == 1600 and answer["stopped"] is False
    assert steps[0]["step"] == 1 and steps[-1] == {"type": "step", "id": 2, "step": 200, "examples": 1600, "loss": steps[-1]["loss"]}
    end = child.end()
    assert np.allclose(end["w"], [1, -2, 3], atol=1e-3) and np.isclose(end["b"], 0.5, atol=1e-3)
    assert child.evaluate(end)["loss"] < 1e-4 < child.evaluate(BASE)["loss"]
    child.train(BASE, local_steps=200)
    child.answer()
    assert child.end()["w"].tobytes() == end["w"].tobytes(), "the same seed and base give the same bits"


def test_steps_are_told_at_most_ten_times_a_second(start: Start) -> None:
    child = start(trainer("    def each(self, round): time.sleep(0.001)\n"))
    child.prepare()
    begin = time.monotonic()
    child.train(BASE, local_steps=400)
    steps, answer = child.answer()
    elapsed_s = time.monotonic() - begin
    assert answer["steps"] == 400
    assert 3 <= len(steps) <= 3 + elapsed_s / _wire.STEP_S, "the first, the last, and ten a second between"


def test_fewer_steps_than_planned_are_all_told(start: Start) -> None:
    child = start(trainer("    def train(self, base, plan, round):\n        for _ in range(3): round.step(1.0, 8)\n        return base\n"))
    child.prepare()
    child.train(BASE)
    steps, answer = child.answer()
    assert [step["step"] for step in steps] == [1, 3] and answer["steps"] == 3


@pytest.mark.parametrize("looks", ["pass", "if round.stopped: return base"])
def test_stop_ends_the_round_after_its_step(start: Start, looks: str) -> None:
    body = f"""
    def train(self, base, plan, round):
        while True:
            {looks}
            time.sleep(0.01)
            round.step(1.0, 8)
"""
    child = start(trainer(body))
    child.prepare()
    child.train(BASE, local_steps=1_000_000)
    assert child.next()["step"] == 1
    child.send({"type": "stop", "id": child.request})
    begin = time.monotonic()
    _, answer = child.answer()
    assert answer["type"] == "trained" and answer["stopped"] is True and 1 <= answer["steps"] < 1_000_000
    assert time.monotonic() - begin < 2.0, "the agent kills after 2 s"
    # A stop that comes late, or for another request, concerns no later round.
    child.send({"type": "stop", "id": child.request})
    child.ask("evaluate", model="missing.safetensors")
    assert child.answer()[1]["type"] == "failed"
    child.train(BASE, local_steps=1_000_000)
    assert child.next()["step"] == 1
    child.send({"type": "stop", "id": 1})
    child.send({"type": "stop", "id": child.request})
    assert child.answer()[1]["stopped"] is True


def test_an_exception_costs_the_round_and_leaves_a_traceback(start: Start) -> None:
    body = "    def each(self, round):\n        if round.plan.local_steps == 5: raise KeyError('column seven')\n"
    child = start(trainer(body))
    child.prepare()
    child.train(BASE, local_steps=5)
    answer = child.answer()[1]
    assert (answer["type"], answer["kind"]) == ("failed", "error") and "KeyError: 'column seven'" in answer["message"]
    child.train(BASE)
    assert child.answer()[1]["type"] == "trained", "the child lives on"
    log = child.log_after_end()
    assert "Traceback" in log and "in each" in log and "column seven" in log


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("    def train(self, base, plan, round): round.step(1.0, 8); round.step(float('nan'), 8)\n", "the loss is NaN at step 2"),
        ("    def train(self, base, plan, round): round.step(1.0, 8); base['w'][1] = np.inf; return base\n", "tensor w has values that are not finite"),
        ("    def train(self, base, plan, round): round.step(1.0, 8); return {n: np.full_like(t, np.inf) for n, t in base.items()}\n", "tensors w, b have values that are not finite"),
        ("    def train(self, base, plan, round): raise anabranch.Diverged('the gradient is 1e30')\n", "the gradient is 1e30"),
    ],
)  # fmt: skip
def test_what_is_not_finite_is_told_as_diverged(start: Start, body: str, says: str) -> None:
    child = start(trainer(body))
    child.prepare()
    child.train(BASE)
    answer = child.answer()[1]
    assert (answer["kind"], answer["message"]) == ("diverged", says)
    assert not (child.dir / "end.safetensors").exists()


def test_an_evaluation_that_is_no_metrics_says_what_it_lacks(start: Start) -> None:
    child = start(trainer("    def evaluate(self, model): return {'acc': 0.97, 'loss': 0.1}"))
    child.prepare()
    answer = child.evaluate(BASE)
    assert (answer["type"], answer["kind"]) == ("failed", "error")
    assert "returned a dict without accuracy, loss, num_examples" in answer["message"]


def test_an_evaluation_that_is_not_finite_is_told_as_diverged(start: Start) -> None:
    child = start(LINEAR + SERVE)
    child.prepare()
    answer = child.evaluate({**BASE, "w": np.full(3, np.inf, np.float32)})
    assert (answer["type"], answer["kind"]) == ("failed", "diverged")


@pytest.mark.parametrize(
    ("end", "says"),
    [
        ("{'w': base['w']}", "the result of train() lacks b; tensors() said w, b"),
        ("{**base, 'v': base['w']}", "the result of train() has unknown v"),
        ("{**base, 'w': np.zeros(4, np.float32)}", "tensor w has the shape [4], expected [3]"),
        ("{**base, 'w': base['w'].astype(np.float64)}", "tensor w is float64, expected float32: convert it with"),
        ("{**base, 'w': [1.0, 2.0, 3.0]}", "tensor w is a list, expected a numpy array"),
        ("None", "train() raised Stopped or returned None"),
    ],
)
def test_tensors_that_do_not_match_are_named(start: Start, end: str, says: str) -> None:
    child = start(trainer(f"    def train(self, base, plan, round): round.step(1.0, 8); return {end}\n"))
    child.prepare()
    child.train(BASE)
    answer = child.answer()[1]
    assert answer["kind"] == "error" and says in answer["message"]


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("    def train(self, base, plan, round): return base\n", "train() reported no step: call round.step(loss, examples)"),
        ("    def train(self, base, plan, round):\n        while True: round.step(1.0, 8)\n", "step 21 of a round of 20"),
    ],
)  # fmt: skip
def test_miscounted_steps_are_refused(start: Start, body: str, says: str) -> None:
    child = start(trainer(body))
    child.prepare()
    child.train(BASE)
    assert says in child.answer()[1]["message"]


def test_a_base_of_another_model_is_refused(start: Start) -> None:
    child = start(LINEAR + SERVE)
    child.prepare()
    child.train({"w": np.zeros((3, 2), np.float32), "b": BASE["b"]})
    assert "base.safetensors from the agent: tensor w has the shape [3, 2], expected [3]" in child.answer()[1]["message"]


def test_arrays_in_another_memory_order_arrive_right(start: Start) -> None:
    body = """
    def tensors(self): return {"m": (2, 3)}
    def initial(self, seed): return {"m": np.arange(6, dtype=np.float32).reshape(3, 2).T}
"""
    child = start(trainer(body))
    child.prepare()
    assert child.initial(1)["m"].tolist() == [[0, 2, 4], [1, 3, 5]]


@pytest.mark.parametrize("env", [{}, {"ANABRANCH_PROTOCOL": "1"}])
def test_prints_go_to_the_log_and_break_nothing(start: Start, env: dict[str, str]) -> None:
    body = """
    def each(self, round):
        print('{"type":"trained"} said python')
        os.write(1, b'said a library\\n')
        os.system('echo said a program; cat')
"""
    # Without the variable only `serve` can protect the pipe: then nothing may be flushed to it before.
    early = "\nprint('said before', flush=True)\n" if env else "\nprint('said before')\n"
    child = start(trainer(body).replace(SERVE, early + SERVE), env)
    child.prepare()
    child.train(BASE, local_steps=2)
    assert child.answer()[1]["type"] == "trained"
    log = child.log_after_end()
    for words in ("said before", "said python", "said a library", "said a program"):
        assert words in log


BUSY = {
    "sleep": "time.sleep(600)",
    "lock": "threading.Event().wait()",
    "compute": "while True: sum(range(1000))",
    "c_call": "big = np.ones((3000, 3000)); big @ big; time.sleep(0) or [big @ big for _ in range(1000)]",
    "swallow": "while True:\n            try: time.sleep(0.01)\n            except BaseException: pass",
}


@pytest.mark.parametrize("busy", BUSY)
def test_end_of_file_ends_the_child_whatever_it_does(start: Start, busy: str) -> None:
    child = start(trainer(f"    def train(self, base, plan, round):\n        round.step(1.0, 8)\n        {BUSY[busy]}\n"))
    child.prepare()
    child.train(BASE)
    assert child.next()["step"] == 1
    child.close_input()
    begin = time.monotonic()
    assert child.wait() == 0
    assert time.monotonic() - begin < 2.0, "the agent kills after 2 s"


def test_exit_lets_the_script_finish(start: Start) -> None:
    child = start(LINEAR + SERVE + "print('tidied up')\n")
    child.prepare()
    child.send({"type": "exit"})
    assert child.wait() == 0
    assert "tidied up" in child.log()


def test_a_long_step_sends_heartbeats_and_idling_none(start: Start) -> None:
    assert 0 < _wire.HEARTBEAT_S < 10
    body = "    def each(self, round):\n        while not os.path.exists(os.path.join(os.path.dirname(__file__), 'go')): time.sleep(0.01)\n"
    child = start(trainer(body).replace(SERVE, "\n_wire.HEARTBEAT_S = 0.05\n" + SERVE))
    child.prepare()
    child.train(BASE, local_steps=1)
    assert [child.next() for _ in range(3)] == [{"type": "heartbeat"}] * 3
    (child.dir.parent / "go").touch()
    assert child.answer()[1]["type"] == "trained"
    child.ask("evaluate", model="base.safetensors")
    # Whatever came between is no heartbeat: the first line after the last answer belongs to this request.
    assert child.answer()[1]["type"] == "evaluated"


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (b"x" * (1 << 20) + b"\n", "a line of"),
        (b"{not json}\n", "a line that is not JSON"),
        (b'["train"]\n', 'not an object with a string "type"'),
        (b'{"type":"dance","id":9}\n', "a message of type 'dance', which trainer protocol 1 does not have"),
        (b'{"type":"train"}\n', "has the id None"),
    ],
)
def test_a_line_that_breaks_the_protocol_ends_the_child(start: Start, line: bytes, says: str) -> None:
    child = start(LINEAR + SERVE)
    child.prepare()
    try:
        child.send_bytes(line)
    except BrokenPipeError:
        pass
    assert child.wait() == 3
    assert says in child.log()


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        ("{f'{i:0256}': (1,) for i in range(4096)}", "are too long: a 'prepared' message of"),
        ("{str(i): (1,) for i in range(4097)}", "the model has 4097 tensors, a run takes at most 4096"),
        ("{'n' * 257: (1,)}", "has 257 bytes, a name has at most 256: shorten it"),
        ("{'\\u00e9' * 129: (1,)}", "has 258 bytes, a name has at most 256: shorten it"),
        ("{'w': [1] * 9}", "tensor w has 9 dimensions, a tensor has at most 8: reshape it"),
        ("{'v': (1,), 'w': (1 << 30,)}", "the model has 1073741825 parameters, a run takes at most 1073741824"),
        ("{}", "the model has no tensors"),
    ],
)
def test_a_model_beyond_a_bound_is_refused_with_the_bound_named(start: Start, tensors: str, says: str) -> None:
    answer = start(trainer(f"    def tensors(self): return {tensors}\n")).prepare()
    assert answer["type"] == "failed" and says in answer["message"]


def test_the_bounds_are_the_agents() -> None:
    limits = (Path(__file__).parents[3] / "common" / "src" / "limits.rs").read_text()
    for name in ("MANIFEST_TENSORS", "TENSOR_DIMS", "TENSOR_NAME_BYTES", "MODEL_PARAMS"):
        found = re.search(rf"pub const {name}: usize = ([0-9_<< ]+);", limits)
        assert found and eval(found[1]) == getattr(_tensors, name), name


def test_an_initial_model_that_is_not_finite_is_no_divergence(start: Start) -> None:
    child = start(trainer("    def initial(self, seed): return {'w': np.full(3, -np.inf, np.float32), 'b': np.zeros((), np.float32)}\n"))
    child.prepare()
    child.ask("initial", seed=1, out="initial.safetensors")
    answer = child.answer()[1]
    assert answer["kind"] == "error" and "the initial model is unusable: tensor w has values" in answer["message"]


def test_file_names_outside_the_directory_are_refused(start: Start) -> None:
    child = start(LINEAR + SERVE)
    child.prepare()
    child.ask("initial", seed=1, out="../escaped.safetensors")
    assert "expected the name of a file in its directory" in child.answer()[1]["message"]
    assert not (child.dir.parent / "escaped.safetensors").exists()


@pytest.mark.parametrize(
    ("raised", "code"),
    [("SystemExit(7)", 7), ("KeyboardInterrupt()", None), ("MemoryError()", 1), ("anabranch.Fatal('the GPU is gone')", 1)],
)
def test_what_cannot_be_survived_ends_the_child(start: Start, raised: str, code: int | None) -> None:
    child = start(trainer(f"    def each(self, round): raise {raised}\n"))
    child.prepare()
    child.train(BASE)
    ended = child.wait()
    assert ended == code if code is not None else ended != 0
    assert raised.startswith("SystemExit") or "Traceback" in child.log()


def test_a_round_that_ran_out_of_memory_says_so_and_the_next_one_is_told_its_micro_batch(start: Start) -> None:
    body = "    def each(self, round):\n        print('at once', round.micro_batch)\n        raise type('OutOfMemoryError', (RuntimeError,), {})('GPU')\n"
    child = start(trainer(body))
    child.prepare()
    child.train(BASE)
    assert child.answer()[1]["kind"] == "memory"
    child.ask("train", base="base.safetensors", out="end.safetensors", seed=1, **CONTEXT, plan=PLAN, max_micro_batch=3)
    assert child.answer()[1]["kind"] == "memory"
    assert "at once 3" in child.log_after_end()


def test_a_round_knows_where_in_the_run_it_is(start: Start) -> None:
    body = "    def each(self, round): print('at', round.version, round.number, round.progress, round.lr_factor)\n"
    child = start(trainer(body))
    child.prepare()
    child.train(BASE, local_steps=1)
    assert child.answer()[1]["type"] == "trained"
    # A run without target.versions has no progress.
    child.train(BASE, local_steps=1, context={"version": 251, "number": 42, "progress": None, "lr_factor": 1})
    assert child.answer()[1]["type"] == "trained"
    at = [line for line in child.log_after_end().splitlines() if line.startswith("at")]
    assert at == ["at 250 41 0.25 0.5", "at 251 42 None 1.0"]


def test_a_round_without_its_place_in_the_run_breaks_the_protocol(start: Start) -> None:
    child = start(LINEAR + SERVE)
    child.prepare()
    child.train(BASE, context={"version": -1})
    answer = child.answer()[1]
    assert answer["type"] == "failed" and "train.version is -1, expected an integer from 0" in answer["message"]


def test_shards_and_threads_come_from_the_environment(start: Start) -> None:
    body = "    def prepare(self, run): print(repr((anabranch.shard(), anabranch.eval_shard(), anabranch.threads(), anabranch.max_memory())))\n"
    child = start(trainer(body), {"ANABRANCH_SHARD": "/data/north", "ANABRANCH_THREADS": "2", "ANABRANCH_MAX_MEMORY": "4096"})
    child.prepare()
    assert "(PosixPath('/data/north'), None, 2, 4096)" in child.log_after_end()
