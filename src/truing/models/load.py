"""Loading and saving: a tokenizer, a causal language model in the dtype asked for, its weights' hash, a folder to keep it in.

`load_causal` checks the folder before transformers opens it and the tensors once they are there; it needs no network after
`truing.models.resolve` has found the folder. Left out: heads, adapters, tree attention and checkpoints, which have their own files.
"""

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, cast

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import logging as transformers_logging

from truing.models.folder import Tensors, check_folder
from truing.models.resolve import TOKENIZER_FILES, resolve
from truing.runs.durable import adopt_folder, make_folder, remove, storage_errors

DROPOUT = re.compile(r"dropout|pdrop|(^|_)drop($|_)")
SLACK_ELEMENTS = 1 << 24
"""Buffers such as causal masks, which a model makes for itself and no file holds."""
HASH_THREADS = 4


def load_tokenizer(name_or_path: str | Path) -> PreTrainedTokenizerBase:
    """The fast tokenizer of a model; where it names no padding token, the end-of-turn token pads (masks come from lengths).

    Example: `load_tokenizer("HuggingFaceTB/SmolLM2-135M-Instruct").eos_token == "<|im_end|>"`.
    """
    folder = resolve(name_or_path)
    check_folder(folder)
    if not any((folder / file).is_file() for file in TOKENIZER_FILES):
        raise ValueError(
            f"{folder}: no tokenizer ({', '.join(TOKENIZER_FILES)}); copy the tokenizer's files of the base model there"
        )
    try:
        with _quiet():
            tokenizer = AutoTokenizer.from_pretrained(folder, use_fast=True, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # the tokenizers library raises nothing narrower for a malformed file
        raise ValueError(
            f"{folder}: the tokenizer cannot be read ({error}); copy the tokenizer's files of the base model there"
        ) from error
    if tokenizer.eos_token_id is None:
        raise ValueError(f"{folder}: the tokenizer has no end token (eos_token in tokenizer_config.json); answers could never end")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    rows = _vocabulary(json.loads((folder / "config.json").read_bytes()))
    highest = max(tokenizer.get_vocab().values())
    if rows is not None and highest >= rows:
        raise ValueError(
            f"{folder}: the tokenizer gives ids up to {highest}, the model knows only {rows} (vocab_size): not its tokenizer"
        )
    return tokenizer


def load_causal(name_or_path: str | Path, *, dtype: torch.dtype, device: torch.device | str = "cpu") -> PreTrainedModel:
    """The language model, in eval mode, without dropout and without a generation cache in its forward pass.

    Dropout is zero, so that policy and reference agree at step 0 in training mode too. Sampling passes `use_cache=True` itself.
    Example: `load_causal("HuggingFaceTB/SmolLM2-135M-Instruct", dtype=torch.float32)`.
    """
    folder = resolve(name_or_path)
    config = _config(folder, check_folder(folder))
    with _quiet():
        loaded: object = AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    model, found = cast("tuple[PreTrainedModel, Mapping[str, set[Any]]]", loaded)
    _check_complete(folder, model, found)
    _check_finite(folder, model)
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
    model.config.use_cache = False
    if not Path(name_or_path).expanduser().is_dir():
        model.name_or_path = model.config._name_or_path = str(
            name_or_path
        )  # a path of the cache would mean nothing on another machine
    cast(nn.Module, model).to(device)
    return model.eval()


def _config(folder: Path, tensors: Tensors) -> PreTrainedConfig:
    """The config with dropout at zero, of a known architecture that is not much larger than the weights on disk."""
    raw = json.loads((folder / "config.json").read_bytes())
    kind = raw.get("model_type")
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise ValueError(f"{folder / 'config.json'}: `model_type: {kind}` is not a causal language model that transformers knows")
    try:
        with _quiet():
            config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
            for part in (config, config.get_text_config()):
                for key, value in vars(part).items():
                    if DROPOUT.search(key) and isinstance(value, float):
                        setattr(part, key, 0.0)
            with torch.device("meta"):
                empty = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except (ValueError, TypeError, KeyError, AttributeError, ArithmeticError, RuntimeError, StrictDataclassError) as error:
        raise ValueError(f"{folder / 'config.json'}: no model can be made of it ({error})") from error
    empty.tie_weights()
    needed = sum(tensor.numel() for tensor in chain(empty.parameters(), empty.buffers()))
    if needed > 1.5 * tensors.elements + SLACK_ELEMENTS:
        raise ValueError(f"{folder / 'config.json'}: describes {needed:,} numbers, but the weights hold {tensors.elements:,}")
    return config


def _vocabulary(config: Mapping[str, object]) -> int | None:
    text = config.get("text_config")
    rows = config.get("vocab_size", text.get("vocab_size") if isinstance(text, dict) else None)
    return rows if isinstance(rows, int) else None


def _check_complete(folder: Path, model: PreTrainedModel, found: Mapping[str, set[Any]]) -> None:
    """Every parameter came from the file and everything in the file went somewhere; only a tied head may be absent."""
    tied = set(model.all_tied_weights_keys)
    problems = {
        "missing": sorted(found["missing_keys"] - tied),
        "not part of this architecture": sorted(found["unexpected_keys"]),
        "of another shape": sorted(f"{name} {list(disk)} for {list(own)}" for name, disk, own in found["mismatched_keys"]),
    }
    told = [
        f"{len(names)} {what} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
        for what, names in problems.items()
        if names
    ]
    if told:
        raise ValueError(f"{folder}: the weights do not fit config.json: {'; '.join(told)}. Is config.json that of these weights?")


def _check_finite(folder: Path, model: PreTrainedModel) -> None:
    for name, tensor in model.state_dict().items():
        # One sum is enough to prove that all is finite; huge finite values can overflow it, so a bad sum proves nothing yet.
        if tensor.is_floating_point() and not tensor.sum(dtype=torch.float32).isfinite() and not tensor.isfinite().all():
            bad = int((~tensor.isfinite()).sum())
            raise ValueError(
                f"{folder}: tensor {name} holds {bad} values that are NaN or infinite in {tensor.dtype}; the file is damaged"
            )


def weights_hash(weights: nn.Module | Mapping[str, Tensor]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of the parameters, in the order of their names: equal only for equal weights.

    A tied tensor counts once, under its first name. Example: `weights_hash(model)`, `weights_hash(adapter_tensors)`.
    """
    named = dict(weights.named_parameters()) if isinstance(weights, nn.Module) else weights
    names = sorted(named)
    with ThreadPoolExecutor(HASH_THREADS) as pool:  # hashlib lets other threads run while it works on large tensors
        digests = list(pool.map(lambda name: _digest(named[name]), names))
    total = hashlib.sha256()
    for name, digest in zip(names, digests, strict=True):
        total.update(json.dumps([name, str(named[name].dtype), list(named[name].shape), digest]).encode())
    return total.hexdigest()


def _digest(tensor: Tensor) -> str:
    plain = tensor.detach().cpu().contiguous().reshape(-1)
    return hashlib.sha256(plain.view(torch.uint8).numpy().data).hexdigest()


def save_model(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, *, extra: Mapping[str, bytes] | None = None
) -> None:
    """Write a folder that `load_causal` and any Hugging Face program can read; it appears whole or not at all.

    Its config says dropout 0, as the model was trained, and allows the generation cache again. An existing folder is not replaced.
    `extra` are further files by name, such as a reward head.
    """
    make_folder(folder.parent)
    # Staged by transformers, which knows how each architecture names its tensors on disk; made durable by our own writer.
    with storage_errors(folder):
        scratch = Path(tempfile.mkdtemp(prefix=f".tmp-{folder.name}-", dir=folder.parent))
        try:
            with _quiet(), _os_errors():
                model.save_pretrained(scratch)
                tokenizer.save_pretrained(scratch)
            path = scratch / "config.json"
            config = json.loads(path.read_bytes())
            if "use_cache" in config:
                config["use_cache"] = True
            path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
            for name, data in (extra or {}).items():
                (scratch / name).write_bytes(data)
            scratch.chmod(0o755)  # a temporary folder is for its owner alone
            adopt_folder(scratch, folder)
        finally:
            remove(scratch)


@contextmanager
def _os_errors() -> Iterator[None]:
    """The safetensors and tokenizers libraries tell a full disk in words only: "... (os error 28)"."""
    try:
        yield
    except Exception as error:
        number = re.search(r"\(os error (\d+)\)", str(error))
        if number is None or isinstance(error, OSError):
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1]))) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """transformers without progress bars and reports: what matters is raised as an error here."""
    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity(transformers_logging.CRITICAL)
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()
