"""Statistics: literal values worked by hand, then coverage by simulation."""

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from truing.statistics import (
    Estimate,
    auc,
    bootstrap_mean,
    distinct_n,
    ends,
    mean_and_deviation,
    paired_difference,
    reach,
    shown,
    wilson,
    win_rate,
)

FLOATS = st.floats(-1e6, 1e6)


def test_wilson_is_the_interval_of_the_textbook():
    got = wilson(7, 10)
    assert got.value == 0.7
    assert (round(got.low, 4), round(got.high, 4)) == (0.3968, 0.8922)
    assert got.n == 10
    assert str(got) == "0.700 [0.397, 0.892] (n=10)"


def test_wilson_at_the_ends_is_not_a_point():
    # With no success the upper end is z^2 / (n + z^2), z^2 = 3.8415.
    none, all_ = wilson(0, 10), wilson(10, 10)
    assert (none.value, none.low) == (0.0, 0.0)
    assert none.high == pytest.approx(3.8415 / 13.8415, abs=1e-4)
    assert (all_.value, all_.high) == (1.0, 1.0)
    assert all_.low == pytest.approx(10 / 13.8415, abs=1e-4)


@pytest.mark.parametrize(("successes", "n"), [(0, 1), (3, 17), (50, 100), (1, 1000), (999, 1000)])
def test_wilson_agrees_with_scipy(successes, n):
    got, peer = wilson(successes, n), stats.binomtest(successes, n).proportion_ci(0.95, "wilson")
    assert (got.low, got.high) == pytest.approx((peer.low, peer.high), abs=1e-12)


@pytest.mark.parametrize(("successes", "n"), [(0, 0), (-1, 3), (4, 3), (math.nan, 3)])
def test_wilson_refuses_what_is_no_rate(successes, n):
    with pytest.raises(ValueError, match="trials; it"):
        wilson(successes, n)


def test_win_rate_counts_ties_half():
    got = win_rate([1, 0.5, 0, 1])
    assert (got.value, got.n) == (0.625, 4)
    assert win_rate([1, 0, 1]) == wilson(2, 3)
    assert win_rate([True, False]).value == 0.5
    assert win_rate([1 / 3, 2 / 3]).value == pytest.approx(0.5)


def test_ties_narrow_a_win_rate_by_what_they_take_off_its_variance():
    """d = 0.1 of 100, 10 wins: the ends solve (10 - 100 d)^2 = z^2 100 d (1 - d), those of Wilson's interval for 10 in 100."""
    few = win_rate([1.0] * 10 + [0.5] * 90)
    assert few.high == pytest.approx((1 + wilson(10, 100).high) / 2, abs=1e-6)
    # Without wins less losses, the ends are +- z / sqrt(n (1 - ties) ...): symmetric, and within Wilson's.
    even = win_rate([1.0] * 12 + [0.0] * 12 + [0.5] * 56)
    assert even.low + even.high == pytest.approx(1)
    assert even.high == pytest.approx(0.5 + 1.96 * math.sqrt(0.25 * 24 / 80 / 80), abs=0.005)
    assert even.high - even.low < 0.6 * (wilson(40, 80).high - wilson(40, 80).low)


def test_a_win_rate_of_ties_alone_is_not_certain():
    """No win and no loss in n: the share of either is at most z^2 / (n + z^2), as Wilson's end at 0 has it."""
    got = win_rate([0.5] * 20)
    assert (got.low, got.high) == pytest.approx((0.5 - wilson(0, 20).high / 2, 0.5 + wilson(0, 20).high / 2), abs=1e-9)


def test_shares_have_their_own_variance():
    shares = [1 / 3, 2 / 3] * 20
    assert win_rate(shares).high == pytest.approx(0.5 + 2.02 * np.std(shares, ddof=1) / math.sqrt(40), abs=0.003)
    assert win_rate([0.25] * 20).high == pytest.approx(0.25 + 0.75 * wilson(0, 20).high)


