"""Softmax regression in numpy: a trainer that needs no framework, for a run with `kind = "custom"`."""

import anabranch
import anabranch.data
import numpy as np

CLASSES = 10


def load(path):
    """Features scaled to 0..1 with a constant 1 beside them, and labels."""
    if path is None:
        return np.empty((0, 0), np.float32), np.empty(0, np.int64)
    features, labels = anabranch.data.csv(path)
    return np.hstack([features / 16, np.ones((len(features), 1))]).astype(np.float32), labels


def softmax(logits):
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


class Softmax(anabranch.Trainer):
    def __init__(self, shard, eval_shard):
        self.x, self.y = load(shard)
        self.eval_x, self.eval_y = load(eval_shard)
        self.train_examples, self.eval_examples = len(self.y), len(self.eval_y)

    def tensors(self):
        return {"weight": (max(self.x.shape[1], self.eval_x.shape[1]), CLASSES)}

    def initial(self, seed):
        return {"weight": np.zeros(self.tensors()["weight"], np.float32)}

    def train(self, base, plan, round):
        weight, random = base["weight"].copy(), np.random.default_rng(round.seed)
        for _ in range(plan.local_steps):
            rows = random.integers(len(self.y), size=plan.batch_size)
            x, wanted = self.x[rows], np.eye(CLASSES, dtype=np.float32)[self.y[rows]]
            found = softmax(x @ weight)
            weight -= np.float32(plan.optimizer.lr) * (x.T @ (found - wanted)) / plan.batch_size
            round.step(-np.log((found * wanted).sum(axis=1)).mean(), plan.batch_size)
            if round.stopped:
                break
        return {"weight": weight}

    def evaluate(self, model):
        found = softmax(self.eval_x @ model["weight"])
        right = found[np.arange(len(self.eval_y)), self.eval_y]
        accuracy = (found.argmax(axis=1) == self.eval_y).mean()
        return anabranch.Metrics(float(accuracy), float(-np.log(right).mean()), len(self.eval_y))


if __name__ == "__main__":
    anabranch.serve(Softmax(anabranch.shard(), anabranch.eval_shard()))
