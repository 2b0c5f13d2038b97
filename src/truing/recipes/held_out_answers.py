"""What a policy's answers to held-out prompts are worth: the same draws before, while and after training, so that they pair."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from truing.data.chat import ChatTokenizer
from truing.models.policy import Policy
from truing.objectives import averaged
from truing.parallel.world import World
from truing.randomness import counted_seed
from truing.records import Reward, Rollout
from truing.rewards.base import RewardFunction
from truing.rollouts.collect import LocalSampler, Question, collect
from truing.rollouts.on_policy import reward_metrics, rollout_metrics
from truing.rollouts.sampler import Decoding
from truing.runs.run import Run

BEFORE = "held_out_before.json"


@dataclass(frozen=True, kw_only=True)
class HeldOutAnswers:
    """One answer to each held-out prompt, drawn as in training."""

    questions: Sequence[Question]
    reward: RewardFunction
    decoding: Decoding
    chat: ChatTokenizer
    seed: int
    world: World

    def answers(self, policy: Policy) -> tuple[list[Rollout], list[Reward]]:
        """This rank's share of the prompts, answered and rewarded."""
        groups = collect(
            LocalSampler(policy=policy),
            self.questions[self.world.rank :: self.world.size],
            self.decoding,
            samples=1,
            stop_ids=self.chat.stop_ids,
            decode=self.chat.decode,
            seed=counted_seed(self.seed, "held-out answers"),
        )
        rollouts = [one for group in groups for one in group]
        return rollouts, list(self.reward(rollouts))

    def rewards(self, policy: Policy) -> list[float | None]:
        """The reward of each answer, in the order of the prompts; None where there is none."""

        def share(questions: Sequence[Question]) -> list[float | None]:
            _, rewards = self.answers(policy)
            assert len(rewards) == len(questions)
            return [None if reward.problem else reward.value for reward in rewards]

        return self.world.spread(self.questions, share)

    def evaluation(self, policy: Policy) -> Callable[[], dict[str, float]]:
        """What the loop asks for while training."""

        def evaluate() -> dict[str, float]:
            rollouts, rewards = self.answers(policy)
            parts = self.world.gather([rollout_metrics(rollouts), reward_metrics(rewards)] if rollouts else [])
            return {name: value for name, value in averaged(parts).items() if math.isfinite(value)}

        return evaluate

    def once(self, run: Run, policy: Policy) -> list[float | None]:
        """The rewards before training: kept, since a continued run no longer has that policy."""
        path = run.folder / BEFORE
        kept: list[list[float | None]] = self.world.gather(
            [json.loads(path.read_bytes())["rewards"]] if self.world.rank == 0 and path.is_file() else []
        )
        if kept:
            return kept[0]
        found = self.rewards(policy)
        run.write(BEFORE, {"rewards": found})
        return found
