"""Keys and values of answers under way, and the attention that writes and reads them in place of transformers' own cache.

One row an answer, filled from slot 0: a token stands in the slot of its position, so rows of any length go on together and nothing
is padded between prompt and answer. Only for policies in the tree layout, whose probe has shown that positions and an attention of
ours are all that a layer needs. Left out: which token comes next.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import pad, scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from truing.models.attention import window_mask, window_of

NAME = "truing_rollout"
SCORES = 1 << 19
"""Capped scores that are made at once, where a single row does not need more: 2 MiB in fp32."""
PARTS, WORTH_PARTING = 4, 0.1
"""Groups of neighbouring rows that attend to no more slots than their longest has, where that saves such a share of their slots."""
GROWTH, SHARE = 32, 8
"""Slots are added so many at a time, or an eighth of those that are there: each time all keys and values are copied."""


class Cache:
    """Example: `cache.hold(2); stage = cache.grow(0, [3, 5])` has room for three tokens in row 0 and five in row 1."""

    def __init__(self, *, device: torch.device) -> None:
        self.rows, self.slots, self.device = 0, 0, device
        self.lengths: list[int] = []
        """Filled slots of each row."""
        self.layers: dict[nn.Module, tuple[Tensor, Tensor]] = {}
        """Keys and values as [row, keyhead, slot, width]."""

    def layer(self, module: nn.Module, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """The layer's keys and values, made when it first asks. Zeros, because 0 x NaN in an unseen slot would be NaN."""
        if module not in self.layers:
            keys, values = (new.new_zeros(self.rows, new.shape[1], self.slots, new.shape[2]) for new in (key, value))
            self.layers[module] = keys, values
        return self.layers[module]

    def hold(self, rows: int) -> None:
        """So many rows from now on: those behind them are given up, new ones are free."""
        more = rows - self.rows
        for module, (keys, values) in self.layers.items() if more else ():
            # a part of a tensor would keep the whole of it
            self.layers[module] = tuple(  # type: ignore[assignment]
                pad(held, (0, 0) * 3 + (0, more)) if more > 0 else held[:rows].clone() for held in (keys, values)
            )
        self.lengths = self.lengths[:rows] + [0] * more
        self.rows = rows

    def take(self, rows: Sequence[int]) -> None:
        """Row i becomes what row `rows[i]` was; the rows after them are free."""
        moved = [i for i, row in enumerate(rows) if i != row and self.lengths[row]]
        seen = max((self.lengths[rows[i]] for i in moved), default=0)
        to = torch.tensor(moved, dtype=torch.long, device=self.device)
        of = torch.tensor([rows[i] for i in moved], dtype=torch.long, device=self.device)
        for held in (each for layer in self.layers.values() for each in layer) if moved else ():
            held[to, :, :seen] = held[of, :, :seen]
        self.lengths = [self.lengths[row] for row in rows] + [0] * (self.rows - len(rows))

    def grow(self, first: int, counts: Sequence[int]) -> "Stage":
        """Room for so many tokens more in the rows from `first` on; hand the stage down with the tokens, row after row."""
        more = max(self.lengths[row] + count for row, count in enumerate(counts, first)) - self.slots
        if more > 0:
            more = -(-max(more, self.slots // SHARE) // GROWTH) * GROWTH
            for module, (keys, values) in self.layers.items():
                self.layers[module] = pad(keys, (0, 0, 0, more)), pad(values, (0, 0, 0, more))
            self.slots += more
        stage = Stage(self, first, counts)
        for row, count in enumerate(counts, first):
            self.lengths[row] += count
        return stage


class Stage:
    """New tokens of neighbouring rows on their way through the layers."""

    def __init__(self, cache: Cache, first: int, counts: Sequence[int]) -> None:
        starts = cache.lengths[first : first + len(counts)]
        most = max(counts)
        real = torch.arange(most)[None, :] < torch.tensor(counts)[:, None]
        at = torch.tensor(starts)[:, None] + torch.arange(most)
        index = (real.flatten().cumsum(0) - 1).clamp_(min=0).view(real.shape)
        self.cache, self.first = cache, first
        self.at: Int[Tensor, "row new"] = at.to(cache.device)
        self.index: Int[Tensor, "row new"] = index.to(cache.device)
        """The packed token of each new place; the places behind a row's end repeat another token and are thrown away."""
        self.real: Bool[Tensor, "row new"] | None = None if bool(real.all()) else real.to(cache.device)
        self.row = (first + torch.arange(len(counts))[:, None].expand_as(real)[real]).to(cache.device)
        self.positions: Int[Tensor, " token"] = at[real].to(cache.device)
        self.last = torch.tensor([sum(counts[: i + 1]) - 1 for i in range(len(counts))], device=cache.device)
        """The packed place of each row's last token."""
        self.masks: dict[int | None, Float[Tensor, "row new slot"]] = {}
        self.parts = parted([start + count for start, count in zip(starts, counts, strict=True)])

    def mask(self, window: int | None, dtype: torch.dtype) -> Float[Tensor, "row new slot"]:
        """Added to the scores: minus infinity for slots after a token's own, and before its window."""
        if window not in self.masks:
            behind = torch.arange(self.cache.slots, device=self.at.device) - self.at[:, :, None]
            hidden = behind > 0 if window is None else (behind > 0) | (behind <= -window)
            self.masks[window] = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device).masked_fill_(hidden, float("-inf"))
        return self.masks[window]

    def attend(
        self,
        module: nn.Module,
        query: Float[Tensor, "token head width"],
        key: Float[Tensor, "token keyhead width"],
        value: Float[Tensor, "token keyhead valuewidth"],
        scale: float,
        window: int | None,
        softcap: float | None,
    ) -> Float[Tensor, "token head valuewidth"]:
        """Each new token on the slots of its row up to its own."""
        keys, values = self.cache.layer(module, key, value)
        keys[self.row, :, self.positions] = key
        values[self.row, :, self.positions] = value
        rows = slice(self.first, self.first + len(self.at))
        queries = query[self.index].transpose(1, 2)  # [row, head, new, width]
        mask, keys, values = self.mask(window, query.dtype)[:, None], keys[rows], values[rows]
        found = [
            _attended(queries[part], keys[part, :, :slots], values[part, :, :slots], mask[part, ..., :slots], scale, softcap)
            for part, slots in self.parts
        ]
        output = torch.cat(found) if len(found) > 1 else found[0]
        output = output.transpose(1, 2)
        return output.flatten(0, 1) if self.real is None else output[self.real]


def parted(ends: Sequence[int]) -> list[tuple[slice, int]]:
    """Neighbouring rows, each group with the slots that the longest of it fills; all in one where little would be saved."""
    size = -(-len(ends) // PARTS)
    found = [(slice(at, at + size), max(ends[at : at + size])) for at in range(0, len(ends), size)]
    needed = sum(len(ends[part]) * most for part, most in found)
    return found if needed <= (1 - WORTH_PARTING) * len(ends) * max(ends) else [(slice(None), max(ends))]


def _attended(
    query: Float[Tensor, "row head new width"],
    key: Float[Tensor, "row keyhead slot width"],
    value: Float[Tensor, "row keyhead slot valuewidth"],
    mask: Float[Tensor, "row one new slot"],
    scale: float,
    softcap: float | None,
) -> Float[Tensor, "row head new valuewidth"]:
    """Attention of rows that have these slots in common."""
    if softcap is None:
        return scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale, enable_gqa=True)
    some = max(1, SCORES // (query.shape[1] * query.shape[2] * key.shape[2]))
    parts = zip(query.split(some), key.split(some), value.split(some), mask.split(some), strict=True)
    return torch.cat([_capped(q, k, v, allowed, scale, softcap) for q, k, v, allowed in parts])


def _capped(
    query: Float[Tensor, "row head new width"],
    key: Float[Tensor, "row keyhead slot width"],
    value: Float[Tensor, "row keyhead slot valuewidth"],
    mask: Float[Tensor, "row one new slot"],
    scale: float,
    softcap: float,
) -> Float[Tensor, "row head new valuewidth"]:
    """Attention whose scores are capped, which torch's own has not; heads that share keys are one matrix product per key head."""
    rows, heads, new, _ = query.shape
    scores = query.reshape(rows, key.shape[1], -1, query.shape[-1]) @ key.transpose(-2, -1)
    scores = torch.tanh(scores.float() * (scale / softcap)).mul_(softcap).view(rows, heads, new, -1).add_(mask)
    probabilities = scores.softmax(-1).to(value.dtype).view(rows, key.shape[1], -1, key.shape[2])
    return (probabilities @ value).view(rows, heads, new, -1)


def _attention(
    module: nn.Module,
    query: Float[Tensor, "one head token width"],
    key: Float[Tensor, "one keyhead token width"],
    value: Float[Tensor, "one keyhead token valuewidth"],
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attention function in the form that transformers calls. The stage comes under the name that the probe has tried."""
    stage: Stage = options["tree_layout"]
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    query, key, value = (tensor[0].transpose(0, 1) for tensor in (query, key, value))  # [token, head, width]
    window = window_of(attention_mask, options.get("sliding_window"))
    output = stage.attend(module, query, key, value, scale, window, options.get("softcap"))
    return output[None], None


def register() -> None:
    """Make the name `truing_rollout` known to transformers; calling it again changes nothing."""
    AttentionInterface.register(NAME, _attention)
    AttentionMaskInterface.register(NAME, window_mask)
