"""The blocks of tree attention: which rows of the packed row a block of queries takes, which keys they see, and the way back.

`truing.models.attention` cuts a batch into them. Each kind gathers its queries and keys, hides what may not be seen, and puts what
was computed where it belongs.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Neighbouring queries, up to `PIECE` of a long trunk or branch or one short tree, and the runs of keys that they see.

    Example: the second 192 tokens of a long trunk are `Run(queries=(192, 384), keys=((0, 384),), empty=0, tail=<192 x 192>)`.
    """

    queries: tuple[int, int]
    keys: tuple[tuple[int, int], ...]
    empty: int
    """Keys that stand for nothing, behind the others, hidden by the tail."""
    tail: Float[Tensor, "query tail"]
    """Added to the scores of the last keys: 0 where a query sees a key, minus infinity where not; earlier keys are seen by all."""

    def mask(self, scores: Float[Tensor, "keyhead query key"], positions: Tensor, window: int | None) -> None:
        """Hide what may not be seen, in place."""
        start, end = self.queries
        grouped = scores.view(scores.shape[0], -1, end - start, scores.shape[-1])
        grouped[..., -self.tail.shape[1] :] += self.tail
        if window is not None:
            seen = torch.cat([positions[a:b] for a, b in self.keys])
            near = grouped[..., : len(seen)]
            near.masked_fill_(positions[start:end, None] - seen[None, :] >= window, float("-inf"))

    def rows(self, tensor: Float[Tensor, "token head width"], keyheads: int) -> Tensor:
        """The queries' rows as [keyhead, head of it x query, width]."""
        return tensor[self.queries[0] : self.queries[1]].transpose(0, 1).reshape(keyheads, -1, tensor.shape[-1])

    def seen(self, tensor: Float[Tensor, "token keyhead width"]) -> Tensor:
        """The keys' rows as [keyhead, key, width]."""
        parts = [tensor[start:end] for start, end in self.keys]
        if self.empty:
            parts.append(tensor.new_zeros(self.empty, *tensor.shape[1:]))
        return (parts[0] if len(parts) == 1 else torch.cat(parts)).transpose(0, 1)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, output: Float[Tensor, "token head valuewidth"]) -> None:
        """Fill in the queries' rows of the output; they come scaled."""
        start, end = self.queries
        keys, values = self.seen(key), self.seen(value)
        hidden = nn.functional.pad(self.tail, (keys.shape[1] - self.tail.shape[1], 0))
        output[start:end] = _fused(query[start:end].transpose(0, 1), keys, values, hidden).transpose(0, 1)

    def arriving(self, gradient: Float[Tensor, "token head width"], keyheads: int) -> Tensor:
        """The queries' rows of a gradient."""
        return self.rows(gradient, keyheads)

    def put(self, total: Float[Tensor, "token head width"], rows: Tensor) -> None:
        """The inverse of `rows`."""
        start, end = self.queries
        total[start:end] = rows.view(total.shape[1], end - start, -1).transpose(0, 1)

    def add(self, total: Float[Tensor, "token keyhead width"], seen: Tensor) -> None:
        """The inverse of `seen`: several runs may see the same keys."""
        at = 0
        for start, end in self.keys:
            total[start:end] += seen[:, at : at + end - start].transpose(0, 1)
            at += end - start


