"""Credit: which token or response did better than expected. Pure functions of rewards and values; no model, no sampling.

Masked tokens change nothing: what stands under a False of the mask is never read, and sums pass through it. Left out: per-token KL
and the end-token penalty, which are rewards (`truing.rollouts.credit`), and the losses that use advantages (`truing.losses`).
"""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

WHITEN_EPS = 1e-8
"""Added to the variance, so that equal values whiten to 0 (Huang et al. 2024, arXiv 2403.17031, detail 8)."""
GROUP_EPS = 1e-4
"""Added to a group's deviation: an all-equal group has advantage 0, not 0/0."""

Sum = Callable[[list[float]], list[float]]
"""Adds lists elementwise over all ranks: `World.sum`, or the identity on one process."""


def gae(
    rewards: Float[Tensor, "response time"],
    values: Float[Tensor, "response time"],
    mask: Bool[Tensor, "response time"],
    *,
    gamma: float = 1.0,
    lam: float = 0.95,
    after: Float[Tensor, " response"] | None = None,
) -> tuple[Float[Tensor, "response time"], Float[Tensor, "response time"]]:
    """Generalised advantage estimation (Schulman et al. 2015, arXiv 1506.02438, eq. 16) over the tokens under the mask.

        delta_t = r_t + gamma V_{t+1} - V_t,   A_t = delta_t + gamma lambda A_{t+1},   return_t = A_t + V_t

    Both results are 0 where the mask is False: V_{t+1} and A_{t+1} are those of the next token under the mask, so that a masked
    token in between (a tool's output, padding) changes nothing. `after` is V behind the last token: 0, the default, where the
    response ended there; the value of the next state where it was cut off.
    """
    advantages = torch.zeros_like(values)
    carried = torch.zeros_like(values[:, 0])
    following = torch.zeros_like(carried) if after is None else after.to(values.dtype)
    for t in reversed(range(values.shape[1])):
        here = mask[:, t]
        delta = rewards[:, t] + gamma * following - values[:, t]
        carried = torch.where(here, delta + gamma * lam * carried, carried)
        following = torch.where(here, values[:, t], following)
        advantages[:, t] = torch.where(here, carried, 0.0)
    return advantages, torch.where(mask, advantages + values, 0.0)


def leave_one_out(rewards: Float[Tensor, "prompt k"]) -> Float[Tensor, "prompt k"]:
    """RLOO: each reward less the mean of the k - 1 others of its prompt (Ahmadian et al. 2024, arXiv 2402.14740, eq. 9).

    A response without others has nothing to be compared with: its advantage is 0.
    """
    k = rewards.shape[1]
    if k == 1:
        return torch.zeros_like(rewards)
    return (rewards - rewards.mean(1, keepdim=True)) * (k / (k - 1))


def group_mean(rewards: Float[Tensor, "prompt k"], *, scale: bool = True) -> Float[Tensor, "prompt k"]:
    """GRPO: each reward less the mean of its prompt's k, over their deviation (Shao et al. 2024, arXiv 2402.03300, section 4.1.2).

    The deviation is the sample's (k - 1), as in the reproductions. Without `scale` it is left out, because it weighs prompts that
    are almost always or almost never solved above the others (Liu et al. 2025, arXiv 2503.20783, section 3.1).
    """
    centred = rewards - rewards.mean(1, keepdim=True)
    if not scale:
        return centred
    deviation = rewards.std(1, keepdim=True) if rewards.shape[1] > 1 else torch.zeros_like(centred[:, :1])
    return centred / (deviation + GROUP_EPS)


def moments(values: Float[Tensor, " value"], total: Sum = list) -> tuple[float, float, float]:
    """Mean, variance (over n) and n of the values of all ranks, in fp64: the mean first, then the deviations from it."""
    wide = values.double()
    added, count = total([float(wide.sum()), float(wide.numel())])
    mean = added / count if count else 0.0
    (squares,) = total([float((wide - mean).square().sum())])
    return mean, squares / count if count else 0.0, count


def whiten(values: Float[Tensor, " value"], total: Sum = list, *, shift_mean: bool = True) -> Float[Tensor, " value"]:
    """(values - mean) / sqrt(variance + 1e-8), over the values of all ranks; give it what is under the mask and nothing else.

    `shift_mean=False` keeps the mean where it is: rewards are scaled so, since moving their zero would move the optimum
    (Huang et al. 2024, arXiv 2403.17031, detail 8).
    """
    mean, variance, _ = moments(values, total)
    whitened = (values - mean) * (variance + WHITEN_EPS) ** -0.5
    return whitened if shift_mean else whitened + mean
