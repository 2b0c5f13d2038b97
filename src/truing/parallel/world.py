"""The processes that train together: rank, sum and gather, which on one process are the identity."""

import atexit
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")
R = TypeVar("R")

PATIENCE = timedelta(hours=2)
"""How long a rank waits for the others: rank 0 saves alone while the others wait."""


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """Example: `World.here().sum([count])` is the count over all ranks, and the count itself on one process."""

    rank: int = 0
    size: int = 1

    @classmethod
    def here(cls) -> "World":
        """The world that torchrun has announced in the environment, or one process."""
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return cls()
        if not dist.is_initialized():
            gpu = torch.cuda.is_available()
            if gpu:
                torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
            dist.init_process_group("cpu:gloo,cuda:nccl" if gpu else "gloo", timeout=PATIENCE)
            atexit.register(dist.destroy_process_group)
        return cls(rank=dist.get_rank(), size=dist.get_world_size())

    def sum(self, values: list[float]) -> list[float]:
        """Elementwise sum of equally long lists over all ranks, in fp64."""
        if self.size == 1:
            return values
        total = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(total)
        return total.tolist()

    def largest(self, value: int) -> int:
        """The largest of the ranks' values."""
        if self.size == 1:
            return value
        found = torch.tensor(value)
        dist.all_reduce(found, dist.ReduceOp.MAX)
        return int(found)

    def gather(self, values: Sequence[T]) -> list[T]:
        """All ranks' lists (of any length), one after the other in the order of ranks."""
        if self.size == 1:
            return list(values)
        lists: list[list[T]] = [[] for _ in range(self.size)]
        dist.all_gather_object(lists, list(values))
        return [value for part in lists for value in part]

    def spread(self, items: Sequence[T], work: Callable[[Sequence[T]], Sequence[R]]) -> list[R]:
        """What `work` makes of the items, one result an item and in their order; each rank does its share of them."""
        found = self.gather(work(items[self.rank :: self.size]))
        places = [place for rank in range(self.size) for place in range(rank, len(items), self.size)]
        return [result for _, result in sorted(zip(places, found, strict=True), key=lambda pair: pair[0])]

    def wait(self) -> None:
        """Returns once every rank has come here."""
        self.sum([0.0])

    def sum_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Replace each gradient by its sum over ranks. What no rank has stays absent; a rank without it takes part with zeros."""
        if self.size == 1:
            return
        every = list(parameters)
        users = self.sum([float(parameter.grad is not None) for parameter in every])
        pending = []
        for parameter in (parameter for parameter, count in zip(every, users, strict=True) if count):
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            pending.append(dist.all_reduce(parameter.grad, async_op=True))
        for work in pending:
            work.wait()
