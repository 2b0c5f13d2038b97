"""A reference that follows the policy: trust-region alignment (Gorbatovski et al. 2024, arXiv 2404.09656).

Its log-probabilities cannot be computed before training, so each step begins with a pass of the reference over its micro-batches.
The reference is a copy of what is trained (with LoRA of the adapters alone) that changes places with it for that pass.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from truing.data.tree import Tree, TreeBatch
from truing.memory import give_back
from truing.models.policy import Policy
from truing.objectives import AnyObjective, LossOutput, Prepared, RememberingObjective, UnpairedFeedback, prepared
from truing.parallel.world import World
from truing.runs.run import Part


@dataclass(frozen=True, kw_only=True)
class TrustRegion:
    """Example: `TrustRegion(alpha=0.6, every=64)` is the soft update, `TrustRegion(alpha=1.0, every=512)` the hard one."""

    alpha: Annotated[float, Field(gt=0, le=1)] = 0.6
    """Share of the policy in the new reference; 1 replaces it (the hard update). Customary: 0.5 to 0.8, or 1."""
    every: Annotated[int, Field(gt=0)] = 64
    """tau: optimizer steps between updates. Customary: 32 to 128 with alpha below 1, 256 to 1024 with alpha 1."""


class MovingReference:
    """pi_ref <- alpha pi + (1 - alpha) pi_ref after every tau-th step (arXiv 2404.09656, eq. 4 and 5). It starts as the policy.

    Mixed in fp32 and kept in the weights' own dtype.
    """

    def __init__(self, trained: Mapping[str, nn.Parameter], settings: TrustRegion) -> None:
        self.trained = trained
        self.settings = settings
        self.weights = {name: parameter.detach().clone() for name, parameter in trained.items()}
        self.steps = 0

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The model is the reference inside; no weight is copied."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    def _exchange(self) -> None:
        for name, parameter in self.trained.items():
            parameter.data, self.weights[name] = self.weights[name], parameter.data

    @torch.no_grad()
    def advance(self) -> None:
        """Counts a step that was taken, and follows the policy where it is due."""
        self.steps += 1
        if self.steps % self.settings.every:
            return
        for name, parameter in self.trained.items():
            self.weights[name].copy_(torch.lerp(self.weights[name].float(), parameter.float(), self.settings.alpha))

    def state_tensors(self) -> Mapping[str, Tensor]:
        return self.weights

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps}

    @torch.no_grad()
    def load_state(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        for name, weight in self.weights.items():
            weight.copy_(tensors[name])
        self.steps = int(state["steps"])


@dataclass(frozen=True, kw_only=True)
class AgainstMovingReference:
    """Any objective with a reference, held against one that moves."""

    objective: AnyObjective
    reference: MovingReference

    def units(self, batch: TreeBatch) -> int:
        return self.objective.units(batch)

    @torch.no_grad()
    def prepare(self, model: nn.Module, batches: Sequence[TreeBatch], world: World) -> Prepared:
        """The micro-batches with their reference log-probabilities, and what the objective makes of them."""
        assert isinstance(model, Policy)
        objective, known = self.objective, []
        with self.reference.in_place():
            for batch in batches:
                known.append(replace(batch, reference_tokens=model.log_probs(batch)))
                give_back()
            if isinstance(objective, UnpairedFeedback):
                objective = objective.knowing(_mismatches_with_reference(objective, model, batches, world))
        found = prepared(objective, model, known, world)
        of_batches = [(known_and_statistic,) for known_and_statistic in zip(known, found.of_batches, strict=True)]
        return Prepared(of_batches=of_batches, of_step=found.of_step)

    def __call__(self, model: nn.Module, batch: TreeBatch, statistic: tuple[TreeBatch, tuple[Any, ...]]) -> LossOutput:
        known, further = statistic
        return self.objective(model, known, *further)

    @property
    def memory(self) -> Mapping[str, Part]:
        """The reference, and what the objective itself remembers."""
        inner = self.objective.memory if isinstance(self.objective, RememberingObjective) else {}
        return {"reference": self.reference, **inner}

    def remember(self, of_step: Any) -> None:
        """Moves the reference where it is due."""
        self.reference.advance()
        if isinstance(self.objective, RememberingObjective):
            self.objective.remember(of_step)


def _mismatches_with_reference(
    objective: UnpairedFeedback, model: Policy, batches: Sequence[TreeBatch], world: World
) -> Iterator[Tree]:
    pairs = objective.mismatched(world.gather([tree for batch in batches for tree in batch.trees]))
    for batch in batches:
        group = [pairs[tree.key] for tree in batch.trees if tree.key in pairs]
        if group:
            values = model.log_probs(TreeBatch.of(group, model.device)).cpu().split([sum(tree.scored) for tree in group])
            yield from (tree.with_reference(of_tree) for tree, of_tree in zip(group, values, strict=True))
            give_back()
