"""The table of what is measured: each row one piece of work that Truing does, and a peer where one can do the same."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

HEAD_NOTE = "TRL computes the LM head for all positions on CPU: its path for scored positions alone needs Triton"
TWICE_NOTE = "TRL computes the prompt once for each response, and pads every sequence of a batch to the longest"
LOGITS_NOTE = "TRL's experimental trainers hold the logits of all positions at once"
HEADS_NOTE = "each side begins with a random reward head of its own, so the losses of the steps are not the same"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Example: `Row(method="dpo", trainer="dpo", data="hh", rows=20, batch=4, unit="pairs", passes="reference")`."""

    method: str
    """What `truing train` is told to train."""
    trainer: str | None
    """The peer's trainer, by its name in `benchmarks.trl_side` (Soup has one, `dpo`); None where Truing is measured alone."""
    data: str
    """Where the rows come from, by its name in `benchmarks.prepare`."""
    rows: int
    """How many rows are trained on, in one epoch."""
    batch: int
    """Rows of one optimizer step."""
    unit: str
    """What is counted per second."""
    passes: Literal["reference", "policy", "feedback"] = "policy"
    """What is read without gradient: by the reference, nothing, or by the reference and KTO's mismatched answers too."""
    head: bool = True
    """Whether scored tokens pass through the LM head; a reward model has none."""
    dtype: Literal["bf16", "fp32"] = "bf16"
    """Dtype of the weights on both sides."""
    epochs: int = 1
    """Passes over the rows."""
    max_tokens: int = 1024
    """Longest prompt with response; only rows that fit uncut are taken."""
    prompt_tokens: int | None = None
    """Length to which every prompt is brought by text before it; None leaves prompts as they are."""
    settings: tuple[str, ...] = ()
    """Further settings of `truing train`."""
    needs: tuple[str, ...] = ()
    """Settings of the method without which this version of Truing cannot do the row."""
    program: Literal["trl", "soup"] = "trl"
    """Whose trainer the peer's is; each has an environment of its own."""
    peer: Mapping[str, object] = field(default_factory=dict)
    """Further settings of the peer's trainer."""
    target: str = ""
    """What is to be reached."""
    notes: tuple[str, ...] = ()
    """Where the two sides do not do the same, and whom that helps."""


def _hh(**changes: object) -> Row:
    """DPO of multi-turn HH pairs, with what a row does otherwise."""
    same: dict[str, object] = {
        "method": "dpo",
        "trainer": "dpo",
        "data": "hh",
        "rows": 20,
        "batch": 4,
        "unit": "pairs",
        "passes": "reference",
        "notes": (HEAD_NOTE, TWICE_NOTE),
    }
    return Row(**(same | changes))  # type: ignore[arg-type]


LORA = {"r": 16, "lora_alpha": 32, "lora_dropout": 0.0, "target_modules": "all-linear"}

ROWS: dict[str, Row] = {
    "dpo-hh": _hh(target="5.5x, at most 0.45x the memory (fp32 masters)"),
    "dpo-hh-stochastic": _hh(
        settings=("optimizer.rounding=stochastic",),
        needs=("optimizer.rounding",),
        target="5.5x, at most 0.35x the memory (stochastic rounding)",
    ),
    "dpo-hh-fp32": _hh(dtype="fp32", target="4x, at most 0.4x the memory"),
    "dpo-hh-precomputed": _hh(
        peer={"precompute_ref_log_probs": True},
        target="none: the peer with reference log-probabilities computed beforehand, which spares it the second model",
    ),
    "dpo-rasbt": _hh(data="rasbt", rows=80, batch=8, target="3x, at most 0.5x the memory"),
    "dpo-lora": _hh(settings=("lora.rank=16",), peer={"lora": LORA}, target="5x, at most 0.35x the memory"),
    "dpo-lora-soup": _hh(
        dtype="fp32",
        settings=("lora.rank=16",),
        program="soup",
        peer={"lora": LORA},
        target="none: beside Soup, which trains adapters through TRL 0.29",
        notes=("TRL 0.29, beneath Soup, computes the LM head for all positions", TWICE_NOTE),
    ),
    "dpo-second-epoch": _hh(trainer=None, epochs=2, target="second epoch at most 0.8x the time of the first", notes=()),
    "memory-8k": _hh(trainer=None, rows=1, batch=1, max_tokens=8192, prompt_tokens=8000, target="at most 4 GB", notes=()),
    "reward-hh": _hh(
        method="reward_model", trainer="reward", passes="policy", head=False, notes=(TWICE_NOTE, HEADS_NOTE), target="3x"
    ),
    "reward-rankings": _hh(
        method="reward_model",
        trainer="reward",
        data="rankings",
        rows=16,
        unit="rankings",
        passes="policy",
        head=False,
        peer={"gradient_accumulation": True},
        target="10x",
        notes=(
            TWICE_NOTE,
            HEADS_NOTE,
            "RewardTrainer knows pairs only, so each ranking of k answers becomes k (k - 1) / 2 pairs; it takes 4 pairs at once "
            "and accumulates, so that it makes as many optimizer steps",
        ),
    ),
    "kto-hh": _hh(
        method="kto",
        trainer="kto",
        data="hh_feedback",
        unit="answers",
        passes="feedback",
        target="3.5x",
        notes=(HEAD_NOTE, "TRL computes the matched and the mismatched answer of a prompt apart, each with the prompt"),
    ),
    "simpo-hh": _hh(
        method="simpo",
        trainer="cpo",
        passes="policy",
        settings=("loss.beta=2.0", "loss.gamma=1.0"),
        peer={"loss_type": "simpo", "cpo_alpha": 0.0, "beta": 2.0, "simpo_gamma": 1.0},
        target="3.5x",
        notes=(LOGITS_NOTE, TWICE_NOTE),
    ),
    "orpo-hh": _hh(
        method="orpo",
        trainer="orpo",
        passes="policy",
        target="3.5x",
        notes=(LOGITS_NOTE, TWICE_NOTE, "TRL's likelihood term is over prompt and response, Truing's over the response alone"),
    ),
    "cpo-hh": _hh(method="cpo", trainer="cpo", passes="policy", target="3.5x", notes=(LOGITS_NOTE, TWICE_NOTE)),
    "sft-mixed": _hh(
        method="sft",
        trainer="sft",
        data="demonstrations",
        rows=64,
        batch=16,
        unit="demonstrations",
        passes="policy",
        target="3x",
        notes=(HEAD_NOTE, "TRL pads every demonstration of a batch to the longest"),
    ),
    "sft-mixed-packed": _hh(
        method="sft",
        trainer="sft",
        data="demonstrations",
        rows=64,
        batch=16,
        unit="demonstrations",
        passes="policy",
        peer={"packing": True},
        target="1.5x",
        notes=(
            HEAD_NOTE,
            "TRL packs before it makes batches, so its steps hold other demonstrations; it gets as many packs a step as make the "
            "same number of steps",
        ),
    ),
}
"""Row -> work, in the order in which all of them run. The data side and the growth of cost are `benchmarks.growth`."""
