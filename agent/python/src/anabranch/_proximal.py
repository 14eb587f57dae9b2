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
        self.is_added = False
        """Whether an optimizer adds the term."""

    def add_to(self, optimizer: torch.optim.Optimizer) -> None:
        """Makes each later ``optimizer.step()`` add the term, in place of the term of an earlier round.

        Raises:
            ValueError: the optimizer has a parameter that the model did not have when the round began.
        """
        params = [param for group in optimizer.param_groups for param in group["params"]]
        if any(id(param) not in self._base for param in params):
            raise ValueError("the optimizer has a parameter that the model did not have when the round began: merge.mu needs its base")
        plain = type(optimizer).step

        def step(optimizer: Any, closure: Callable[[], Any] | None = None) -> Any:
            if closure is None:
                self._add(params)
                return plain(optimizer)

            def computed() -> Any:
                loss = closure()
                self._add(params)
                return loss

            return plain(optimizer, computed)

        setattr(optimizer, "step", MethodType(step, optimizer))
        self.is_added = True

    def _add(self, params: list[Any]) -> None:
        with torch.no_grad():
            for param in params:
                if param.grad is not None:
                    param.grad.add_(param - self._base[id(param)][1], alpha=self._mu)


def without_term(optimizer: torch.optim.Optimizer) -> None:
    """Takes the term of an earlier round out of ``optimizer.step()``."""
    vars(optimizer).pop("step", None)
