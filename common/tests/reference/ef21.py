"""Reference values of the EF21 rule, for common/tests/ef21.rs. Written from the papers' forms, dense and in f64: the mean of the
memories is summed up anew at every arrival.

    python3 common/tests/reference/ef21.py > common/tests/reference/ef21.json

Five agents of different speed, data and number of examples pull a model of twelve parameters towards points of their own and send the
three largest entries of the difference against their memory. One update in nine is clipped, agent 3 loses its memory once, agent 4
leaves and comes back and claims many examples, the memory of agent 2 is too long for the others, and there is no room once.
"""
import json

import numpy as np

PARAMS, ARRIVALS, SENT = 12, 90, 3
SERVER_LR, NORM_CAP, REFRESH, ACTIVE = 0.8, 4.0, 16, 5
EXAMPLES = [40, 10, 20, 30, 2500]
SPEED = [9, 5, 4, 3, 1]

rng = np.random.default_rng(5)
points = rng.normal(size=(5, PARAMS)) * np.array([1, 1, 40, 1, 1])[:, None]
start = rng.normal(size=PARAMS).astype(np.float32)
x = start.astype(np.float64)
held, factor, counted, examples = {}, {}, {}, {}
arrivals, models = [], []
order = rng.choice(5, size=ARRIVALS, p=np.array(SPEED) / sum(SPEED))
order[70] = 4
for after in range(ARRIVALS):
    agent = int(order[after])
    left = [4] if after == 50 and agent != 4 and 4 in held else []
    begins = agent not in held or (after >= 30 and agent == 3 and "lost" not in globals())
    if begins and agent in held:
        lost = True
    for gone in left + ([agent] if begins and agent in held else []):
        held.pop(gone)
        counted.pop(gone)
    memory = held.get(agent, np.zeros(PARAMS))
    wanted = 0.3 * (points[agent] - x) - memory
    places = np.sort(np.argsort(-np.abs(wanted), kind="stable")[:SENT])
    values = wanted[places].astype(np.float32)
    weight = 0.5 if after % 9 == 8 else 1.0
    content = np.zeros(PARAMS)
    content[places] = values
    held[agent] = memory + weight * content
    examples[agent] = EXAMPLES[agent] if after < 60 else EXAMPLES[agent] + 5
    norms = sorted(np.linalg.norm(h) for h in held.values())
    claims = sorted(examples[a] for a in held)
    median, claim = norms[(len(norms) - 1) // 2], claims[(len(claims) - 1) // 2]
    refreshes = (after + 1) % (REFRESH * len(held)) == 0
    for a in held:
        n, f = min(examples[a], 8 * claim), min(1.0, NORM_CAP * median / np.linalg.norm(held[a]))
        before = counted[a] * factor[a] if a in counted else 0
        if refreshes or a == agent or n * f > 2 * before or before > 2 * n * f:
            counted[a], factor[a] = n, f
    total = sum(counted[a] for a in held)
    step = 0.5 if after % 7 == 3 else 1.0
    x = x + SERVER_LR * step / ACTIVE * sum(counted[a] * factor[a] * held[a] for a in held) / total
    keeps = after != 40
    if not keeps:
        held.pop(agent), counted.pop(agent)
    arrivals.append({
        "agent": agent, "examples": examples[agent], "begins": begins, "keeps": keeps, "step": step, "left": left, "weight": weight,
        "places": places.tolist(), "values": [float(v) for v in values], "factor": factor[agent],
    })
    models.append(x.tolist())
assert "lost" in globals() and any(a["left"] for a in arrivals) and min(a["factor"] for a in arrivals) < 1
print(json.dumps({"start": [float(v) for v in start], "arrivals": arrivals, "models": models}))
