"""Small random trees and batches that the numerical tests share."""

import random
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from conftest import make_tiny_llama
from truing.data.tree import Branch, Tree
from truing.models.lora import LoRA, add_lora
from truing.models.policy import Policy, probe

VOCABULARY = 300


def branch(tokens: Sequence[int], scored: bool = True) -> Branch:
    return Branch(tokens=tuple(tokens), scored=(scored,) * len(tokens))


def random_trees(count: int, *, branches: int = 2, seed: int = 0, longest: int = 23) -> list[Tree]:
    """Trees of unequal lengths; key is the index."""
    rng = random.Random(seed)

    def run(most: int) -> tuple[int, ...]:
        return tuple(rng.randrange(3, VOCABULARY) for _ in range(rng.randint(1, most)))

    return [
        Tree(trunk=run(longest), branches=tuple(branch((*run(longest), 2)) for _ in range(branches)), key=i) for i in range(count)
    ]


def with_zero_reference(trees: Sequence[Tree]) -> list[Tree]:
    """The trees with a reference that gives every token probability 1."""
    return [tree.with_reference(torch.zeros(sum(tree.scored))) for tree in trees]


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def relative_gap(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """Largest difference of any entry, over the largest entry of all."""
    assert a.keys() == b.keys()
    scale = max(float(t.abs().max()) for t in b.values())
    return max(float((a[name] - b[name]).abs().max()) for name in a) / scale


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def tiny_policy(seed: int = 1, *, dtype: torch.dtype = torch.float32, lora: bool = False) -> Policy:
    """The tiny model as trees, on its own or with an adapter."""
    model = make_tiny_llama(seed=seed).to(dtype)
    policy = probe(model).policy
    if lora:
        add_lora(model, LoRA(rank=4), seed=0)
    return policy
