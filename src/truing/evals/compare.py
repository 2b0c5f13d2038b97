"""Two or more models on the same prompts: every figure with its interval, and what may be said in words.

It reads answers and scores (`truing.evals.answers`) and computes; it loads no model. The first model is what the others are held
against. What it gives is plain JSON, which `truing.evals.html` draws and `truing.evals.compare_text` prints.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

import numpy as np

from truing.evals.answers import share_finished
from truing.evals.diversity import self_bleu
from truing.evals.length_controlled import length_adjusted, lengths_overlap
from truing.evals.ratings import Battle, bradley_terry, elo, style_of
from truing.evals.result import Evaluation, same_items
from truing.evals.reward_models import RewardModelReport
from truing.evals.sequential import confidence_sequence, verdict
from truing.evals.verdicts import judgements, outcomes_of
from truing.evals.winrate import outcomes, win_rate_over_prompts
from truing.statistics import Estimate, bootstrap_mean, distinct_n, mean_and_deviation, paired_difference

EXAMPLES = 6
SELF_BLEU_TEXTS = 200
"""Answers that self-BLEU is taken of, the first so many: it is only comparable at equal numbers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """One model's answers and their scores, on the same prompts as the others'."""

    answers: Evaluation
    scores: Evaluation | None = None
    """The score of each answer; None where only a judge of two answers was asked."""
    kl: Evaluation | None = None
    """KL from the reference in nats an answer, by k1 and by k3 (figures); None where it was not asked for."""


Outcomes = Mapping[tuple[str, str], Sequence[float | None]]
"""(a, b) -> a's outcome against b on each prompt: 1 a win, 0.5 a tie, 0 a loss, None where the judge gave no verdict."""


def compare(
    contenders: Mapping[str, Contender],
    prompts: Mapping[str, str],
    *,
    judge: str,
    seed: int,
    reward_model: RewardModelReport | None = None,
    verdicts: Mapping[tuple[str, str], Evaluation] | None = None,
    draws: int = 2000,
) -> dict[str, Any]:
    """All figures as JSON; `prompts` is what was asked, by key, and `judge` who decides, in words.

    `verdicts` are those of a judge of two answers, (a, b) -> record in which a's answers stand first, for all pairs in the order of
    the contenders; without them the higher score wins. Raises ValueError where models did not answer or score the same prompts.
    """
    if not contenders:
        raise ValueError("there are no models to compare")
    keys = same_items(
        {name: of.answers for name, of in contenders.items()}
        | {f"the scores of {name}": of.scores for name, of in contenders.items() if of.scores is not None}
        | {f"the verdicts on {a} and {b}": said for (a, b), said in (verdicts or {}).items()}
    )
    names = list(contenders)
    answers = {name: _column(of.answers, keys, "answer") for name, of in contenders.items()}
    scores = {name: _column(of.scores, keys, "score") for name, of in contenders.items() if of.scores is not None}
    won = _by_scores(scores) if verdicts is None else _by_verdicts(verdicts, keys)
    base = names[0]
    found: dict[str, Any] = {
        "names": names,
        "judge": judge,
        "prompts": len(keys),
        "models": {name: _model(of, answers[name], scores.get(name), keys, seed) for name, of in contenders.items()},
        "against": {name: _against(answers, scores, won, name, base, seed, draws) for name in names[1:]},
        "matrix": {a: {b: asdict(_rate(won[a, b], seed)) for b in names if b != a} for a in names},
        "settings": {name: asdict(of.answers.setting) for name, of in contenders.items()},
        "rows": [
            {
                "key": key,
                "prompt": prompts[key],
                "answers": {name: answers[name][i] for name in names},
                "scores": {name: scores[name][i] for name in scores},
            }
            for i, key in enumerate(keys)
        ],
    }
    gain = [b - a for a, b in zip(scores[base], scores[names[-1]], strict=True)] if scores else []
    if verdicts is not None:
        gain = _with_verdicts(found["rows"], verdicts, base, names[-1])
    found["examples"] = _examples(gain)
    if len(names) > 2:
        found["ratings"] = _ratings(answers, won, keys, seed)
    if reward_model is not None:
        found["reward_model"] = asdict(reward_model)
    return found


def _by_scores(scores: Mapping[str, Sequence[float]]) -> Outcomes:
    return {(a, b): outcomes(scores[a], scores[b]) for a in scores for b in scores if a != b}


def _by_verdicts(verdicts: Mapping[tuple[str, str], Evaluation], keys: Sequence[str]) -> Outcomes:
    found: dict[tuple[str, str], Sequence[float | None]] = {}
    for (a, b), said in verdicts.items():
        found[a, b] = outcomes_of(said, keys)
        if all(outcome is None for outcome in found[a, b]):
            problem = next(one.problem for one in judgements(said).values())
            raise ValueError(f"the judge gave no verdict on any pair of {a} and {b}: {problem}")
        found[b, a] = [None if outcome is None else 1 - outcome for outcome in found[a, b]]
    return found


def _rate(won: Sequence[float | None], seed: int) -> Estimate:
    return win_rate_over_prompts([outcome for outcome in won if outcome is not None], seed=seed)


