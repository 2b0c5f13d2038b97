"""Tensor mathematics that losses and models share: chunked log-probabilities, segment sums, KL estimators.

Everything here is a pure function of tensors. Log-sum-exps are taken in fp32 whatever the model's dtype.
"""

import math
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

CHUNK_ELEMENTS = 8 * 1024 * 1024
"""Logits held at once by `token_log_probs` going forward, whole rows of the vocabulary: 32 MiB in fp32."""
TILE_ELEMENTS = 1024 * 1024
"""Logits held at once going backward, all rows of a part of the vocabulary: 4 MiB in fp32, which stays in the cache."""


def segment_sum(values: Float[Tensor, " value"], segment: Int[Tensor, " value"], segments: int) -> Float[Tensor, " segment"]:
    """Sum of the values of each segment, in float64; an empty segment gives 0.

    A thousand log-probabilities added in fp32 are off by 1e-3 nats, and the difference of two such sums keeps that.
    """
    return torch.zeros(segments, dtype=torch.float64, device=values.device).index_add(0, segment, values.double())


def kl_k1(policy: Float[Tensor, " token"], reference: Float[Tensor, " token"]) -> Float[Tensor, " token"]:
    """k1 = log pi - log pi_ref on samples of pi: unbiased for KL(pi || pi_ref), signed (Schulman 2020, Approximating KL)."""
    return policy - reference


def kl_k3(policy: Float[Tensor, " token"], reference: Float[Tensor, " token"]) -> Float[Tensor, " token"]:
    """k3 = exp(-k1) - 1 + k1 on samples of pi: unbiased, never negative, low variance (Schulman 2020)."""
    difference = policy - reference
    return torch.expm1(-difference) + difference


def kl_k2(policy: Float[Tensor, " token"], reference: Float[Tensor, " token"]) -> Float[Tensor, " token"]:
    """k2 = k1^2 / 2 on samples of pi: biased as a value, but its gradient is an unbiased one of KL (Schulman 2020).

    As a loss it is the one to take: k1's expected gradient is 0, and k3's is that of the reversed divergence.
    """
    return (policy - reference).square() / 2


