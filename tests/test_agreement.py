"""Agreement: published worked examples as literals, then properties and coverage."""

import numpy as np
import pytest

from truing.feedback.agreement import cohen_kappa, fleiss_kappa, gwet_ac1, krippendorff_alpha, raw_agreement

_ = None
THREE_CODERS = list(
    zip(
        [_, _, _, _, _, 3, 4, 1, 2, 1, 1, 3, 3, _, 3],
        [1, _, 2, 1, 3, 3, 4, 3, _, _, _, _, _, _, _],
        [_, _, 2, 1, 3, 4, 4, _, 2, 1, 1, 3, 3, _, 4],
        strict=True,
    )
)
"""The worked example of Krippendorff's alpha with three coders and missing values."""
FOUR_RATERS = [
    (1, 1, _, 1), (2, 2, 3, 2), (3, 3, 3, 3), (3, 3, 3, 3), (2, 2, 2, 2), (1, 2, 3, 4),
    (4, 4, 4, 4), (1, 1, 2, 1), (2, 2, 2, 2), (_, 5, 5, 5), (_, _, 1, 1), (_, _, 3, _),
]  # fmt: skip
"""Krippendorff (2011), section C; Gwet (2014) computes every coefficient of it."""
FLEISS = [
    (0, 0, 0, 0, 14), (0, 2, 6, 4, 2), (0, 0, 3, 5, 6), (0, 3, 9, 2, 0), (2, 2, 8, 1, 1),
    (7, 7, 0, 0, 0), (3, 2, 6, 3, 0), (2, 5, 3, 2, 2), (6, 5, 2, 1, 0), (0, 2, 2, 3, 7),
]  # fmt: skip


def spread(counts):
    return [[label for label, count in enumerate(row) for _ in range(count)] for row in counts]


def square(yes_yes, yes_no, no_yes, no_no):
    """A two by two table as the labels of two annotators."""
    first = ["yes"] * (yes_yes + yes_no) + ["no"] * (no_yes + no_no)
    second = ["yes"] * yes_yes + ["no"] * yes_no + ["yes"] * no_yes + ["no"] * no_no
    return first, second


@pytest.mark.parametrize(
    ("level", "alpha"), [("nominal", 0.691358), ("ordinal", 0.806721), ("interval", 0.810845), ("ratio", 0.808944)]
)
def test_krippendorffs_alpha_of_the_classic_example(level, alpha):
    got = krippendorff_alpha(THREE_CODERS, level=level)
    assert got.value == pytest.approx(alpha, abs=5e-7)
    assert got.low < got.value < got.high <= 1
    assert "over 12 items" in got.method


def test_the_example_with_four_raters():
    assert krippendorff_alpha(FOUR_RATERS).value == pytest.approx(0.74342, abs=5e-6)
    assert gwet_ac1(FOUR_RATERS).value == pytest.approx(0.77544, abs=5e-6)
    assert raw_agreement(FOUR_RATERS).value == pytest.approx(0.81818, abs=5e-6)


def test_cohens_kappa_of_two_readers_of_fifty_proposals():
    # p_o = 0.7; p_e = 0.5 * 0.6 + 0.5 * 0.4 = 0.5.
    got = cohen_kappa(*square(20, 5, 10, 15))
    assert got.value == pytest.approx(0.4)
    # Fleiss, Cohen and Everitt (1969): standard error 0.1265 here.
    assert (got.low, got.high) == pytest.approx((0.4 - 1.96 * 0.1265, 0.4 + 1.96 * 0.1265), abs=0.03)


def test_fleiss_kappa_of_fourteen_raters():
    assert fleiss_kappa(spread(FLEISS)).value == pytest.approx(0.20993, abs=5e-6)


def test_ac1_stands_where_kappa_falls():
    # Gwet (2002): 118 of 125 are yes to both, and kappa is below 0.
    first, second = square(118, 5, 2, 0)
    assert cohen_kappa(first, second).value == pytest.approx(-0.0234, abs=5e-5)
    assert gwet_ac1(list(zip(first, second, strict=True))).value == pytest.approx(0.9408, abs=5e-5)


def test_names_of_labels_and_order_of_items_and_annotators_do_not_matter():
    first, second = square(20, 5, 10, 15)
    pairs = list(zip(first, second, strict=True))
    other = [tuple({"yes": 7, "no": 3}[label] for label in reversed(pair)) for pair in reversed(pairs)]
    for measure in (fleiss_kappa, gwet_ac1, krippendorff_alpha, raw_agreement):
        assert measure(other).value == pytest.approx(measure(pairs).value)
    assert cohen_kappa(second, first).value == pytest.approx(0.4)


def test_perfect_agreement_is_one_and_the_interval_says_that_nothing_varies():
    items = [(i % 3, i % 3) for i in range(30)]
    for measure in (fleiss_kappa, gwet_ac1, krippendorff_alpha):
        got = measure(items)
        assert (got.value, got.low, got.high) == pytest.approx((1, 1, 1))
        assert got.method.startswith("no interval")


def test_what_has_no_answer_is_an_error_that_says_why():
    with pytest.raises(ValueError, match=r"^item 2: a label is missing"):
        cohen_kappa([1, None], [1, 1])
    with pytest.raises(ValueError, match=r"^the first annotator has 2 labels and the second 1"):
        cohen_kappa([1, 2], [1])
    with pytest.raises(ValueError, match=r"^item 2 has 1 labels, item 1 has 2"):
        fleiss_kappa([(1, 1), (1, None)])
    with pytest.raises(ValueError, match="two annotators on the same item"):
        krippendorff_alpha([(1, None), (None, 2)])
    with pytest.raises(ValueError, match=r"^item 1: 'a' is no finite number; interval alpha needs numbers"):
        krippendorff_alpha([("a", "b")], level="interval")
    with pytest.raises(ValueError, match="there are no items"):
        gwet_ac1([])
    with pytest.raises(ValueError, match="undefined on these 2 items: they do not vary"):
        krippendorff_alpha([(1, 1), (1, 1)])


def test_the_interval_of_kappa_holds_the_truth():
    # Two readers see the same truth (1 of 3) and each says the opposite in 15%: p_o = 0.745, shares 0.38333.
    share = 0.85 / 3 + 0.15 * 2 / 3
    expected = share**2 + (1 - share) ** 2
    truth = (0.745 - expected) / (1 - expected)
    generator = np.random.default_rng(0)
    held = 0
    for study in range(300):
        real = generator.random(120) < 1 / 3
        first, second = (real ^ (generator.random(120) < 0.15) for _ in range(2))
        got = cohen_kappa(first.tolist(), second.tolist(), seed=study, draws=400)
        held += got.low <= truth <= got.high
    assert 0.91 <= held / 300 <= 0.985