@pytest.mark.parametrize(("ties", "n"), [(0.7, 80), (0.2, 150), (0.9, 200)])
def test_a_win_rate_with_ties_covers_the_truth_95_times_in_100(ties, n):
    chances = [(1 - ties) * 0.4, ties, (1 - ties) * 0.6]
    truth = chances[1] / 2 + chances[2]
    held = coverage(lambda g, i: win_rate(g.choice([0.0, 0.5, 1.0], n, p=chances)), truth, studies=2000)
    assert 0.93 <= held <= 0.97


def test_win_rate_refuses_other_numbers():
    with pytest.raises(ValueError, match=r"^outcomes\[1\] is 2; a win is 1, a tie 0\.5, a loss 0$"):
        win_rate([1, 2, -1])


def test_bootstrap_of_two_values_by_hand():
    # Draws of (0, 1) average 0, 0.5, 1 with chances 1/4, 1/2, 1/4: no bias, no skew, and 2.5% lies inside the outer atoms.
    got = bootstrap_mean([0.0, 1.0], seed=3)
    assert (got.value, got.low, got.high, got.n) == (0.5, 0.0, 1.0, 2)
    assert got.method == "BCa bootstrap over 2 values, 10000 draws, 95%"


@pytest.mark.parametrize("units", [5, 11, 70, 1000])
def test_the_ends_are_those_of_t(units):
    expected = stats.t.ppf(0.975, units - 1) * math.sqrt(units / (units - 1))
    assert reach(units) == pytest.approx(expected, rel=1e-3)
    with pytest.raises(ValueError, match="1 units have no interval"):
        reach(1)


def test_bootstrap_agrees_with_scipy():
    values = np.random.default_rng(0).exponential(size=60)
    got = bootstrap_mean(values, seed=0, draws=20_000)
    level = 2 * stats.norm.cdf(reach(60)) - 1
    drawn = stats.bootstrap((values,), np.mean, n_resamples=20_000, confidence_level=level, rng=np.random.default_rng(1))
    peer = drawn.confidence_interval
    assert (got.low, got.high) == pytest.approx((peer.low, peer.high), abs=0.02)
    assert got.high - got.value > got.value - got.low


def test_the_same_seed_gives_the_same_interval_and_another_seed_another():
    values = np.random.default_rng(5).normal(size=40)
    assert bootstrap_mean(values, seed=1) == bootstrap_mean(list(values), seed=1)
    assert bootstrap_mean(values, seed=1) != bootstrap_mean(values, seed=2)


def test_large_samples_are_drawn_in_parts_and_agree_with_the_normal_interval():
    values = np.random.default_rng(6).normal(size=30_000)
    got = bootstrap_mean(values, seed=0, draws=400)
    reach = 1.96 * values.std(ddof=1) / math.sqrt(30_000)
    assert (got.low, got.high) == pytest.approx((got.value - reach, got.value + reach), abs=0.3 * reach)


def test_equal_values_have_no_interval_and_say_so():
    for got in (bootstrap_mean([0.3, 0.3, 0.3], seed=0), bootstrap_mean([0.1, 0.5], ["p", "p"], seed=0)):
        assert (got.low, got.high) == (got.value, got.value) == pytest.approx((0.3, 0.3))
        assert got.method.startswith("no interval: ")
    assert bootstrap_mean([2.0], seed=0).method == "no interval: 1 value, and no variation to resample"


def test_no_variation_is_not_certainty():
    """Of 3 values that all are 1 Wilson allows a share of 3.8415 / 6.8415 elsewhere, which may be at the other bound."""
    got = paired_difference([1, 1, 1], [0, 0, 0], seed=0)
    assert (got.value, got.high) == (1.0, 1.0)
    assert got.low == pytest.approx(1 - 2 * 0.5615, abs=1e-4)
    assert got.method == "no variation over 3 values: Wilson's bound on what was not seen, within [-1, 1], 95%"
    shares = bootstrap_mean([0.3, 0.3, 0.3], seed=0, bounds=(0.0, 1.0))
    assert (shares.low, shares.high) == pytest.approx((0.3 - 0.3 * 0.5615, 0.3 + 0.7 * 0.5615), abs=1e-4)
    one = bootstrap_mean([0.0, 1.0], ["p", "p"], seed=0, bounds=(0.0, 1.0))
    assert (one.value, one.low, one.high) == pytest.approx((0.5, 0.5 - 0.5 * 0.7935, 0.5 + 0.5 * 0.7935), abs=1e-4)
    with pytest.raises(ValueError, match=r"^value 1 is 1\.5; it must lie in \[0, 1\]$"):
        bootstrap_mean([0.0, 1.5], seed=0, bounds=(0.0, 1.0))


