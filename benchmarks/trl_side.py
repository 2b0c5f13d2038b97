"""TRL's side of a measurement, as its user would call it. Runs in TRL's own environment and imports nothing of this project.

    python benchmarks/trl_side.py SPEC.json RESULT.json

What is timed is `trainer.train()`, and the pass of the reference where it is computed beforehand. Both sides get the same rows in
the same order, the same optimizer, rate and number of steps; TRL gets weights in the row's dtype, no gradient checkpointing, no
evaluation and no saving.
"""

import json
import resource
import sys
import time
from pathlib import Path

import torch
import transformers
import trl
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

PAIRS_AT_ONCE = 4
"""Where a step's rows would not fit at once."""


def trainer_of(name):
    """Trainer, its settings' class, and the class of the model."""
    if name == "cpo":
        from trl.experimental.cpo import CPOConfig, CPOTrainer

        return CPOTrainer, CPOConfig, AutoModelForCausalLM
    if name == "orpo":
        from trl.experimental.orpo import ORPOConfig, ORPOTrainer

        return ORPOTrainer, ORPOConfig, AutoModelForCausalLM
    known = {
        "dpo": (trl.DPOTrainer, trl.DPOConfig, AutoModelForCausalLM),
        "kto": (trl.KTOTrainer, trl.KTOConfig, AutoModelForCausalLM),
        "sft": (trl.SFTTrainer, trl.SFTConfig, AutoModelForCausalLM),
        "reward": (trl.RewardTrainer, trl.RewardConfig, AutoModelForSequenceClassification),
    }
    return known[name]


def batching(peer, rows, steps, packs):
    """Rows of one forward pass, and how many of those make an optimizer step."""
    if peer.get("packing"):
        return max(1, round(packs / steps)), 1
    of_step = -(-rows // steps)
    if peer.get("gradient_accumulation"):
        return PAIRS_AT_ONCE, -(-of_step // PAIRS_AT_ONCE)
    return of_step, 1


def count_tokens(model, counts):
    """Count the tokens that enter a model, with gradient and without."""

    def seen(_module, args):
        counts["trained" if torch.is_grad_enabled() else "read"] += args[0].numel()

    model.get_input_embeddings().register_forward_pre_hook(seen)


def now():
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def trained(trainer, counts, began, beforehand=0.0):
    """Train, timed, and what there is to say of it; `began` is when the process did."""
    start = now()
    trainer.train()
    seconds = now() - start
    history = [entry for entry in trainer.state.log_history if "loss" in entry]
    return {
        "seconds": seconds + beforehand,
        "parts": {"train": seconds, "reference beforehand": beforehand},
        "set_up_seconds": start - began - beforehand,
        "losses": [entry["loss"] for entry in history],
        "steps": trainer.state.global_step,
        "rows_at_once": trainer.args.per_device_train_batch_size,
        "tokens": counts,
        "peak_gb_trained": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
        "device_peak_gb": torch.cuda.max_memory_allocated() / 1e9 if torch.cuda.is_available() else None,
        "threads": torch.get_num_threads(),
        "versions": {"trl": trl.__version__, "torch": torch.__version__, "transformers": transformers.__version__},
    }


def main():
    spec = json.loads(Path(sys.argv[1]).read_text())
    began = time.perf_counter()
    peer = dict(spec["peer"])
    Trainer, Config, Model = trainer_of(spec["trainer"])
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[spec["dtype"]]
    tokenizer = AutoTokenizer.from_pretrained(spec["model"])
    torch.manual_seed(0)
    options = {"num_labels": 1} if spec["trainer"] == "reward" else {}
    model = Model.from_pretrained(spec["model"], dtype=dtype, **options)
    rows = [json.loads(line) for line in Path(spec["rows"]).read_text().splitlines()]
    steps_per_epoch = spec["steps"] // spec["epochs"]
    size, accumulated = batching(peer, len(rows), steps_per_epoch, spec["packs"])
    peer.pop("gradient_accumulation", None)
    lora = peer.pop("lora", None)
    more = {}
    if lora is not None:
        from peft import LoraConfig

        more["peft_config"] = LoraConfig(**lora)
    if spec["trainer"] == "sft" and not peer.get("packing"):
        peer["packing"] = False
    settings = Config(
        output_dir=spec["folder"],
        per_device_train_batch_size=size,
        gradient_accumulation_steps=accumulated,
        num_train_epochs=spec["epochs"],
        max_length=spec["max_tokens"],
        learning_rate=spec["lr"],
        lr_scheduler_type="constant",
        weight_decay=0.0,
        max_grad_norm=1.0,
        train_sampling_strategy="sequential",
        gradient_checkpointing=False,
        bf16=False,
        fp16=False,
        use_cpu=spec["device"] == "cpu",
        dataloader_pin_memory=spec["device"] == "cuda",
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        **peer,
    )
    beforehand = [0.0]
    counts = {"trained": 0, "read": 0}
    count_tokens(model, counts)
    if peer.get("precompute_ref_log_probs"):
        precompute = Trainer._precompute_ref_logps

        def timed(*args, **named):
            start = now()
            found = precompute(*args, **named)
            beforehand[0] += now() - start
            return found

        Trainer._precompute_ref_logps = timed
    trainer = Trainer(model=model, args=settings, train_dataset=Dataset.from_list(rows), processing_class=tokenizer, **more)
    if getattr(trainer, "ref_model", None) is not None:
        count_tokens(trainer.ref_model, counts)
    report = trained(trainer, counts, began, beforehand[0])
    Path(sys.argv[2]).write_text(json.dumps(report))


if __name__ == "__main__":
    main()