@dataclass(frozen=True, slots=True, kw_only=True)
class Bucket:
    """Short trees of about the same length, one batched product for all; each sees only itself, so neighbours cannot matter."""

    index: Int[Tensor, "tree slot"]
    """Token that stands in each slot; the slots behind a tree's end repeat its first token and are thrown away."""
    real: Bool[Tensor, "tree slot"]
    places: Int[Tensor, " token"]
    """The real slots, counted through all trees."""
    tokens: Int[Tensor, " token"]
    """The tokens in them."""
    hidden: Float[Tensor, "tree one one_ slot slot_"]
    """Added to the scores: minus infinity where a query does not see a key."""
    root: int
    """The first tokens of the row, which every query here sees."""

    def mask(self, scores: Float[Tensor, "row query key"], positions: Tensor, window: int | None) -> None:
        trees, slots = self.index.shape
        grouped = scores.view(trees, -1, scores.shape[1] // slots, slots, self.root + slots)
        grouped[..., self.root :] += self.hidden
        if window is not None:
            at = positions[self.index]
            seen = torch.cat([positions[: self.root].expand(trees, -1), at], dim=1)
            far = (at[:, :, None] - seen[:, None, :] >= window) & self.real[:, :, None]
            grouped.masked_fill_(far[:, None, None], float("-inf"))

    def rows(self, tensor: Float[Tensor, "token head width"], keyheads: int) -> Tensor:
        """[tree x keyhead, head of it x slot, width]"""
        trees = len(self.index)
        return tensor[self.index].transpose(1, 2).reshape(trees * keyheads, -1, tensor.shape[-1])

    def seen(self, tensor: Float[Tensor, "token keyhead width"]) -> Tensor:
        """[tree x keyhead, root and slot, width]"""
        trees = len(self.index)
        own = tensor[self.index]
        parts = torch.cat([tensor[: self.root].expand(trees, -1, -1, -1), own], dim=1) if self.root else own
        return parts.transpose(1, 2).reshape(trees * tensor.shape[1], -1, tensor.shape[-1])

    def attend(self, query: Tensor, key: Tensor, value: Tensor, output: Float[Tensor, "token head valuewidth"]) -> None:
        trees, slots = self.index.shape
        keys, values = (self.seen(tensor).view(trees, tensor.shape[1], -1, tensor.shape[-1]) for tensor in (key, value))
        hidden = nn.functional.pad(self.hidden[:, 0], (self.root, 0))
        said = _fused(query[self.index].transpose(1, 2), keys, values, hidden)
        self.put(output, said.reshape(trees * output.shape[1], slots, -1))

    def arriving(self, gradient: Float[Tensor, "token head width"], keyheads: int) -> Tensor:
        """As `rows`, but zero in empty slots: nothing flows back through them."""
        trees = len(self.index)
        rows = gradient[self.index].mul_(self.real[..., None, None])
        return rows.transpose(1, 2).reshape(trees * keyheads, -1, gradient.shape[-1])

    def put(self, total: Float[Tensor, "token head width"], rows: Tensor) -> None:
        trees, slots = self.index.shape
        by_slot = rows.view(trees, total.shape[1], slots, -1).transpose(1, 2).reshape(trees * slots, total.shape[1], -1)
        total.index_copy_(0, self.tokens, by_slot.index_select(0, self.places).to(total.dtype))

    def add(self, total: Float[Tensor, "token keyhead width"], seen: Tensor) -> None:
        if self.root:
            of_tree = seen.view(len(self.index), total.shape[1], -1, total.shape[-1])
            total[: self.root] += of_tree[:, :, : self.root].sum(0).transpose(0, 1)
            seen = of_tree[:, :, self.root :].reshape(seen.shape[0], -1, total.shape[-1])
        self.put(total, seen)


@dataclass(frozen=True, slots=True, kw_only=True)
class Causal:
    """A long trunk before which nothing stands: forward it is one piece, backward it is several runs."""

    queries: tuple[int, int]

    def attend(self, query: Tensor, key: Tensor, value: Tensor, output: Float[Tensor, "token head valuewidth"]) -> None:
        """Fill in the rows of the output; queries come scaled."""
        start, end = self.queries
        queries, keys, values = (tensor[start:end].transpose(0, 1) for tensor in (query, key, value))
        output[start:end] = _fused(queries, keys, values, None).transpose(0, 1)


Block = Run | Bucket


def _fused(
    query: Float[Tensor, "*tree head query width"],
    key: Float[Tensor, "*tree keyhead key width"],
    value: Float[Tensor, "*tree keyhead key valuewidth"],
    hidden: Float[Tensor, "... query key"] | None,
) -> Float[Tensor, "*tree head query valuewidth"]:
    """Softmax attention of scaled queries under a mask that is added to the scores, or causal where there is none."""
    own = query.ndim == 4
    rows = (query, key, value) if own else (query[None], key[None], value[None])
    output: Tensor = nn.functional.scaled_dot_product_attention(
        *rows, attn_mask=hidden, is_causal=hidden is None, scale=1.0, enable_gqa=query.shape[-3] != key.shape[-3]
    )
    return output if own else output[0]
