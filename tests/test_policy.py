"""Trees, the plain layout and the model's own logits give the same numbers; leaks are found; unsupported models fall back."""

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from conftest import make_tiny_llama
from trees import branch, gradients, random_trees, relative_gap, tiny_policy
from truing.data.packing import pack
from truing.data.tree import Tree, TreeBatch
from truing.models import attention, policy
from truing.models.heads import ValueModel
from truing.models.lora import CRITIC, LoRA, add_lora
from truing.models.policy import Policy, probe
from truing.models.rope import reach_of
from zygote import Zygote


def as_trees(model) -> Policy:
    found = probe(model)
    assert found.reason_for_plain is None
    return found.policy


def own_log_probs(model, trees) -> torch.Tensor:
    """One unpadded forward pass a response, by the model's own attention: the oracle."""
    model.set_attn_implementation("eager")
    values = []
    for tree in trees:
        for b in tree.branches:
            ids = torch.tensor([[*tree.trunk, *b.tokens]])
            logp = model(input_ids=ids).logits.float().log_softmax(-1)[0]
            start = len(tree.trunk)
            values += [logp[start + i - 1, t] for i, t in enumerate(b.tokens) if b.scored[i]]
    return torch.stack(values)


@pytest.mark.parametrize("block", [4, 16, 256])
@pytest.mark.parametrize("branches", [1, 2, 5])
def test_trap_20_packed_log_probs_equal_unpacked_ones(block, branches):
    model = make_tiny_llama(seed=3)
    trees = random_trees(7, branches=branches, longest=40)
    attention.register()
    model.set_attn_implementation(attention.NAME)
    found = Policy(model, layout="tree", block=block).log_probs(TreeBatch.of(trees))
    torch.testing.assert_close(found, own_log_probs(model, trees), rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("block", [4, 16, 256])
@pytest.mark.parametrize("beginning", [1, 9, 30])
def test_a_shared_beginning_is_computed_once_with_the_same_numbers_and_gradients(block, beginning):
    """Trees that begin alike (a system prompt): the row is shorter by what they share, the numbers are those of each on its own."""
    system = tuple(range(40, 40 + beginning))
    trees = [replace(t, trunk=system + t.trunk) for t in random_trees(6, longest=30)]
    batch = TreeBatch.of(trees)
    assert batch.root >= beginning
    assert len(batch.tokens) == sum(t.size for t in trees) - 5 * batch.root
    found = []
    for layout in ("tree", "plain"):
        model = make_tiny_llama(seed=8)
        if layout == "tree":
            as_trees(model)
        values = Policy(model, layout=layout, block=block).log_probs(batch)
        (values * torch.linspace(-1, 1, len(values))).sum().backward()
        found.append((values.detach(), gradients(model)))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-5, atol=2e-6)
    assert relative_gap(found[0][1], found[1][1]) < 1e-5


@pytest.mark.parametrize("block", [5, 256])
def test_trap_08_tree_and_plain_layout_give_the_same_gradients(block):
    trees = random_trees(6, longest=40)
    found = []
    for layout in ("tree", "plain"):
        model = make_tiny_llama(seed=4)
        if layout == "tree":
            as_trees(model)
        weights = torch.linspace(-1, 1, 12)
        (Policy(model, layout=layout, block=block).response_log_probs(TreeBatch.of(trees)) * weights).sum().backward()
        found.append(gradients(model))
    assert relative_gap(*found) < 1e-5


def test_trap_20_no_branch_sees_a_sibling_or_another_tree():
    """Rewriting one branch leaves all others untouched to the last bit."""
    model = as_trees(make_tiny_llama(seed=5))
    trees = random_trees(4, branches=3)
    before = model.log_probs(TreeBatch.of(trees))
    other = Tree(trunk=trees[1].trunk, branches=(branch([9] * len(trees[1].branches[0].tokens)), *trees[1].branches[1:]), key=1)
    batch = TreeBatch.of([trees[0], other, *trees[2:]])
    after = model.log_probs(batch)
    assert torch.equal(before[batch.response != 3], after[batch.response != 3])
    assert not torch.equal(before[batch.response == 3], after[batch.response == 3])


def test_right_and_left_padding_and_any_amount_change_nothing():
    """The plain layout pads right; the same rows padded left, with their own positions, agree."""
    model, trees = make_tiny_llama(seed=6), random_trees(5)
    right = Policy(model, layout="plain").log_probs(TreeBatch.of(trees))
    values = []
    for tree in trees:
        for b in tree.branches:
            run = [*tree.trunk, *b.tokens]
            ids, mask = torch.tensor([[2] * 11 + run]), torch.tensor([[0] * 11 + [1] * len(run)])
            logp = model(input_ids=ids, attention_mask=mask, position_ids=(mask.cumsum(-1) - 1).clamp(min=0)).logits.log_softmax(
                -1
            )[0, 11:]
            values += [logp[len(tree.trunk) + i - 1, t] for i, t in enumerate(b.tokens)]
    torch.testing.assert_close(right, torch.stack(values), rtol=1e-5, atol=2e-6)