def test_without_bounds_the_interval_is_unknown_in_words():
    lengths = paired_difference([11.0, 12.0], [10.0, 11.0], seed=0)
    assert (lengths.known, str(lengths)) == (False, "1.000 [unknown] (n=2)")
    assert ends(shown(lengths)) == "[unknown]"
    assert ends(shown(wilson(7, 10)), 1, 100) == "[39.7, 89.2]"


def test_copies_of_a_prompt_do_not_narrow_a_clustered_interval():
    values = np.random.default_rng(8).normal(size=30)
    single = bootstrap_mean(values, seed=0)
    names = [f"p{i}" for i in range(30)]
    copied = bootstrap_mean(np.repeat(values, 9), [n for n in names for _ in range(9)], seed=0)
    assert (copied.low, copied.high) == pytest.approx((single.low, single.high))
    assert copied.n == 270
    assert "over 30 clusters" in copied.method
    naive = bootstrap_mean(np.repeat(values, 9), seed=0)
    assert naive.high - naive.low < 0.5 * (single.high - single.low)


def test_clusters_of_unequal_size_weigh_each_value_alike():
    assert bootstrap_mean([1.0, 1.0, 1.0, 5.0], ["a", "a", "a", "b"], seed=0).value == 2.0


def test_paired_difference_forgets_what_the_prompts_share():
    shared = np.random.default_rng(9).normal(scale=100.0, size=50)
    noise = np.random.default_rng(10).normal(size=50)
    got = paired_difference(shared + noise + 1.0, shared, seed=0)
    assert got.value == pytest.approx(1.0 + noise.mean())
    assert got.high - got.low < 1.0
    assert got.method == "paired BCa bootstrap over 50 values, 10000 draws, 95%"


def test_paired_difference_of_right_and_wrong():
    # 3 prompts gained, 1 lost, 6 unchanged: +0.2.
    after, before = [1, 1, 1, 0, 1, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 1, 1, 0, 0, 0]
    got = paired_difference(after, before, seed=0)
    assert got.value == pytest.approx(0.2)
    assert got.low < 0.0 < got.high
    back = paired_difference(before, after, seed=0)
    assert (back.value, back.low, back.high) == pytest.approx((-got.value, -got.high, -got.low), abs=0.11)


def test_wrong_lengths_and_draws_are_named():
    with pytest.raises(ValueError, match=r"^a has 2 values and b has 1; a pair is two values of one prompt$"):
        paired_difference([1, 2], [1], seed=0)
    with pytest.raises(ValueError, match=r"^2 values and 1 clusters; name the cluster of each value$"):
        bootstrap_mean([1, 2], ["x"], seed=0)
    with pytest.raises(ValueError, match=r"^5 draws are too few"):
        bootstrap_mean([1, 2], seed=0, draws=5)


NAN = [0.0, math.nan, 1.0]
FINE = [0.0, 1.0, 1.0]
CALLS = {
    "values": [lambda v: bootstrap_mean(v, seed=0), mean_and_deviation],
    "outcomes": [win_rate],
    "a": [lambda v: paired_difference(v, FINE, seed=0)],
    "b": [lambda v: paired_difference(FINE, v, seed=0)],
    "scores_pos": [lambda v: auc(v, FINE)],
    "scores_neg": [lambda v: auc(FINE, v)],
}


@pytest.mark.parametrize(("name", "call"), [(name, call) for name, calls in CALLS.items() for call in calls])
def test_nan_infinity_and_nothing_are_refused_by_name_and_index(name, call):
    with pytest.raises(ValueError, match=rf"^{name}\[1\] is nan; every value must be a finite number$"):
        call(NAN)
    with pytest.raises(ValueError, match=rf"^{name}\[2\] is -inf;"):
        call([0.0, 1.0, -math.inf])
    with pytest.raises(ValueError, match=rf"^{name} is empty$"):
        call([])
    with pytest.raises(ValueError, match=rf"^{name} has 2 axes"):
        call(np.zeros((2, 2)))


