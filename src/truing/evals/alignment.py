"""Before and after: what a model prefers and what it answers on held-out prompts, and how two or three models compare.

Here are the measurements and the comparison as numbers; words and tables are `truing.evals.report`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from truing.data.chat import ChatTokenizer
from truing.data.tree import Branch, Tree
from truing.evals.measures import kl_estimates, response_log_probs, rewards, right_order
from truing.evals.premise import stance
from truing.models.heads import RewardModel
from truing.models.policy import Policy
from truing.records import Messages, Preference, Record
from truing.rollouts.sampler import Decoding, sample
from truing.statistics import (
    Estimate,
    bootstrap_mean,
    distinct_n,
    mean_and_deviation,
    paired_difference,
    shown,
    wilson,
    win_rate,
)

PREMISE = "premise"
BUDGET = 2048


@dataclass(frozen=True, kw_only=True)
class Held:
    """The held-out rows that a comparison is made on."""

    records: tuple[Preference, ...]
    trees: tuple[Tree, ...]
    places: tuple[int, ...]
    """Where each of them stands among all held-out trees."""
    chat: ChatTokenizer

    @classmethod
    def of(cls, rows: Sequence[Record], grown: Sequence[Tree], chat: ChatTokenizer, rows_of_kind: int | None) -> "Held":
        """`grown` are the trees of those rows that have one; `tree.key` is the row."""
        taken: dict[str, int] = {}
        records: list[Preference] = []
        trees: list[Tree] = []
        places: list[int] = []
        for place, tree in enumerate(grown):
            record = rows[tree.key]
            assert isinstance(record, Preference)
            kind = record.tags.get("kind", "")
            taken[kind] = taken.get(kind, 0) + 1
            if rows_of_kind is None or taken[kind] <= rows_of_kind:
                records.append(record)
                trees.append(tree)
                places.append(place)
        return cls(records=tuple(records), trees=tuple(trees), places=tuple(places), chat=chat)

    @property
    def kinds(self) -> list[str]:
        return [record.tags.get("kind", "") for record in self.records]

    @property
    def prompts(self) -> list[tuple[int, ...]]:
        return [tree.trunk for tree in self.trees]


@dataclass(kw_only=True)
class Measured:
    """One model on the held-out rows, row by row."""

    prompts: list[str]
    kinds: list[str]
    premises: list[str]
    """What the good answer does with the premise (`corrects`, `confirms`); empty where the row has none."""
    prefers_good: list[float]
    """1 where the model finds the good answer likelier than the bad one, 0 where not."""
    answers: list[str]
    tokens: list[list[int]]
    finished: list[bool]
    lengths: list[int]
    """Tokens of each answer."""
    k1: list[float]
    """KL from the SFT model on samples of this model, per answer; zero for the SFT model itself."""
    k3: list[float]
    rewards: list[float] = field(default_factory=list)
    """Scores of the answers by the reward model."""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def measure(
    policy: Policy,
    reference: Policy | None,
    held: Held,
    decoding: Decoding,
    *,
    prefers: list[float] | None,
    kl_prompts: int,
    seed: int,
    tick: Callable[[Mapping[str, float]], None],
) -> Measured:
    """Ask one model everything but its rewards; `reference` is what KL is taken from, None when it is the model itself.

    `prefers` is given where training has measured already which answer of each held-out row the model finds likelier.
    """
    if prefers is None:
        prefers = right_order(response_log_probs(policy, held.trees, budget=BUDGET))
    tick({"accuracy": sum(prefers) / len(prefers)})
    said = sample(policy, held.prompts, decoding, stop_ids=held.chat.stop_ids, seed=seed)
    tick({})
    k1: list[float] = [0.0]
    k3: list[float] = [0.0]
    if reference is not None:
        prompts = held.prompts[:: max(1, len(held.prompts) // kl_prompts)][:kl_prompts]
        free = sample(
            policy, prompts, Decoding(max_tokens=decoding.max_tokens, temperature=1.0), stop_ids=held.chat.stop_ids, seed=seed
        )
        k1, k3 = kl_estimates(policy, reference, [_tree(p, c.tokens) for p, c in zip(prompts, free, strict=True)], budget=BUDGET)
    tick({"kl": sum(k1) / len(k1)})
    return Measured(
        prompts=[_last(record.prompt) for record in held.records],
        kinds=held.kinds,
        premises=[stance(record.chosen) if kind == PREMISE else "" for record, kind in zip(held.records, held.kinds, strict=True)],
        prefers_good=prefers,
        answers=[held.chat.decode(c.tokens) for c in said],
        tokens=[list(c.tokens) for c in said],
        finished=[c.stop == "end" for c in said],
        lengths=[len(c.tokens) for c in said],
        k1=k1,
        k3=k3,
    )


def rewards_of(judge: RewardModel, held: Held, measured: Measured) -> list[float]:
    """The reward model's score of each answer, on the very tokens that were said."""
    trees = [_tree(prompt, tokens) for prompt, tokens in zip(held.prompts, measured.tokens, strict=True)]
    return [value for (value,) in rewards(judge, trees, budget=BUDGET)]


