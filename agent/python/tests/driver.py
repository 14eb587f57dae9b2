"""The agent's side of the trainer protocol, as far as tests need it: a real child, real pipes, real files."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

DEADLINE_S = 30.0
"""How long a test waits for anything; only a failing test waits that long."""

PLAN: dict[str, Any] = {
    "local_steps": 20,
    "batch_size": 8,
    "optimizer": {"kind": "sgd", "lr": 0.1, "momentum": 0.9},
    "keep_optimizer_state": False,
}

CONTEXT: dict[str, Any] = {"version": 250, "number": 41, "progress": 0.25, "lr_factor": 0.5}
"""Where in the run a round is, unless a test says something else."""

Message = dict[str, Any]


class Driver:
    """A child and the conversation with it."""

    def __init__(self, folder: Path, source: str, env: dict[str, str] | None = None) -> None:
        script = folder / "train.py"
        script.write_text(source)
        self.dir = folder / "tensors"
        self.dir.mkdir(exist_ok=True)
        cleared = {key: value for key, value in os.environ.items() if not key.startswith(("ANABRANCH_", "PYTHONUNBUFFERED"))}
        self.child = subprocess.Popen(
            [sys.executable, str(script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**cleared, **(env or {})},
            start_new_session=True,
        )
        self.request = 0
        self._lines: queue.Queue[bytes | None] = queue.Queue()
        self._log: list[bytes] = []
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._read_out, self._read_log)]
        for thread in self._threads:
            thread.start()

    def _read_out(self) -> None:
        assert self.child.stdout is not None
        for line in self.child.stdout:
            self._lines.put(line)
        self._lines.put(None)

    def _read_log(self) -> None:
        assert self.child.stderr is not None
        for line in self.child.stderr:
            self._log.append(line)

    def send(self, message: Message) -> None:
        self.send_bytes(json.dumps(message).encode() + b"\n")

    def send_bytes(self, line: bytes) -> None:
        assert self.child.stdin is not None
        self.child.stdin.write(line)
        self.child.stdin.flush()

    def next(self) -> Message:
        """The child's next message, heartbeats included."""
        line = self._lines.get(timeout=DEADLINE_S)
        assert line is not None, f"the child ended: {self.log()}"
        message = json.loads(line)
        assert isinstance(message, dict), line
        return message

    def answer(self) -> tuple[list[Message], Message]:
        """Everything up to the answer of the request, heartbeats left out, and the answer."""
        before: list[Message] = []
        while True:
            message = self.next()
            if message["type"] == "heartbeat":
                continue
            assert message["id"] == self.request, message
            if message["type"] != "step":
                return before, message
            before.append(message)

    def hello(self, **other: Any) -> Message:
        self.send({"type": "hello", "min_protocol": 1, "max_protocol": 1, "dir": str(self.dir), "agent": "north",
                   "shard": None, "eval_shard": None, "threads": None, "a_later_key": 1, **other})  # fmt: skip
        return self.next()

    def ask(self, kind: str, **keys: Any) -> None:
        self.request += 1
        self.send({"type": kind, "id": self.request, **keys})

    def prepare(self) -> Message:
        """hello and prepare."""
        assert self.hello()["type"] == "hello"
        run = {"name": "test", "seed": 7, "model": {"kind": "custom"}, "train": PLAN}
        self.ask("prepare", run=run)
        return self.answer()[1]

    def initial(self, seed: int) -> dict[str, NDArray[np.float32]]:
        self.ask("initial", seed=seed, out="initial.safetensors")
        answer = self.answer()[1]
        assert answer["type"] == "initial", answer
        return self.load("initial.safetensors")

    def train(
        self, base: dict[str, NDArray[Any]], seed: int = 2**64 - 1, context: dict[str, Any] | None = None, **plan: Any
    ) -> None:
        """Asks for a round, and does not wait for its end."""
        save_file(base, self.dir / "base.safetensors")
        (self.dir / "end.safetensors").unlink(missing_ok=True)
        files = {"base": "base.safetensors", "out": "end.safetensors"}
        self.ask("train", **files, seed=seed, **{**CONTEXT, **(context or {})}, plan={**PLAN, **plan})

    def evaluate(self, model: dict[str, NDArray[Any]]) -> Message:
        save_file(model, self.dir / "model.safetensors")
        self.ask("evaluate", model="model.safetensors")
        return self.answer()[1]

    def end(self) -> dict[str, NDArray[np.float32]]:
        return self.load("end.safetensors")

    def load(self, name: str) -> dict[str, NDArray[np.float32]]:
        return dict(load_file(self.dir / name))

    def close_input(self) -> None:
        assert self.child.stdin is not None
        self.child.stdin.close()

    def wait(self, timeout_s: float = DEADLINE_S) -> int:
        code = self.child.wait(timeout_s)
        for thread in self._threads:
            thread.join(DEADLINE_S)
        return code

    def log(self) -> str:
        return b"".join(self._log).decode()

    def log_after_end(self) -> str:
        """Standard error, all of it."""
        self.close_input()
        self.wait()
        return self.log()

    def quit(self) -> None:
        if self.child.poll() is None:
            self.child.kill()
        self.child.wait()
        for pipe in (self.child.stdin, self.child.stdout, self.child.stderr):
            if pipe is not None:
                try:
                    pipe.close()
                except BrokenPipeError:
                    pass