def test_mean_and_deviation_by_hand():
    assert mean_and_deviation([1, 2, 3, 4]) == (2.5, pytest.approx(math.sqrt(5 / 3)))
    assert mean_and_deviation([7]) == (7.0, 0.0)


def test_distinct_n_by_hand():
    # "a b a b" has the bigrams ab, ba, ab; "a b" has ab: 2 distinct of 4.
    assert distinct_n(["a b a b", "a b"], 2) == 0.5
    assert distinct_n(["a b a b", "a b"], 1) == pytest.approx(2 / 6)
    assert distinct_n(["a", ""], 2) == 0.0
    # A bigram does not reach from one text into the next: "a b" twice, and no "b a".
    assert distinct_n(["a b", "a b"], 2) == 0.5
    with pytest.raises(ValueError, match=r"^texts is empty$"):
        distinct_n([], 1)
    with pytest.raises(ValueError, match="n must be 1 or more"):
        distinct_n(["a"], 0)


def test_auc_by_hand():
    # 3 beats 1 and 2; 2 beats 1 and ties 2: (2 + 1.5) / 4.
    assert auc([3, 2], [1, 2]) == 0.875
    assert auc([1, 1], [1]) == 0.5
    assert auc([0], [1]) == 0.0


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(-3, 3), min_size=1, max_size=12), st.lists(st.integers(-3, 3), min_size=1, max_size=12))
def test_auc_is_the_count_over_all_pairs_and_turns_over(pos, neg):
    counted = sum((p > n) + 0.5 * (p == n) for p, n in product(pos, neg)) / (len(pos) * len(neg))
    assert auc(pos, neg) == pytest.approx(counted)
    assert auc(neg, pos) == pytest.approx(1 - counted)


@settings(max_examples=100, deadline=None)
@given(st.lists(FLOATS, min_size=1, max_size=20), st.integers(0, 2**32))
def test_an_interval_lies_around_its_value_and_within_the_data(values, seed):
    got = bootstrap_mean(values, seed=seed, draws=200)
    assert isinstance(got, Estimate)
    slack = 1e-9 * (1 + max(map(abs, values)))
    assert min(values) - slack <= got.low <= got.value <= got.high <= max(values) + slack


def coverage(study, truth: float, studies: int = 400) -> float:
    """How many of the simulated studies have an interval that holds the truth."""
    generator = np.random.default_rng(2024)
    estimates = [study(generator, i) for i in range(studies)]
    return sum(e.low <= truth <= e.high for e in estimates) / studies


@pytest.mark.parametrize(("share", "n"), [(0.5, 50), (0.8, 100), (0.3, 200)])
def test_wilson_covers_the_truth_95_times_in_100(share, n):
    assert 0.92 <= coverage(lambda g, i: wilson(int(g.binomial(n, share)), n), share, studies=2000) <= 0.98


def test_the_bootstrap_of_skewed_values_covers_the_truth():
    assert 0.92 <= coverage(lambda g, i: bootstrap_mean(g.gamma(2.0, size=100), seed=i, draws=1000), 2.0) <= 0.98


def test_the_paired_bootstrap_of_right_and_wrong_covers_the_truth():
    def study(generator: np.random.Generator, seed: int) -> Estimate:
        hard = generator.random(120) < 0.5
        before = generator.random(120) < np.where(hard, 0.2, 0.8)
        after = generator.random(120) < np.where(hard, 0.4, 0.9)
        return paired_difference(after, before, seed=seed, draws=1000)

    assert 0.92 <= coverage(study, 0.15) <= 0.98


def test_the_clustered_bootstrap_covers_the_truth_and_the_naive_one_does_not():
    names = [prompt for prompt in range(60) for _ in range(5)]

    def values(generator: np.random.Generator) -> np.ndarray:
        return np.repeat(generator.normal(size=60), 5) + generator.normal(scale=0.5, size=300)

    assert 0.92 <= coverage(lambda g, i: bootstrap_mean(values(g), names, seed=i, draws=1000), 0.0) <= 0.98
    assert coverage(lambda g, i: bootstrap_mean(values(g), seed=i, draws=500), 0.0, studies=200) < 0.8
