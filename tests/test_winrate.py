"""Win rates, ratings, sequences and words: numbers by hand, then what must hold of all."""

import itertools
import math

import numpy as np
import pytest

from truing.evals.diversity import self_bleu
from truing.evals.human_agreement import mt_bench_agreement
from truing.evals.ratings import Battle, bradley_terry, elo, style_of
from truing.evals.sequential import confidence_sequence, prompts_needed, verdict, would_tell
from truing.evals.winrate import both_orders, matrix, outcomes, win_rate_over_prompts
from truing.statistics import Estimate, wilson

WON = {
    ("A", "B"): 2,
    ("A", "D"): 1,
    ("B", "A"): 3,
    ("B", "C"): 5,
    ("C", "A"): 0,
    ("C", "B"): 3,
    ("C", "D"): 1,
    ("D", "A"): 4,
    ("D", "C"): 3,
}
"""The worked example of the article on the Bradley-Terry model: strengths 0.640, 1.043, 0.660, 2.270."""
BATTLES = [Battle(a=a, b=b, outcome=1.0, prompt=(a, b, i)) for (a, b), n in WON.items() for i in range(n)]


# -- win rates


def test_outcomes_and_their_mean_by_hand():
    assert outcomes([3, 1, 2], [1, 1, 5]) == [1.0, 0.5, 0.0]
    with pytest.raises(ValueError, match="the model has 2 scores and the baseline 1"):
        outcomes([1, 2], [1])
    with pytest.raises(ValueError, match=r"^baseline\[1\] is nan"):
        outcomes([1, 2], [1, math.nan])


def test_both_orders_by_hand():
    # Pair 1: wins in both orders. Pair 2: wins only when first. Pair 3: loses in both. Pair 4: tie, then win.
    got = both_orders([1, 1, 0, 0.5], [1, 0, 0, 1])
    assert got.outcomes == (1.0, 0.5, 0.0, 0.75)
    assert got.win_rate.value == 0.5625
    assert got.consistent.value == 0.5
    assert got.first_preferred.value == pytest.approx((0 + 1 + 0 - 0.5) / 4)
    strict = both_orders([1, 1, 0, 0.5], [1, 0, 0, 1], rule="agree")
    assert strict.outcomes == (1.0, 0.5, 0.0, 0.5)
    with pytest.raises(ValueError, match="ask in both orders"):
        both_orders([1, 0], [1])


def test_a_judge_that_goes_by_place_alone_makes_a_tie_of_everything():
    got = both_orders([1] * 20, [0] * 20)
    assert (got.win_rate.value, got.consistent.value, got.first_preferred.value) == (0.5, 0.0, 1.0)


