"""A fair sample of a stream of unknown length, the same for the same seed and order (Vitter 1985, algorithm R)."""

import random
from collections.abc import Callable
from typing import Generic, TypeVar

from truing.randomness import counted_seed

T = TypeVar("T")


class Reservoir(Generic[T]):
    """Keeps `size` of all items offered, each with the same chance. Example: `kept.offer(lambda: costly(sample))`."""

    def __init__(self, size: int, *, seed: int, purpose: str) -> None:
        self.size, self.offered = size, 0
        self.items: list[T] = []
        self._random = random.Random(counted_seed(seed, purpose))

    def offer(self, make: Callable[[], T]) -> None:
        """One more item, made only when it is kept."""
        self.offered += 1
        if len(self.items) < self.size:
            self.items.append(make())
            return
        place = self._random.randrange(self.offered)
        if place < self.size:
            self.items[place] = make()
