"""Reference values of the rules behind a barrier, for common/tests/rounds.rs. Written from the papers' algorithms, dense
and in f64.

    python3 common/tests/reference/rounds.py > common/tests/reference/rounds.json

Rounds of one to four agents that hold different numbers of examples. Synchronous SGD has rounds of its own: each agent
takes one step of least squares on its batch, and the reference is one machine that steps on the joined batch.
"""
import json

import numpy as np

PARAMS, ROUNDS, AGENTS = 8, 20, 4
HELD = [600, 90, 1_500, 7]
SERVER_LR, BETA = 0.7, 0.9
ETA, BETA_1, BETA_2, TAU = 0.1, 0.9, 0.99, 1e-3
SGD_LR = 0.05


def mean_of(updates):
    """Sum of n_k / n times the agents' changes (McMahan et al. 2017, Algorithm 1)."""
    n = sum(update["examples"] for update in updates)
    return sum(update["examples"] / n * np.array(update["delta"]) for update in updates)


class FedAvg:
    def __init__(self, x):
        self.x = x

    def round(self, updates):
        self.x = self.x + SERVER_LR * mean_of(updates)


class FedAvgM:
    """Hsu et al. 2019: v = beta v + dw, w = w - v, where dw has the sign of a gradient."""

    def __init__(self, x):
        self.x, self.v = x, np.zeros(PARAMS)

    def round(self, updates):
        self.v = BETA * self.v - mean_of(updates)
        self.x = self.x - SERVER_LR * self.v


class FedAdam:
    """Reddi et al. 2021, Algorithm 2."""

    def __init__(self, x):
        self.x, self.m, self.v = x, np.zeros(PARAMS), np.full(PARAMS, TAU**2)

    def round(self, updates):
        delta = mean_of(updates)
        self.m = BETA_1 * self.m + (1 - BETA_1) * delta
        self.v = BETA_2 * self.v + (1 - BETA_2) * delta**2
        self.x = self.x + ETA * self.m / (np.sqrt(self.v) + TAU)


def gradient(x, inputs, outputs):
    """Of the mean of (a x - b)^2 / 2 over a batch."""
    return inputs.T @ (inputs @ x - outputs) / len(outputs)


def sync_sgd(rng, start, single):
    """Each round's updates, and the model of one machine after it."""
    x, rounds = start, []
    for _ in range(ROUNDS):
        batches = [(rng.normal(size=(size, PARAMS)), rng.normal(size=size)) for size in (32, 8, 20)]
        updates = [
            {"examples": len(outputs), "delta": single(-SGD_LR * gradient(x, inputs, outputs)).tolist()}
            for inputs, outputs in batches
        ]
        inputs, outputs = (np.concatenate(parts) for parts in zip(*batches))
        x = x - SGD_LR * gradient(x, inputs, outputs)
        rounds.append({"updates": updates, "model": x.tolist()})
    return rounds


def main():
    rng = np.random.default_rng(22)
    single = lambda values: np.float32(values).astype(float)
    targets = rng.normal(size=(AGENTS, PARAMS))
    start = single(rng.normal(size=PARAMS))
    rules = {"fedavg": FedAvg(start), "fedavgm": FedAvgM(start), "fedadam": FedAdam(start)}
    rounds = []
    for number in range(ROUNDS):
        agents = [agent for agent in range(AGENTS) if (number >> agent) & 1 == 0 or agent == number % AGENTS]
        updates = [
            {"examples": HELD[agent], "delta": single(0.2 * (targets[agent] - start) + 0.05 * rng.normal(size=PARAMS)).tolist()}
            for agent in agents
        ]
        for rule in rules.values():
            rule.round(updates)
        rounds.append({"updates": updates, "models": {name: rule.x.tolist() for name, rule in rules.items()}})
    lines = lambda items: "[\n" + ",\n".join("  " + json.dumps(item) for item in items) + "\n ]"
    print(f'{{"start": {json.dumps(start.tolist())},')
    print(f' "rounds": {lines(rounds)},')
    print(f' "sync_sgd": {lines(sync_sgd(rng, start, single))}}}')


if __name__ == "__main__":
    main()
