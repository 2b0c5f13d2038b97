"""Fused norms and gated layers: the same numbers as the modules they stand in for, both ways, and nothing else replaced."""

import copy

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, Gemma2Config, LlamaConfig, Qwen3Config
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm

from truing.models.fused import fuse

SIZES = {"vocab_size": 64, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 2}
SIZES |= {"num_key_value_heads": 1, "head_dim": 12, "tie_word_embeddings": True}


def randn(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["norm", "gated"])
def test_values_and_gradients_equal_the_module(kind: str, dtype: torch.dtype) -> None:
    module = LlamaRMSNorm(24, eps=1e-5) if kind == "norm" else LlamaMLP(LlamaConfig(**SIZES))
    with torch.no_grad():
        for number, parameter in enumerate(module.parameters()):
            parameter.copy_(randn(*parameter.shape, seed=number) * 0.5)
    module = module.to(dtype)
    upstream, found = randn(1, 7, 24, seed=8).to(dtype), []
    for fused in (False, True):
        if fused:
            assert fuse(module) == 1
            assert fuse(module) == 0
        x = randn(1, 7, 24, seed=9).to(dtype).requires_grad_()
        y = module(x)
        gradients = torch.autograd.grad(y, [x, *module.parameters()], upstream)
        found.append([y.detach(), *gradients])
    for own, ours in zip(*found, strict=True):
        assert own.dtype == ours.dtype
        tolerance = 2e-6 if dtype == torch.float32 else 0.02
        assert (own - ours).abs().max() <= tolerance * own.abs().max()


def test_gradients_against_numerical_ones() -> None:
    from truing.models.fused import _GatedSiLU

    x, y = (randn(3, 5, seed=s).double().requires_grad_() for s in (0, 1))
    assert torch.autograd.gradcheck(_GatedSiLU.apply, (x, y))


def test_a_norm_that_multiplies_by_one_plus_its_weight_is_left_alone() -> None:
    model = AutoModelForCausalLM.from_config(Gemma2Config(**SIZES))
    assert fuse(model) == 0  # Gemma's norms are (1 + w), its gate is a GELU


def test_frozen_weights_get_no_gradient_and_head_norms_are_replaced_too() -> None:
    model = AutoModelForCausalLM.from_config(Qwen3Config(**SIZES))
    assert fuse(model) == 2 * (2 + 2 + 1) + 1  # two layers of two norms, two head norms and a gated layer; the last norm
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("o_proj" in name)
    model(input_ids=torch.arange(5)[None]).logits.sum().backward()
    assert all((parameter.grad is not None) == ("o_proj" in name) for name, parameter in model.named_parameters())


def test_a_module_that_is_no_gated_silu_layer_keeps_its_forward() -> None:
    class Other(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate_proj, self.up_proj, self.down_proj = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.down_proj(torch.tanh(self.gate_proj(x)) * self.up_proj(x))

    assert fuse(Other()) == 0


@pytest.mark.parametrize("kind", ["norm", "gated"])
def test_a_copy_has_weights_of_its_own(kind: str) -> None:
    """A reference that is a copy of the policy must not follow it."""
    module = LlamaRMSNorm(24) if kind == "norm" else LlamaMLP(LlamaConfig(**SIZES))
    fuse(module)
    x = randn(1, 3, 24, seed=0)
    copied, before = copy.deepcopy(module), module(x)
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.mul_(2)
    assert torch.equal(module(x), before)
    assert not torch.allclose(copied(x), before)
