"""The losses of policy optimisation against numbers worked by hand, then their gradients and what bounds them."""

import math

import pytest
import torch

from trees import seeded
from truing import functional
from truing.functional import kl_k1, kl_k2, kl_k3, token_entropies
from truing.losses import POLICY_LOSSES
from truing.losses.clipped_surrogate import ClippedSurrogate
from truing.losses.clipped_value import ClippedValue
from truing.losses.reinforce import Reinforce

RATIOS = torch.tensor([1.0, 1.1, 1.5, 0.9, 0.5, 1.5, 0.5])
ADVANTAGES = torch.tensor([2.0, 2.0, 2.0, -2.0, -2.0, -2.0, 2.0])


def test_clipped_surrogate_by_hand() -> None:
    """A gain stops at 1.2 and at 0.8; a loss never does: 1.5 with A = -2 costs 3, 0.5 with A = 2 gains 1."""
    loss = ClippedSurrogate(clip_low=0.2, clip_high=0.2)
    expected = torch.tensor([-2.0, -2.2, -2.4, 1.8, 1.6, 3.0, -1.0])
    torch.testing.assert_close(loss(RATIOS.log(), ADVANTAGES), expected)
    assert loss.clipped(RATIOS.log(), ADVANTAGES).tolist() == [False, False, True, False, True, False, False]


def test_clip_higher_moves_the_upper_bound_alone() -> None:
    loss = ClippedSurrogate(clip_low=0.2, clip_high=0.6)
    torch.testing.assert_close(loss(RATIOS.log(), ADVANTAGES), torch.tensor([-2.0, -2.2, -3.0, 1.8, 1.6, 3.0, -1.0]))


def test_reinforce_by_hand() -> None:
    torch.testing.assert_close(Reinforce()(RATIOS.log(), ADVANTAGES), -ADVANTAGES * RATIOS)
    assert not Reinforce().clipped(RATIOS.log(), ADVANTAGES).any()


@pytest.mark.parametrize("name", POLICY_LOSSES)
def test_at_ratio_1_every_policy_loss_has_the_gradient_of_reinforce(name: str) -> None:
    log_probs, advantages = torch.randn(20, generator=seeded(1)), torch.randn(20, generator=seeded(2))
    moving = log_probs.clone().requires_grad_()
    POLICY_LOSSES[name]()(moving - log_probs, advantages).sum().backward()
    torch.testing.assert_close(moving.grad, -advantages)


def test_a_clipped_action_has_no_gradient_and_every_other_one_has() -> None:
    loss, log_ratio = ClippedSurrogate(), RATIOS.log().requires_grad_()
    loss(log_ratio, ADVANTAGES).sum().backward()
    assert (log_ratio.grad == 0).tolist() == loss.clipped(log_ratio, ADVANTAGES).tolist()


@pytest.mark.parametrize("name", POLICY_LOSSES)
def test_extreme_ratios_stay_finite(name: str) -> None:
    log_ratio, advantages = torch.tensor([-80.0, -80.0, 60.0, 60.0]), torch.tensor([1.0, -1.0, 1.0, -1.0])
    assert POLICY_LOSSES[name]()(log_ratio, advantages).isfinite().all()


def test_clipped_value_by_hand() -> None:
    """V_old = 0, epsilon = 0.2, R = 1: V = 0.1 errs by 0.9; V = 0.5 is bounded to 0.2 and errs by 0.8; V = -3 by 4."""
    values, old, returns = torch.tensor([0.1, 0.5, -3.0]), torch.zeros(3), torch.ones(3)
    loss = ClippedValue(clip=0.2)
    torch.testing.assert_close(loss(values, old, returns), torch.tensor([0.405, 0.32, 8.0]))
    assert loss.clipped(values, old, returns).tolist() == [False, True, False]
    torch.testing.assert_close(ClippedValue(clip=None)(values, old, returns), torch.tensor([0.405, 0.125, 8.0]))
    assert not ClippedValue(clip=None).clipped(values, old, returns).any()


def test_a_clipped_value_has_no_gradient() -> None:
    values = torch.tensor([0.1, 0.5, -3.0], requires_grad=True)
    ClippedValue(clip=0.2)(values, torch.zeros(3), torch.ones(3)).sum().backward()
    torch.testing.assert_close(values.grad, torch.tensor([-0.9, 0.0, -4.0]))


def test_trap_15_as_losses_k1_has_no_expected_gradient_and_k2_that_of_kl() -> None:
    """Over all 5 outcomes, weighted by their probability: k2's is that of KL(pi, ref), k3's that of KL(ref, pi)."""
    logits, reference = torch.randn(5, generator=seeded(3)), torch.randn(5, generator=seeded(4)).log_softmax(-1)

    def gradient(value: object) -> torch.Tensor:
        moving = logits.clone().requires_grad_()
        log_probs = moving.log_softmax(-1)
        weights = log_probs.detach().exp()
        total = (weights * value(log_probs, reference)).sum() if callable(value) else value
        (found,) = torch.autograd.grad(total, moving)
        return found

    def exact(of: str) -> torch.Tensor:
        moving = logits.clone().requires_grad_()
        log_probs = moving.log_softmax(-1)
        forward = (log_probs.exp() * (log_probs - reference)).sum()
        backward = (reference.exp() * (reference - log_probs)).sum()
        (found,) = torch.autograd.grad(forward if of == "pi, ref" else backward, moving)
        return found

    assert float(gradient(kl_k1).abs().max()) < 1e-6
    torch.testing.assert_close(gradient(kl_k2), exact("pi, ref"), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(gradient(kl_k3), exact("ref, pi"), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("chunk", [1, 37 * 4, 10**9])
def test_entropies_and_their_gradients_at_any_chunk_size(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(functional, "CHUNK_ELEMENTS", chunk)
    hidden, weight = torch.randn(9, 8, generator=seeded(5)), torch.randn(37, 8, generator=seeded(6))
    found = []
    for function in (token_entropies, lambda h, w, scale: torch.distributions.Categorical(logits=h @ w.T * scale).entropy()):
        h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        values = function(h, w, scale=1.4)
        values.square().sum().backward()
        found.append([values.detach(), h.grad, w.grad])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(token_entropies(hidden, weight, scale=1.4), found[0][0])
        assert token_entropies(hidden * 0, weight).tolist() == pytest.approx([math.log(37)] * 9)
