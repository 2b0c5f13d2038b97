"""From trees to the micro-batches of each optimizer step: shuffled, shared by ranks, within a token budget, resumed exactly."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from truing.data.tree import Tree, TreeBatch, pack
from truing.randomness import counted_seed


class TreeSource:
    """Endless epochs over a data set of trees.

    Each epoch is a permutation counted from the seed; a step takes the next `batch_size` trees of it (an epoch's last step what is
    left), each rank its share, and packs them into micro-batches of at most `micro_tokens` tokens. The state is one number.
    """

    def __init__(
        self,
        trees: Sequence[Tree],
        *,
        batch_size: int,
        micro_tokens: int,
        seed: int,
        rank: int = 0,
        ranks: int = 1,
        device: torch.device | str = "cpu",
    ) -> None:
        if not trees:
            raise ValueError("no example is left to train on: see the counts of dropped rows above")
        self.trees = tuple(trees)
        self.batch_size = batch_size
        self.micro_tokens = micro_tokens
        self.seed = seed
        self.rank = rank
        self.ranks = ranks
        self.device = device
        self.steps_taken = 0

    @property
    def steps_per_epoch(self) -> int:
        return -(-len(self.trees) // self.batch_size)

    def order(self, epoch: int) -> list[int]:
        """Indices of the trees in the order of the given epoch."""
        generator = np.random.Generator(np.random.PCG64(counted_seed(self.seed, "shuffle", epoch)))
        return [int(i) for i in generator.permutation(len(self.trees))]

    def step_trees(self, step: int) -> list[Tree]:
        """The trees of step 0, 1, ..., on all ranks together."""
        epoch, place = divmod(step, self.steps_per_epoch)
        chosen = self.order(epoch)[place * self.batch_size : (place + 1) * self.batch_size]
        return [self.trees[i] for i in chosen]

    def micro_batches(self, step: int, rank: int) -> list[list[Tree]]:
        """One rank's share of a step, packed."""
        return pack(self.step_trees(step)[rank :: self.ranks], self.micro_tokens)

    def first_epoch(self) -> Iterator[list[Tree]]:
        """The micro-batches of the first epoch, of all ranks."""
        for step in range(self.steps_per_epoch):
            for rank in range(self.ranks):
                yield from self.micro_batches(step, rank)

    def __iter__(self) -> Iterator[list[TreeBatch]]:
        while True:
            groups = self.micro_batches(self.steps_taken, self.rank)
            self.steps_taken += 1
            yield [TreeBatch.of(group, self.device) for group in groups]

    def state_tensors(self) -> Mapping[str, Tensor]:
        return {}

    def state_dict(self) -> dict[str, Any]:
        return {"steps_taken": self.steps_taken}

    def load_state(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        self.steps_taken = int(state["steps_taken"])
