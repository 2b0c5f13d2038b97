"""Tree attention: each branch sees its own trunk and itself, never a sibling or another tree.

Exact softmax attention over the packed row of a `TreeBatch`, block by block, on any device. No mask of [token, token] is ever made:
a block of queries meets the keys that all of it may see, then a tail of keys under a small mask. Nothing of the size of the
scores is kept for the backward pass; it is computed again from the log-sum-exp (FlashAttention, Dao et al. 2022, arXiv 2205.14135).
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from truing.data.tree import TreeBatch

NAME = "truing_tree"
BLOCK = 256
"""Queries handled at once. Short trees are put together up to this size, long ones are cut."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A run of queries, the runs of keys that they may see, and a mask over the last of these keys.

    Example: the second 256 tokens of a long trunk are `Block(queries=(256, 512), keys=((0, 512),), tail=<256 x 256 lower triangle>)`.
    """

    queries: tuple[int, int]
    keys: tuple[tuple[int, int], ...]
    tail: Bool[Tensor, "query tail"]
    """True where a query may see a key, for the last `tail` keys; all keys before them are seen by every query."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How the queries of one packed row meet its keys: made once a batch, used by every layer."""

    blocks: tuple[Block, ...]
    positions: Tensor

    @classmethod
    def of(cls, batch: TreeBatch, block: int = BLOCK) -> "Layout":
        device = batch.tokens.device
        blocks: list[Block] = []
        together: list[tuple[int, int]] = []  # runs (start, end) of short trees waiting to share a block, as indices into spans

        def close() -> None:
            if together:
                blocks.append(_short_trees(batch, together[0][0], together[-1][1], device))
                together.clear()

        for number, span in enumerate(batch.spans):
            start, end = span.trunk[0], span.branches[-1][1] if span.branches else span.trunk[1]
            if end - start > block:
                close()
                blocks += _long_run(span.trunk, (), block, device)
                for branch in span.branches:
                    blocks += _long_run(branch, (span.trunk,), block, device)
                continue
            if together and end - batch.spans[together[0][0]].trunk[0] > block:
                close()
            together.append((number, number))
        close()
        return cls(blocks=tuple(blocks), positions=batch.positions)


def _long_run(run: tuple[int, int], before: tuple[tuple[int, int], ...], block: int, device: torch.device) -> list[Block]:
    """A trunk or a branch in pieces of at most `block` queries, each causal in itself."""
    pieces = []
    for start in range(run[0], run[1], block):
        end = min(start + block, run[1])
        causal = torch.ones(end - start, end - start, dtype=torch.bool, device=device).tril()
        pieces.append(Block(queries=(start, end), keys=(*before, (run[0], end)), tail=causal))
    return pieces


def _short_trees(batch: TreeBatch, first: int, last: int, device: torch.device) -> Block:
    """Whole neighbouring trees in one block under one mask."""
    spans = batch.spans[first : last + 1]
    start = spans[0].trunk[0]
    end = spans[-1].branches[-1][1] if spans[-1].branches else spans[-1].trunk[1]
    owner = torch.empty(end - start, dtype=torch.long)  # the run that a token belongs to
    trunk_of = torch.empty(end - start, dtype=torch.long)
    run = 0
    for span in spans:
        trunk = run
        for a, b in (span.trunk, *span.branches):
            owner[a - start : b - start] = run
            trunk_of[a - start : b - start] = trunk
            run += 1
    owner, trunk_of = owner.to(device), trunk_of.to(device)
    mine = (owner[:, None] == owner[None, :]) | (trunk_of[:, None] == owner[None, :])
    return Block(queries=(start, end), keys=((start, end),), tail=mine.tril())


