"""Learning from a round of rollouts: several epochs over it in minibatches shuffled anew, stopped early, and taken back where they
led too far. One step of the loop is one round.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Protocol, runtime_checkable

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from truing.data.experience import Experience
from truing.data.packing import pack
from truing.data.tree import Tree, TreeBatch
from truing.models.heads import ActorCritic
from truing.objectives import Mean, PolicyGradient, averaged
from truing.parallel.world import World
from truing.randomness import counted_seed
from truing.train.learner import Learner

OVERRUN = 1.5
"""Times the target by which a minibatch may be off before the epochs end."""
FIRST = ("ratio", "approx_kl_k3", "clip_fraction")
"""Metrics that are also logged as they were in the first minibatch of the first epoch, where the policy has not moved yet."""


@dataclass(frozen=True, kw_only=True)
class Replay:
    """Example: `Replay(epochs=4, minibatches=1)`, as for summaries (Huang et al. 2024, arXiv 2403.17031)."""

    epochs: Annotated[int, Field(gt=0)] = 4
    """Passes over each round. Customary: 4 (PPO), 1 (RLOO, GRPO, REINFORCE)."""
    minibatches: Annotated[int, Field(gt=0)] = 1
    """Optimizer steps in each pass; prompts are dealt anew each time."""
    target_kl: Annotated[float, Field(gt=0)] | None = None
    """The passes end after a minibatch whose k3 estimate of KL(pi_old, pi) per token is above 1.5 times this; null never does."""
    kl_budget: Annotated[float, Field(gt=0)] | None = None
    """Nats of KL from the reference, a response, that no update may lead beyond: it is taken back, beta raised (a beta of 0 stays
    0); null allows all. Customary: 5 to 20."""


Divergence = Callable[[TreeBatch], Mean]
Kept = tuple[dict[str, Tensor], dict[str, Any]]
"""Tensors and counts of a learner."""


@runtime_checkable
class Raised(Protocol):
    """What is turned up when an update was taken back: `truing.rollouts.kl_control.KLControl`."""

    def raise_(self) -> None:
        """Makes the way that was taken back dearer."""
        ...


class ReplayLearner:
    """Example: `ReplayLearner(learner, Replay(), control, divergence, micro_tokens=2048, seed=0).update(objective, experience)`."""

    def __init__(
        self, learner: Learner, replay: Replay, control: Raised, divergence: Divergence, *, micro_tokens: int, seed: int
    ) -> None:
        self.learner = learner
        self.replay = replay
        self.control = control
        self.divergence = divergence
        """KL(pi, pi_ref) of the policy that is trained, as it is now, on the responses of a batch."""
        self.micro_tokens = micro_tokens
        self.seed = seed
        self.rejected = 0
        """Rounds whose update was taken back."""

    @property
    def world(self) -> World:
        """The ranks that learn together."""
        return self.learner.world

    @property
    def model(self) -> ActorCritic:
        """What learns."""
        model = self.learner.model
        assert isinstance(model, ActorCritic)
        return model

    def update(self, objective: PolicyGradient, experience: Experience) -> dict[str, float]:
        """All epochs over one round, at one learning rate. Returns what sampling, scoring and learning have measured."""
        try:
            return self._learnt(objective, experience)
        finally:
            self.model.end_round()

    def _learnt(self, objective: PolicyGradient, experience: Experience) -> dict[str, float]:
        learner, budget = self.learner, self.replay.kl_budget
        before = self._kept() if budget is not None else None
        rate = learner.settings.rate(learner.steps_taken, learner.total_steps)
        objective = replace(objective, kl_weight=experience.kl_weight, value_only=experience.critic_only)
        steps, stopped = self._epochs(objective, experience, rate)
        learner.steps_taken += 1
        metrics = {**averaged([part for step in steps for part in step]), "skipped": float(learner.skipped)}
        first = averaged(steps[0]) if steps else {}
        metrics |= {f"first_{name}": first[name] for name in FIRST if name in first}
        metrics |= {"updates": float(len(steps)), "stopped_early": float(stopped)}
        if budget is not None:
            assert before is not None
            metrics["kl_after"] = self._held_to(budget, experience, before) if steps else self._measured(experience)
            metrics["rejected"] = float(self.rejected)
        return {**experience.metrics, **metrics}

    def minibatches(self, experience: Experience, epoch: int) -> list[list[Tree]]:
        """This rank's trees of each minibatch; which prompts go together depends on seed, round and epoch alone."""
        generator = np.random.Generator(np.random.PCG64(counted_seed(self.seed, "replay", experience.round, epoch)))
        own = {tree.key: tree for tree in experience.trees}
        dealt = np.array_split(generator.permutation(experience.prompts), self.replay.minibatches)
        return [[own[int(number)] for number in part if int(number) in own] for part in dealt]

    def _epochs(self, objective: PolicyGradient, experience: Experience, rate: float) -> tuple[list[list[dict[str, Mean]]], bool]:
        steps: list[list[dict[str, Mean]]] = []
        for epoch in range(self.replay.epochs):
            for minibatch in self.minibatches(experience, epoch):
                (someone,) = self.world.sum([float(len(minibatch))])
                if not someone:  # none of its answers has a reward
                    continue
                steps.append(self.learner.step(objective, self._batches(minibatch), rate))
                found = averaged(steps[-1]).get("approx_kl_k3", 0.0)
                if self.replay.target_kl is not None and found > OVERRUN * self.replay.target_kl:
                    return steps, True
        return steps, False

    def _batches(self, trees: Sequence[Tree]) -> list[TreeBatch]:
        return [TreeBatch.of(group, self.model.policy.device) for group in pack(trees, self.micro_tokens)]

    def _held_to(self, budget: float, experience: Experience, before: Kept) -> float:
        """Takes the update back where it led beyond the budget; returns the KL that it led to, by all answers of the round.

        Of a policy that is beyond the budget already, as the answers of a new round may show, an update that leads back stays.
        """
        after = self._measured(experience)
        if after <= budget:
            return after
        self._exchange(before)
        if after < self._measured(experience):
            self._exchange(before)
            return after
        _, counts = before
        going_on = {"steps_taken": self.learner.steps_taken, "skipped": self.learner.skipped}
        self.learner.load_state(self.learner.state_tensors(), {**counts, **going_on})
        self.rejected += 1
        self.control.raise_()
        return after

    def _measured(self, experience: Experience) -> float:
        parts = [{"kl": self.divergence(batch)} for batch in self._batches(experience.answers)]
        return averaged(self.world.gather(parts))["kl"]

    def _kept(self) -> Kept:
        """Weights and optimizer as they are now, to go back to."""
        return {name: tensor.clone() for name, tensor in self.learner.state_tensors().items()}, dict(self.learner.state_dict())

    @torch.no_grad()
    def _exchange(self, before: Kept) -> None:
        """Weights and optimizer as they were, and `before` what they are now: one by one, or memory would double."""
        tensors, _ = before
        for name, tensor in self.learner.state_tensors().items():
            now = tensor.clone()
            tensor.copy_(tensors[name])
            tensors[name].copy_(now)

    def state_tensors(self) -> Mapping[str, Tensor]:
        return self.learner.state_tensors()

    def state_dict(self) -> dict[str, Any]:
        return {**self.learner.state_dict(), "rejected": self.rejected}

    def load_state(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        self.learner.load_state(tensors, state)
        self.rejected = int(state["rejected"])
