"""FlexAttention under the trees' mask gives what the blocks on a processor give; only its kernel needs a GPU."""

import pytest
import torch

from trees import random_trees, tiny_policy
from truing.data.tree import TreeBatch
from truing.models.attention import Layout, tree_attention, window_mask
from truing.models.flex import FlexLayout

TREES = 6


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("options", [{}, {"sliding_window": 5}, {"softcap": 3.0}, {"sliding_window": 9, "softcap": 2.0}])
@pytest.mark.parametrize("shared", [0, 3])
def test_the_same_output_as_the_blocks(shared: int, options: dict[str, float]) -> None:
    trees = random_trees(TREES)
    if shared:
        trees = [type(tree)(trunk=(1, 2, 3, *tree.trunk), branches=tree.branches, key=tree.key) for tree in trees]
    batch = TreeBatch.of(trees)
    assert batch.root >= shared
    g = torch.Generator().manual_seed(1)
    tokens = len(batch.tokens)
    query, key, value = (torch.randn(1, heads, tokens, 16, generator=g) for heads in (4, 2, 2))
    mask = window_mask(local_size=options.get("sliding_window"))
    found = [
        tree_attention(torch.nn.Identity(), query, key, value, mask, tree_layout=layout, **options)[0]
        for layout in (Layout.of(batch, torch.float32, 16), FlexLayout.of(batch))
    ]
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-6)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_log_probs_and_gradients_equal_those_of_the_processor() -> None:
    batch_of = {device: TreeBatch.of(random_trees(TREES), device) for device in ("cpu", "cuda")}
    found = []
    for device, batch in batch_of.items():
        policy = tiny_policy().to(device)
        values = policy.log_probs(batch)
        values.sum().backward()
        found.append([values.detach().cpu(), *(p.grad.cpu() for p in policy.parameters() if p.grad is not None)])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)
