"""Coverage by simulation: how often each kind of 95% interval that is printed holds the truth.

`python -m benchmarks.coverage` runs 2,000 simulated studies of each kind and writes `benchmarks/results/coverage.json` (with
`--only` the rows of those kinds); it exits with 1 where a kind lies outside 93 to 97%. Every study draws new data from a known
truth. Confidence sequences are meant to hold at all times at once, so only a lower bound is asked of them.

Elo and ratings at equal style are simulated at a small size (40 prompts, three models), since each study rates every draw:

    python -m benchmarks.coverage --only "Elo rating"                # 2,000 studies, alone
    python -m benchmarks.coverage --only "rating at equal style"
    python -m benchmarks.coverage --only side                        # what a panel of judges prints; seconds
    python -m benchmarks.coverage --studies 50                       # a trial of all, which writes nothing

A trial can tell a broken interval (below 80%), not 93 from 95%: its standard error is 3 points.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np

from truing.evals.best_of_n import best_of_n
from truing.evals.human_agreement import mt_bench_agreement
from truing.evals.length_controlled import length_adjusted, lengths_overlap
from truing.evals.logistic import sigmoid
from truing.evals.ratings import SCALE, Battle, bradley_terry, elo
from truing.evals.reward_models import correlation
from truing.evals.sequential import confidence_sequence
from truing.evals.winrate import both_orders, win_rate_over_prompts
from truing.feedback.agreement import cohen_kappa, fleiss_kappa, gwet_ac1, krippendorff_alpha, raw_agreement
from truing.feedback.sides import Side, same_side, side_alpha, side_kappa
from truing.statistics import Estimate, bootstrap_mean, paired_difference, wilson, win_rate

Study = Callable[[np.random.Generator, int], tuple[Estimate, float]]
RESULTS = Path(__file__).parent / "results" / "coverage.json"
LOW, HIGH = 0.93, 0.97
DRAWS = 1000
"""Resamples a study; a report takes 2,000 or 10,000, whose ends are smoother."""


def rate(generator: np.random.Generator, seed: int) -> tuple[Estimate, float]:
    """A share of independent prompts."""
    return wilson(int(generator.binomial(150, 0.7)), 150), 0.7


def win_rate_with_ties(generator: np.random.Generator, seed: int) -> tuple[Estimate, float]:
    """Wins, ties and losses, one a prompt."""
    return win_rate_over_prompts(generator.choice([0.0, 0.5, 1.0], 150, p=[0.3, 0.2, 0.5]), seed=seed, draws=DRAWS), 0.6


def win_rate_of_many_ties(generator: np.random.Generator, seed: int) -> tuple[Estimate, float]:
    """Seven of ten are ties, as where a judge must agree with itself in both orders."""
    return win_rate(generator.choice([0.0, 0.5, 1.0], 80, p=[0.12, 0.7, 0.18])), 0.53


def win_rate_of_shares(generator: np.random.Generator, seed: int) -> tuple[Estimate, float]:
    """Shares of the six pairs of a ranking, which are alike."""
    return win_rate(generator.binomial(6, generator.beta(3, 2, 80)) / 6), 0.6


def rate_of_few(share: float) -> Study:
    """Twenty trials near an end: there are too few numbers of successes for any interval to hold the truth in 95%."""
    return lambda generator, seed: (wilson(int(generator.binomial(20, share)), 20), share)


def bias_of_templates(generator: np.random.Generator, seed: int) -> tuple[Estimate, float]:
    """BBQ's bias: +1, 0 and -1, six questions a template, whose leaning they share."""
    leaning = np.repeat(generator.beta(1.5, 1.0, 60), 6)
    drawn = np.where(generator.random(360) < leaning, 1.0, -1.0) * (generator.random(360) < 0.7)
    templates = [i // 6 for i in range(360)]
    return bootstrap_mean(drawn, templates, seed=seed, draws=DRAWS, bounds=(-1.0, 1.0)), 0.7 * 0.2


def mean_of_subjects(generator: np.random.Generator, seed: int) -> tuple[Estimate, float]:
    """MMLU's mean over 57 subjects of 40 questions, for subjects like these."""
    shares = generator.binomial(40, generator.beta(4, 6, 57)) / 40
    return bootstrap_mean(shares, seed=seed, draws=DRAWS, bounds=(0.0, 1.0)), 0.4


def agreement_with_people(generator: np.random.Generator, seed: int) -> tuple[Estimate, float]:
    """MT-bench's votes: 80 questions, one pair of models; a judge and one to three people who see the same truth."""
    votes = []
    for question in range(80):
        real = generator.random() < SHARE
        for judge in ("gpt-4", *(f"expert_{i}" for i in range(generator.integers(1, 4)))):
            winner = "model_a" if real ^ (generator.random() < WRONG) else "model_b"
            votes.append({"question_id": question, "turn": 1, "model_a": "a", "model_b": "b", "winner": winner, "judge": judge})
    return mt_bench_agreement(votes, "gpt-4", "human", setup="S2", seed=seed, draws=DRAWS), AGREE


def win_rate_of_repeated_prompts(generator: np.random.Generator, seed: int) -> tuple[Estimate, float]:
    """Three outcomes a prompt that are alike."""
    chance = np.repeat(generator.beta(1.2, 0.8, 80), 3)
    prompts = [str(i) for i in range(80) for _ in range(3)]
    return win_rate_over_prompts((generator.random(240) < chance).astype(float), prompts, seed=seed, draws=DRAWS), 0.6


def win_rate_in_both_orders(generator: np.random.Generator, seed: int) -> tuple[Estimate, float]:
    """A judge who likes what stands first: 0.55 before, 0.2 for the place."""
    better = generator.normal(0.2, 1.0, 150)
    first, second = ((generator.random(150) < sigmoid(better + place)).astype(float) for place in (0.8, -0.8))
    return both_orders(first, second, seed=seed, draws=DRAWS).win_rate, _both_orders_truth()


@cache
def _both_orders_truth() -> float:
    z = np.random.default_rng(0).normal(0.2, 1.0, 4_000_000)
    return float((sigmoid(z + 0.8) + sigmoid(z - 0.8)).mean() / 2)


def mean_of_skewed(generator: np.random.Generator, seed: int) -> tuple[Estimate, float]:
    """Lengths: skewed, one a prompt."""
    return bootstrap_mean(generator.gamma(2.0, size=150), seed=seed, draws=DRAWS), 2.0


def mean_of_clusters(generator: np.random.Generator, seed: int) -> tuple[Estimate, float]:
    """Between one and six values a prompt, which share the prompt's part."""
    sizes = generator.integers(1, 7, 100)
    values = np.repeat(generator.normal(size=100), sizes) + generator.normal(scale=0.5, size=int(sizes.sum()))
    return bootstrap_mean(values, np.repeat(np.arange(100), sizes).tolist(), seed=seed, draws=DRAWS), 0.0


def paired(generator: np.random.Generator, seed: int) -> tuple[Estimate, float]:
    """Right and wrong before and after, on the same prompts: half of them hard."""
    hard = generator.random(150) < 0.5
    before = generator.random(150) < np.where(hard, 0.2, 0.8)
    after = generator.random(150) < np.where(hard, 0.4, 0.9)
    return paired_difference(after, before, seed=seed, draws=DRAWS), 0.15


def paired_clusters(generator: np.random.Generator, seed: int) -> tuple[Estimate, float]:
    """Four samples a prompt of each of two models."""
    shared, gain = np.repeat(generator.normal(size=70), 4), np.repeat(generator.normal(0.3, 0.5, size=70), 4)
    a, b = shared + gain + generator.normal(size=280), shared + generator.normal(size=280)
    return paired_difference(a, b, [str(i // 4) for i in range(280)], seed=seed, draws=DRAWS), 0.3


SHARE, WRONG = 0.4, 0.15
"""Annotators see one truth (SHARE of items are positive) and each says the opposite with this chance."""
POSITIVE = SHARE * (1 - WRONG) + (1 - SHARE) * WRONG
AGREE = (1 - WRONG) ** 2 + WRONG**2


def _labels(generator: np.random.Generator, annotators: int, items: int = 150) -> list[list[int]]:
    real = generator.random((items, 1)) < SHARE
    said: list[list[int]] = (real ^ (generator.random((items, annotators)) < WRONG)).astype(int).tolist()
    return said


def _kappa() -> float:
    expected = POSITIVE**2 + (1 - POSITIVE) ** 2
    return (AGREE - expected) / (1 - expected)


def agreement(generator: np.random.Generator, seed: int) -> tuple[Estimate, float]:
    """Raw agreement of three annotators."""
    return raw_agreement(_labels(generator, 3), seed=seed, draws=DRAWS), AGREE


def cohen(generator: np.random.Generator, seed: int) -> tuple[Estimate, float]:
    """Cohen's kappa."""
    first, second = zip(*_labels(generator, 2), strict=True)
    return cohen_kappa(first, second, seed=seed, draws=DRAWS), _kappa()


def fleiss(generator: np.random.Generator, seed: int) -> tuple[Estimate, float]:
    """Fleiss' kappa of four annotators."""
    return fleiss_kappa(_labels(generator, 4), seed=seed, draws=DRAWS), _kappa()


def ac1(generator: np.random.Generator, seed: int) -> tuple[Estimate, float]:
    """Gwet's AC1 of three annotators: chance agreement is 2 pi (1 - pi)."""
    expected = 2 * POSITIVE * (1 - POSITIVE)
    return gwet_ac1(_labels(generator, 3), seed=seed, draws=DRAWS), (AGREE - expected) / (1 - expected)


def alpha(generator: np.random.Generator, seed: int) -> tuple[Estimate, float]:
    """Krippendorff's nominal alpha of three annotators, a fifth of the labels missing."""
    items = [[label if generator.random() < 0.8 else None for label in item] for item in _labels(generator, 3)]
    return krippendorff_alpha(items, seed=seed, draws=DRAWS), _kappa()


TIE = 0.2
"""How often a judge of sides calls a pair a tie, whatever it is."""
SAME_SIDE = TIE**2 + (1 - TIE) ** 2 * AGREE
SIDE_CHANCE = TIE**2 + (1 - TIE) ** 2 / 2
"""Over both orientations "first" and "second" are said equally often, whatever the better answers are called."""
SIDES: tuple[Side, Side] = ("first", "second")


def _sides(generator: np.random.Generator, judges: int, pairs: int = 150) -> list[list[Side]]:
    """What judges say of pairs whose better answer is called the second in SHARE of them."""
    said = _labels(generator, judges, pairs)
    ties = generator.random((pairs, judges)) < TIE
    return [
        ["tie" if tie else SIDES[label] for label, tie in zip(item, silent, strict=True)]
        for item, silent in zip(said, ties.tolist(), strict=True)
    ]


def agreement_on_sides(generator: np.random.Generator, seed: int) -> tuple[Estimate, float]:
    """Two judges who say first, second or tie: how often they say the same."""
    one, other = zip(*_sides(generator, 2), strict=True)
    return same_side(one, other), SAME_SIDE


def kappa_of_sides(generator: np.random.Generator, seed: int) -> tuple[Estimate, float]:
    """Cohen's kappa of two judges over both orientations."""
    one, other = zip(*_sides(generator, 2), strict=True)
    return side_kappa(one, other), (SAME_SIDE - SIDE_CHANCE) / (1 - SIDE_CHANCE)


def alpha_of_sides(judges: int) -> Study:
    """Krippendorff's alpha of so many judges over both orientations, a tenth of the verdicts missing."""

    def study(generator: np.random.Generator, seed: int) -> tuple[Estimate, float]:
        items = [[side if generator.random() < 0.9 else None for side in item] for item in _sides(generator, judges)]
        return side_alpha(items), (SAME_SIDE - SIDE_CHANCE) / (1 - SIDE_CHANCE)

    return study


def ac1_of_sides(generator: np.random.Generator, seed: int) -> tuple[Estimate, float]:
    """Gwet's AC1 of two judges over first, second and tie: chance agreement is the sum of pi (1 - pi), over 2."""
    first = (1 - TIE) * (1 - POSITIVE)
    chance = sum(pi * (1 - pi) for pi in (TIE, first, 1 - TIE - first)) / 2
    return gwet_ac1(_sides(generator, 2), seed=seed, draws=DRAWS), (SAME_SIDE - chance) / (1 - chance)


def accuracy_of_sides(generator: np.random.Generator, seed: int) -> tuple[Estimate, float]:
    """A judge against one person who always prefers a side: ties half, so half of TIE and AGREE of the rest."""
    people, judge = zip(*_labels(generator, 2), strict=True)
    ties = generator.random(len(people)) < TIE
    told = [0.5 if tie else float(a == b) for a, b, tie in zip(people, judge, ties, strict=True)]
    return win_rate(told), 0.5 * TIE + (1 - TIE) * AGREE


def length_adjusted_rate(generator: np.random.Generator, seed: int) -> tuple[Estimate, float]:
    """theta = 0.4, phi = -1.2: the rate at equal lengths is sigma(0.4)."""
    gap = generator.normal(0.5, 1.0, 200)
    won = generator.random(200) < sigmoid(0.4 - 1.2 * np.tanh(gap / gap.std(ddof=1)))
    return length_adjusted(won.astype(float), gap, np.zeros(200), seed=seed, draws=400).controlled, float(sigmoid(np.array(0.4)))


def mostly_longer(generator: np.random.Generator, seed: int) -> tuple[Estimate, float]:
    """Won at 80% whatever the length, longer on nine prompts of ten; studies without enough others are drawn anew."""
    while True:
        gap = generator.normal(1.3, 1.0, 150)
        if lengths_overlap(np.zeros(150), gap):
            break
    won = (generator.random(150) < 0.8).astype(float)
    return length_adjusted(won, np.zeros(150), gap, seed=seed, draws=400).controlled, 0.8


def rating(generator: np.random.Generator, seed: int) -> tuple[Estimate, float]:
    """Bradley-Terry of four models, all pairs on 60 prompts."""
    strength = np.array([0.0, 0.4, 0.8, 1.2])
    chance = sigmoid(strength[:, None] - strength)
    battles = []
    for prompt in range(60):
        for a in range(4):
            for b in range(a + 1, 4):
                won = generator.random() < chance[a, b]
                battles.append(Battle(a=f"m{a}", b=f"m{b}", outcome=float(won), prompt=prompt))
    found = bradley_terry(battles, seed=seed, draws=400)
    return found.ratings["m3"], 1000 + SCALE * float(strength[3] - strength.mean())


def style_controlled(generator: np.random.Generator, seed: int) -> tuple[Estimate, float]:
    """Three models on 40 prompts; the best is liked for its longer answers, too."""
    strength, longer = np.array([0.0, 0.4, 0.8]), np.array([1.0, 1.0, 1.6])
    battles = []
    for prompt in range(40):
        length = 100 * longer * generator.lognormal(0, 0.4, 3)
        for a, b in ((0, 1), (0, 2), (1, 2)):
            gap = (length[a] - length[b]) / (length[a] + length[b])
            won = generator.random() < sigmoid(np.array(strength[a] - strength[b] + 2 * gap))
            style = [(float(length[side]), 0.0, 0.0, 0.0) for side in (a, b)]
            battle = Battle(a=f"m{a}", b=f"m{b}", outcome=float(won), prompt=prompt, style_a=style[0], style_b=style[1])
            battles.append(battle)
    found = bradley_terry(battles, control_style=True, seed=seed, draws=100)
    return found.ratings["m2"], 1000 + SCALE * float(strength[2] - strength.mean())


def _elo_battles(generator: np.random.Generator) -> list[Battle]:
    """Three models, all pairs on 40 prompts."""
    strength = (0.0, 0.5, 1.0)
    return [
        Battle(
            a=f"m{a}", b=f"m{b}", outcome=float(generator.random() < sigmoid(np.array(strength[a] - strength[b]))), prompt=prompt
        )
        for prompt in range(40)
        for a, b in ((0, 1), (0, 2), (1, 2))
    ]


def elo_rating(generator: np.random.Generator, seed: int) -> tuple[Estimate, float]:
    """Elo's own expectation after so many battles, which lags behind the strengths."""
    return elo(_elo_battles(generator), seed=seed, orders=10).ratings["m2"], _elo_truth()


@cache
def _elo_truth() -> float:
    generator = np.random.default_rng(0)
    return float(np.mean([elo(_elo_battles(generator), orders=2, draws=2).ratings["m2"].value for _ in range(400)]))


def pearson(generator: np.random.Generator, seed: int) -> tuple[Estimate, float]:
    """A correlation of 0.5, two pairs a prompt."""
    shared = np.repeat(generator.normal(size=(100, 2)), 2, axis=0)
    noise = generator.normal(size=(200, 2))
    z = (shared + noise) / math.sqrt(2)
    x, y = z[:, 0], 0.5 * z[:, 0] + math.sqrt(0.75) * z[:, 1]
    return correlation(x, y, [str(i // 2) for i in range(200)], seed=seed, draws=DRAWS), 0.5


def best_of_eight(generator: np.random.Generator, seed: int) -> tuple[Estimate, float]:
    """Gold is half of the proxy: best of 8 gains half of the expected maximum of 8 normals."""
    proxy = generator.normal(size=(100, 16))
    gold = 0.5 * proxy + generator.normal(size=(100, 1)) + generator.normal(scale=0.5, size=(100, 16))
    found = best_of_n(proxy, gold, ns=[1, 4, 8], seed=seed, draws=DRAWS)
    return found.points[-1].gold, 0.5 * 1.4236


def sequence(generator: np.random.Generator, seed: int) -> tuple[Estimate, float]:
    """A confidence sequence looked at after each of 300 votes: it counts as wrong if it ever left the truth out."""
    votes = generator.choice([0.0, 0.5, 1.0], 300, p=[0.3, 0.2, 0.5])
    found = confidence_sequence(votes)
    return Estimate(value=float(votes.mean()), low=float(found.low.max()), high=float(found.high.min()), n=300, method=""), 0.6


STUDIES: dict[str, Study] = {
    "rate (Wilson)": rate,
    "win rate with ties": win_rate_with_ties,
    "win rate, 70% ties": win_rate_of_many_ties,
    "win rate of shares": win_rate_of_shares,
    "win rate, several outcomes a prompt": win_rate_of_repeated_prompts,
    "win rate in both orders": win_rate_in_both_orders,
    "mean of skewed values": mean_of_skewed,
    "mean, clustered": mean_of_clusters,
    "mean over subjects": mean_of_subjects,
    "bias in [-1, 1], by template": bias_of_templates,
    "paired difference": paired,
    "paired difference, clustered": paired_clusters,
    "raw agreement": agreement,
    "Cohen's kappa": cohen,
    "Fleiss' kappa": fleiss,
    "Gwet's AC1": ac1,
    "Krippendorff's alpha": alpha,
    "agreement on a side": agreement_on_sides,
    "kappa of sides": kappa_of_sides,
    "alpha of sides, two judges": alpha_of_sides(2),
    "alpha of sides, three judges": alpha_of_sides(3),
    "AC1 of sides": ac1_of_sides,
    "accuracy of sides, ties half": accuracy_of_sides,
    "length-adjusted win rate": length_adjusted_rate,
    "length-adjusted win rate, one mostly longer": mostly_longer,
    "Bradley-Terry rating": rating,
    "rating at equal style": style_controlled,
    "Elo rating": elo_rating,
    "agreement of judge and people": agreement_with_people,
    "correlation, clustered": pearson,
    "best-of-n gold reward": best_of_eight,
    "confidence sequence, at all times": sequence,
    "rate of 20 at 5% (Wilson)": rate_of_few(0.05),
    "rate of 20 at 95% (Wilson)": rate_of_few(0.95),
}
AT_LEAST = ("confidence sequence, at all times",)
"""Kinds that may hold the truth more often."""
SLOW = ("rating at equal style",)
"""Kinds whose studies take long: not in the tests."""
FEW, FEW_LOW = ("rate of 20 at 5% (Wilson)", "rate of 20 at 95% (Wilson)"), 0.91
"""Kinds with so few outcomes that 92.5% and 98.4% are the nearest that there is: the exact share, by the binomial, is 92.5%."""


def coverage(study: Study, studies: int, seed: int = 2024) -> float:
    """Share of simulated studies whose interval holds the truth."""
    held = 0
    for number in range(studies):
        found, truth = study(np.random.default_rng([seed, number]), number)
        held += found.low <= truth <= found.high
    return held / studies


def main() -> None:
    """Run all kinds, or those whose name holds a given word."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--studies", type=int, default=2000)
    parser.add_argument("--only", default="", help="kinds whose name holds this")
    options = parser.parse_args()
    rows = {}
    for name, study in STUDIES.items():
        if options.only not in name:
            continue
        began = time.process_time()
        covered = coverage(study, options.studies)
        low, high = (LOW, 1.0) if name in AT_LEAST else (FEW_LOW, HIGH) if name in FEW else (LOW, HIGH)
        fine = low <= covered <= high
        rows[name] = {"covered": covered, "studies": options.studies, "within": fine}
        print(f"{name:<38} {100 * covered:5.1f}%  {'' if fine else 'OUTSIDE'}  {time.process_time() - began:.0f} s", flush=True)
    if options.studies >= 2000:
        known = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
        merged = {name: {**known, **rows}[name] for name in STUDIES if name in {**known, **rows}}
        RESULTS.write_text(json.dumps(merged, indent=1) + "\n")
    sys.exit(0 if all(row["within"] for row in rows.values()) else 1)


if __name__ == "__main__":
    main()
