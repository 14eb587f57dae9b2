"""What a trainer may raise, and what this package raises."""

from __future__ import annotations


class AnabranchError(Exception):
    """Every error of this package."""


class Diverged(AnabranchError):
    """The loss or the model is no longer finite.

    Raise it in ``train`` or ``evaluate``: the round is given back with this message, and the process lives on.
    """


class Fatal(AnabranchError):
    """This process cannot go on, for instance because its GPU no longer answers.

    Raise it in ``train`` or ``evaluate``: the process ends with the traceback on standard error, the round is given
    back, and the agent starts a fresh process.
    """


class Stopped(AnabranchError):
    """The agent asked to stop. ``Round.step`` raises it where the loop never looks at ``Round.stopped``; let it pass."""


class TensorError(AnabranchError):
    """Tensors whose names, shapes or element type are not those of the manifest. The text names tensor and remedy."""


class ProtocolError(AnabranchError):
    """What came from the agent is not the trainer protocol, or this program cannot speak the agent's version of it."""


class DataError(AnabranchError):
    """A shard that is missing or damaged. The text names the file, and the line or the byte where there is one."""
