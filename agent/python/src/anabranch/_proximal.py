"""FedProx (Li et al. 2020, algorithm 2): a term that keeps an agent's training near the model that it started from."""

from __future__ import annotations

from collections.abc import Callable
from types import MethodType
from typing import Any

import torch


class ProximalTerm:
    """Adds ``mu * (w - w_base)`` to each gradient before an optimizer's step. ``w_base`` are the values at construction."""

    def __init__(self, model: torch.nn.Module, mu: float) -> None:
        self._mu = mu
        self._base = {id(param): (param, param.detach().clone()) for param in model.parameters()}
        self._added: list[tuple[Any, Any]] = []

    @property
    def is_added(self) -> bool:
        """Whether an optimizer adds the term."""
        return bool(self._added)

    def add_to(self, optimizer: torch.optim.Optimizer) -> None:
        """Makes each later ``optimizer.step()`` add the term, until ``remove``.

        Raises:
            ValueError: the optimizer has a parameter that the model did not have when the round began.
        """
        if any(known is optimizer for known, _ in self._added):
            return
        params = [param for group in optimizer.param_groups for param in group["params"]]
        if any(id(param) not in self._base for param in params):
            raise ValueError("the optimizer has a parameter that the model did not have when the round began: merge.mu needs its base")
        plain = optimizer.step

        def step(_: Any, closure: Callable[[], Any] | None = None) -> Any:
            if closure is None:
                self._add(params)
                return plain()

            def computed() -> Any:
                loss = closure()
                self._add(params)
                return loss

            return plain(computed)

        self._added.append((optimizer, vars(optimizer).get("step")))
        setattr(optimizer, "step", MethodType(step, optimizer))

    def remove(self) -> None:
        """Gives every optimizer the step back that it had."""
        for optimizer, before in self._added:
            if before is None:
                vars(optimizer).pop("step", None)
            else:
                setattr(optimizer, "step", before)
        self._added.clear()

    def _add(self, params: list[Any]) -> None:
        with torch.no_grad():
            for param in params:
                if param.grad is not None:
                    pull = self._mu * (param - self._base[id(param)][1])
                    param.grad = param.grad + pull if param.grad.is_sparse else param.grad.add_(pull)
