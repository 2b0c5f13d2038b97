"""Keys and values of answers under way, and the attention that writes and reads them in place of transformers' own cache.

One row an answer, filled from slot 0: no padding between prompt and answer, so rows of any length go on together. Prompts are read
as trees (what they begin with in common is computed once), then every row grows by one token a step. Only for policies in the
tree layout, whose probe has shown that positions and this attention are all that a layer needs. Left out: which token comes next.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from truing.data.tree import TreeBatch
from truing.models.attention import Layout, tree_attention

NAME = "truing_rollout"


class Cache:
    """Example: `cache.reading(batch, prompts)` is handed down for the prompts, `cache.step()` for each token after them."""

    def __init__(self, *, rows: int, slots: int, device: torch.device) -> None:
        self.rows = rows
        self.slots = slots
        self.lengths: list[int] = []
        """Filled slots of each row in use; the rows in use are the first ones."""
        self.device = device
        self.layers: dict[nn.Module, tuple[Tensor, Tensor]] = {}
        """Keys as [row, keyhead, width, slot], as the product with a query wants them; values as [row, keyhead, slot, width]."""

    def layer(self, module: nn.Module, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """The layer's keys and values, made when it first asks. Zeros, because 0 x NaN in an unseen slot would be NaN."""
        if module not in self.layers:
            self.layers[module] = (
                key.new_zeros(self.rows, key.shape[1], key.shape[3], self.slots),
                value.new_zeros(self.rows, value.shape[1], self.slots, value.shape[3]),
            )
        return self.layers[module]

    def keep(self, rows: Sequence[int]) -> list[int]:
        """Free all other rows: the last ones move into the gaps. Returns the old number of each row now in use."""
        kept = sorted(rows)
        order = list(range(len(kept)))
        movers = [row for row in kept if row >= len(kept)]
        gaps = sorted(set(order) - set(kept))
        for gap, mover in zip(gaps, movers, strict=True):
            order[gap] = mover
        if gaps:
            to, of = torch.tensor(gaps, device=self.device), torch.tensor(movers, device=self.device)
            for pair in self.layers.values():
                for tensor in pair:
                    tensor[to] = tensor[of]
        self.lengths = [self.lengths[row] for row in order]
        return order

    def reading(self, batch: TreeBatch) -> "Reading":
        """Put each response of the batch, with its trunk, or a trunk without responses, into a new row."""
        return Reading(self, batch)

    def step(self) -> "Step":
        """Give each row in use one more token."""
        return Step(self)


class Stage(Protocol):
    """What is handed down to the layers in place of a layout."""

    def attend(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, scaling: float | None, options: dict[str, Any]
    ) -> tuple[Tensor, None]: ...


class Reading:
    """Prompts, as a packed row of trees."""

    def __init__(self, cache: Cache, batch: TreeBatch) -> None:
        # the tokens of each prompt, wherever they lie in the packed row; a trunk may stand alone
        runs = [[*range(*span.trunk), *range(*branch)] for span in batch.spans for branch in span.branches or ((0, 0),)]
        self.cache = cache
        self.layout = Layout.of(batch)
        self.first = len(cache.lengths)
        self.index = torch.zeros(len(runs), max(map(len, runs)), dtype=torch.long)
        for row, run in enumerate(runs):
            self.index[row, : len(run)] = torch.tensor(run)
        self.index = self.index.to(cache.device)
        self.last = torch.tensor([run[-1] for run in runs], device=cache.device)
        cache.lengths += map(len, runs)

    def attend(
        self,
        module: nn.Module,
        query: Float[Tensor, "one head token width"],
        key: Float[Tensor, "one keyhead token width"],
        value: Float[Tensor, "one keyhead token valuewidth"],
        scaling: float | None,
        options: dict[str, Any],
    ) -> tuple[Tensor, None]:
        keys, values = self.cache.layer(module, key, value)
        rows, slots = self.index.shape
        at = slice(self.first, self.first + rows)
        keys[at, :, :, :slots] = key[0].transpose(0, 1)[self.index].permute(0, 2, 3, 1)
        values[at, :, :slots] = value[0].transpose(0, 1)[self.index].transpose(1, 2)
        return tree_attention(module, query, key, value, None, scaling, **{**options, "tree_layout": self.layout})


class Step:
    """The newest token of each row."""

    def __init__(self, cache: Cache) -> None:
        self.cache = cache
        self.positions = torch.tensor(cache.lengths, device=cache.device)
        self.row = torch.arange(len(cache.lengths), device=cache.device)
        cache.lengths = [length + 1 for length in cache.lengths]
        self.seen = max(cache.lengths)
        self.masks: dict[int | None, Float[Tensor, "row one slot"]] = {}

    def mask(self, window: int | None) -> Float[Tensor, "row one slot"]:
        """Added to the scores: minus infinity behind a row's newest token, and before its window."""
        if window not in self.masks:
            behind = torch.arange(self.seen, device=self.positions.device)[None, :] - self.positions[:, None]
            hidden = behind > 0 if window is None else (behind > 0) | (behind <= -window)
            self.masks[window] = torch.zeros(hidden.shape, device=hidden.device).masked_fill_(hidden, float("-inf"))[:, None]
        return self.masks[window]

    def attend(
        self,
        module: nn.Module,
        query: Float[Tensor, "one head row width"],
        key: Float[Tensor, "one keyhead row width"],
        value: Float[Tensor, "one keyhead row valuewidth"],
        scaling: float | None,
        options: dict[str, Any],
    ) -> tuple[Float[Tensor, "one row head valuewidth"], None]:
        rows, heads, keyheads = len(self.row), query.shape[1], key.shape[1]
        keys, values = self.cache.layer(module, key, value)
        keys[self.row, :, :, self.positions] = key[0].transpose(0, 1)
        values[self.row, :, self.positions] = value[0].transpose(0, 1)
        # heads that share keys are one matrix product per key head
        queries = query[0].transpose(0, 1).reshape(rows * keyheads, heads // keyheads, -1)
        scores = torch.bmm(queries, keys[:rows, :, :, : self.seen].flatten(0, 1)).float()
        scores.mul_(scaling if scaling is not None else query.shape[-1] ** -0.5)
        if (softcap := options.get("softcap")) is not None:
            scores = torch.tanh(scores / softcap) * softcap
        scores.view(rows, heads, -1).add_(self.mask(options.get("sliding_window")))
        weights = scores.softmax(-1).to(value.dtype)
        output = torch.bmm(weights, values[:rows, :, : self.seen].flatten(0, 1))
        return output.view(1, rows, heads, -1), None


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attention function in the form that transformers calls. The stage comes under the name that the probe has tried."""
    stage: Stage = options["tree_layout"]
    return stage.attend(module, query, key, value, scaling, options)


def _no_mask(*_args: Any, **_options: Any) -> None:
    """The stage says who sees whom; transformers need not build a mask."""
    return


def register() -> None:
    """Make the name `truing_rollout` known to transformers; calling it again changes nothing."""
    AttentionInterface.register(NAME, _attention)
    AttentionMaskInterface.register(NAME, _no_mask)
