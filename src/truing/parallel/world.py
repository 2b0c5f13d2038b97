"""The processes that train together: rank, sum and gather, which on one process are the identity."""

import os
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """Example: `World.here().sum(count)` is the count over all ranks, and the count itself on one process."""

    rank: int = 0
    size: int = 1

    @classmethod
    def here(cls) -> "World":
        """The world that torchrun has announced in the environment, or one process."""
        if "WORLD_SIZE" not in os.environ or int(os.environ["WORLD_SIZE"]) == 1:
            return cls()
        if not dist.is_initialized():
            dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
        return cls(rank=dist.get_rank(), size=dist.get_world_size())

    def sum(self, values: list[float]) -> list[float]:
        """Elementwise sum of equally long lists over all ranks, in fp64."""
        if self.size == 1:
            return values
        total = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(total)
        return [float(v) for v in total]

    def gather(self, values: list[float]) -> list[float]:
        """All ranks' lists (of any length), one after the other in the order of ranks."""
        if self.size == 1:
            return values
        lists: list[list[float]] = [[] for _ in range(self.size)]
        dist.all_gather_object(lists, values)
        return [v for part in lists for v in part]

    def sum_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Replace each gradient by its sum over ranks; a parameter without one on this rank takes part with zeros."""
        if self.size == 1:
            return
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            dist.all_reduce(parameter.grad)
