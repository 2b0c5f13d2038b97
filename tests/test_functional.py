"""Chunked log-probabilities equal log_softmax, with its gradients, at any chunk size; sums and KL estimators by hand."""

import math

import pytest
import torch

from trees import seeded
from truing import functional
from truing.functional import kl_k1, kl_k3, segment_sum, token_log_probs


def plain(hidden, weight, target, bias=None, scale=1.0, softcap=None):
    logits = torch.nn.functional.linear(hidden, weight, bias)
    if softcap:
        logits = softcap * torch.tanh(logits / softcap)
    return (logits * scale).log_softmax(-1).gather(1, target[:, None]).squeeze(1)


@pytest.mark.parametrize("chunk", [1, 37 * 4, 10**9])
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize(("scale", "softcap", "with_bias"), [(1.0, None, False), (1 / 0.7, None, True), (1.3, 5.0, False)])
def test_token_log_probs_equal_log_softmax_with_gradients(monkeypatch, chunk, frozen, scale, softcap, with_bias):
    monkeypatch.setattr(functional, "CHUNK_ELEMENTS", chunk)
    monkeypatch.setattr(functional, "TILE_ELEMENTS", chunk)
    g = seeded()
    make = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64).float()  # noqa: E731
    hidden, weight, bias = make(9, 8), make(37, 8), make(37) if with_bias else None
    target, upstream = torch.randint(0, 37, (9,), generator=g), make(9)
    found = []
    for function in (token_log_probs, plain):
        h = hidden.clone().requires_grad_()
        w = weight.clone().requires_grad_(not frozen)
        b = bias.clone().requires_grad_(not frozen) if bias is not None else None
        values = function(h, w, target, bias=b, scale=scale, softcap=softcap)
        (values * upstream).sum().backward()
        found.append([values.detach(), h.grad, w.grad, b.grad if b is not None else None])
    for ours, theirs in zip(*found, strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=5e-6)  # sums of 37 terms up to 10 that cancel


def test_log_sum_exp_is_taken_in_fp32_for_bf16_models():
    """TRAPS 19: 300 equal bf16 logits give exactly -ln 300 to fp32 precision, which a bf16 softmax (8 bits) cannot."""
    values = token_log_probs(torch.zeros(1, 4, dtype=torch.bfloat16), torch.ones(300, 4, dtype=torch.bfloat16), torch.tensor([7]))
    assert values.dtype == torch.float32
    assert abs(values.item() + math.log(300)) < 1e-6


def test_trap_14_temperature_divides_logits():
    """Logits (0, ln 3) at temperature 2: p(second) = sqrt 3 / (1 + sqrt 3)."""
    hidden, weight = torch.ones(1, 1), torch.tensor([[0.0], [math.log(3)]])
    found = token_log_probs(hidden, weight, torch.tensor([1]), scale=0.5)
    assert abs(found.item() - math.log(3**0.5 / (1 + 3**0.5))) < 1e-6


def test_segment_sum_by_hand():
    found = segment_sum(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([0, 2, 2]), 4)
    assert found.tolist() == [1.0, 0.0, 6.0, 0.0]


def test_sums_of_long_responses_lose_nothing_to_fp32():
    """Of a thousand tokens the difference of two sums is that of the sum of differences; added in fp32 it would be off by 1e-4."""
    generator = torch.Generator().manual_seed(0)
    policy = -2.5 * torch.rand(8000, generator=generator)
    reference = policy + 0.02 * torch.randn(8000, generator=generator)
    response = torch.arange(8).repeat_interleave(1000)
    found = segment_sum(policy, response, 8) - segment_sum(reference, response, 8)
    exact = (policy.double() - reference.double()).reshape(8, 1000).sum(1)
    assert (found - exact).abs().max() < 1e-10
    narrow = policy.reshape(8, 1000).cumsum(1)[:, -1] - reference.reshape(8, 1000).cumsum(1)[:, -1]
    assert (narrow - exact).abs().max() > 1e-5, "what is tested for would not be seen"


def test_kl_estimators_by_hand_and_unbiased():
    policy, reference = torch.log(torch.tensor([0.5, 0.25, 0.25])), torch.log(torch.tensor([0.25, 0.5, 0.25]))
    assert kl_k1(policy, reference).tolist() == pytest.approx([math.log(2), -math.log(2), 0.0])
    assert kl_k3(policy, reference).tolist() == pytest.approx([0.5 - 1 + math.log(2), 2 - 1 - math.log(2), 0.0], abs=1e-6)
    truth = (policy.exp() * (policy - reference)).sum().item()
    for estimator in (kl_k1, kl_k3):
        assert (policy.exp() * estimator(policy, reference)).sum().item() == pytest.approx(truth, abs=1e-6)
    assert (kl_k3(torch.randn(1000, generator=seeded(1)), torch.randn(1000, generator=seeded(2))) >= 0).all()
