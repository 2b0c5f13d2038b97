"""What losses hold log-ratios against: statistics of the whole optimizer batch, over all its micro-batches and ranks.

Each is computed without gradient before the first micro-batch is trained on, so that no number depends on how the batch is split.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from truing.data.mismatch import joined, mismatched
from truing.data.tree import Tree, TreeBatch
from truing.functional import segment_sum
from truing.memory import give_back
from truing.models.policy import Policy
from truing.models.reference import tree_key
from truing.parallel.world import World


@dataclass(frozen=True, slots=True, kw_only=True)
class Counterparts:
    """What each response of one micro-batch is held against; none where the whole batch has one class only."""

    response: Int[Tensor, " entry"]
    """Number of the response in its micro-batch."""
    baseline: Float[Tensor, " entry"]
    """The log-ratio that it is held against."""
    weight: Float[Tensor, " entry"]
    """Share of the counterpart, times the batch's responses over those of the response's class: both classes count alike."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadTogether:
    """KTO's z_0, and log pi of one micro-batch's scored tokens, with gradient: both are of one pass."""

    baseline: float
    log_probs: Float[Tensor, " scored"]


def in_one_pass(trees: Sequence[Tree], pairs: Mapping[int, Tree], *, micro_tokens: int) -> bool:
    """Whether a step reads its mismatched responses y' in the pass that it trains on, as further branches of the same trunks t.

    That takes 6 |y'| operations a parameter, since nothing but zeros goes back through them, and 2 (|t| + |y'|) in a pass of their
    own. Only for a step that is one micro-batch: z_0 is of the whole step, and the passes of several would all have to be kept
    until it is known. `trees` are the step's on all ranks, so that their number changes nothing.
    """
    if not pairs or sum(tree.size for tree in trees) > micro_tokens:
        return False
    return 2 * sum(len(pair.branches[0].tokens) for pair in pairs.values()) < sum(len(pair.trunk) for pair in pairs.values())


def mismatched_kl(
    policy: Policy,
    batches: Sequence[TreeBatch],
    world: World,
    *,
    reference: Mapping[bytes, float],
    max_tokens: int,
    micro_tokens: int = 0,
) -> float | ReadTogether:
    """KTO's z_0: the mean log-ratio of mismatched prompts and responses, at least 0 (arXiv 2402.01306, section 4.1).

    `reference` holds log pi_ref of the mismatched trees, by `tree_key`. 0 where the batch has one prompt only, such as a batch of
    one: no pair is mismatched there, and 0 is the least that a KL can be. Where gradients are asked for and it costs less, comes
    with the log-probabilities that are to be trained on.
    """
    every = world.gather([tree for batch in batches for tree in batch.trees])
    pairs = mismatched(every, max_tokens=max_tokens)
    total, count, trained = 0.0, 0.0, None
    together = torch.is_grad_enabled() and len(batches) == 1 and in_one_pass(every, pairs, micro_tokens=micro_tokens)
    for batch in batches:
        group = [pairs[tree.key] for tree in batch.trees if tree.key in pairs]
        if together:
            both = TreeBatch.of([joined(tree, pairs[tree.key]) for tree in batch.trees], policy.device)
            tokens = policy.log_probs(both)
            trained = tokens[both.response % 2 == 0]
            found = segment_sum(tokens.detach(), both.response, both.responses)[1::2]
        elif group:
            with torch.no_grad():
                found = policy.response_log_probs(TreeBatch.of(group, policy.device))
        else:
            continue
        total += float(found.sum()) - sum(reference[tree_key(tree)] for tree in group)
        count += len(group)
        give_back()
    total, count = world.sum([total, count])
    baseline = max(0.0, total / count) if count else 0.0
    return baseline if trained is None else ReadTogether(baseline=baseline, log_probs=trained)


@torch.no_grad()
def log_ratios(policy: Policy, batches: Sequence[TreeBatch]) -> list[Float[Tensor, " response"]]:
    """log pi(y|x) - log pi_ref(y|x) of each response, by micro-batch."""
    found = []
    for batch in batches:
        assert batch.reference is not None, "reference log-probabilities are computed before the first step"
        found.append(policy.response_log_probs(batch) - batch.reference)
        give_back()
    return found


def class_means(ratios: Sequence[Tensor], batches: Sequence[TreeBatch], world: World) -> tuple[float | None, float | None]:
    """Mean log-ratio of the desirable and of the undesirable responses of the whole batch; None of a class that it lacks."""
    sums = [0.0, 0.0, 0.0, 0.0]
    for ratio, batch in zip(ratios, batches, strict=True):
        wanted = labels(batch)
        for side, flags in enumerate((wanted, ~wanted)):
            sums[2 * side] += float(flags.sum())
            sums[2 * side + 1] += float(ratio[flags].sum())
    wanted_count, wanted_sum, other_count, other_sum = world.sum(sums)
    return (
        wanted_sum / wanted_count if wanted_count else None,
        other_sum / other_count if other_count else None,
    )


