"""Federated training with any Python trainer.

An Anabranch agent starts this program as its child and asks it to train (``docs/trainer-protocol.md``). With PyTorch see
``anabranch.torch.run``; with anything else derive from ``Trainer`` and call ``serve``::

    class Mine(anabranch.Trainer):
        train_examples = 1000
        def tensors(self): return {"w": (3, 2)}
        def initial(self, seed): return {"w": numpy.zeros((3, 2), numpy.float32)}
        def train(self, base, plan, round): ...

    anabranch.serve(Mine())
"""

from ._serve import PROTOCOL, Round, Trainer, serve
from ._tensors import Tensors
from ._wire import claim_if_child as _claim_if_child
from .environment import eval_shard, max_memory, shard, threads
from .errors import AnabranchError, DataError, Diverged, Fatal, ProtocolError, Stopped, TensorError
from .spec import Metrics, Optimizer, Plan, Run

__version__ = "0.1.0"

__all__ = [
    "PROTOCOL",
    "AnabranchError",
    "DataError",
    "Diverged",
    "Fatal",
    "Metrics",
    "Optimizer",
    "Plan",
    "ProtocolError",
    "Round",
    "Run",
    "Stopped",
    "TensorError",
    "Tensors",
    "Trainer",
    "eval_shard",
    "max_memory",
    "serve",
    "shard",
    "threads",
]

_claim_if_child()