def _with_verdicts(
    rows: Sequence[dict[str, Any]], verdicts: Mapping[tuple[str, str], Evaluation], base: str, last: str
) -> list[float]:
    """Puts into each row what was said of its answers; gives the probability that the last model's is better than the first's."""
    said = {pair: judgements(of) for pair, of in verdicts.items()}
    gain = []
    for row in rows:
        row["verdicts"] = []
        for (a, b), of_pair in said.items():
            one = of_pair[row["key"]]
            side, orders = (None, None) if one.problem else (one.side, list(one.orders))
            row["verdicts"].append({"first": a, "second": b, "side": side, "orders": orders, "problem": one.problem})
        one = said[base, last][row["key"]]
        gain.append(0.5 if one.problem else 1 - one.probability)
    return gain


def _column(evaluation: Evaluation, keys: Sequence[str], name: str) -> list[Any]:
    rows = evaluation.by_key()
    return [rows[key][name] for key in keys]


def _model(of: Contender, answers: Sequence[str], scores: Sequence[float] | None, keys: Sequence[str], seed: int) -> dict[str, Any]:
    said = list(answers[:SELF_BLEU_TEXTS])
    finished = share_finished(of.answers.rows)
    figures: dict[str, Any] = {
        "score": None if scores is None else asdict(bootstrap_mean(scores, seed=seed)),
        "score_deviation": None if scores is None else mean_and_deviation(scores)[1],
        "characters": asdict(bootstrap_mean([float(len(text)) for text in answers], seed=seed)),
        "finished": None if finished is None else asdict(finished),
        "empty": [key for key, text in zip(keys, answers, strict=True) if not text.strip()],
        "distinct_1": distinct_n(answers, 1),
        "distinct_2": distinct_n(answers, 2),
        "self_bleu": self_bleu(said) if len(said) > 1 else None,
    }
    if of.kl is not None:
        figures["kl"] = {k: asdict(figure) for k, figure in of.kl.figures.items()}
    return figures


def _against(
    answers: Mapping[str, Sequence[str]],
    scores: Mapping[str, Sequence[float]],
    every: Outcomes,
    name: str,
    base: str,
    seed: int,
    draws: int,
) -> dict[str, Any]:
    """One model against the first: win rate, at equal lengths too, paired differences, and the verdict."""
    read = [(i, outcome) for i, outcome in enumerate(every[name, base]) if outcome is not None]
    won = [outcome for _, outcome in read]
    lengths = [[float(len(answers[who][i])) for i, _ in read] for who in (base, name)]
    varied = any(a != b for a, b in zip(*lengths, strict=True))
    adjusted = length_adjusted(won, *lengths, seed=seed, draws=draws).controlled if varied and lengths_overlap(*lengths) else None
    over_even = [outcome - 0.5 for outcome in won]
    rate = _rate(won, seed)
    gain = Estimate(value=rate.value - 0.5, low=rate.low - 0.5, high=rate.high - 0.5, n=rate.n, method=rate.method)
    explained = rate.value - adjusted.value if adjusted else math.nan if varied else None
    return {
        "win_rate": asdict(rate),
        "at_any_time": _at_any_time(won),
        "wins": sum(outcome == 1 for outcome in won),
        "ties": sum(outcome == 0.5 for outcome in won),
        "losses": sum(outcome == 0 for outcome in won),
        "missing": len(every[name, base]) - len(won),
        "length_adjusted_win_rate": asdict(adjusted) if adjusted else None,
        "score_difference": asdict(paired_difference(scores[name], scores[base], seed=seed)) if scores else None,
        "length_difference": asdict(paired_difference(lengths[1], lengths[0], seed=seed)),
        "words": verdict(gain, over_even, explained_by_length=explained),
    }


def _ratings(answers: Mapping[str, Sequence[str]], won: Outcomes, keys: Sequence[str], seed: int) -> dict[str, Any]:
    styles = {name: [style_of(text) for text in texts] for name, texts in answers.items()}
    battles = [
        Battle(a=a, b=b, outcome=outcome, prompt=key, style_a=styles[a][i], style_b=styles[b][i])
        for a, b in combinations(answers, 2)
        for i, (key, outcome) in enumerate(zip(keys, won[a, b], strict=True))
        if outcome is not None
    ]
    rated = {
        "plain": bradley_terry(battles, seed=seed, draws=300),
        "style_controlled": bradley_terry(battles, control_style=True, seed=seed, draws=300),
        "elo": elo(battles, seed=seed, orders=10),
    }
    return {
        title: {
            "ratings": {name: asdict(rating) for name, rating in of.ratings.items()},
            "style": dict(of.style),
            "unbeaten": of.unbeaten,
            "leaning": of.leaning,
        }
        for title, of in rated.items()
    }


def _at_any_time(won: Sequence[float]) -> dict[str, Any]:
    """The win rate's interval that held after every prompt, and after how many it first left an even match out."""
    found = confidence_sequence(won)
    return {"low": float(found.low[-1]), "high": float(found.high[-1]), "decided": found.decided()}


def _examples(gain: Sequence[float]) -> list[int]:
    """Rows to look at: evenly over the order of the last model's gain, so that losses are seen as well as wins."""
    order = np.argsort(gain, kind="stable")
    places = np.unique(np.linspace(0, len(order) - 1, min(EXAMPLES, len(order))).round().astype(int))
    return [int(order[place]) for place in places]
