"""Reference values of delayed Nesterov, FADAS and the rescaled rule, for common/tests/published.rs. Written from the rules'
descriptions in the papers, dense and in f64.

    python3 common/tests/reference/published.py > common/tests/reference/published.json

Four agents of different speed pull a model of eight parameters towards points of their own, at staleness 0 to 6.
"""
import json

import numpy as np

PARAMS, ARRIVALS, N = 8, 60, 4
SERVER_LR, BETA = 0.7, 0.9
ETA, BETA_1, BETA_2, EPSILON, TAU_C = 0.4, 0.9, 0.99, 1e-8, 1
ALPHA, AGENTS = 0.6, 4


class DelayedNesterov:
    """Algorithm "Delayed Nesterov update" with g = -delta, c = 0: all in units of pseudo-gradients."""

    def __init__(self, x):
        self.x, self.m, self.gathered, self.t = x, np.zeros(PARAMS), np.zeros(PARAMS), 0

    def arrive(self, update):
        g = -np.array(update["delta"])
        self.gathered += g
        self.t += 1
        if self.t % N == 0:
            self.m = BETA * self.m + self.gathered / N
            self.x = self.x - SERVER_LR * (BETA * self.m + g / N)
            self.gathered = np.zeros(PARAMS)
        else:
            self.x = self.x - SERVER_LR * g / N


class Fadas:
    """FADAS with the delay-adaptive step."""

    def __init__(self, x):
        self.x, self.buffer = x, []
        self.m, self.v, self.v_hat = np.zeros(PARAMS), np.zeros(PARAMS), np.zeros(PARAMS)

    def arrive(self, update):
        self.buffer.append(update)
        if len(self.buffer) < N:
            return
        delta = np.mean([update["delta"] for update in self.buffer], axis=0)
        tau_max = max(update["staleness"] for update in self.buffer)
        self.buffer = []
        self.m = BETA_1 * self.m + (1 - BETA_1) * delta
        self.v = BETA_2 * self.v + (1 - BETA_2) * delta**2
        self.v_hat = np.maximum(self.v_hat, self.v)
        eta = ETA if tau_max <= TAU_C else min(ETA, 1 / tau_max)
        self.x = self.x + eta * self.m / (np.sqrt(self.v_hat) + EPSILON)


class Rescaled:
    """Steps in proportion to the arrivals between two reports of an agent."""

    def __init__(self, x):
        self.x, self.reports, self.count, self.weights = x, {}, 0, []

    def arrive(self, update):
        self.count += 1
        agent = update["agent"]
        rescaled = 1.0
        if agent in self.reports:
            rescaled = min(max((self.count - self.reports[agent]) / AGENTS, 1 / 8), 8.0)
        self.reports[agent] = self.count
        self.weights.append(ALPHA * rescaled)
        self.x = self.x + ALPHA * rescaled * np.array(update["delta"])


def agent_of(at):
    """Who sends the next update: agent 3 is so slow that its weight is clipped."""
    if at in (3, 50):
        return 3
    return 2 if at % 5 == 0 else int(at % 3 == 0)


def main():
    rng = np.random.default_rng(21)
    single = lambda values: np.float32(values).astype(float)
    targets = rng.normal(size=(AGENTS, PARAMS))
    start = single(rng.normal(size=PARAMS))
    rules = {"delayed-nesterov": DelayedNesterov(start), "fadas": Fadas(start), "rescaled": Rescaled(start)}
    arrivals, models = [], {name: [] for name in rules}
    for at in range(1, ARRIVALS + 1):
        agent = agent_of(at)
        delta = single(0.2 * (targets[agent] - start) + 0.05 * rng.normal(size=PARAMS))
        update = {"agent": agent, "staleness": int(rng.integers(0, 3) if at % 8 else 6), "delta": delta.tolist()}
        arrivals.append(update)
        for name, rule in rules.items():
            rule.arrive(update)
            models[name].append(rule.x.tolist())
    for update, weight in zip(arrivals, rules["rescaled"].weights):
        update["rescaled_weight"] = weight
    lines = lambda items: "[\n" + ",\n".join("  " + json.dumps(item) for item in items) + "\n ]"
    print(f'{{"start": {json.dumps(start.tolist())},')
    print(f' "arrivals": {lines(arrivals)},')
    sections = [f' {json.dumps(name)}: {lines(values)}' for name, values in models.items()]
    print(",\n".join(sections) + "}")


if __name__ == "__main__":
    main()
