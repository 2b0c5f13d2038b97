"""Tree attention: each branch sees the common root, its own trunk and itself, never a sibling or another tree.

Exact softmax attention over the packed row of a `TreeBatch`, block by block; a GPU has `truing.models.flex` instead. No mask of
[token, token] is ever made: a block of queries meets the keys that all of it may see, then a tail of keys under a small mask.
Nothing of the size of the scores is kept for the backward pass, which computes them again (FlashAttention, Dao et al. 2022, arXiv
2205.14135). Forward, torch's fused attention is three to five times as fast as products and softmax; backward, four to nine times
as slow.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from truing.data.tree import TreeBatch, TreeSpan
from truing.models.blocks import Block, Bucket, Causal, Run
from truing.models.flex import FlexLayout, attend

NAME = "truing_tree"
BLOCK = 384
"""A tree no longer than this is handled whole, together with others of about its length."""
PIECE = 192
"""Queries of a longer run handled at once: backward, 8,000 tokens take two thirds of the time that they take in pieces of 384."""
BUCKET_SCORES = 1 << 16
"""Scores of one head that a bucket of short trees may hold, so that it stays in the cache: 256 KiB a head in fp32."""
SPREAD = 1.25
"""The longest tree of a bucket over its shortest, at most: what is padded away is wasted."""
LANES = 32
"""Keys are filled up to a multiple of this: a softmax over rows of odd length takes twice as long."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How the queries of one packed row meet its keys: made once a batch, used by every layer."""

    blocks: tuple[Block, ...]
    """In which scores are made."""
    fused: tuple[Block | Causal, ...]
    """The same queries, in which torch's fused attention takes them."""
    positions: Tensor
    longest: int
    """No token stands so far from one that it sees."""

    @classmethod
    def of(cls, batch: TreeBatch, dtype: torch.dtype, block: int = BLOCK) -> "Layout":
        """The layout for a model of the given dtype."""
        mask = torch.zeros((), dtype=dtype, device=batch.tokens.device)
        root = ((0, batch.root),) if batch.root else ()
        blocks: list[Block] = []
        fused: list[Block | Causal] = []

        def add_long(run: tuple[int, int], before: tuple[tuple[int, int], ...]) -> None:
            pieces = _long_run(run, before, min(block, PIECE), mask)
            blocks.extend(pieces)
            fused.extend(pieces if before or len(pieces) == 1 else [Causal(queries=run)])

        if root:
            add_long(root[0], ())
        short: list[TreeSpan] = []
        for span in batch.spans:
            if _size(span) <= block:
                short.append(span)
                continue
            add_long(span.trunk, root)
            for branch in span.branches:
                add_long(branch, (*root, span.trunk))
        for trees in _buckets(short, batch.root):
            blocks.append(_together(trees, batch.root, mask))
            fused.append(blocks[-1])
        longest = int(batch.positions.max()) + 1
        return cls(blocks=tuple(blocks), fused=tuple(fused), positions=batch.positions, longest=longest)


def _buckets(spans: Sequence[TreeSpan], root: int) -> Iterator[list[TreeSpan]]:
    """Short trees of about the same length together."""
    together: list[TreeSpan] = []
    for span in sorted(spans, key=_size):
        crowded = (len(together) + 1) * _size(span) * (root + _size(span)) > BUCKET_SCORES
        if together and (crowded or _size(span) > SPREAD * _size(together[0])):
            yield together
            together = []
        together.append(span)
    if together:
        yield together


def _size(span: TreeSpan) -> int:
    return (span.branches[-1][1] if span.branches else span.trunk[1]) - span.trunk[0]


def _long_run(run: tuple[int, int], before: tuple[tuple[int, int], ...], block: int, mask: Tensor) -> list[Block]:
    """A trunk or a branch in pieces of at most `block` queries, each causal in itself; masks are made like `mask`."""
    pieces: list[Block] = []
    for start in range(run[0], run[1], block):
        end = min(start + block, run[1])
        causal = mask.new_full((end - start, end - start), float("-inf")).triu(1)
        pieces.append(_run((start, end), (*before, (run[0], end)), causal))
    return pieces


def _run(queries: tuple[int, int], keys: tuple[tuple[int, int], ...], tail: Tensor) -> Run:
    empty = -sum(end - start for start, end in keys) % LANES
    return Run(queries=queries, keys=keys, empty=empty, tail=nn.functional.pad(tail, (0, empty), value=float("-inf")))


def _together(spans: Sequence[TreeSpan], root: int, mask: Tensor) -> Block:
    """One short tree is a run; several make a bucket."""
    if len(spans) > 1:
        return _bucket(spans, root, mask)
    (span,) = spans
    own = (span.trunk[0], span.trunk[0] + _size(span))
    return _run(own, ((0, root), own) if root else (own,), _within(span, _size(span)).to(mask))


def _within(span: TreeSpan, slots: int) -> Float[Tensor, "slot slot_"]:
    """Which slots of one tree see which: 0 or minus infinity. Empty slots see the first, or their softmax would be 0/0."""
    hidden = torch.full((slots, slots), float("-inf"))
    start, size = span.trunk[0], _size(span)
    hidden[size:, 0] = 0.0
    trunk = span.trunk[1] - start
    for a, b in (span.trunk, *span.branches):
        hidden[a - start : b - start, :trunk] = 0.0
        hidden[a - start : b - start, a - start : b - start] = torch.full((b - a, b - a), float("-inf")).triu(1)
    return hidden