def test_all_wins_have_an_interval_over_prompts():
    alone = win_rate_over_prompts([1.0] * 12, seed=0)
    assert (alone.value, alone.low, alone.high) == (1.0, pytest.approx(wilson(12, 12).low), 1.0)
    repeated = win_rate_over_prompts([1.0] * 12, [i // 3 for i in range(12)], seed=0)
    assert repeated.low == pytest.approx(wilson(4, 4).low)
    assert repeated.n == 12


def test_the_matrix_turns_over():
    got = matrix({"a": [1.0, 2.0, 3.0, 4.0], "b": [2.0] * 4, "c": [0.0, 0.0, 9.0, 9.0]}, seed=0)
    for x, y in itertools.permutations(got.models, 2):
        assert got.rates[x][y].value == pytest.approx(1 - got.rates[y][x].value)
    assert got.rates["a"]["b"].value == (0 + 0.5 + 1 + 1) / 4
    with pytest.raises(ValueError, match="a has 1 scores and b 2"):
        matrix({"a": [1.0], "b": [1.0, 2.0]}, seed=0)


# -- ratings


def test_bradley_terry_of_the_worked_example():
    got = bradley_terry(BATTLES, draws=100)
    strength = {name: 10 ** ((rating.value - 1000) / 400) for name, rating in got.ratings.items()}
    assert strength == pytest.approx({"A": 0.640, "B": 1.043, "C": 0.660, "D": 2.270}, abs=6e-4)
    assert list(got.ratings) == ["D", "B", "C", "A"]
    assert not got.unbeaten


def test_two_models_have_the_rating_of_their_win_rate():
    # 3 of 4: 400 log10(3) = 190.85 points apart; a tie is half a win each.
    battles = [Battle(a="x", b="y", outcome=o, prompt=i) for i, o in enumerate([1.0, 1.0, 0.5, 0.5])]
    got = bradley_terry(battles, anchor="y", draws=100)
    assert got.ratings["y"].value == pytest.approx(1000)
    assert got.ratings["x"].value == pytest.approx(1000 + 400 * math.log10(3), abs=0.01)
    assert got.win_rate("x", "y") == pytest.approx(0.75, abs=1e-4)


def test_order_and_sides_of_battles_do_not_matter():
    turned = [Battle(a=x.b, b=x.a, outcome=1 - x.outcome, prompt=x.prompt) for x in reversed(BATTLES)]
    one, two = bradley_terry(BATTLES, draws=100), bradley_terry(turned, draws=100)
    assert {n: r.value for n, r in one.ratings.items()} == pytest.approx({n: r.value for n, r in two.ratings.items()}, abs=1e-3)


def test_an_unbeaten_model_is_finite_and_said_to_be_unbeaten():
    battles = [*BATTLES, *(Battle(a="E", b="D", outcome=1.0, prompt=("E", i)) for i in range(4))]
    got = bradley_terry(battles, draws=100)
    assert got.unbeaten
    assert next(iter(got.ratings)) == "E"
    assert math.isfinite(got.ratings["E"].high)


def test_models_without_a_chain_of_battles_are_an_error():
    with pytest.raises(ValueError, match="no chain of battles leads from A to X"):
        bradley_terry([*BATTLES, Battle(a="X", b="Y", outcome=1.0, prompt=0)])
    with pytest.raises(ValueError, match="battle 1: x is compared with itself"):
        bradley_terry([Battle(a="x", b="x", outcome=1.0, prompt=0)])
    with pytest.raises(ValueError, match="battle 1: outcome is nan"):
        bradley_terry([Battle(a="x", b="y", outcome=math.nan, prompt=0)])
    with pytest.raises(ValueError, match="battle 1: style control needs 4 finite features"):
        bradley_terry([Battle(a="x", b="y", outcome=1.0, prompt=0)], control_style=True)


LONG, SHORT = (30.0, 0.0, 0.0, 0.0), (10.0, 0.0, 0.0, 0.0)


def test_style_control_takes_out_what_length_wins():
    # x and y are equally good, but x is always longer and length wins 80%; each also meets z at random lengths.
    generator = np.random.default_rng(0)
    battles = []
    for i in range(900):
        a, b = [("x", "y"), ("x", "z"), ("y", "z")][i % 3]
        long_a = generator.random() < (0.9 if a == "x" else 0.5)
        style_a, style_b = (LONG, SHORT) if long_a else (SHORT, LONG)
        won = generator.random() < (0.8 if long_a else 0.2)
        battles.append(Battle(a=a, b=b, outcome=float(won), prompt=i, style_a=style_a, style_b=style_b))
    plain = bradley_terry(battles, draws=100)
    controlled = bradley_terry(battles, control_style=True, draws=100)
    assert plain.ratings["x"].value - plain.ratings["y"].value > 50
    assert abs(controlled.ratings["x"].value - controlled.ratings["y"].value) < 45
    # A difference of 1 / 2 is 1.16 deviations here.
    assert controlled.style["length"] == pytest.approx(math.log(4) / 1.16, abs=0.25)
    assert controlled.style["bold"] == pytest.approx(0, abs=1e-6)


def test_style_by_hand():
    answer = "# Title\n\n1. one\n- two **bold**\n```\n# no header\n- no item\n```\n"
    assert style_of(answer) == (float(len(answer)), 1.0, 2.0, 1.0)
    assert style_of("") == (0.0, 0.0, 0.0, 0.0)


def test_resamples_in_which_nobody_loses_lean_on_the_prior_and_say_so():
    """9 of 10: a resample without the loss (0.9^10 = 35%) has no maximum, and a loose prior would put 2,600 points there."""
    battles = [Battle(a="x", b="y", outcome=float(i > 0), prompt=i) for i in range(10)]
    got = bradley_terry(battles, draws=1000)
    assert not got.unbeaten
    assert got.leaning == pytest.approx(0.35, abs=0.05)
    assert got.ratings["x"].value == pytest.approx(1000 + 400 / math.log(10) * math.log(9) / 2, abs=0.1)
    # The chance of winning that is behind it ends where the exact interval of 9 in 10 does, at 99.7%: 520 points above the middle.
    assert 1250 < got.ratings["x"].high < 1520
    even = [Battle(a="x", b="y", outcome=float(i % 2), prompt=i) for i in range(100)]
    assert bradley_terry(even, draws=200).leaning == 0.0


def test_elo_of_one_battle_by_hand_and_the_sum_stays():
    # Expected 0.5: the winner gains k / 2 = 2 points.
    got = elo([Battle(a="x", b="y", outcome=1.0, prompt=0)])
    assert got.ratings["x"].value == pytest.approx(1002)
    assert sum(r.value for r in elo(BATTLES, draws=100).ratings.values()) == pytest.approx(4000)
    assert next(iter(elo(BATTLES, draws=100).ratings)) == "D"


# -- looking at any time


def test_a_confidence_sequence_narrows_and_holds_the_mean():
    values = (np.random.default_rng(0).random(800) < 0.6).astype(float)
    got = confidence_sequence(values)
    assert (np.diff(got.low) >= 0).all()
    assert (np.diff(got.high) <= 0).all()
    assert got.low[-1] <= 0.6 <= got.high[-1]
    assert got.high[-1] - got.low[-1] < 0.15
    turned = confidence_sequence(1 - values)
    assert turned.low == pytest.approx(1 - got.high)
    with pytest.raises(ValueError, match=r"^values\[1\] is 2"):
        confidence_sequence([0.5, 2])


def test_looking_after_every_vote_stops_falsely_in_at_most_5_percent_and_a_fixed_interval_far_more_often():
    generator = np.random.default_rng(1)
    stopped, naive = 0, 0
    for _ in range(150):
        votes = generator.choice([0.0, 0.5, 1.0], size=300, p=[0.4, 0.2, 0.4])
        stopped += confidence_sequence(votes).decided() is not None
        t = np.arange(1, 301)
        z = (np.cumsum(votes) / t - 0.5) / np.sqrt(0.2 / t)
        naive += bool((np.abs(z[9:]) > 1.96).any())
    assert stopped / 150 <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / 150)
    assert naive / 150 > 0.2


def test_a_real_difference_is_found():
    votes = (np.random.default_rng(2).random(1500) < 0.6).astype(float)
    assert 20 < confidence_sequence(votes).decided() < 1500


# -- words


def gain(value, low, high, n=240):
    return Estimate(value=value, low=low, high=high, n=n, method="")


def test_the_verdict_in_words():
    assert verdict(gain(0.061, 0.02, 0.102), [0], explained_by_length=0.013) == (
        "better by 6.1 points [2.0, 10.2], n = 240; length explains 1.3 of them"
    )
    assert verdict(gain(-0.061, -0.102, -0.02), [0], explained_by_length=-0.013) == (
        "worse by 6.1 points [2.0, 10.2], n = 240; length explains 1.3 of them"
    )
    assert verdict(gain(0.061, 0.02, 0.102), [0], explained_by_length=-0.02).endswith("length hides 2.0 more")
    assert verdict(gain(0.061, 0.02, 0.102), [0], explained_by_length=0.0).endswith("length explains none of them")
    assert verdict(gain(0.061, 0.02, 0.102), [0], explained_by_length=math.nan).endswith("nobody can say what length explains")


def test_further_prompts_by_hand():
    # Mean 0.1, deviation 1.0: ((1.95996 + 0.84162) * 10)^2 = 784.9, less the 100 there are.
    spread = math.sqrt(99 / 100)
    values = [0.1 + spread] * 50 + [0.1 - spread] * 50
    assert prompts_needed(values) == 685
    assert (
        verdict(gain(0.1, -0.1, 0.3, 100), values)
        == "cannot tell: +10.0 points [-10.0, +30.0], n = 100; about 690 more prompts would"
    )
    assert prompts_needed([1, -1]) is None
    assert verdict(gain(0.0, -0.1, 0.1), [1, -1]).endswith("nor would 10,000 more prompts")
    # Each of the 685 stands for six items: 4,110, to two digits.
    assert would_tell(values, "items", 6.0) == "about 4200 more items would"
    assert would_tell([0.5], "items") == "one alone does not say how many more items would"


# -- diversity and MT-bench


def test_self_bleu_by_hand():
    assert self_bleu(["a b c d e"] * 3) == pytest.approx(1.0)
    assert self_bleu(["a b c d", "e f g h"]) == 0.0
    # "a b c" against "a b d" and back: 2 of 3 words, (1 + 1) / (2 + 1) pairs, (0 + 1) / (1 + 1) triples, (0 + 1) / (0 + 1).
    assert self_bleu(["a b c", "a b d"]) == pytest.approx((2 / 3 * 2 / 3 * 1 / 2) ** 0.25)
    # Shorter: brevity exp(1 - 4 / 2), all of it there. Longer: 2 of 4 words, then 2 of 4, 1 of 3, 1 of 2.
    short = math.exp(-1)
    long = (2 / 4 * 2 / 4 * 1 / 3 * 1 / 2) ** 0.25
    assert self_bleu(["a b", "a b c d"]) == pytest.approx((short + long) / 2)
    with pytest.raises(ValueError, match="two or more"):
        self_bleu(["a"])


def vote(question, judge, winner, a="x", b="y", turn=1):
    return {"question_id": question, "turn": turn, "model_a": a, "model_b": b, "winner": winner, "judge": judge}


def test_mt_bench_agreement_by_hand():
    pair = ["gpt-4", "pair-v2"]
    votes = [
        vote(81, pair, "model_a"), vote(81, "expert_1", "model_b", a="y", b="x"), vote(81, "expert_2", "model_b"),
        vote(82, pair, "tie (inconsistent)"), vote(82, "expert_1", "tie"), vote(82, "expert_3", "model_a"),
        vote(83, "gpt4_pair", "model_b", turn=2), vote(83, "expert_1", "model_b", turn=2),
    ]  # fmt: skip
    # S1, turn 1: 81 agrees with one of two, 82 tie with tie agrees and with model_a does not: 2 of 4.
    one = mt_bench_agreement(votes, "gpt4-pair", "human", setup="S1", turn=1)
    assert (one.value, one.n) == (0.5, 4)
    # S2: 82 is gone: 1 of 2. Both turns: 2 of 3.
    assert mt_bench_agreement(votes, "gpt4-pair", "human", setup="S2", turn=1).value == 0.5
    both = mt_bench_agreement(votes, "gpt4-pair", "human", setup="S2")
    assert (both.value, both.n) == (pytest.approx(2 / 3), 3)
    # People among themselves: 81 disagrees (the first named the models the other way), 82 disagrees.
    assert mt_bench_agreement(votes, "human", "human", setup="S1").value == 0.0
    own = [vote(1, "my_judge", "tie"), vote(1, "expert_1", "tie")]
    assert mt_bench_agreement(own, "my_judge", "human", setup="S1").value == 1.0
    with pytest.raises(ValueError, match="no question has votes of both author and human"):
        mt_bench_agreement(votes, "author", "human", setup="S1")
    with pytest.raises(ValueError, match="vote 1: winner is 'x'"):
        mt_bench_agreement([vote(1, "expert_1", "x")], "human", "human", setup="S1")
