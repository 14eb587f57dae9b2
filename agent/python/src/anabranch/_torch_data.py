"""Batches of a data set, and parts of batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch.utils.data import DataLoader


def examples(data: Any) -> int:
    """Returns how many examples ``data`` has: a tensor, a tuple of tensors, or a map-style ``Dataset``.

    Raises:
        ValueError: there is none, or tensors differ in length.
    """
    parts = _tensors(data)
    lengths = {len(data)} if parts is None else {len(part) for part in parts}
    if len(lengths) != 1 or 0 in lengths:
        raise ValueError(f"data of the lengths {sorted(lengths)}, expected one above 0")
    return lengths.pop()


def batches(
    data: Any,
    *,
    seed: int,
    steps: int,
    batch_size: int,
    device: Any,
    num_workers: int = 0,
    collate_fn: Callable[[list[Any]], Any] | None = None,
) -> Iterator[Any]:
    """Returns ``steps`` batches on ``device``: examples in random order, each once before any comes again, drawn with ``seed`` alone.

    Raises:
        ValueError: see ``examples``.
    """
    count, parts = examples(data), _tensors(data)
    generator = torch.Generator().manual_seed(seed)
    draws = _draws(count, generator, steps, batch_size)
    if parts is None:
        options: dict[str, Any] = {"num_workers": num_workers, "collate_fn": collate_fn}
        indices = [batch.tolist() for batch in draws]
        loader = DataLoader(data, batch_sampler=indices, generator=generator, **options)
        return (to(batch, device) for batch in loader)
    drawn = ([part[batch.to(part.device)].to(device) for part in parts] for batch in draws)
    return (part[0] if isinstance(data, torch.Tensor) else tuple(part) for part in drawn)


def to(value: Any, device: Any) -> Any:
    """Returns a batch with its tensors on ``device``."""
    return _each(value, lambda tensor: tensor.to(device))


def part_of(value: Any, start: int, end: int) -> Any:
    """Returns the examples ``start`` to ``end`` of a batch, whose tensors have the examples in their first dimension."""
    return _each(value, lambda tensor: tensor[start:end])


def _tensors(data: Any) -> list[Any] | None:
    """Returns the tensors that ``data`` consists of; none where it is something else."""
    if isinstance(data, torch.Tensor):
        return [data]
    is_tuple = isinstance(data, (tuple, list)) and all(isinstance(part, torch.Tensor) for part in data)
    return list(data) if is_tuple else None


def _draws(length: int, generator: Any, steps: int, batch_size: int) -> Iterator[Any]:
    pool = torch.randperm(length, generator=generator)
    for _ in range(steps):
        while len(pool) < batch_size:
            pool = torch.cat([pool, torch.randperm(length, generator=generator)])
        yield pool[:batch_size]
        pool = pool[batch_size:]


def _each(value: Any, change: Callable[[Any], Any]) -> Any:
    if isinstance(value, torch.Tensor):
        return change(value)
    if isinstance(value, Mapping):
        return {key: _each(part, change) for key, part in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_each(part, change) for part in value))
    if isinstance(value, (tuple, list)):
        return type(value)(_each(part, change) for part in value)
    return value