def token_entropies(
    hidden: Float[Tensor, "scored width"],
    weight: Float[Tensor, "vocabulary width"],
    *,
    bias: Float[Tensor, " vocabulary"] | None = None,
    scale: float = 1.0,
    softcap: float | None = None,
) -> Float[Tensor, " scored"]:
    """Entropy in nats of the distribution that `token_log_probs` takes its log-probability from; logits are made again backward."""

    def of(rows: Tensor) -> Tensor:
        logits, _ = _logits(rows, weight, bias, scale, softcap)
        log_probs = logits.log_softmax(-1)
        return -(log_probs.exp() * log_probs).sum(-1)

    chunks = hidden.split(max(1, CHUNK_ELEMENTS // len(weight)))
    return torch.cat([cast(Tensor, checkpoint(of, rows, use_reentrant=False)) for rows in chunks])


def token_distributions(
    hidden: Float[Tensor, "scored width"],
    weight: Float[Tensor, "vocabulary width"],
    *,
    bias: Float[Tensor, " vocabulary"] | None = None,
    scale: float = 1.0,
    softcap: float | None = None,
) -> Float[Tensor, "scored vocabulary"]:
    """log softmax of the logits of `token_log_probs`, whole: for so few tokens at once that it may be held."""
    return _logits(hidden, weight, bias, scale, softcap)[0].log_softmax(-1)


NEAREST_TO_CERTAIN = 1e-7
"""Probabilities above 1 - 1e-7 are taken for it by `log1mexp`: fp32 cannot tell them from 1."""
LARGEST_EXPONENT = 30.0
"""Where `expm1_then_linear` leaves the exponential: e^30 is 1e13, whose square still fits into fp32."""


def log1mexp(x: Float[Tensor, " value"]) -> Float[Tensor, " value"]:
    """log(1 - exp(x)) for x <= 0, finite with a finite slope also at 0 (Maechler 2012, Accurately computing log(1 - exp(-|a|))).

    Above -1e-7 the value is that at -1e-7, and so is the slope: a certain event is still pushed away from certainty.
    """
    x = x - (x.detach() + NEAREST_TO_CERTAIN).clamp(min=0)
    half = -math.log(2)
    near = x > half
    # Each formula sees only arguments that it is good for: torch.where would pass 0 * inf = NaN back from the other one.
    by_expm1 = torch.log(-torch.expm1(torch.where(near, x, half)))
    by_log1p = torch.log1p(-torch.exp(torch.where(near, half, x)))
    return torch.where(near, by_expm1, by_log1p)


def expm1_then_linear(x: Float[Tensor, " value"]) -> Float[Tensor, " value"]:
    """exp(x) - 1 up to x = 30 and its tangent from there on, so that neither value nor slope overflows in fp32."""
    inside = x.clamp(max=LARGEST_EXPONENT)
    return torch.expm1(inside) + torch.exp(inside) * (x - inside)


@torch.no_grad()
def token_log_collision(
    hidden: Float[Tensor, "scored width"],
    weight: Float[Tensor, "vocabulary width"],
    *,
    bias: Float[Tensor, " vocabulary"] | None = None,
    scale: float = 1.0,
    softcap: float | None = None,
) -> Float[Tensor, " scored"]:
    """log sum_v pi(v)^2 of each token's distribution, in fp32 and chunk by chunk as `token_log_probs`; no gradient.

    sum_v pi(v)^2 is the chance that two draws agree, and the mean probability of a draw: 1 if certain, 1/V if uniform.
    """
    found = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
    step = max(1, CHUNK_ELEMENTS // len(weight))
    for start in range(0, len(hidden), step):
        rows = slice(start, start + step)
        logits, _ = _logits(hidden[rows], weight, bias, scale, softcap)
        found[rows] = torch.logsumexp(2 * logits, -1) - 2 * torch.logsumexp(logits, -1)
    return found


def token_log_probs(
    hidden: Float[Tensor, "scored width"],
    weight: Float[Tensor, "vocabulary width"],
    target: Int[Tensor, " scored"],
    *,
    bias: Float[Tensor, " vocabulary"] | None = None,
    scale: float = 1.0,
    softcap: float | None = None,
) -> Float[Tensor, " scored"]:
    """log softmax(scale * softcapped(hidden @ weight.T + bias))[target] in fp32, without ever holding [scored, vocabulary].

    `scale` is one over the sampling temperature. `softcap` c turns a logit z into c tanh(z / c) before scaling (Gemma 2, arXiv
    2408.00118).
    With a frozen head the gradient with respect to `hidden` is formed during the forward pass, so nothing is recomputed;
    with a trained head the backward pass recomputes the logits chunk by chunk.
    """
    result: Tensor = _TokenLogProbs.apply(hidden, weight, bias, target, scale, softcap)
    return result


class _TokenLogProbs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, target: Tensor, scale: float, softcap: float | None
    ) -> Tensor:
        ctx.scale, ctx.softcap = scale, softcap
        head_is_trained = weight.requires_grad or (bias is not None and bias.requires_grad)
        ctx.head_is_trained = head_is_trained
        slopes = torch.empty_like(hidden) if hidden.requires_grad and not head_is_trained else None
        log_probs = torch.empty(len(target), dtype=torch.float32, device=hidden.device)
        normaliser = torch.empty_like(log_probs)
        for rows in _chunks(len(target), CHUNK_ELEMENTS // len(weight)):
            logits, inner = _logits(hidden[rows], weight, bias, scale, softcap)
            chosen = logits.gather(1, target[rows, None])
            # by hand, because logsumexp takes several times as long
            highest = logits.amax(-1, keepdim=True)
            total = logits.sub_(highest).exp_().sum(-1, keepdim=True)
            normaliser[rows] = highest.add_(total.log()).squeeze(1)
            log_probs[rows] = chosen.squeeze(1) - normaliser[rows]
            if slopes is not None:
                slopes[rows] = _logit_slopes(logits.div_(total), inner, target[rows], scale).to(weight.dtype) @ weight
        ctx.save_for_backward(hidden, weight, bias, target, normaliser, slopes)
        return log_probs

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (upstream,) = grads
        hidden, weight, bias, target, normaliser, slopes = ctx.saved_tensors
        if slopes is not None:
            return slopes * upstream[:, None].to(slopes.dtype), None, None, None, None, None
        hidden_grad = torch.zeros(hidden.shape, dtype=torch.float32, device=hidden.device) if ctx.needs_input_grad[0] else None
        weight_grad = torch.empty_like(weight) if ctx.needs_input_grad[1] else None
        bias_grad = torch.empty_like(bias) if ctx.needs_input_grad[2] else None
        for part in _chunks(len(weight), TILE_ELEMENTS // max(1, len(target))):
            tile = weight[part]
            logits, inner = _logits(hidden, tile, bias[part] if bias is not None else None, ctx.scale, ctx.softcap)
            softmax = logits.sub_(normaliser[:, None]).exp_()
            slope = _logit_slopes(softmax, inner, target - part.start, ctx.scale).mul_(upstream[:, None])
            if bias_grad is not None:
                bias_grad[part] = slope.sum(0)
            slope = slope.to(weight.dtype)
            if hidden_grad is not None:
                hidden_grad += slope @ tile
            if weight_grad is not None:
                torch.mm(slope.T, hidden, out=weight_grad[part])
        return hidden_grad.to(hidden.dtype) if hidden_grad is not None else None, weight_grad, bias_grad, None, None, None


def _chunks(length: int, at_once: int) -> list[slice]:
    step = max(1, at_once)
    return [slice(start, min(start + step, length)) for start in range(0, length, step)]


def _logits(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, scale: float, softcap: float | None
) -> tuple[Tensor, Tensor | None]:
    """Final logits in fp32, and tanh's value where a softcap is in force (its slope needs it)."""
    logits = torch.nn.functional.linear(hidden, weight, bias).float()
    inner = None
    if softcap is not None:
        inner = torch.tanh(logits / softcap)
        logits = inner * softcap
    return (logits.mul_(scale) if inner is None else logits * scale), inner


def _logit_slopes(softmax: Tensor, inner: Tensor | None, target: Tensor, scale: float) -> Tensor:
    """d log p(target) / d raw logit = (onehot - softmax) * scale * (1 - tanh^2), in place; some targets lie outside of the tile."""
    slope = softmax.neg_()
    rows = ((target >= 0) & (target < slope.shape[1])).nonzero().squeeze(1)
    slope[rows, target[rows]] += 1.0
    if scale != 1.0:
        slope.mul_(scale)
    if inner is not None:
        slope.mul_(1 - inner.square())
    return slope
