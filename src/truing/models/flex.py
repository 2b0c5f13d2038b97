"""Tree attention on a GPU: PyTorch's FlexAttention (Dong et al. 2024, arXiv 2412.05496) under a block mask of who sees whom.

The same numbers as `truing.models.attention`, which is for processors; one compiled kernel a layer instead of a product a block.
Blocks of 128 by 128 that no query sees are never computed.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from truing.data.tree import TreeBatch

SHARED = -1
"""Number of the branch that trunks count as, and of the tree that the root counts as."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FlexLayout:
    """Who sees whom in one packed row: made once a batch; the block masks, one for each sliding window, once they are asked for."""

    tree: Int[Tensor, " token"]
    """Number of each token's tree; `SHARED` for the root."""
    branch: Int[Tensor, " token"]
    """Number of each token's branch; `SHARED` for trunks and the root."""
    positions: Int[Tensor, " token"]
    masks: dict[int | None, BlockMask]

    @classmethod
    def of(cls, batch: TreeBatch) -> "FlexLayout":
        """The layout of a batch, on its device."""
        tree = torch.full((len(batch.tokens),), SHARED)
        branch = torch.full_like(tree, SHARED)
        for number, span in enumerate(batch.spans):
            tree[span.trunk[0] : span.trunk[1]] = number
            for which, (start, end) in enumerate(span.branches):
                tree[start:end] = number
                branch[start:end] = which
        device = batch.tokens.device
        return cls(tree=tree.to(device), branch=branch.to(device), positions=batch.positions, masks={})

    def sees(self, window: int | None) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
        """batch, head, query, key -> whether the query sees the key."""
        # lambdas, since FlexAttention counts the arguments, which a function that checks its types does not show
        tree, branch, at = self.tree, self.branch, self.positions
        same_tree = lambda query, key: (tree[key] == SHARED) | (tree[key] == tree[query])  # noqa: E731
        same_branch = lambda query, key: (branch[key] == SHARED) | (branch[key] == branch[query])  # noqa: E731
        seen = lambda b, h, query, key: (key <= query) & same_tree(query, key) & same_branch(query, key)  # noqa: E731
        if window is None:
            return seen
        return lambda b, h, query, key: seen(b, h, query, key) & (at[query] - at[key] < window)

    def mask(self, window: int | None) -> BlockMask:
        """The block mask under a sliding window, or without one."""
        if window not in self.masks:
            size, device = len(self.tree), self.tree.device
            # compiled, or the mask of [token, token] would exist for a moment
            make: Any = _compiled(create_block_mask) if device.type == "cuda" else create_block_mask
            self.masks[window] = make(self.sees(window), None, None, size, size, device=device)
        return self.masks[window]


def attend(
    query: Float[Tensor, "one head token width"],
    key: Float[Tensor, "one keyhead token width"],
    value: Float[Tensor, "one keyhead token valuewidth"],
    layout: FlexLayout,
    *,
    scale: float,
    window: int | None,
    softcap: float | None,
) -> Float[Tensor, "one token head valuewidth"]:
    """Softmax attention of each token over what it sees."""
    capped = None if softcap is None else lambda score, b, h, query, key: softcap * torch.tanh(score / softcap)
    run: Any = _compiled(flex_attention) if query.device.type == "cuda" else flex_attention
    output: Tensor = run(
        query,
        key,
        value,
        score_mod=capped,
        block_mask=layout.mask(window),
        scale=scale,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return output.transpose(1, 2)


@functools.cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(function, dynamic=True)
