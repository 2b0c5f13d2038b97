"""Soup's side of a measurement: its own DPO of adapters, set up by its wrapper. Runs in Soup's environment.

    python benchmarks/soup_side.py SPEC.json RESULT.json

What is timed is the wrapper's `trainer.train()`, as on TRL's side. Soup cuts prompts to half of the longest sequence, so it is told
twice that length; it draws the rows' order, and is told to keep it.
"""

import json
import sys
import time
from pathlib import Path

import torch
from soup_cli import __version__ as soup
from soup_cli.config.schema import SoupConfig
from soup_cli.trainer.dpo import DPOTrainerWrapper
from trl_side import count_tokens, trained


def main():
    spec = json.loads(Path(sys.argv[1]).read_text())
    began = time.perf_counter()
    rows = [json.loads(line) for line in Path(spec["rows"]).read_text().splitlines()]
    lora = spec["peer"]["lora"]
    config = SoupConfig(
        base=spec["model"],
        task="dpo",
        data={"train": spec["rows"], "format": "dpo", "max_length": 2 * spec["max_tokens"]},
        training={
            "epochs": spec["epochs"],
            "lr": spec["lr"],
            "batch_size": -(-len(rows) // (spec["steps"] // spec["epochs"])),
            "gradient_accumulation_steps": 1,
            "scheduler": "constant",
            "warmup_ratio": 0.0,
            "weight_decay": 0.0,
            "max_grad_norm": 1.0,
            "quantization": "none",
            "optimizer": "adamw_torch",
            "gradient_checkpointing": False,
            "logging_steps": 1,
            "lora": {
                "r": lora["r"],
                "alpha": lora["lora_alpha"],
                "dropout": lora["lora_dropout"],
                "target_modules": lora["target_modules"],
            },
        },
        output=spec["folder"],
    )
    wrapper = DPOTrainerWrapper(config, device=spec["device"])
    wrapper.setup({"train": rows})
    trainer = wrapper.trainer
    weight = trainer.model.get_input_embeddings().weight
    if weight.dtype != {"fp32": torch.float32, "bf16": torch.bfloat16}[spec["dtype"]]:
        raise SystemExit(f"Soup loaded the model in {weight.dtype}, and the row is in {spec['dtype']}")
    trainer.args.train_sampling_strategy = "sequential"
    trainer.args.save_strategy = "no"
    counts = {"trained": 0, "read": 0}
    count_tokens(trainer.model, counts)
    report = trained(trainer, counts, began)
    report["versions"]["soup-cli"] = soup
    Path(sys.argv[2]).write_text(json.dumps(report))


if __name__ == "__main__":
    main()
