"""Four pairs of responses, token by token, as the losses see them: what the tests of pair losses share."""

from collections.abc import Sequence

import torch
from torch import Tensor

from truing.losses import Pair, PairLogps

Tokens = Sequence[Sequence[float]]
CHOSEN: Tokens = [[-1.0, -0.5, -2.0], [-0.25], [-3.0, -1.5, -0.75, -0.125], [-0.0625, -4.0]]
REJECTED: Tokens = [[-2.5, -0.75], [-1.0, -1.25, -0.5, -2.0], [-0.5, -0.25, -1.0, -0.125], [-6.0]]
CHOSEN_REFERENCE: Tokens = [[-1.5, -0.25, -2.5], [-0.75], [-2.0, -1.0, -1.25, -0.5], [-0.5, -1.0]]
REJECTED_REFERENCE: Tokens = [[-2.0, -1.0], [-1.5, -0.5, -1.0, -1.25], [-0.75, -0.5, -0.25, -0.375], [-9.0]]
CHOSEN_COLLISION: Tokens = [[-1.5, -0.75, -1.0], [-0.5], [-2.0, -1.75, -0.5, -0.25], [-0.125, -1.5]]
REJECTED_COLLISION: Tokens = [[-1.25, -1.0], [-0.75, -2.0, -1.0, -1.5], [-0.75, -0.5, -1.25, -0.25], [-2.5]]


def four_pairs() -> PairLogps:
    """The pairs above, in fp32."""
    common = [min(len(c), len(r)) for c, r in zip(CHOSEN, REJECTED, strict=True)]

    def sums(chosen: Tokens, rejected: Tokens, most: Sequence[int]) -> Pair:
        return Pair(*(torch.tensor([sum(t[:n]) for t, n in zip(side, most, strict=True)]) for side in (chosen, rejected)))

    whole = [99] * len(common)
    return PairLogps(
        policy=sums(CHOSEN, REJECTED, whole),
        reference=sums(CHOSEN_REFERENCE, REJECTED_REFERENCE, whole),
        length=Pair(*(torch.tensor([len(t) for t in side]) for side in (CHOSEN, REJECTED))),
        policy_prefix=sums(CHOSEN, REJECTED, common),
        reference_prefix=sums(CHOSEN_REFERENCE, REJECTED_REFERENCE, common),
        collision=sums(CHOSEN_COLLISION, REJECTED_COLLISION, whole),
    )


def one_pair(
    policy: tuple[float | Tensor, float | Tensor],
    *,
    reference: tuple[float, float] = (-11.0, -11.5),
    length: tuple[int, int] = (4, 8),
    prefix: tuple[float, float] = (1.0, 1.0),
    dtype: torch.dtype = torch.float32,
) -> PairLogps:
    """One pair by its sums; `prefix` is the share of each sum that lies within the common length."""

    def pair(values: Sequence[float | Tensor]) -> Pair:
        return Pair(*(v if isinstance(v, Tensor) else torch.tensor([v], dtype=dtype) for v in values))

    now, before = pair(policy), pair(reference)
    return PairLogps(
        policy=now,
        reference=before,
        length=Pair(*(torch.tensor([n]) for n in length)),
        policy_prefix=Pair(*(side * share for side, share in zip(now, prefix, strict=True))),
        reference_prefix=Pair(*(side * share for side, share in zip(before, prefix, strict=True))),
        collision=pair((-3.0, -5.0)),
    )
