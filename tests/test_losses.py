"""Each loss against numbers worked by hand, then its properties."""

import math

import pytest
import torch

from truing.losses import PAIR_LOSSES, BradleyTerry, Pair, PairLogps
from truing.losses.cdpo import ConservativeDPO
from truing.losses.dpo import DPO
from truing.losses.ipo import IPO
from truing.losses.nll import NLL


def logps(chosen=(-10.0,), rejected=(-12.0,), ref_chosen=(-11.0,), ref_rejected=(-11.5,), len_chosen=(4,), len_rejected=(8,)):
    return PairLogps(
        policy=Pair(torch.tensor(chosen), torch.tensor(rejected)),
        reference=Pair(torch.tensor(ref_chosen), torch.tensor(ref_rejected)),
        length=Pair(torch.tensor(len_chosen), torch.tensor(len_rejected)),
    )


def test_dpo_by_hand():
    """Log-ratios 1 and -0.5, so h = 0.1 * 1.5 = 0.15 and L = ln(1 + e^-0.15)."""
    assert DPO(beta=0.1)(logps()).item() == pytest.approx(math.log(1 + math.exp(-0.15)), abs=1e-6)


def test_conservative_dpo_by_hand():
    """0.8 ln(1 + e^-0.15) + 0.2 ln(1 + e^0.15)."""
    expected = 0.8 * math.log(1 + math.exp(-0.15)) + 0.2 * math.log(1 + math.exp(0.15))
    assert ConservativeDPO(beta=0.1, label_smoothing=0.2)(logps()).item() == pytest.approx(expected, abs=1e-6)


def test_conservative_dpo_is_least_where_it_believes_the_label():
    """sigma(h) = 0.9 at h = ln 9: the slope there is 0."""
    h = torch.tensor([math.log(9)], requires_grad=True)
    zero = torch.zeros(1)
    side = PairLogps(policy=Pair(h, zero), reference=Pair(zero, zero), length=Pair(torch.tensor([1]), torch.tensor([1])))
    ConservativeDPO(beta=1.0, label_smoothing=0.1)(side).sum().backward()
    assert abs(h.grad.item()) < 1e-6


def test_ipo_by_hand():
    """1/4 - (-0.5/8) = 0.3125 per token; the aim is 1/(2*0.5) = 1."""
    assert IPO(beta=0.5)(logps()).item() == pytest.approx((0.3125 - 1) ** 2, abs=1e-6)


def test_trap_11_ipo_is_a_mean_per_token_and_dpo_a_sum():
    """Doubling both responses (log-ratios and lengths) leaves IPO alone and doubles DPO's margin."""
    once, twice = logps(), logps((-20.0,), (-24.0,), (-22.0,), (-23.0,), (8,), (16,))
    assert IPO()(once).item() == pytest.approx(IPO()(twice).item(), abs=1e-6)
    assert DPO(beta=0.1)(twice).item() == pytest.approx(math.log(1 + math.exp(-0.30)), abs=1e-6)


@pytest.mark.parametrize("name", ["dpo", "cdpo"])
def test_trap_09_policy_equal_to_reference_gives_ln_2(name):
    same = logps((-10.0,), (-300.0,), (-10.0,), (-300.0,))
    assert PAIR_LOSSES[name]()(same).item() == pytest.approx(math.log(2), abs=1e-7)


def test_bradley_terry_by_hand():
    """r = 1.5 against 0.5: ln(1 + e^-1); with a margin of 2: ln(1 + e^1)."""
    scores = Pair(torch.tensor([1.5]), torch.tensor([0.5]))
    assert BradleyTerry()(scores).item() == pytest.approx(math.log(1 + math.exp(-1)), abs=1e-6)
    assert BradleyTerry()(scores, torch.tensor([2.0])).item() == pytest.approx(math.log(1 + math.e), abs=1e-6)
    assert BradleyTerry()(Pair(torch.tensor([0.0]), torch.tensor([200.0]))).item() == pytest.approx(200.0)


def test_smoothed_centred_and_without_margins_bradley_terry_by_hand():
    """Rewards 3 and 2: 0.9 ln(1 + e^-1) + 0.1 ln(1 + e), and 0.01 (3 + 2)^2 on top."""
    scores, margin = Pair(torch.tensor([3.0]), torch.tensor([2.0])), torch.tensor([2.0])
    smooth = 0.9 * math.log(1 + math.exp(-1)) + 0.1 * math.log(1 + math.e)
    assert BradleyTerry(label_smoothing=0.1)(scores).item() == pytest.approx(smooth, abs=1e-6)
    assert BradleyTerry(label_smoothing=0.1, centring=0.01)(scores).item() == pytest.approx(smooth + 0.25, abs=1e-6)
    assert BradleyTerry(margin_scale=0.0)(scores, margin).item() == pytest.approx(math.log(1 + math.exp(-1)), abs=1e-6)
    assert BradleyTerry(margin_scale=0.5)(scores, margin).item() == pytest.approx(math.log(2), abs=1e-6)


def test_nll_is_minus_the_log_probability():
    assert NLL()(torch.tensor([-0.5, -2.0])).tolist() == [0.5, 2.0]


def test_the_table_answers_to_class_names_too():
    from truing import losses

    assert losses.DPO is PAIR_LOSSES["dpo"]
    with pytest.raises(AttributeError, match="no Nothing"):
        losses.Nothing  # noqa: B018
