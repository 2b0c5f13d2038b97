"""From rewards to the advantage of every token: the four ways that make one recipe PPO, RLOO, GRPO or REINFORCE.

The mathematics is `truing.advantages`; here is where the score lands, and where the per-token KL enters.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from truing.advantages import Sum, gae, group_mean, leave_one_out, moments, whiten
from truing.functional import kl_k1
from truing.rollouts.scoring import Scored


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """A scored rollout with the number that it is judged by."""

    scored: Scored
    score: float
    """The reward, less the penalty of a missing end; without the KL."""

    def with_kl(self, kl_weight: float) -> float:
        """score - beta k1, summed over the response."""
        return self.score - kl_weight * self.scored.kl


Given = tuple[Float[Tensor, " _"], Float[Tensor, " _"] | None]
"""Advantages and, with a critic, returns of one response."""


@runtime_checkable
class CreditRule(Protocol):
    """Advantages of all answers of a round; `groups` are this rank's, `total` adds over ranks and is called alike on all."""

    needs_critic: ClassVar[bool]

    def __call__(self, groups: Sequence[Sequence[Judged]], kl_weight: float, total: Sum) -> list[list[Given]]: ...


@dataclass(frozen=True, kw_only=True)
class GAE:
    """PPO's credit: per-token KL in the reward, the score at the last token, generalised advantages of a critic's values.

    R_t = -beta (log pi_old(y_t) - log pi_ref(y_t)) + [t is last] score   (Huang et al. 2024, arXiv 2403.17031, details 4, 5)
    """

    needs_critic: ClassVar[bool] = True
    gamma: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Discount of later rewards. Customary: 1."""
    lam: Annotated[float, Field(ge=0, le=1)] = 0.95
    """lambda: 0 trusts the critic wholly, 1 not at all. Customary: 0.95."""
    whiten: bool = True
    """Whether advantages are shifted and scaled to mean 0 and variance 1, over all tokens of the round."""
    whiten_rewards: bool = False
    """Whether rewards are scaled to variance 1 before; their mean stays."""
    bootstrap_cut: bool = False
    """Whether an answer cut at its longest goes on to the critic's value instead of ending there, as if it could have gone on."""

    def __call__(self, groups: Sequence[Sequence[Judged]], kl_weight: float, total: Sum) -> list[list[Given]]:
        flat = [one for group in groups for one in group]
        rewards = [self._rewards(one, kl_weight) for one in flat]
        if self.whiten_rewards:
            whitened = whiten(_joined(rewards), total, shift_mean=False)
            rewards = list(whitened.split([len(row) for row in rewards]))
        given = self._estimates(flat, rewards)
        if self.whiten:
            whitened = whiten(_joined([advantages for advantages, _ in given]), total)
            parts = whitened.split([len(row) for row in rewards])
            given = [(part, returns) for part, (_, returns) in zip(parts, given, strict=True)]
        return _grouped(given, groups)

    def _rewards(self, one: Judged, kl_weight: float) -> Float[Tensor, " token"]:
        rewards = -kl_weight * kl_k1(one.scored.old, one.scored.reference)
        rewards[-1] += one.score
        return rewards

    def _estimates(self, flat: Sequence[Judged], rewards: Sequence[Tensor]) -> list[Given]:
        if not flat:
            return []
        values = [one.scored.values for one in flat if one.scored.values is not None]
        sizes = [len(row) for row in rewards]
        cut = [self.bootstrap_cut and one.scored.rollout.completion.stop == "length" for one in flat]
        after = torch.tensor([one.scored.after if is_cut else 0.0 for one, is_cut in zip(flat, cut, strict=True)])
        mask = torch.arange(max(sizes))[None] < torch.tensor(sizes)[:, None]
        rows = pad_sequence(list(rewards), batch_first=True), pad_sequence(values, batch_first=True)
        advantages, returns = gae(*rows, mask, gamma=self.gamma, lam=self.lam, after=after)
        return list(zip(advantages[mask].split(sizes), returns[mask].split(sizes), strict=True))


@dataclass(frozen=True, kw_only=True)
class LeaveOneOut:
    """RLOO's credit: each answer against the mean of the others to its prompt; all tokens of an answer share it."""

    needs_critic: ClassVar[bool] = False

    def __call__(self, groups: Sequence[Sequence[Judged]], kl_weight: float, total: Sum) -> list[list[Given]]:
        return [_spread(group, leave_one_out(_scores(group, kl_weight)[None])[0]) for group in groups]


@dataclass(frozen=True, kw_only=True)
class GroupMean:
    """GRPO's credit: each answer against the mean of its prompt's, over their deviation; all tokens of an answer share it."""

    needs_critic: ClassVar[bool] = False
    scale: bool = True
    """Whether to divide by the group's deviation; without, prompts weigh by how much their answers differ (Dr. GRPO)."""

    def __call__(self, groups: Sequence[Sequence[Judged]], kl_weight: float, total: Sum) -> list[list[Given]]:
        return [_spread(group, group_mean(_scores(group, kl_weight)[None], scale=self.scale)[0]) for group in groups]


@dataclass(frozen=True, kw_only=True)
class BatchMean:
    """REINFORCE's credit: each answer against the mean of all answers of the round (Williams 1992); all its tokens share it."""

    needs_critic: ClassVar[bool] = False
    whiten: bool = False
    """Whether to divide by the deviation of all answers, too."""

    def __call__(self, groups: Sequence[Sequence[Judged]], kl_weight: float, total: Sum) -> list[list[Given]]:
        scores = _joined([_scores(group, kl_weight) for group in groups])
        centred = whiten(scores, total) if self.whiten else scores - moments(scores, total)[0]
        parts = centred.split([len(group) for group in groups])
        return [_spread(group, part) for group, part in zip(groups, parts, strict=True)]


CREDITS: dict[str, type] = {"gae": GAE, "leave_one_out": LeaveOneOut, "group_mean": GroupMean, "batch_mean": BatchMean}
"""Name in a config -> credit."""


def _scores(group: Sequence[Judged], kl_weight: float) -> Float[Tensor, " answer"]:
    return torch.tensor([one.with_kl(kl_weight) for one in group], dtype=torch.float32)


def _spread(group: Sequence[Judged], advantages: Float[Tensor, " answer"]) -> list[Given]:
    return [(value.expand(len(one.scored.old)), None) for one, value in zip(group, advantages, strict=True)]


def _joined(rows: Sequence[Tensor]) -> Float[Tensor, " value"]:
    return torch.cat(list(rows)) if rows else torch.zeros(0)


def _grouped(given: Sequence[Given], groups: Sequence[Sequence[Judged]]) -> list[list[Given]]:
    rows = iter(given)
    return [[next(rows) for _ in group] for group in groups]
