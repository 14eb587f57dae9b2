"""Handwritten digits by a PyTorch model in four modules, which the agents of a pod compute together.

`python3 train.py --rows` prints the table of the modules for `[model]` of run.toml.
"""

import sys

import anabranch
import anabranch.data
import anabranch.torch
import torch
from torch import nn
from torch.nn import functional as F


def make():
    """The modules. A pod may cut the model between any two of them."""
    return [
        nn.Sequential(nn.Linear(64, 48), nn.Tanh()),
        nn.Sequential(nn.Linear(48, 48), nn.Tanh()),
        nn.Sequential(nn.Linear(48, 32), nn.Tanh()),
        nn.Linear(32, 10),
    ]


def load(path):
    """Pixels `[n, 64]` in 0..1 and labels `[n]`; none of an agent that only helps others."""
    if path is None:
        return None
    pixels, labels = anabranch.data.csv(path)
    return torch.from_numpy(pixels).float() / 16, torch.from_numpy(labels)


def evaluate(model):
    x, y = held_out
    logits = model(x)
    return (logits.argmax(1) == y).float().mean(), F.cross_entropy(logits, y), len(y)


if "--rows" in sys.argv:
    print(anabranch.torch.module_rows(make(), torch.zeros(1, 64)))
else:
    data, held_out = load(anabranch.shard()), load(anabranch.eval_shard())
    if held_out is None:
        anabranch.torch.run_stages(make(), F.cross_entropy, data, init=make)
    else:
        count = len(held_out[1])
        anabranch.torch.run_stages(make(), F.cross_entropy, data, evaluate, eval_examples=count, init=make)