def test_a_long_trunk_makes_no_square_mask():
    """8,000 tokens of one trunk: the masks together stay below 1/20 of a square one."""
    batch = TreeBatch.of([Tree(trunk=tuple(range(3, 8003)), branches=(branch((2,)), branch((2, 3))))])
    layout = attention.Layout.of(batch, torch.float32)
    assert sum(block.tail.numel() for block in layout.blocks) < 8003**2 / 20


@pytest.mark.parametrize("block", [8, 40, 384])
@pytest.mark.parametrize("beginning", [0, 20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fused_attention_says_what_scores_say(block, beginning, dtype):
    """Long and short trees, whole and in pieces, with and without a common beginning; a window as long as the row hides nothing."""
    trees = [replace(t, trunk=tuple(range(40, 40 + beginning)) + t.trunk) for t in random_trees(9, branches=3, longest=60)]
    batch = TreeBatch.of(trees)
    layout = attention.Layout.of(batch, dtype, block)
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randn(len(batch.tokens), heads, 16, generator=generator).to(dtype) for heads in (6, 2, 2)]
    fused, nearly = (attention._TreeAttention.apply(*rows, layout, 0.25, window, None) for window in (None, layout.longest))
    assert torch.equal(fused, nearly)
    unfused = replace(layout, longest=layout.longest + 1)
    by_scores = attention._TreeAttention.apply(*rows, unfused, 0.25, layout.longest, None)
    assert layout.longest == int(batch.positions.max()) + 1
    tolerance = 2e-6 if dtype == torch.float32 else 3e-2
    torch.testing.assert_close(fused.float(), by_scores.float(), rtol=0, atol=tolerance)


TINY = {"vocab_size": 300, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
TINY |= {"num_key_value_heads": 2, "max_position_embeddings": 512, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
FAMILIES = {
    "llama": {},
    "qwen2": {},
    "qwen3": {"head_dim": 16},
    "mistral": {"sliding_window": 12},
    "gemma2": {"head_dim": 16, "sliding_window": 12, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0},
    "gemma3_text": {"head_dim": 16, "sliding_window": 12, "layer_types": ["sliding_attention", "full_attention"]},
    "phi": {},
    "phi3": {},
    "olmo2": {},
    "gpt2": {"n_embd": 64, "n_layer": 2, "n_head": 4},
    "gpt_neox": {},
}


def far_from_uniform(family: str, **settings: object) -> PreTrainedModel:
    """A tiny random model that is sure of its predictions, so that a mistake shows."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **{**TINY, **settings})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(5)
    return model


def both_ways(model: PreTrainedModel, log_probs: Callable[[], Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """Log-probabilities, and the gradients of a sum in which each counts differently."""
    model.zero_grad()
    values = log_probs()
    (values * torch.linspace(-1, 1, len(values))).sum().backward()
    return values.detach(), gradients(model)


def largest_gap(found: dict[str, Tensor], expected: dict[str, Tensor]) -> tuple[float, str]:
    """As `relative_gap`, but each parameter by its own largest entry: those of attention are small beside the embeddings'."""
    assert found.keys() == expected.keys()
    return max((relative_gap({name: found[name]}, {name: expected[name]}), name) for name in expected)


@pytest.mark.parametrize("beginning", [0, 20])
@pytest.mark.parametrize("family", FAMILIES)
def test_these_families_run_as_trees_with_their_own_numbers_and_gradients(family, beginning):
    """In small blocks and large ones, with and without a common beginning, longer than the window where there is one."""
    own = far_from_uniform(family, **FAMILIES[family])
    trees = [replace(t, trunk=tuple(range(40, 40 + beginning)) + t.trunk) for t in random_trees(5, branches=3, longest=30)]
    batch = TreeBatch.of(trees)
    assert int(batch.positions.max()) > 2 * FAMILIES[family].get("sliding_window", 0)
    found = probe(copy.deepcopy(own))
    assert found.reason_for_plain is None
    expected, slopes = both_ways(own, lambda: own_log_probs(own, trees))
    model = found.policy.model
    for layout, block in (("tree", 16), ("tree", attention.BLOCK), ("plain", attention.BLOCK)):
        model.set_attn_implementation(attention.NAME if layout == "tree" else "eager")
        policy = Policy(model, layout=layout, block=block)
        values, mine = both_ways(model, lambda policy=policy: policy.log_probs(batch))
        torch.testing.assert_close(values, expected, rtol=1e-5, atol=1e-5)
        gap, name = largest_gap(mine, slopes)
        assert gap < 1e-5, (layout, block, name)


WIDE = 48
"""A window that no tree of the probe fills."""
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32}
WINDOWED = {
    "mistral": {},
    "phimoe": {"num_local_experts": 4},
    "qwen2_moe": {**EXPERTS, "use_sliding_window": True},
    "doge": {"head_dim": 16},
    "olmoe": {**EXPERTS},
}


@pytest.mark.parametrize("family", WINDOWED)
def test_trap_20_a_sliding_window_holds_whether_layers_are_told_of_it_or_only_their_masks_are(family):
    """phimoe, qwen2_moe and doge tell the mask alone, olmoe the layer alone, whose own mask then has none.

    The experts of a mixture round by how many tokens they get, so the probe, which asks for equal bits, may well refuse trees.
    """
    model = far_from_uniform(family, sliding_window=WIDE, **WINDOWED[family])
    with torch.no_grad():
        trees = [replace(tree, trunk=tuple(range(40, 40 + WIDE)) + tree.trunk) for tree in random_trees(4, longest=30)]
        found = probe(model)
        if family in ("doge", "olmoe"):
            assert found.policy.layout == "plain"
            assert "mask" in found.reason_for_plain
        else:
            model.set_attn_implementation(attention.NAME)
            values = Policy(model, layout="tree").log_probs(TreeBatch.of(trees))
            torch.testing.assert_close(values, own_log_probs(model, trees), rtol=1e-4, atol=1e-4)
        model.set_attn_implementation(attention.NAME if found.policy.layout == "tree" else "eager")
        values = found.policy.log_probs(TreeBatch.of(trees))
        torch.testing.assert_close(values, own_log_probs(model, trees), rtol=1e-4, atol=1e-4)


def far_reaching(kind: str):
    """A tiny Llama of 64 positions whose RoPE changes beyond them."""
    factors = {"short_factor": [1.0] * 8, "long_factor": [4.0] * 8, "original_max_position_embeddings": 64}
    more = factors if kind == "longrope" else {"factor": 4.0}
    rope = {"rope_type": kind, "rope_theta": 10000.0, **more}
    positions = 256 if kind == "longrope" else 64
    torch.manual_seed(0)
    config = AutoConfig.for_model("llama", **{**TINY, "max_position_embeddings": positions, "rope_parameters": rope})
    return AutoModelForCausalLM.from_config(config).eval()


@pytest.mark.parametrize("kind", ["longrope", "dynamic"])
@pytest.mark.parametrize("layout", ["tree", "plain"])
def test_trap_20_a_long_neighbour_does_not_switch_the_frequencies_of_rope(kind, layout):
    """transformers chooses them by the longest row of a batch: such a batch is refused, up to the limit it is computed."""
    found = as_trees(far_reaching(kind))
    if layout == "plain":
        found.model.set_attn_implementation("eager")
        found = Policy(found.model, layout="plain")
    assert found.reach == 64
    short, fits = random_trees(2), Tree(trunk=tuple(range(3, 60)), branches=(branch(range(7)), branch(range(3))))
    beyond = Tree(trunk=fits.trunk, branches=(branch(range(8)), branch(range(3))))
    with torch.no_grad():
        alone = found.log_probs(TreeBatch.of(short))
        together = found.log_probs(TreeBatch.of([*short, fits]))
        torch.testing.assert_close(together[: len(alone)], alone, rtol=1e-5, atol=1e-5)
        with pytest.raises(ValueError, match=r"65 tokens of prompt and response: past 64 .* data.max_tokens=64"):
            found.log_probs(TreeBatch.of([*short, beyond]))
        torch.testing.assert_close(alone, own_log_probs(found.model, short), rtol=1e-5, atol=1e-5)


def test_rope_whose_frequencies_are_fixed_has_no_limit():
    assert Policy(make_tiny_llama(), layout="plain").reach is None
    gemma = AutoConfig.for_model("gemma3_text", **{**TINY, "head_dim": 16})
    assert set(gemma.rope_parameters) == {"full_attention", "sliding_attention"}
    assert reach_of(gemma) is None
    gemma.rope_parameters["full_attention"] |= {"rope_type": "dynamic", "factor": 2.0}
    assert reach_of(gemma) == 512


@pytest.mark.parametrize(("family", "extra"), [("falcon", {}), ("mamba", {"state_size": 8})])
def test_other_families_fall_back_to_the_plain_layout_with_a_reason_and_the_same_numbers(family, extra):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **{**TINY, **extra})).eval()
    found = probe(model)
    assert found.policy.layout == "plain"
    assert found.reason_for_plain
    trees = random_trees(4)
    with torch.no_grad():
        values = found.policy.log_probs(TreeBatch.of(trees))
        alone = own_log_probs(model, trees)
    torch.testing.assert_close(values, alone, rtol=1e-4, atol=1e-5)