def tree_attention(
    module: nn.Module,
    query: Float[Tensor, "one head token width"],
    key: Float[Tensor, "one keyhead token width"],
    value: Float[Tensor, "one keyhead token valuewidth"],
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attention function in the form that transformers calls: returns [one, token, head, valuewidth]."""
    layout: Layout | None = options.get("tree_layout")
    if layout is None:
        raise ValueError("this model does not hand `tree_layout` down to its attention: load it in the plain layout")
    if options.get("s_aux") is not None:
        raise ValueError("attention sinks are not supported in the tree layout")
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    output = _TreeAttention.apply(query[0], key[0], value[0], layout, scale, options.get("sliding_window"), options.get("softcap"))
    return output[None], None


class _TreeAttention(torch.autograd.Function):
    """Heads that share keys (grouped-query attention) are merged into one matrix product per key head."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, layout: Layout, scale: float, window: int | None, softcap: float | None
    ) -> Tensor:
        heads, tokens, _ = query.shape
        output = query.new_empty(tokens, heads, value.shape[-1])
        normaliser = torch.empty(key.shape[0], heads // key.shape[0] * tokens, dtype=torch.float32, device=query.device)
        at = 0
        for block in layout.blocks:
            queries, keys, values = _gather(query, key, value, block)
            scores, _ = _scores(queries, keys, block, layout.positions, scale, window, softcap)
            log_sum = torch.logsumexp(scores, dim=-1)
            rows = log_sum.shape[1]
            normaliser[:, at : at + rows] = log_sum
            at += rows
            weights = scores.sub_(log_sum[..., None]).exp_().to(values.dtype)
            _scatter(output, torch.bmm(weights, values), block)
        ctx.save_for_backward(query, key, value, output, normaliser)
        ctx.options = layout, scale, window, softcap
        return output

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        query, key, value, output, normaliser = ctx.saved_tensors
        layout, scale, window, softcap = ctx.options
        query_grad = torch.empty_like(query)
        key_grad = torch.zeros(key.shape, dtype=torch.float32, device=key.device)
        value_grad = torch.zeros(value.shape, dtype=torch.float32, device=value.device)
        # sum over the value width of (gradient x output): what softmax's backward subtracts from every score of a row
        delta = (grad.float() * output.float()).sum(-1)
        at = 0
        for block in layout.blocks:
            queries, keys, values = _gather(query, key, value, block)
            scores, inner = _scores(queries, keys, block, layout.positions, scale, window, softcap)
            rows = scores.shape[1]
            weights = scores.sub_(normaliser[:, at : at + rows, None]).exp_()
            at += rows
            above = _rows(grad.transpose(0, 1), block, key.shape[0])
            _add(value_grad, torch.bmm(weights.to(values.dtype).transpose(1, 2), above), block)
            slope = torch.bmm(above, values.transpose(1, 2)).float()
            slope.sub_(_rows(delta.T[..., None], block, key.shape[0])).mul_(weights)
            if inner is not None:
                slope.mul_(1 - inner.square())
            slope = slope.mul_(scale).to(keys.dtype)
            start, end = block.queries
            query_grad[:, start:end] = torch.bmm(slope, keys).view(query.shape[0], end - start, -1)
            _add(key_grad, torch.bmm(slope.transpose(1, 2), queries), block)
        return query_grad, key_grad.to(key.dtype), value_grad.to(value.dtype), None, None, None, None


def _rows(tensor: Tensor, block: Block, keyheads: int) -> Tensor:
    """[head, token, width] -> the block's rows as [keyhead, head of it x query, width]."""
    start, end = block.queries
    return tensor[:, start:end].reshape(keyheads, -1, tensor.shape[-1])


def _gather(query: Tensor, key: Tensor, value: Tensor, block: Block) -> tuple[Tensor, Tensor, Tensor]:
    def seen(tensor: Tensor) -> Tensor:
        parts = [tensor[:, start:end] for start, end in block.keys]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    return _rows(query, block, key.shape[0]), seen(key), seen(value)


def _scores(
    queries: Tensor, keys: Tensor, block: Block, positions: Tensor, scale: float, window: int | None, softcap: float | None
) -> tuple[Tensor, Tensor | None]:
    """Scaled, capped and masked scores in fp32 [keyhead, head of it x query, key], and tanh's value where a softcap is in force."""
    scores = torch.bmm(queries, keys.transpose(1, 2)).float().mul_(scale)
    inner = None
    if softcap is not None:
        inner = torch.tanh(scores / softcap)
        scores = inner * softcap
    rows = block.queries[1] - block.queries[0]
    grouped = scores.view(scores.shape[0], -1, rows, scores.shape[-1])
    grouped[..., -block.tail.shape[1] :].masked_fill_(~block.tail, float("-inf"))
    if window is not None:
        seen = torch.cat([positions[start:end] for start, end in block.keys])
        distance = positions[block.queries[0] : block.queries[1], None] - seen[None, :]
        grouped.masked_fill_(distance >= window, float("-inf"))
    return scores, inner


def _scatter(output: Tensor, rows: Tensor, block: Block) -> None:
    start, end = block.queries
    output[start:end] = rows.view(output.shape[1], end - start, -1).transpose(0, 1)


def _add(total: Tensor, part: Tensor, block: Block) -> None:
    at = 0
    for start, end in block.keys:
        total[:, start:end] += part[:, at : at + end - start]
        at += end - start


def _no_mask(*_args: Any, **_options: Any) -> None:
    """The layout says who sees whom; transformers need not build a mask."""
    return


def register() -> None:
    """Make the name `truing_tree` known to transformers; calling it again changes nothing."""
    AttentionInterface.register(NAME, tree_attention)
    AttentionMaskInterface.register(NAME, _no_mask)
