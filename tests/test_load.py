"""Loading, hashing and saving models: the tiny one made in code and, where marked, the packaged SmolLM2."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaForCausalLM, PreTrainedTokenizerFast

from conftest import make_tiny_llama
from truing.models.load import load_causal, load_tokenizer, save_model, weights_hash


@pytest.fixture
def folder(tiny_model_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model_folder, tmp_path / "model"))


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


# Loading


def test_the_loaded_model_is_the_saved_one_ready_to_score(tiny_model_folder: Path, tiny_llama: LlamaForCausalLM) -> None:
    model = load_causal(tiny_model_folder, dtype=torch.float32)
    assert isinstance(model, LlamaForCausalLM)
    assert not model.training
    assert model.config.use_cache is False
    assert model(torch.tensor([[1, 2]])).past_key_values is None
    assert all(parameter.requires_grad and parameter.dtype == torch.float32 for parameter in model.parameters())
    assert weights_hash(model) == weights_hash(tiny_llama)
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_the_dtype_is_the_one_asked_for_whatever_the_file_holds(tiny_model_folder: Path) -> None:
    assert {p.dtype for p in load_causal(tiny_model_folder, dtype=torch.bfloat16).parameters()} == {torch.bfloat16}


def test_loading_is_quiet_and_leaves_transformers_as_it_was(tiny_model_folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from transformers.utils import logging

    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    load_tokenizer(tiny_model_folder)
    load_causal(tiny_model_folder, dtype=torch.float32)
    assert capfd.readouterr() == ("", "")
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before


def test_trap_09_dropout_is_off_in_training_mode_too(folder: Path, tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    edit(folder / "config.json", attention_dropout=0.5)
    GPT2LMHeadModel(GPT2Config(vocab_size=300, n_positions=64, n_embd=32, n_layer=2, n_head=2, eos_token_id=2)).save_pretrained(
        tmp_path / "gpt2"
    )
    tokens = torch.arange(40)[None] + 5
    for path in (folder, tmp_path / "gpt2"):
        model = load_causal(path, dtype=torch.float32).train()
        assert torch.equal(model(tokens).logits, model(tokens).logits)
    assert {m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)} == {0.0}


def test_missing_and_foreign_weights_are_named(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["model.extra.weight"] = tensors.pop("model.norm.weight")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    told = r"1 missing \(model\.norm\.weight\); 1 not part of this architecture \(model\.extra\.weight\)"
    with pytest.raises(ValueError, match=told):
        load_causal(folder, dtype=torch.float32)


def test_weights_of_another_shape_are_named(folder: Path) -> None:
    edit(folder / "config.json", vocab_size=299)
    with pytest.raises(ValueError, match=r"of another shape \(.*embed_tokens\.weight \[300, 64\] for \[299, 64\]"):
        load_causal(folder, dtype=torch.float32)


def test_only_a_tied_head_may_be_missing(tmp_path: Path) -> None:
    make_tiny_llama(tie=False).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    assert weights_hash(load_causal(tmp_path, dtype=torch.float32)) == weights_hash(make_tiny_llama(tie=False))
    del tensors["lm_head.weight"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"1 missing \(lm_head\.weight\)"):
        load_causal(tmp_path, dtype=torch.float32)


def test_a_value_that_overflows_the_dtype_is_an_error(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"][0] = 1e30
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    load_causal(folder, dtype=torch.float32)
    with pytest.raises(ValueError, match=r"model\.norm\.weight holds 1 values that are NaN or infinite in torch\.float16"):
        load_causal(folder, dtype=torch.float16)


def test_huge_finite_values_whose_sum_overflows_are_fine(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"].fill_(3e38)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert load_causal(folder, dtype=torch.float32).state_dict()["model.norm.weight"].eq(3e38).all()


# The tokenizer


def test_the_tokenizer_keeps_its_special_tokens_and_template(tiny_model_folder: Path) -> None:
    tokenizer = load_tokenizer(tiny_model_folder)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 2)
    assert tokenizer("The kettle", return_attention_mask=False)["input_ids"][0] != 1
    assert "<|im_start|>" in str(tokenizer.chat_template)


def test_a_tokenizer_without_padding_pads_with_its_end_token(folder: Path) -> None:
    edit(folder / "tokenizer_config.json", pad_token=None)
    assert load_tokenizer(folder).pad_token_id == 2


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda f: (f / "tokenizer.json").unlink(), r"no tokenizer \(tokenizer\.json"),
        (lambda f: (f / "tokenizer.json").write_text("{}"), "the tokenizer cannot be read"),
        (lambda f: edit(f / "tokenizer_config.json", eos_token=None), "the tokenizer has no end token"),
        (lambda f: edit(f / "config.json", vocab_size=200), r"ids up to 299, the model knows only 200"),
    ],
)
def test_a_tokenizer_that_cannot_serve_says_why(spoil: Callable[[Path], object], reason: str, folder: Path) -> None:
    spoil(folder)
    with pytest.raises(ValueError, match=reason):
        load_tokenizer(folder)


# The hash


def test_the_hash_is_of_names_dtypes_shapes_and_bytes() -> None:
    ones = torch.ones(2, 3)
    digest = hashlib.sha256(ones.numpy().tobytes()).hexdigest()
    assert weights_hash({"a": ones}) == hashlib.sha256(json.dumps(["a", "torch.float32", [2, 3], digest]).encode()).hexdigest()
    others = [{"b": ones}, {"a": ones.view(3, 2)}, {"a": ones.view(torch.int32)}, {"a": ones + 1e-7}, {"a": ones, "b": ones}, {}]
    assert len({weights_hash(other) for other in [{"a": ones}, *others]}) == 7


def test_the_hash_ignores_order_layout_and_gradients() -> None:
    a, b = torch.randn(3, 4), torch.randn(4)
    assert weights_hash({"a": a, "b": b}) == weights_hash({"b": b.clone().requires_grad_(), "a": a.t().contiguous().t()})
    assert (
        len(weights_hash({"scalar": torch.tensor(1.0), "half": torch.ones(3, dtype=torch.bfloat16), "none": torch.ones(0)})) == 64
    )


# Saving


def test_a_saved_model_loads_back_the_same(
    tmp_path: Path, trainable_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    with torch.no_grad():
        trainable_llama.model.norm.weight.mul_(1.5)
    trainable_llama.config.use_cache = False
    final = tmp_path / "runs" / "model"
    save_model(trainable_llama, tiny_tokenizer, final)
    assert [path.name for path in final.parent.iterdir()] == ["model"]
    assert "lm_head.weight" not in load_file(final / "model.safetensors")
    assert weights_hash(load_causal(final, dtype=torch.float32)) == weights_hash(trainable_llama)
    assert load_tokenizer(final).get_vocab() == tiny_tokenizer.get_vocab()
    plain = AutoModelForCausalLM.from_pretrained(final)
    assert plain.config.use_cache is True
    tokens = torch.tensor([[1, 5, 9]])
    assert torch.equal(plain.eval()(tokens).logits, trainable_llama(tokens).logits)


def test_a_model_that_was_loaded_and_saved_is_unchanged(tiny_model_folder: Path, tmp_path: Path) -> None:
    save_model(load_causal(tiny_model_folder, dtype=torch.float32), load_tokenizer(tiny_model_folder), tmp_path / "again")
    assert load_tokenizer(tmp_path / "again").chat_template == load_tokenizer(tiny_model_folder).chat_template
    was, now = (json.loads((path / "config.json").read_text()) for path in (tiny_model_folder, tmp_path / "again"))
    assert was == now


def test_saving_replaces_no_model(tiny_llama: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    save_model(tiny_llama, tiny_tokenizer, tmp_path / "model")
    with pytest.raises(ValueError, match="is already written"):
        save_model(tiny_llama, tiny_tokenizer, tmp_path / "model")


# The real one


@pytest.mark.smollm2
def test_smollm2_says_paris(smollm2_folder: Path) -> None:
    tokenizer, model = load_tokenizer(smollm2_folder), load_causal(smollm2_folder, dtype=torch.float32)
    assert sum(p.numel() for p in model.parameters()) == 134_515_008
    tokens = tokenizer("The capital of France is", return_tensors="pt")
    said = model.generate(**tokens, max_new_tokens=2, do_sample=False, use_cache=True)
    assert tokenizer.decode(said[0]) == "The capital of France is Paris."


@pytest.mark.smollm2
def test_trap_02_smollm2_adds_no_bos_and_ends_turns_with_im_end(smollm2_folder: Path) -> None:
    tokenizer = load_tokenizer(smollm2_folder)
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token, tokenizer.unk_token) == (
        "<|im_start|>",
        "<|im_end|>",
        "<|im_end|>",
        "<|endoftext|>",
    )
    assert [tokenizer.convert_tokens_to_ids(token) for token in ("<|endoftext|>", "<|im_start|>", "<|im_end|>")] == [0, 1, 2]
    assert len(tokenizer) == 49_152
    assert tokenizer("The capital of France is")["input_ids"] == [504, 3575, 282, 4649, 314]
    text = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], add_generation_prompt=True, tokenize=False)
    system = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
    assert text == f"{system}<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer(text)["input_ids"].count(2) == 2


@pytest.mark.smollm2
def test_smollm2_digits_stand_alone_and_text_survives(smollm2_folder: Path) -> None:
    tokenizer = load_tokenizer(smollm2_folder)
    assert tokenizer.tokenize("x =   12") == ["x", "Ġ=", "ĠĠĠ", "1", "2"]
    for text in ("It's 3.14!\n\n  ok", "naïve café", "日本語", "\t7 \t 8", "a  b"):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
