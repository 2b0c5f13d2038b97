"""The floor of a step: operations by hand, and the same as the benchmarks count."""

from dataclasses import replace

import pytest

from benchmarks.floor import Tokens, Weights, operations
from conftest import make_tiny_llama
from trees import branch, tiny_policy
from truing.data.tree import Tree, TreeBatch
from truing.models.heads import RewardModel
from truing.models.lora import LoRA, add_lora
from truing.models.policy import Policy, probe
from truing.parallel.world import World
from truing.train.floor import Floor
from truing.train.loop import _work

LAYER = 64 * 64 + 2 * 64 * 32 + 64 * 64 + 3 * 64 * 128
HEAD = 300 * 64
BATCHES = [
    TreeBatch.of([Tree(trunk=(5, 6, 7), branches=(branch((8, 9)), branch((10,), scored=False)))]),
    TreeBatch.of([Tree(trunk=(5, 6), branches=(branch((8,)),))]),
]
"""9 tokens, of which 3 are scored."""


def test_operations_by_hand() -> None:
    """Six a parameter of the layers and token, six a parameter of the head and scored token; a reward model has no such head."""
    policy = tiny_policy()
    floor = Floor.of(policy)
    assert (floor.body, floor.head, floor.adapters) == (2 * LAYER, HEAD, None)
    assert floor.operations(BATCHES) == 6 * (2 * LAYER * 9 + HEAD * 3)
    assert Floor.of(RewardModel(policy)).operations(BATCHES) == 6 * 2 * LAYER * 9
    assert floor.operations([]) == 0


def test_a_head_that_is_not_tied_is_no_layer() -> None:
    floor = Floor.of(Policy(make_tiny_llama(tie=False), layout="plain"))
    assert (floor.body, floor.head) == (2 * LAYER, HEAD)


def test_adapters_are_trained_and_the_rest_passes_gradients_on() -> None:
    floor = Floor.of(tiny_policy(lora=True))
    assert floor.body == 2 * LAYER
    sides = 2 * (64 + 64) + 2 * (64 + 32) + 3 * (64 + 128)
    assert floor.adapters == 2 * 4 * sides
    assert floor.operations(BATCHES) == 4 * (2 * LAYER * 9 + HEAD * 3) + 6 * floor.adapters * 9


def test_nothing_flows_back_below_the_lowest_adapter() -> None:
    """Of two layers the upper one has adapters: the lower one is multiplied with going forward alone."""
    model = make_tiny_llama()
    policy = probe(model).policy
    add_lora(model, LoRA(rank=4, top_layers=1), seed=0)
    floor = Floor.of(policy)
    sides = 2 * (64 + 64) + 2 * (64 + 32) + 3 * (64 + 128)
    assert (floor.body, floor.beneath, floor.adapters) == (2 * LAYER, LAYER, 4 * sides)
    assert floor.operations(BATCHES) == 2 * LAYER * 9 + 4 * LAYER * 9 + 4 * HEAD * 3 + 6 * 4 * sides * 9


@pytest.mark.parametrize("lora", [False, True])
def test_the_benchmarks_count_the_same(lora: bool) -> None:
    floor = Floor.of(tiny_policy(lora=lora))
    weights = Weights(body=floor.body, head=floor.head, adapters=floor.adapters)
    assert floor.operations(BATCHES) == operations(weights, Tokens(trained=9, trained_scored=3))


def test_the_least_time_of_a_step_is_its_operations_by_the_rate() -> None:
    floor = replace(Floor.of(tiny_policy()), rate=1e6)
    assert floor.rate > 0
    assert _work(BATCHES, World(), floor) == (9.0, floor.operations(BATCHES) / 1e6)
    assert _work(BATCHES, World(), None) == (9.0, None)
    assert _work("a round", World(), floor) == (None, None)
