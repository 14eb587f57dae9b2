"""The native models and their training step as an ordinary PyTorch program has them, for `anabranch-lab bench trainer`.

Reads one JSON object a line, answers each with one. {"model": ...} makes a model and its optimizer, which stays until the
next one; {"steps": n} trains and says how long that took.
"""

import json
import sys
import time

import torch
from torch import nn
from torch.nn import functional as F

EXAMPLES = 2048


class Cnn(nn.Module):
    def __init__(self, first, second, dense):
        super().__init__()
        self.conv1 = nn.Conv2d(1, first, 3, padding=1)
        self.conv2 = nn.Conv2d(first, second, 3, padding=1)
        self.fc1 = nn.Linear(second * 7 * 7, dense)
        self.fc2 = nn.Linear(dense, 10)

    def forward(self, x):
        x = F.relu(F.max_pool2d(self.conv1(x.view(-1, 1, 28, 28)), 2))
        x = F.relu(F.max_pool2d(self.conv2(x), 2))
        return self.fc2(F.relu(self.fc1(x.flatten(1))))


class Block(nn.Module):
    def __init__(self, heads, width):
        super().__init__()
        self.heads = heads
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc, self.fc_proj = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        batch, context, width = x.shape
        parts = self.attn(self.ln_1(x)).split(width, 2)
        query, key, value = (p.view(batch, context, self.heads, -1).transpose(1, 2) for p in parts)
        x = x + self.proj(self.attend(query, key, value).transpose(1, 2).reshape(batch, context, width))
        return x + self.fc_proj(F.gelu(self.fc(self.ln_2(x))))

    def attend(self, query, key, value):
        if hasattr(F, "scaled_dot_product_attention"):
            return F.scaled_dot_product_attention(query, key, value, is_causal=True)
        # PyTorch before 2.0.
        context = query.shape[2]
        scores = query @ key.transpose(2, 3) / query.shape[3] ** 0.5
        hidden = torch.ones(context, context, dtype=torch.bool).triu(1)
        return scores.masked_fill(hidden, float("-inf")).softmax(3) @ value


class Gpt(nn.Module):
    def __init__(self, context, layers, heads, width):
        super().__init__()
        self.wte, self.wpe = nn.Embedding(256, width), nn.Embedding(context, width)
        self.blocks = nn.ModuleList(Block(heads, width) for _ in range(layers))
        self.ln_f = nn.LayerNorm(width)
        nn.init.normal_(self.wte.weight, std=0.02)

    def forward(self, x):
        x = self.wte(x) + self.wpe.weight
        for block in self.blocks:
            x = block(x)
        return self.ln_f(x) @ self.wte.weight.T


def make(model, figures):
    if model == "mlp":
        width = figures[0]
        return nn.Sequential(nn.Linear(784, width), nn.ReLU(), nn.Linear(width, 10))
    return Cnn(*figures) if model == "cnn" else Gpt(*figures)


class Task:
    def __init__(self, request):
        torch.set_num_threads(request["threads"])
        torch.manual_seed(1)
        self.device = torch.device(request["device"])
        self.batch, self.model = request["batch"], make(request["model"], request["figures"]).to(self.device)
        self.text = request["model"] == "gpt"
        if self.text:
            self.context = request["figures"][0]
            self.x = torch.randint(256, (EXAMPLES * self.context + 1,), dtype=torch.uint8)
        else:
            self.x = torch.randint(256, (EXAMPLES, 784), dtype=torch.uint8)
            self.y = torch.randint(10, (EXAMPLES,)).to(self.device)
        self.x = self.x.to(self.device)
        if request["optimizer"] == "sgd":
            self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.01, momentum=0.9)
        else:
            self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3, weight_decay=0.01)

    def draw(self):
        if not self.text:
            index = torch.randint(EXAMPLES, (self.batch,), device=self.device)
            return self.x[index].float() / 255, self.y[index]
        start = torch.randint(EXAMPLES, (self.batch, 1), device=self.device) * self.context
        window = self.x[start + torch.arange(self.context + 1, device=self.device)].long()
        return window[:, :-1], window[:, 1:].flatten()

    def train(self, steps):
        for _ in range(steps):
            inputs, labels = self.draw()
            loss = F.cross_entropy(self.model(inputs).flatten(0, -2), labels)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
        return loss.item()


def main():
    # Both sides compute in f32, all of it.
    torch.backends.cudnn.allow_tf32 = False
    hello = {"torch": torch.__version__, "mkl": torch.backends.mkl.is_available(), "cuda": torch.cuda.is_available()}
    print(json.dumps(hello), flush=True)
    task = None
    for line in sys.stdin:
        request = json.loads(line)
        if "model" in request:
            task = Task(request)
            print(json.dumps({"params": sum(p.numel() for p in task.model.parameters())}), flush=True)
            continue
        wall, cpu = time.perf_counter(), time.process_time()
        loss = task.train(request["steps"])
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        print(json.dumps({"wall_s": wall, "cpu_s": cpu, "loss": loss}), flush=True)


main()
