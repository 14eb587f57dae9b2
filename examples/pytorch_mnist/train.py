"""The native `cnn` in PyTorch: the same tensors, the same function, so that it trains in one run with native agents."""

import anabranch
import anabranch.data
import anabranch.torch
import torch
from torch import nn
from torch.nn import functional as F


class Cnn(nn.Module):
    """Tensors by name, shape and order as a native agent has them for `kind = "cnn"`, `hidden = [16, 32, 128]`."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3, padding=1)
        self.conv2 = nn.Conv2d(16, 32, 3, padding=1)
        self.fc1 = nn.Linear(32 * 7 * 7, 128)
        self.fc2 = nn.Linear(128, 10)

    def forward(self, images):
        # Pooling first is the same function, and leaves ReLU a quarter of the work.
        x = F.relu(F.max_pool2d(self.conv1(images), 2))
        x = F.relu(F.max_pool2d(self.conv2(x), 2))
        return self.fc2(F.relu(self.fc1(x.flatten(1))))


def load(path):
    """Images `[n, 1, 28, 28]` in 0..1, `input_scale = 0.00392156862745098` in run.toml, and labels `[n]`."""
    if path is None:
        return torch.empty(0, 1, 28, 28), torch.empty(0, dtype=torch.long)
    images, labels = anabranch.data.idx(path)
    return torch.from_numpy(images).unsqueeze(1).float() / 255, torch.from_numpy(labels)


def train(model, round):
    optimizer = round.optimizer(model)
    for images, labels in round.batches((x, y)):
        loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        round.step(loss, len(labels))


def evaluate(model):
    correct, loss = 0, 0.0
    for images, labels in zip(eval_x.split(1000), eval_y.split(1000)):
        logits = model(images.to(device))
        correct += int((logits.argmax(1).cpu() == labels).sum())
        loss += float(F.cross_entropy(logits.cpu(), labels, reduction="sum"))
    return correct / len(eval_y), loss / len(eval_y), len(eval_y)


if __name__ == "__main__":
    device = "cuda" if torch.cuda.is_available() else "cpu"
    x, y = load(anabranch.shard())
    eval_x, eval_y = load(anabranch.eval_shard())
    anabranch.torch.run(Cnn().to(device), train, evaluate, train_examples=len(y), eval_examples=len(eval_y), init=Cnn)