def _bucket(spans: Sequence[TreeSpan], root: int, mask: Tensor) -> Bucket:
    device = mask.device
    longest = max(map(_size, spans))
    slots = longest + -(longest + root) % LANES
    index = torch.empty(len(spans), slots, dtype=torch.long)
    for row, span in enumerate(spans):
        start, size = span.trunk[0], _size(span)
        index[row] = torch.where(torch.arange(slots) < size, start + torch.arange(slots), start)
    hidden = torch.stack([_within(span, slots) for span in spans])
    sizes = torch.tensor([_size(span) for span in spans])
    real = torch.arange(slots)[None, :] < sizes[:, None]
    return Bucket(
        index=index.to(device),
        real=real.to(device),
        places=real.flatten().nonzero().squeeze(1).to(device),
        tokens=index[real].to(device),
        hidden=hidden[:, None, None].to(mask),
        root=root,
    )


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
    layout: Layout | FlexLayout | None = options.get("tree_layout")
    if layout is None:
        raise ValueError("this model does not hand `tree_layout` down to its attention: load it in the plain layout")
    if options.get("s_aux") is not None:
        raise ValueError("attention sinks are not supported in the tree layout")
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    window, softcap = window_of(attention_mask, options.get("sliding_window")), options.get("softcap")
    if isinstance(layout, FlexLayout):
        return attend(query, key, value, layout, scale=scale, window=window, softcap=softcap), None
    rows = (tensor[0].transpose(0, 1) for tensor in (query, key, value))  # [token, head, width]
    output = _TreeAttention.apply(*rows, layout, scale, window, softcap)
    return output[None], None


def layout_of(batch: TreeBatch, dtype: torch.dtype, block: int) -> Layout | FlexLayout:
    """Who sees whom in a batch, in the form that is fastest on its device."""
    return FlexLayout.of(batch) if batch.tokens.device.type == "cuda" else Layout.of(batch, dtype, block)


class _TreeAttention(torch.autograd.Function):
    """Heads that share keys (grouped-query attention) are merged into one matrix product per key head."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, layout: Layout, scale: float, window: int | None, softcap: float | None
    ) -> Tensor:
        tokens, heads, _ = query.shape
        keyheads = key.shape[1]
        output = query.new_empty(tokens, heads, value.shape[-1])
        query = query * scale
        if softcap is None and (window is None or window >= layout.longest):
            for block in layout.fused:
                block.attend(query, key, value, output)
        else:
            for block in layout.blocks:
                weights, _ = _weights(block.rows(query, keyheads), block.seen(key), block, layout.positions, window, softcap)
                block.put(output, torch.bmm(weights, block.seen(value)))
        ctx.save_for_backward(query, key, value)
        ctx.options = layout, scale, window, softcap
        return output

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        query, key, value = ctx.saved_tensors
        layout, scale, window, softcap = ctx.options
        keyheads = key.shape[1]
        query_grad = torch.empty_like(query, memory_format=torch.contiguous_format)
        key_grad = torch.zeros(key.shape, dtype=torch.float32, device=key.device)
        value_grad = torch.zeros(value.shape, dtype=torch.float32, device=value.device)
        for block in layout.blocks:
            queries, keys, values = block.rows(query, keyheads), block.seen(key), block.seen(value)
            weights, inner = _weights(queries, keys, block, layout.positions, window, softcap)
            above = block.arriving(grad, keyheads)
            block.add(value_grad, torch.bmm(weights.transpose(1, 2), above))
            slope = torch.bmm(above, values.transpose(1, 2))
            slope = torch.ops.aten._softmax_backward_data(slope, weights, -1, weights.dtype)
            if inner is not None:
                slope = (slope * (1 - inner.square())).to(weights.dtype)
            block.put(query_grad, torch.bmm(slope, keys))
            block.add(key_grad, torch.bmm(slope.transpose(1, 2), queries))
        return query_grad.mul_(scale), key_grad.to(key.dtype), value_grad.to(value.dtype), None, None, None, None


def _weights(
    queries: Tensor, keys: Tensor, block: Block, positions: Tensor, window: int | None, softcap: float | None
) -> tuple[Tensor, Tensor | None]:
    """The softmax of the capped and masked scores, and tanh's value where a softcap is in force. Queries come scaled.

    Scores have the model's dtype; the softmax is taken in fp32, whose sums never touch memory.
    """
    scores = torch.bmm(queries, keys.transpose(1, 2))
    inner = None
    if softcap is not None:
        inner = torch.tanh(scores.float() / softcap)
        scores = inner * softcap
    block.mask(scores, positions, window)
    return scores.softmax(-1).to(keys.dtype), inner


def window_mask(*_args: Any, local_size: int | None = None, **_options: Any) -> Tensor | None:
    """In place of a mask, which the layout makes needless: the sliding window that it would have, for `window_of`."""
    return None if local_size is None else torch.full((1, 1, 1, 1), local_size)


def window_of(mask: Tensor | None, named: int | None) -> int | None:
    """The sliding window of a layer: what its mask says, since some models give their layers no other word of it.

    Raises ValueError where the layer names another one, or where the mask is no longer what `window_mask` made.
    """
    if mask is not None and (mask.shape != (1, 1, 1, 1) or mask.dtype != torch.long):
        raise ValueError("its layers change the attention mask")
    window = None if mask is None else int(mask.item())
    if named not in (None, window):
        raise ValueError(f"its layers name a sliding window of {named}, their mask has {window or 'none'}")
    return window


def register() -> None:
    """Make the name `truing_tree` known to transformers; calling it again changes nothing."""
    AttentionInterface.register(NAME, tree_attention)
    AttentionMaskInterface.register(NAME, window_mask)
