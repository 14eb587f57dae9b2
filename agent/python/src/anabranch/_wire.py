"""The pipe to the agent: lines in, lines out, and the threads that keep both alive."""

from __future__ import annotations

import io
import json
import math
import os
import queue
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any, NoReturn

from .errors import ProtocolError

LINE_BYTES = 1 << 20
"""Longest line of the protocol, its end included."""
HEARTBEAT_S = 5.0
"""Seconds between heartbeats while a request is open."""
STEP_S = 0.1
"""Least seconds between two ``step`` messages."""
EXIT_MISUSE = 2
"""Exit code: started by hand, or by an agent of another protocol version."""
EXIT_PROTOCOL = 3
"""Exit code: the agent's side broke the protocol."""

STARTED_BY_HAND = (
    "this program is a trainer; start it with: anabranch-agent run --dir DIR -- python3 train.py\n"
    "(docs/trainer-protocol.md says what an agent tells it)"
)

_claimed: tuple[int, int] | None = None


def claim() -> tuple[int, int]:
    """Takes standard input and output for the protocol, once. From then on fd 1 is standard error, so that whatever
    prints lands in the agent's log, and fd 0 is empty, so that nothing else reads the agent's messages.

    Returns:
        The descriptors to read messages from and to write them to. Programs that this one starts do not inherit them.
    """
    global _claimed
    if _claimed is None:
        # What was printed so far sits in this buffer where it is a pipe: it follows fd 1 to standard error.
        pair = os.dup(0), os.dup(1)
        os.dup2(2, 1)
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.flush()
            # A log is read line by line, and what sits in a buffer when the process is killed is lost.
            sys.stdout.reconfigure(line_buffering=True)
        empty = os.open(os.devnull, os.O_RDONLY)
        os.dup2(empty, 0)
        os.close(empty)
        _claimed = pair
    return _claimed


def claim_if_child() -> None:
    """Takes the descriptors at import where the agent says that this process is a trainer, so that even what is printed
    before ``serve`` breaks nothing. The variable is removed: programs that this one starts are no trainers."""
    if os.environ.pop("ANABRANCH_PROTOCOL", None) is not None:
        claim()


def exit_with(code: int, message: str) -> NoReturn:
    """Ends the process at once, from any thread, with the message on standard error."""
    try:
        os.write(2, f"anabranch: {message}\n".encode())
    finally:
        os._exit(code)


def number(value: float) -> float | str:
    """A number as the protocol writes it: JSON has none that is not finite."""
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")


class Wire:
    """Messages to and from the agent. ``send`` may be called from any thread, ``receive`` from one."""

    def __init__(self) -> None:
        self._in, self._out = claim()
        self._sending = threading.Lock()
        self._requests: queue.Queue[dict[str, Any]] = queue.Queue()
        self._state = threading.Lock()
        self._open: int | None = None
        self._stopped: set[int] = set()

    def hello(self) -> dict[str, Any]:
        """The agent's first message. Ends the process where there is no agent."""
        self._buffer = b""
        line = None if os.isatty(self._in) else self._line()
        try:
            message = None if line is None else _parse(line)
        except ProtocolError:
            message = None
        if message is None or message["type"] != "hello":
            exit_with(EXIT_MISUSE, STARTED_BY_HAND)
        return message

    def start(self) -> None:
        """Begins to read requests and to send heartbeats; called once ``hello`` has been answered."""
        for target in (self._read, self._beat):
            threading.Thread(target=target, name=f"anabranch{target.__name__}", daemon=True).start()

    def send(self, message: Mapping[str, Any]) -> None:
        """Writes one line. Ends the process where the agent is gone.

        Raises:
            ProtocolError: the line would be longer than the protocol allows; nothing was written.
        """
        line = json.dumps(message, separators=(",", ":"), allow_nan=False).encode() + b"\n"
        if len(line) > LINE_BYTES:
            raise ProtocolError(f"a {message['type']!r} message of {len(line)} bytes, a line has at most {LINE_BYTES}")
        with self._sending:
            try:
                while line:
                    line = line[os.write(self._out, line) :]
            except OSError as error:
                exit_with(EXIT_PROTOCOL, f"the agent no longer listens: {error}")

    def receive(self) -> dict[str, Any]:
        """The next request; its id counts as open until ``answered``."""
        return self._requests.get()

    def answered(self) -> None:
        """The request is no longer open: no heartbeats until the next."""
        with self._state:
            self._open = None

    def is_stopped(self, request: int) -> bool:
        """Whether the agent asked to stop this request."""
        with self._state:
            return request in self._stopped

    def _line(self) -> bytes | None:
        """The next line without its end; ``None`` at the end of file."""
        searched = 0
        while (end := self._buffer.find(b"\n", searched)) < 0:
            searched = len(self._buffer)
            if searched >= LINE_BYTES:
                exit_with(EXIT_PROTOCOL, f"the agent sent a line of more than {LINE_BYTES} bytes")
            try:
                more = os.read(self._in, 1 << 16)
            except OSError:
                return None
            if not more:
                return None
            self._buffer += more
        line, self._buffer = self._buffer[:end], self._buffer[end + 1 :]
        if len(line) >= LINE_BYTES:
            exit_with(EXIT_PROTOCOL, f"the agent sent a line of {len(line) + 1} bytes, a line has at most {LINE_BYTES}")
        return line

    def _read(self) -> None:
        while (line := self._line()) is not None:
            try:
                message = _parse(line)
                if message["type"] == "stop":
                    with self._state:
                        # One that crosses with its answer is ignored.
                        if message.get("id") == self._open and self._open is not None:
                            self._stopped = {self._open}
                    continue
                if message["type"] != "exit":
                    self._begin(message)
                self._requests.put(message)
            except ProtocolError as error:
                exit_with(EXIT_PROTOCOL, str(error))
        # The agent is gone, and the main thread may be deep in a computation.
        os._exit(0)

    def _begin(self, message: dict[str, Any]) -> None:
        request = message.get("id")
        if isinstance(request, bool) or not isinstance(request, int) or request < 0:
            raise ProtocolError(f"the agent's {message['type']!r} has the id {request!r}, expected an integer")
        with self._state:
            if self._open is not None:
                raise ProtocolError(f"the agent sent request {request} while request {self._open} was open")
            self._open = request
            self._stopped = set()

    def _beat(self) -> None:
        while True:
            time.sleep(HEARTBEAT_S)
            with self._state:
                is_open = self._open is not None
            if is_open:
                self.send({"type": "heartbeat"})


def _parse(line: bytes) -> dict[str, Any]:
    try:
        message = json.loads(line)
    except ValueError as error:
        shown = line[:80].decode("utf-8", "replace")
        raise ProtocolError(f"the agent sent a line that is not JSON ({error}): {shown!r}") from error
    if not isinstance(message, dict) or not isinstance(message.get("type"), str):
        raise ProtocolError("the agent sent a line that is not an object with a string \"type\"")
    return message
