"""Reward models, best-of-n: numbers by hand and simulated truths."""

import itertools
import math

import numpy as np
import pytest

from truing.evals.best_of_n import best_of_n, fit_rl, kl_of_best_of_n, rank_weights
from truing.evals.reward_models import Scored, calibration, correlation, evaluate_reward_model


def pair(i, chosen, rejected, **more):
    return Scored(prompt=str(i), chosen=float(chosen), rejected=float(rejected), **more)


def test_accuracy_by_category_counts_ties_half():
    got = evaluate_reward_model([pair(1, 2, 1, category="a"), pair(2, 1, 1, category="a"), pair(3, 0, 1, category="b")])
    assert {name: accuracy.value for name, accuracy in got.accuracy.items()} == {"all": 0.5, "a": 0.75, "b": 0.0}
    assert got.ties == 1
    assert got.confounds is None


def test_calibration_by_hand():
    # Score differences of log 3 mean 75%; two pairs, one right: Brier (0.25^2 + 0.75^2) / 2.
    got = calibration(np.array([math.log(3), -math.log(3)]))
    assert got.brier.value == pytest.approx(0.3125)
    assert got.nll.value == pytest.approx(-(math.log(0.75) + math.log(0.25)) / 2)
    assert got.temperature == math.inf
    flat = calibration(np.zeros(20))
    assert (flat.ece, flat.brier.value, flat.nll.value) == pytest.approx((0.0, 0.25, math.log(2)))


def simulated(generator, sharpness, n=4000):
    """Differences whose labels come with the chance sigma(d / sharpness): sharpness 1 is calibrated."""
    d = np.abs(generator.normal(scale=2.0, size=n))
    return np.where(generator.random(n) < 1 / (1 + np.exp(-d / sharpness)), d, -d)


def test_a_calibrated_model_shows_no_more_error_than_chance_and_a_sure_one_does():
    generator = np.random.default_rng(0)
    good, sure = calibration(simulated(generator, 1.0)), calibration(simulated(generator, 3.0))
    assert good.ece < 2 * good.ece_by_chance
    assert sure.ece > 5 * sure.ece_by_chance
    assert (good.temperature, sure.temperature) == (pytest.approx(1, abs=0.1), pytest.approx(3, abs=0.4))
    for curve in (good.curve, sure.curve):
        assert len(curve) == 15
        assert [b.said for b in curve] == sorted(b.said for b in curve)


def test_a_model_that_scores_length_is_found_out():
    short, long = "x" * 10, "x" * 50
    rows = [
        pair(i, 50, 10, chosen_text=long, rejected_text=short) if i % 2 else pair(i, 10, 50, chosen_text=short, rejected_text=long)
        for i in range(40)
    ]
    got = evaluate_reward_model(rows)
    assert got.confounds is not None
    assert got.confounds.prefers_more["length"].value == 1.0
    assert got.confounds.people_prefer_more["length"].value == 0.5
    assert got.confounds.correlation["length"].value == pytest.approx(1.0)
    assert got.confounds.accuracy_when_longer.value == 1.0
    assert got.confounds.accuracy_when_shorter.value == 0.0
    assert "bold" not in got.confounds.prefers_more


def test_broken_pairs_are_named():
    with pytest.raises(ValueError, match=r"^pair 2 \(prompt '2'\): scores nan and 1"):
        evaluate_reward_model([pair(1, 1, 0), pair(2, math.nan, 1)])
    with pytest.raises(ValueError, match=r"^pair 2 has no texts, others have"):
        evaluate_reward_model([pair(1, 1, 0, chosen_text="a", rejected_text="b"), pair(2, 1, 0)])
    with pytest.raises(ValueError, match="there are no pairs"):
        evaluate_reward_model([])


def test_correlation_by_hand():
    assert correlation(np.array([1.0, 2, 3]), np.array([2.0, 4, 7])).value == pytest.approx(np.corrcoef([1, 2, 3], [2, 4, 7])[0, 1])


def test_rank_weights_by_hand():
    # Best of 2 of 4: 6 draws; the worst is never best, the others are in 1, 2, 3 of them.
    assert rank_weights(4, 2).tolist() == pytest.approx([0, 1 / 6, 2 / 6, 3 / 6])
    assert rank_weights(3, 1).tolist() == pytest.approx([1 / 3] * 3)
    with pytest.raises(ValueError, match="best of 5 out of a pool of 4"):
        rank_weights(4, 5)


def test_best_of_n_is_the_mean_over_all_draws():
    generator = np.random.default_rng(0)
    proxy, gold = generator.integers(0, 4, size=(6, 8)).astype(float), generator.normal(size=(6, 8))
    curve = best_of_n(proxy, gold, ns=[1, 2, 3, 8], draws=100)
    for point in curve.points:
        # All draws of n answers; equal proxies share the choice.
        by_hand = []
        for p, g in zip(proxy, gold, strict=True):
            of_prompt = []
            for drawn in itertools.permutations(range(8), point.n) if point.n < 3 else itertools.combinations(range(8), point.n):
                top = [i for i in drawn if p[i] == max(p[j] for j in drawn)]
                of_prompt.append(np.mean([g[i] for i in top]))
            by_hand.append(np.mean(of_prompt))
        assert point.gold.value == pytest.approx(np.mean(by_hand), abs=0.02 if point.n == 3 else 1e-9), point.n
    assert curve.points[0].gold.value == pytest.approx(gold.mean())
    assert curve.points[-1].proxy.value == pytest.approx(proxy.max(1).mean())
    assert kl_of_best_of_n(1) == 0
    assert kl_of_best_of_n(4) == pytest.approx(math.log(4) - 0.75)


def test_over_optimisation_is_seen():
    # Gold follows the proxy up to a point and falls beyond it.
    proxy = np.random.default_rng(0).normal(size=(300, 64))
    got = best_of_n(proxy, proxy - 0.5 * proxy**2, draws=200)
    assert got.best_n in (2, 4)
    assert got.beta.low > 0
    rising = best_of_n(proxy, proxy, draws=200)
    assert rising.best_n is None
    with pytest.raises(ValueError, match="proxy: prompt 1, answer 0 is nan"):
        best_of_n(np.array([[0.0, 1], [math.nan, 1]]), np.zeros((2, 2)))


def test_the_law_of_reinforcement_learning_is_recovered():
    kl = np.array([1.0, 4.0, 9.0, 16.0])
    d = np.sqrt(kl)
    assert fit_rl(kl.tolist(), (d * (0.8 - 0.2 * np.log(d))).tolist()) == pytest.approx((0.8, 0.2))
    with pytest.raises(ValueError, match=r"^kl\[0\] is 0"):
        fit_rl([0.0, 1.0], [0.0, 1.0])
