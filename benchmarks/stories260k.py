"""The 260K-parameter TinyStories model of llama2.c as a Hugging Face folder: a real model on which a run of RL takes seconds.

    python -m benchmarks.stories260k SOURCE FOLDER

SOURCE holds stories260K.bin (the format without a version: seven integers, then fp32) and tok512.bin. A story ends where the next
would begin: the token `<s>` is both its beginning and its end.
"""

import json
import struct
import sys
from pathlib import Path

import numpy as np
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

UNKNOWN, BEGIN, END = "<unk>", "<s>", "</s>"


def read_model(path: Path) -> LlamaForCausalLM:
    """The weights, in the order in which llama2.c writes them."""
    raw = path.read_bytes()
    width, hidden, layers, heads, kv_heads, vocabulary, longest = struct.unpack("7i", raw[:28])
    numbers = torch.from_numpy(np.frombuffer(raw, dtype=np.float32, offset=28).copy())
    at, head = 0, width // heads

    def take(*shape: int) -> Tensor:
        nonlocal at
        count = int(np.prod(shape))
        at += count
        return numbers[at - count : at].view(*shape)

    embedding, norm1 = take(abs(vocabulary), width), take(layers, width)
    query, key = take(layers, width, width), take(layers, kv_heads * head, width)
    value, out = take(layers, kv_heads * head, width), take(layers, width, width)
    norm2, gate, down, up = (
        take(layers, width),
        take(layers, hidden, width),
        take(layers, width, hidden),
        take(layers, hidden, width),
    )
    final = take(width)
    assert vocabulary > 0, "a negative size would say that the head is not tied"
    state = {"model.embed_tokens.weight": embedding, "model.norm.weight": final, "lm_head.weight": embedding}
    for i in range(layers):
        name = f"model.layers.{i}."
        state |= {
            f"{name}input_layernorm.weight": norm1[i],
            f"{name}post_attention_layernorm.weight": norm2[i],
            f"{name}self_attn.q_proj.weight": _halves(query[i], heads),
            f"{name}self_attn.k_proj.weight": _halves(key[i], kv_heads),
            f"{name}self_attn.v_proj.weight": value[i],
            f"{name}self_attn.o_proj.weight": out[i],
            f"{name}mlp.gate_proj.weight": gate[i],
            f"{name}mlp.down_proj.weight": down[i],
            f"{name}mlp.up_proj.weight": up[i],
        }
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=longest,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=1,
        pad_token_id=1,
    )
    model = LlamaForCausalLM(config).float().eval()
    model.load_state_dict(state)
    return model


def _halves(weight: Tensor, heads: int) -> Tensor:
    """Rotations of neighbouring pairs, as Meta's code has them, to those of halves, as transformers has them."""
    rows, columns = weight.shape
    return weight.view(heads, rows // heads // 2, 2, columns).transpose(1, 2).reshape(rows, columns)


def read_tokenizer(path: Path) -> PreTrainedTokenizerFast:
    """The 512 pieces with their scores as a byte-fallback BPE whose merges go by score; `<s>` is put before every text."""
    raw, at, scored = path.read_bytes(), 4, []
    while at < len(raw):
        score, length = struct.unpack("fi", raw[at : at + 8])
        scored.append((raw[at + 8 : at + 8 + length].decode("utf-8"), score))
        at += 8 + length
    names = [UNKNOWN, BEGIN, END] + [piece.replace(" ", "▁") for piece, _ in scored[3:]]
    vocabulary = {name: number for number, name in enumerate(names)}
    assert len(vocabulary) == len(names), "every piece has a name of its own"
    ranked = sorted(range(259, len(names)), key=lambda number: -scored[number][1])
    merges = [
        (names[number][:cut], names[number][cut:])
        for number in ranked
        for cut in range(1, len(names[number]))
        if names[number][:cut] in vocabulary and names[number][cut:] in vocabulary
    ]
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, unk_token=UNKNOWN, fuse_unk=True, byte_fallback=True))
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in (UNKNOWN, BEGIN, END)])
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{BEGIN} $A", special_tokens=[(BEGIN, 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BEGIN, eos_token=BEGIN, pad_token=BEGIN, unk_token=UNKNOWN, model_max_length=512
    )


def convert(source: Path, folder: Path) -> Path:
    """Writes the folder."""
    read_model(source / "stories260K.bin").save_pretrained(folder)
    read_tokenizer(source / "tok512.bin").save_pretrained(folder)
    return folder


if __name__ == "__main__":
    print(json.dumps({"folder": str(convert(Path(sys.argv[1]), Path(sys.argv[2])))}))
