"""Reference values of the recall rule, for common/tests/recall.rs. Written from the rule's description, dense and in f64.

    python3 common/tests/reference/recall.py > common/tests/reference/recall.json

Five agents of different speed and size pull a model of twelve parameters towards points of their own. Agent 4 holds most
and falls silent half-way, so that its memory fades. Some updates are clipped.
"""
import json

import numpy as np

PARAMS, ARRIVALS, STEP = 12, 100, 14.0
EXAMPLES = [600, 300, 900, 1200, 1500]
BETA_1, EPSILON, MOST_MOVED, NORM_CAP, POWER = 0.5, 0.15, 6.0, 3.6, 7.0


class Rule:
    def __init__(self, x, examples):
        self.x, self.average, self.agents = x, x.copy(), len(examples)
        held = np.minimum(examples, 8 * sorted(examples)[(self.agents - 1) // 2])
        self.p = held / held.sum()
        self.share = self.p.copy()
        self.m, self.u = np.zeros(PARAMS), np.zeros(PARAMS)
        self.sigma, self.lag, self.n, self.memory = 0.0, 0.0, 0, {}
        self.last, self.interval = [0] * self.agents, [0] * self.agents

    def fade(self, j):
        late = (self.n - self.last[j] - 2 * self.interval[j]) / self.interval[j]
        return 1.0 if late <= 0 else 2.0 ** -np.floor(late) * (1 - (late % 1) / 2)

    def accept(self, a, c, b, scale, staleness):
        """Returns the fresh weight and what is recalled, the largest lack first."""
        window = 10 * self.agents
        self.n += 1
        self.share *= 1 - 1 / window
        self.share[a] += 1 / window
        fresh = min(1.0, max(1 / 8, self.p[a] / self.share[a]))
        self.interval[a], self.last[a] = self.n - self.last[a], self.n
        c, b = scale * c, scale * b
        square = float(c @ c) + 1e-12
        here = float(self.x @ c)
        moved = min(max((here - b) / square, -1.0), MOST_MOVED)
        self.memory[a] = (c, here - moved * square, square, min(max(1 - moved, 0.0), 1.0))
        lacks = sorted(((self.p[j] - min(self.p[j], self.share[j]), j) for j in self.memory), key=lambda t: (-t[0], t[1]))
        recalled = [(j, lack * self.fade(j)) for lack, j in lacks if lack > 1e-9]
        direction = fresh * c
        for j, factor in recalled:
            cj, origin, square_j, rho = self.memory[j]
            s = (float(self.x @ cj) - origin) / square_j
            phi = rho * min(max(2 * (1 - s / MOST_MOVED), 0.0), 1.0)
            if self.sigma > 0:
                phi *= min(1.0, NORM_CAP * self.sigma * PARAMS ** 0.5 / square_j ** 0.5)
            direction = direction + factor * phi * cj
        pace = max(1 / (4 * self.agents), 1 / self.n)
        self.sigma += pace * (square ** 0.5 / PARAMS ** 0.5 - self.sigma)
        self.lag += pace * (min(staleness, self.agents) - self.lag)
        beta_2 = 1 - 1 / window
        self.m = BETA_1 * self.m + (1 - BETA_1) * direction
        self.u = beta_2 * self.u + (1 - beta_2) * direction ** 2
        rate = STEP / (self.agents * max(self.agents, 10)) ** 0.5 * self.sigma * (1 + self.n / (130 * self.agents)) ** -0.5
        rate *= min(1, (self.agents + 1) / (2 * self.lag)) if self.lag > 0 else 1
        m_hat, u_hat = self.m / (1 - BETA_1 ** self.n), self.u / (1 - beta_2 ** self.n)
        self.x = self.x + rate * m_hat / (np.sqrt(u_hat) + EPSILON * self.sigma)
        self.average = self.average + (POWER + 1) / (self.n + POWER + 1) * (self.x - self.average)
        return fresh, recalled


def order():
    """Who sends the next update."""
    for at in range(1, ARRIVALS + 1):
        if at <= 50 and at % 17 == 0:
            yield 4
        elif at % 7 == 3:
            yield 3
        else:
            yield at % 3


def main():
    rng = np.random.default_rng(20)
    single = lambda values: np.float32(values).astype(float)
    targets = rng.normal(size=(len(EXAMPLES), PARAMS))
    start = single(rng.normal(size=PARAMS))
    rule, base, based = Rule(start, EXAMPLES), [start] * len(EXAMPLES), [0] * len(EXAMPLES)
    arrivals, looks = [], []
    for at, a in enumerate(order(), 1):
        delta = single(0.1 * (targets[a] - base[a]) + 0.01 * rng.normal(size=PARAMS))
        places = np.sort(np.argpartition(np.abs(delta), -5)[-5:])
        c = np.zeros(PARAMS)
        c[places] = delta[places]
        b, scale = float(base[a] @ c), 0.5 if at % 11 == 0 else 1.0
        staleness = at - 1 - based[a]
        fresh, recalled = rule.accept(a, c, b, scale, staleness)
        base[a], based[a] = single(rule.x), at
        update = {"agent": a, "places": places.tolist(), "values": c[places].tolist(), "base_dot": b, "scale": scale, "staleness": staleness}
        admitted = {"weight": fresh, "recalled": [[j, factor] for j, factor in recalled]}
        arrivals.append({**update, **admitted})
        if at in (1, 2, 5, 10) or at % 20 == 0:
            looks.append({"after": at, "x": rule.x.tolist(), "average": rule.average.tolist(), "sigma": rule.sigma, "lag": rule.lag})
    lines = lambda items: "[\n" + ",\n".join("  " + json.dumps(item) for item in items) + "\n ]"
    print(f'{{"examples": {EXAMPLES}, "start": {json.dumps(start.tolist())},')
    print(f' "arrivals": {lines(arrivals)},')
    print(f' "looks": {lines(looks)}}}')


if __name__ == "__main__":
    main()
