"""Prompts with another prompt's response: what KTO estimates its baseline on.

Which response a prompt gets depends on nothing but the records of the optimizer batch, which epoch and step decide: not on
micro-batches, packing, ranks or chance.
"""

from collections.abc import Sequence
from dataclasses import replace

from truing.data.tree import Branch, Tree
from truing.randomness import counted_seed


def mismatched(trees: Sequence[Tree], *, max_tokens: int) -> dict[int, Tree]:
    """By record, its prompt with the response of the next record of another prompt, in an order counted from the records' keys.

    `trees` is the whole optimizer batch. The response is cut where it would make the sequence longer than `max_tokens`. Empty
    when all prompts are one: then nothing is mismatched.
    """
    order = sorted(trees, key=lambda tree: (counted_seed(0, "mismatch", tree.key), tree.key))
    found: dict[int, Tree] = {}
    if len({tree.trunk for tree in order}) < 2:
        return found
    for place, tree in enumerate(order):
        others = (order[(place + step) % len(order)] for step in range(1, len(order)))
        other = next(other for other in others if other.trunk != tree.trunk)
        branch = _cut(other.branches[0], max_tokens - len(tree.trunk))
        found[tree.key] = replace(tree, branches=(branch,), reference=None, margin=None, probability=None, desirable=None)
    return found


def joined(tree: Tree, pair: Tree) -> Tree:
    """The tree with the mismatched response of its prompt as a further branch: the trunk is computed once for both."""
    assert tree.trunk == pair.trunk, "a mismatched response is put to the same prompt"
    branches = (*tree.branches, *pair.branches)
    return replace(tree, branches=branches, reference=None, margin=None, probability=None, desirable=None)


def _cut(branch: Branch, tokens: int) -> Branch:
    assert tokens > 0, "a prompt leaves room for a response"
    return Branch(tokens=branch.tokens[:tokens], scored=branch.scored[:tokens])
