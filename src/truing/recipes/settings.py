"""Settings that the recipes share: data, model, budget, optimizer, saving."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field

from truing.models.lora import LoRA
from truing.train.optim import Optimizer

OF_POLICIES = Optimizer(lr=3e-6, eps=1e-5, schedule="linear", warmup=0.0)
"""What policy optimisation begins with (Huang et al. 2024, arXiv 2403.17031): the defaults of other methods are not for it."""


@dataclass(frozen=True, kw_only=True)
class Data:
    """Example: `Data(path="pairs.jsonl")`."""

    path: str
    """A file (JSONL, JSON, CSV, TSV, Parquet, Arrow, also gzipped), a hub data set, or everyday (packaged); its format is found."""
    mapping: Mapping[str, str] = field(default_factory=dict)
    """Our column names to the file's, where they differ, such as {chosen: best}."""
    on_bad_row: Literal["stop", "skip"] = "stop"
    """Whether a broken row ends the run with a list, or is written to bad_rows.jsonl and left out."""
    held_out_by: str | None = None
    """A column by whose values rows are held out, such as topic; null holds out a share of the prompts."""
    held_out: tuple[str, ...] = ()
    """The values of that column that are held out."""
    held_out_share: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of prompts held out where no column is named; rows with the same prompt stay together."""
    rows: Annotated[int, Field(gt=0)] | None = None
    """Use only the first so many training rows; null uses all."""
    length_factor: Annotated[float, Field(gt=0)] | None = None
    """Drop pairs whose chosen answer has more than this many times the rejected one's words; customary 2; null keeps all."""
    max_tokens: Annotated[int, Field(gt=1)] = 1024
    """Longest prompt with response, in tokens; what is cut or dropped by it is counted."""
    truncate: Literal["response", "prompt"] = "response"
    """What gives way first: the end of the response, or the oldest turns of the prompt."""
    template: Literal["auto", "chat", "plain", "continue"] = "auto"
    """How conversations become text: the tokenizer's chat template, blank lines, or nothing between prompt and response."""
    cache: Path | None = None
    """A folder where tokenised data is kept for further runs and for continuing this one, and the reference's log-probabilities for
    further runs whose micro-batches are the same, as those of a sweep over a loss; null makes them anew."""


@dataclass(frozen=True, kw_only=True)
class Shared:
    """What every training recipe has."""

    method: str = ""
    """The method, in recipe files; on the command line it is named before the settings."""
    data: Data
    """What is learnt from."""
    model: str = "HuggingFaceTB/SmolLM2-135M-Instruct"
    """A folder (of a model or of a finished run) or a hub name."""
    run: Path | None = None
    """The run's folder; null means runs/<method>. The same command again continues it."""
    seed: int = 0
    """Seed of everything random: order, adapters, heads, samples."""
    dtype: Literal["auto", "fp32", "bf16"] = "auto"
    """Dtype of the weights; auto is bf16 where the machine computes in it, else fp32. bf16 has fp32 masters of trained weights."""
    lora: LoRA | None = None
    """Train low-rank adapters (`lora.rank=16`); null trains all weights."""
    epochs: Annotated[int, Field(gt=0)] = 1
    """Passes over the data."""
    max_steps: Annotated[int, Field(gt=0)] | None = None
    """Stop after so many optimizer steps, before the epochs are over; null does not."""
    batch_size: Annotated[int, Field(gt=0)] = 16
    """Prompts per optimizer step, over all ranks."""
    micro_tokens: Annotated[int, Field(gt=0)] = 2048
    """Tokens computed at once; memory grows with it, results do not change."""
    recompute: Literal["auto", "always", "never"] = "auto"
    """Keep only the layers' inputs and compute the rest again: a third more time, much less memory. auto: above 2 micro_tokens."""
    save_every: Annotated[int, Field(ge=0)] = 50
    """Steps between checkpoints; 0 saves only at the end and when stopped."""
    evaluate_every: Annotated[int, Field(ge=0)] = 50
    """Steps between held-out evaluations (also before the first and after the last step); 0 is never."""
    measure_before: bool = True
    """Measure held-out accuracy before training too, for the gain; costs one pass over the held-out rows."""
    strict: bool = False
    """Whether settings out of the ordinary (a skipped SFT, an unusual rate, too few pairs) are errors instead of warnings."""


def torch_dtype(name: Literal["auto", "fp32", "bf16"]) -> torch.dtype:
    """The dtype of the weights on this machine."""
    if name == "auto":
        fast = torch.cuda.is_bf16_supported() if torch.cuda.is_available() else torch.cpu._is_avx512_bf16_supported()
        return torch.bfloat16 if fast else torch.float32
    return torch.float32 if name == "fp32" else torch.bfloat16


def device() -> torch.device:
    """The GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


__all__ = ["OF_POLICIES", "Data", "Optimizer", "Shared", "device", "torch_dtype"]