def test_a_run_that_falls_back_says_so_once_and_why(
    zygote: Zygote, pairs_file: Path, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("falcon", **TINY)).eval()
    model.save_pretrained(tmp_path / "falcon")
    tiny_tokenizer.save_pretrained(tmp_path / "falcon")
    settings = [f"model={tmp_path / 'falcon'}", f"data.path={pairs_file}", f"run={tmp_path / 'run'}", "dtype=fp32", "max_steps=1"]
    quick = ["data.rows=2", "batch_size=2", "data.held_out_share=0", "evaluate_every=0"]
    log = tmp_path / "log"
    assert zygote(["train", "dpo", *settings, *quick], log) == [0], log.read_text()
    assert log.read_text().count(f"runs in the plain layout: {probe(model).reason_for_plain}") == 1


def test_the_probe_finds_a_leak_between_siblings(monkeypatch):
    """With every earlier token visible, the numbers are off and the model runs plain."""
    monkeypatch.setattr(attention, "_within", lambda span, slots: torch.full((slots, slots), float("-inf")).triu(1))
    found = probe(make_tiny_llama())
    assert found.policy.layout == "plain"
    assert found.reason_for_plain


def test_results_do_not_depend_on_the_packing():
    model = as_trees(make_tiny_llama(seed=7))
    trees = random_trees(9)
    together = model.response_log_probs(TreeBatch.of(trees))
    for budget in (1, 60, 200):
        apart = torch.empty_like(together)
        for group in pack(trees, budget):
            for tree, pair in zip(group, model.response_log_probs(TreeBatch.of(group)).view(-1, 2), strict=True):
                apart[2 * tree.key : 2 * tree.key + 2] = pair
        torch.testing.assert_close(apart, together, rtol=1e-5, atol=1e-5)


