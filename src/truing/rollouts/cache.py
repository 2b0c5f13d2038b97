"""Keys and values of answers under way, and the attention that writes and reads them in place of transformers' own cache.

One row an answer, filled from slot 0: a token stands in the slot of its position, so rows of any length go on together and nothing
is padded between prompt and answer. Only for policies in the tree layout, whose probe has shown that positions and an attention of
ours are all that a layer needs. Left out: which token comes next.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from truing.models.attention import window_mask, window_of

NAME = "truing_rollout"
SCORES = 1 << 19
"""Attention scores that are made at once, where a single row does not need more: 2 MiB in fp32."""
GROWTH = 32
"""Slots are added so many at a time; all of them are computed, since a product of matrices with gaps would copy them first."""


class Cache:
    """Example: `cache.hold(2); stage = cache.grow(0, [3, 5])` has room for three tokens in row 0 and five in row 1."""

    def __init__(self, *, device: torch.device) -> None:
        self.rows, self.slots, self.device = 0, 0, device
        self.lengths: list[int] = []
        """Filled slots of each row."""
        self.layers: dict[nn.Module, tuple[Tensor, Tensor]] = {}
        """Keys as [row, keyhead, width, slot], as the product with a query wants them; values as [row, keyhead, slot, width]."""

    def layer(self, module: nn.Module, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """The layer's keys and values, made when it first asks. Zeros, because 0 x NaN in an unseen slot would be NaN."""
        if module not in self.layers:
            self.layers[module] = (
                key.new_zeros(self.rows, key.shape[1], key.shape[2], self.slots),
                value.new_zeros(self.rows, value.shape[1], self.slots, value.shape[2]),
            )
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
        for keys, values in self.layers.values() if moved else ():
            keys[to, :, :, :seen] = keys[of, :, :, :seen]
            values[to, :, :seen] = values[of, :, :seen]
        self.lengths = [self.lengths[row] for row in rows] + [0] * (self.rows - len(rows))

    def grow(self, first: int, counts: Sequence[int]) -> "Stage":
        """Room for so many tokens more in the rows from `first` on; hand the stage down with the tokens, row after row."""
        more = max(self.lengths[row] + count for row, count in enumerate(counts, first)) - self.slots
        if more > 0:
            more = -(-more // GROWTH) * GROWTH
            for module, (keys, values) in self.layers.items():
                self.layers[module] = pad(keys, (0, more)), pad(values, (0, 0, 0, more))
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
        """Each new token on the slots of its row up to its own. Heads that share keys are one matrix product per key head."""
        keys, values = self.cache.layer(module, key, value)
        keys[self.row, :, :, self.positions] = key
        values[self.row, :, self.positions] = value
        heads, keyheads = query.shape[1], key.shape[1]
        found = []
        for some, rows in self._chunks(heads):
            queries = query[self.index[some]].transpose(1, 2)
            count, _, new, width = queries.shape
            queries = queries.reshape(count * keyheads, heads // keyheads * new, width)
            # beta=0: the first argument only says dtype and device
            scores = torch.baddbmm(query.new_empty(1), queries, keys[rows].flatten(0, 1), beta=0, alpha=scale)
            if softcap is not None:
                scores = (torch.tanh(scores.float() / softcap) * softcap).to(value.dtype)
            scores.view(count, heads, new, -1).add_(self.mask(window, scores.dtype)[some, None])
            output = torch.bmm(scores.softmax(-1, dtype=torch.float32).to(value.dtype), values[rows].flatten(0, 1))
            output = output.view(count, heads, new, -1).transpose(1, 2)
            found.append(output.flatten(0, 1) if self.real is None else output[self.real[some]])
        return found[0] if len(found) == 1 else torch.cat(found)

    def _chunks(self, heads: int) -> Iterator[tuple[slice, slice]]:
        """Rows of the stage, and the same rows of the cache."""
        rows, new = self.at.shape
        size = max(1, SCORES // (heads * new * self.cache.slots))
        for start in range(0, rows, size):
            end = min(start + size, rows)
            yield slice(start, end), slice(self.first + start, self.first + end)


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
