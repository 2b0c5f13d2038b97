"""A learner owns what is trained: the weights, the optimizer and the schedule. One update is one division by the global count."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from truing.data.tree import TreeBatch
from truing.memory import give_back
from truing.objectives import AnyObjective, Mean, RememberingObjective, averaged, parts_of, prepared
from truing.parallel.world import World
from truing.train.optim import AdamW, Optimizer

MAX_SKIPPED_IN_A_ROW = 3


class NonFiniteError(ValueError):
    """Three updates in a row had a loss or gradient that is not a number; `batches` holds the last step's."""

    def __init__(self, message: str, batches: Sequence[TreeBatch]) -> None:
        super().__init__(message)
        self.batches = batches


class Learner:
    """Example: `Learner(policy, Optimizer(lr=1e-6), total_steps=100).update(objective, batches)` returns the step's metrics."""

    def __init__(self, model: nn.Module, settings: Optimizer, *, total_steps: int, world: World | None = None) -> None:
        self.model = model
        self.settings = settings
        self.total_steps = total_steps
        self.world = world or World()
        self.trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.optimizer = AdamW(self.trained, settings)
        self.steps_taken = 0
        self.skipped = 0
        self.skipped_in_a_row = 0
        model.eval()  # no dropout: policy and reference must be the same function

    def update(self, objective: AnyObjective, batches: Sequence[TreeBatch]) -> dict[str, float]:
        """One optimizer step over the micro-batches at the rate that is its turn; see `step`."""
        rate = self.settings.rate(self.steps_taken, self.total_steps)
        self.steps_taken += 1
        return averaged(self.step(objective, batches, rate))

    def step(self, objective: AnyObjective, batches: Sequence[TreeBatch], rate: float) -> list[dict[str, Mean]]:
        """One optimizer step; one that is not finite is counted and not applied, nor is one that nothing is learnt from (no unit in
        any micro-batch, as where all steps of its responses were cut). Returns the metrics of all ranks' micro-batches.

        Raises NonFiniteError, naming place and records, at the third such step in a row.
        """
        (units,) = self.world.sum([float(sum(objective.units(batch) for batch in batches))])
        metrics: list[dict[str, Mean]] = []
        problems: list[str] = []
        known = prepared(objective, self.model, batches, self.world)
        for batch, statistic in zip(batches, known.of_batches, strict=True):
            for output in parts_of(objective, self.model, batch, statistic):
                if not torch.isfinite(output.total):
                    problems.append(f"the loss is {float(output.total.detach())} on records {[tree.key for tree in batch.trees]}")
                (output.total / (units or 1.0)).backward()
                metrics.append(output.metrics)
                del output
                give_back()
        problems = self.world.gather(problems)
        norm = float("nan")
        if not units:
            self.optimizer.drop_gradients()
            return [self._of_step(0.0, rate)]
        if not problems:
            self.world.sum_gradients(self.trained.values())
            norm = self.optimizer.grad_norm()
            if not norm < float("inf"):
                problems = [self._bad_gradient()]  # the same on all ranks, since the sums are
        if problems:
            self._skip(problems[0], batches)
        else:
            self.optimizer.step(rate, norm)
            self.skipped_in_a_row = 0
            if isinstance(objective, RememberingObjective):
                objective.remember(known.of_step)
        return [*self.world.gather(metrics), self._of_step(norm, rate)]

    def _of_step(self, norm: float, rate: float) -> dict[str, Mean]:
        return {name: Mean(value, 1.0) for name, value in (("grad_norm", norm), ("lr", rate), ("skipped", float(self.skipped)))}

    def _skip(self, problem: str, batches: Sequence[TreeBatch]) -> None:
        self.optimizer.drop_gradients()
        self.skipped += 1
        self.skipped_in_a_row += 1
        if self.skipped_in_a_row == MAX_SKIPPED_IN_A_ROW:
            raise NonFiniteError(f"{MAX_SKIPPED_IN_A_ROW} steps in a row were not finite; the last: {problem}", batches)

    def _bad_gradient(self) -> str:
        for name, parameter in self.trained.items():
            if parameter.grad is not None and not torch.isfinite(parameter.grad).all():
                return f"the gradient of {name} is not finite"
        return "the gradient norm overflows"

    def state_tensors(self) -> Mapping[str, Tensor]:
        groups = {"weights": {name: p.data for name, p in self.trained.items()}, **self.optimizer.state_tensors()}
        return {f"{group}/{name}": tensor for group, tensors in groups.items() for name, tensor in tensors.items()}

    def state_dict(self) -> dict[str, Any]:
        return {
            "steps_taken": self.steps_taken,
            "optimizer_steps": self.optimizer.steps,
            "optimizer_missed": dict(self.optimizer.missed),
            "skipped": self.skipped,
            "skipped_in_a_row": self.skipped_in_a_row,
        }

    @torch.no_grad()
    def load_state(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        groups: dict[str, dict[str, Tensor]] = {"weights": {}, "first": {}, "second": {}, "masters": {}}
        for key, tensor in tensors.items():
            group, _, name = key.partition("/")
            groups[group][name] = tensor
        for name, parameter in self.trained.items():
            parameter.copy_(groups["weights"][name])
        self.optimizer.load_state(groups, int(state["optimizer_steps"]), state["optimizer_missed"])
        self.steps_taken = int(state["steps_taken"])
        self.skipped = int(state["skipped"])
        self.skipped_in_a_row = int(state["skipped_in_a_row"])