def _tree(prompt: tuple[int, ...], said: Sequence[int]) -> Tree:
    return Tree(trunk=prompt, branches=(Branch(tokens=tuple(said), scored=(True,) * len(said)),))


def _last(messages: Messages) -> str:
    return messages[-1].content


def result(models: Mapping[str, Measured], *, seed: int) -> dict[str, Any]:
    """All figures of a comparison; the first model is what the others are compared with, the last what came of it.

    Where two ways were gone from the third on (`tuned`, `ppo`), the last is compared with the one before it, too.
    """
    names = list(models)
    base, last = models[names[0]], models[names[-1]]
    before = {"against": {"name": names[-2], "win_rate": shown(_wins(last, models[names[-2]]))}} if len(names) > 3 else {}
    return {
        **before,
        "models": {name: _figures(model, base, seed) for name, model in models.items()},
        "gain": {kind: shown(_gain(last, base, kind, seed)) for kind in ["all", *sorted(set(base.kinds) - {""})]},
        "examples": [
            {"prompt": base.prompts[i], **{name: model.answers[i] for name, model in models.items()}} for i in _examples(base.kinds)
        ],
    }


def _figures(model: Measured, base: Measured, seed: int) -> dict[str, Any]:
    rows = range(len(model.kinds))
    reward_mean, reward_deviation = mean_and_deviation(model.rewards)
    length_mean, length_deviation = mean_and_deviation([float(length) for length in model.lengths])
    figures: dict[str, Any] = {
        "preference_accuracy": {
            kind: shown(win_rate([model.prefers_good[i] for i in rows if kind in ("all", model.kinds[i])]))
            for kind in ["all", *sorted(set(model.kinds) - {""})]
        },
        "win_rate_against_base": shown(_wins(model, base)),
        "reward": {"mean": reward_mean, "deviation": reward_deviation},
        "length": {"mean": length_mean, "deviation": length_deviation},
        "finished": sum(model.finished) / len(model.finished),
        "distinct_2": distinct_n(model.answers, 2),
        "kl_k1": mean_and_deviation(model.k1)[0],
        "kl_k3": mean_and_deviation(model.k3)[0],
        "kl_below_zero": len(model.k1) > 1 and bootstrap_mean(model.k1, seed=seed).high < 0,
    }
    for name, side in (("false_premise_corrected", "corrects"), ("true_premise_confirmed", "confirms")):
        asked = [i for i in rows if model.premises[i] == side]
        if asked:
            figures[name] = shown(wilson(sum(stance(model.answers[i]) == side for i in asked), len(asked)))
    return figures


def _wins(model: Measured, other: Measured) -> Estimate:
    """The share of prompts whose answer has the higher reward, ties half."""
    return win_rate([(a > b) + 0.5 * (a == b) for a, b in zip(model.rewards, other.rewards, strict=True)])


def _gain(last: Measured, base: Measured, kind: str, seed: int) -> Estimate:
    rows = [i for i in range(len(base.kinds)) if kind in ("all", base.kinds[i])]
    return paired_difference(
        [last.prefers_good[i] for i in rows], [base.prefers_good[i] for i in rows], seed=seed, bounds=(0.0, 1.0)
    )


def _examples(kinds: Sequence[str]) -> list[int]:
    """Six rows, evenly over the kinds."""
    of_kind = [[i for i, k in enumerate(kinds) if k == kind] for kind in sorted(set(kinds))]
    each = -(-6 // len(of_kind))
    picked = [rows[j * len(rows) // each] for rows in of_kind for j in range(min(each, len(rows)))]
    return picked[:6]
