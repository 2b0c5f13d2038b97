"""Trees and their packing: one prompt with its k responses is stored and computed once.

A `Tree` is a trunk (the prompt's tokens) and its branches (the responses). A `TreeBatch` lays many trees end to end in one row
without padding. What attention makes of the layout is `truing.models.attention`; how records become trees is `truing.data.chat`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Branch:
    """One response. Example: `Branch(tokens=(40, 2), scored=(True, True))`: a word and the end of turn, both scored."""

    tokens: tuple[int, ...]
    scored: tuple[bool, ...]
    """Which tokens are asked for their log-probability; a later user turn inside a demonstration is not."""

    def __post_init__(self) -> None:
        assert len(self.tokens) == len(self.scored), "one flag a token"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tree:
    """One prompt with k responses. Example: `Tree(trunk=(1, 17), branches=(Branch(tokens=(40, 2), scored=(True, True)),))`.

    The trunk is never empty: its last token is what the first token of each branch is predicted from.
    """

    trunk: tuple[int, ...]
    branches: tuple[Branch, ...]
    key: int = 0
    """Index of the record that the tree was made from, so that results find their way back."""

    def __post_init__(self) -> None:
        assert self.trunk, "a trunk holds at least one token"

    @property
    def size(self) -> int:
        """Tokens computed when the trunk is shared."""
        return len(self.trunk) + sum(len(b.tokens) for b in self.branches)

    def alone(self) -> "tuple[Tree, ...]":
        """Each branch with a trunk of its own: what the plain layout computes."""
        return tuple(Tree(trunk=self.trunk, branches=(b,), key=self.key) for b in self.branches)