def test_a_model_without_chunkable_head_uses_its_own_logits(monkeypatch):
    """A head that scales its logits in a way nobody told us of is found out by its numbers."""
    model = make_tiny_llama()
    forward = model.forward

    def scaled(*args, **kwargs):
        out = forward(*args, **kwargs)
        out.logits = out.logits * 1.7
        return out

    monkeypatch.setattr(model, "forward", scaled)
    found = probe(model)
    assert not found.policy.chunked_head
    trees = random_trees(2)
    expected = torch.cat([found.policy.log_probs(TreeBatch.of([t])) for t in trees])
    torch.testing.assert_close(found.policy.log_probs(TreeBatch.of(trees)), expected, rtol=1e-5, atol=1e-5)
    assert policy.PROBE_TOLERANCE < 1e-3


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("layout", ["tree", "plain"])
def test_computing_again_changes_no_number_and_keeps_less(layout, lora):
    trees = random_trees(5)
    batch, found = TreeBatch.of(trees), []
    for above in (None, 0, 10**6):
        model = tiny_policy(lora=lora)
        if layout == "plain":
            model.model.set_attn_implementation("sdpa")
            model = Policy(model.model, layout="plain")
        model.recompute_above = above
        model.eval()
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, kept=kept: kept.append(t.numel()) or t, lambda t: t):
            values = model.log_probs(batch)
        values.square().sum().backward()
        found.append((values.detach(), gradients(model), sum(kept)))
        assert not any(module.training for module in model.modules())
    for values, grads, _ in found[1:]:
        assert torch.equal(values, found[0][0])
        assert relative_gap(grads, found[0][1]) < 1e-6
    assert found[1][2] < 0.7 * found[0][2]
    assert found[2][2] == found[0][2]


def test_what_is_computed_again_is_computed_under_the_adapter_of_the_first_time():
    """Policy and critic on one base: both passes go forward before either goes back."""
    found = []
    for above in (None, 0):
        model = tiny_policy(lora=True)
        add_lora(model.model, LoRA(rank=2), seed=7, name=CRITIC)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:  # else both adapters are the identity, and nothing could tell them apart
                    parameter.add_(0.1)
        model.recompute_above = above
        critic, batch = ValueModel(model, adapter=CRITIC), TreeBatch.of(random_trees(4))
        torch.nn.init.ones_(critic.head.weight)
        (model.log_probs(batch).square().sum() + critic.values(batch).square().sum()).backward()
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        assert {name for name in trained if f".{CRITIC}." in name}
        found.append({name: p.grad.clone() for name, p in trained.items()})
    assert found[0].keys() == found[1].keys()
    assert relative_gap(found[1], found[0]) < 1e-6
