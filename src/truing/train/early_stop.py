"""Ending early: when a held-out figure has not risen for a while, training ends with the weights that it was highest with."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


class EarlyStop:
    """A part of the checkpoint: the best weights so far, and how long ago they were. Example: `EarlyStop(learner.trained, 3)`."""

    def __init__(self, trained: Mapping[str, Tensor], patience: int, *, watched: str = "held_out_accuracy") -> None:
        self.trained = trained
        self.patience = patience
        self.watched = watched
        self.best: float | None = None
        self.best_step = 0
        self.waited = 0
        """Evaluations since the best."""
        self.weights: dict[str, Tensor] = {}
        """As they were at the best, once there is one."""

    @property
    def over(self) -> bool:
        """Whether to end now."""
        return self.waited >= self.patience

    def observe(self, step: int, metrics: Mapping[str, float]) -> None:
        """Takes note of an evaluation; steps without one say nothing. Of equal figures the first is the best."""
        if self.watched not in metrics:
            return
        if self.best is None or metrics[self.watched] > self.best:
            self.best, self.best_step, self.waited = metrics[self.watched], step, 0
            self.weights = {name: weight.detach().clone() for name, weight in self.trained.items()}
        else:
            self.waited += 1

    @torch.no_grad()
    def take_best(self) -> None:
        """Puts the best weights back, where there are any."""
        for name, weight in self.weights.items():
            self.trained[name].copy_(weight)

    def state_tensors(self) -> Mapping[str, Tensor]:
        return self.weights

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "best_step": self.best_step, "waited": self.waited}

    def load_state(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        self.best = None if state["best"] is None else float(state["best"])
        self.best_step, self.waited = int(state["best_step"]), int(state["waited"])
        self.weights = {name: tensor.to(self.trained[name]) for name, tensor in tensors.items()}