class RunningMeans:
    """Exponential moving averages of both classes' mean log-ratios. They start at 0, where policy and reference are the same."""

    def __init__(self) -> None:
        self.desirable = 0.0
        self.undesirable = 0.0

    def after(self, found: tuple[float | None, float | None], decay: float) -> tuple[float, float]:
        """The averages with a further step's means; a class that the step lacks keeps its own."""
        desirable, undesirable = (
            kept if mean is None else decay * kept + (1 - decay) * mean
            for kept, mean in zip((self.desirable, self.undesirable), found, strict=True)
        )
        return desirable, undesirable

    def take(self, means: tuple[float, float]) -> None:
        """Makes these the averages."""
        self.desirable, self.undesirable = means

    def state_tensors(self) -> Mapping[str, Tensor]:
        return {}

    def state_dict(self) -> dict[str, Any]:
        return {"desirable": self.desirable, "undesirable": self.undesirable}

    def load_state(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        self.desirable, self.undesirable = float(state["desirable"]), float(state["undesirable"])


def labels(batch: TreeBatch) -> Bool[Tensor, " response"]:
    """Which responses are desirable."""
    assert batch.desirable is not None, "feedback says of every response whether it is desirable"
    return batch.desirable


def sorted_counterparts(ratios: Sequence[Tensor], batches: Sequence[TreeBatch], world: World) -> list[Counterparts]:
    """Each response with the log-ratios of the other class that have its quantile (arXiv 2406.05882, section 3).

    With as many desirable as undesirable responses these are the other class's log-ratio of the same rank. Otherwise quantile
    functions are steps of unequal width, and a response has every counterpart that its step overlaps, by the share of the overlap.
    """
    own = [list(_entries(ratio, batch)) for ratio, batch in zip(ratios, batches, strict=True)]
    every = world.gather([entry for entries in own for entry in entries])
    ranked = {flag: sorted(entry for entry in every if entry.desirable == flag) for flag in (True, False)}
    rank = {entry.place: i for side in ranked.values() for i, entry in enumerate(side)}
    found = []
    for entries, batch in zip(own, batches, strict=True):
        response: list[int] = []
        baseline: list[float] = []
        weight: list[float] = []
        for number, entry in enumerate(entries):
            mine, others = ranked[entry.desirable], ranked[not entry.desirable]
            for other, share in _overlaps(rank[entry.place], len(mine), len(others)):
                response.append(number)
                baseline.append(others[other].log_ratio)
                weight.append(share * len(every) / len(mine))
        device = batch.tokens.device
        found.append(
            Counterparts(
                response=torch.tensor(response, dtype=torch.long, device=device),
                baseline=torch.tensor(baseline, dtype=torch.float64, device=device),
                weight=torch.tensor(weight, dtype=torch.float64, device=device),
            )
        )
    return found


@torch.no_grad()
def sorted_margins(policy: Policy, batches: Sequence[TreeBatch], world: World) -> list[Float[Tensor, " pair"]]:
    """For each pair the reference's margin whose rank is that of the pair's own under the policy (arXiv 2406.05882, section 3)."""
    mine: list[list[tuple[float, int, float]]] = []
    for batch in batches:
        assert batch.reference is not None, "reference log-probabilities are computed before the first step"
        sides, logps = batch.comparisons(), policy.response_log_probs(batch)
        now, before = (values[sides.better] - values[sides.worse] for values in (logps, batch.reference))
        mine.append(list(zip(now.tolist(), [tree.key for tree in batch.trees], before.tolist(), strict=True)))
        give_back()
    every = sorted(world.gather([pair for pairs in mine for pair in pairs]))
    reference = sorted(before for _, _, before in every)
    found = {key: margin for (_, key, _), margin in zip(every, reference, strict=True)}
    return [
        torch.tensor([found[key] for _, key, _ in pairs], dtype=torch.float64, device=batch.tokens.device)
        for pairs, batch in zip(mine, batches, strict=True)
    ]


class _Entry(NamedTuple):
    """A response of the whole batch; sorted by log-ratio, and by record where these tie."""

    log_ratio: float
    place: tuple[int, int]
    """Record and branch."""
    desirable: bool


def _entries(ratio: Tensor, batch: TreeBatch) -> Iterator[_Entry]:
    values, wanted, number = ratio.tolist(), labels(batch).tolist(), 0
    for tree in batch.trees:
        for branch in range(len(tree.branches)):
            yield _Entry(values[number], (tree.key, branch), wanted[number])
            number += 1


def _overlaps(rank: int, mine: int, others: int) -> Iterator[tuple[int, float]]:
    """Steps of a quantile function of `others` steps that overlap step `rank` of one of `mine` steps, and by which share of it."""
    start, end = rank * others, (rank + 1) * others  # in units of 1 / (mine * others)
    for other in range(start // mine, -(-end // mine)):
        yield other, (min(end, (other + 1) * mine) - max(start, other * mine)) / others
