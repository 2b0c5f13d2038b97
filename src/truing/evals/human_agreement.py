"""MT-bench's agreement of judges and people, given the votes.

Zheng et al. 2023, arXiv 2306.05685, section 4.2: the chance that one randomly chosen vote of each of two groups, not of the same
person, is the same on a randomly chosen question, pooled over questions and pairs of models. Setup S1 counts ties, and verdicts
that turn with the order of the answers as ties (R = 33% at random); S2 takes only votes for a model (R = 50%).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np

from truing.statistics import Estimate, bootstrap

Setup = Literal["S1", "S2"]
Vote = Mapping[str, object]
"""`question_id`, `turn`, `model_a`, `model_b`, `winner` (model_a, model_b, or tie with any remark behind it) and `judge`."""
_SIDES = ("model_a", "model_b")


def group_of(judge: object) -> str:
    """MT-bench's groups: human (expert_*), author (author_*), gpt4-pair (["gpt-4", "pair*"], gpt4_pair), gpt4-single; or a name."""
    if isinstance(judge, list | tuple):
        kind = str(judge[1]).partition("-")[0] if len(judge) > 1 else ""
        return f"{str(judge[0]).replace('gpt-4', 'gpt4')}-{kind}" if kind else str(judge[0])
    name = str(judge)
    if name.startswith(("expert", "author")):
        return "human" if name.startswith("expert") else "author"
    return "gpt4-pair" if name == "gpt4_pair" else name


def mt_bench_agreement(
    votes: Sequence[Vote],
    first: str,
    second: str,
    *,
    setup: Setup,
    turn: int | None = None,
    group: Callable[[object], str] = group_of,
    seed: int = 0,
    draws: int = 2000,
) -> Estimate:
    """Share of pairs of votes, one of each group, that agree; n is the number of pairs, the interval is over questions.

    Within one group each two votes on a question and pair of models are a pair. Raises ValueError naming a vote that is broken.
    """
    cells: dict[tuple[object, object, str, str], dict[str, list[str]]] = {}
    for number, vote in enumerate(votes, 1):
        if turn is not None and vote.get("turn") != turn:
            continue
        key, winner = read_vote(vote, f"vote {number}")
        if setup == "S1" or winner != "tie":
            cells.setdefault(key, {}).setdefault(group(vote["judge"]), []).append(winner)
    questions: dict[object, int] = {}
    agreed: list[float] = []
    pairs: list[float] = []
    for (question, *_), said in cells.items():
        place = questions.setdefault(question, len(questions))
        if place == len(agreed):
            agreed.append(0.0)
            pairs.append(0.0)
        for a, b in _pairs(said, first, second):
            agreed[place] += a == b
            pairs[place] += 1
    same, total = np.array(agreed), np.array(pairs)
    if not total.sum():
        groups = sorted({name for said in cells.values() for name in said})
        raise ValueError(f"no question has votes of both {first} and {second}; there are votes of {', '.join(groups) or 'nobody'}")
    same, total = same[total > 0], total[total > 0]

    def share(counts: np.ndarray) -> np.ndarray:
        drawn = counts @ total
        return np.divide(counts @ same, drawn, out=np.full(len(counts), np.nan), where=drawn > 0)

    return bootstrap(share, len(total), seed=seed, draws=draws, what="question", n=int(total.sum()), bounds=(0.0, 1.0))


def read_vote(vote: Vote, where: str) -> tuple[tuple[object, object, str, str], str]:
    """What was asked, with the models in alphabetical order, and who won: `first`, `second` or `tie`.

    Raises ValueError that names `where` for a vote that lacks a column or names no winner.
    """
    if lacking := [name for name in ("question_id", "turn", "model_a", "model_b", "winner", "judge") if name not in vote]:
        raise ValueError(f"{where}: has no {lacking[0]}")
    if not isinstance(vote["question_id"], str | int):
        raise ValueError(f"{where}: question_id is {vote['question_id']!r}; it must be a number or a name")
    a, b, said = str(vote["model_a"]), str(vote["model_b"]), str(vote["winner"])
    if a == b:
        raise ValueError(f"{where}: {a} is compared with itself")
    if said not in _SIDES and not said.startswith("tie"):
        raise ValueError(f"{where}: winner is {said!r}; it must be model_a, model_b or tie")
    low, high = sorted((a, b))
    winner = "tie" if said.startswith("tie") else "first" if str(vote[said]) == low else "second"
    return (vote["question_id"], vote["turn"], low, high), winner


def _pairs(said: Mapping[str, list[str]], first: str, second: str) -> list[tuple[str, str]]:
    if first != second:
        return [(a, b) for a in said.get(first, []) for b in said.get(second, [])]
    own = said.get(first, [])
    return [(a, b) for i, a in enumerate(own) for b in own[i + 1 :]]
