"""The peers of `benchmarks.rounds`: TRL's trainers and transformers' generation, as their users would call them.

    python benchmarks/rounds_peer.py SPEC.json RESULT.json

Runs in the peer's own environment and imports nothing of this project. What is timed is `trainer.train()`, or the generation.
"""

import json
import resource
import sys
import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, GenerationConfig

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
ANSWERS_AT_ONCE = 8
"""Of a round of 32 answers of 464 tokens: one forward pass of all would hold the logits of 32 x 64 positions several times over."""

PAGE = 256
"""Tokens of a block of the cache of continuous batching, its default."""


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def common(spec, size):
    return {
        "output_dir": str(Path(spec["folder"]) / "theirs"),
        "per_device_train_batch_size": size,
        "learning_rate": spec["lr"],
        "lr_scheduler_type": "constant",
        "weight_decay": 0.0,
        "logging_steps": 1,
        "report_to": [],
        "bf16": False,
        "fp16": False,
        "use_cpu": True,
        "save_strategy": "no",
        "gradient_checkpointing": False,
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }


def ppo(spec, row, folder):
    """PPO with four models: policy, reference, reward and value model."""
    from datasets import Dataset
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    dtype = DTYPES[spec["dtype"]]
    tokenizer = AutoTokenizer.from_pretrained(spec["start"], padding_side="left")

    def causal():
        return AutoModelForCausalLM.from_pretrained(spec["start"], dtype=dtype)

    def scalar():
        return AutoModelForSequenceClassification.from_pretrained(spec["start"], num_labels=1, dtype=dtype)

    table = Dataset.from_list(lines(folder / "tokens.jsonl"))
    size = min(4, row["prompts"])
    settings = PPOConfig(
        **common(spec, size),
        gradient_accumulation_steps=row["prompts"] // size,
        num_mini_batches=1,
        total_episodes=row["prompts"] * row["rounds"],
        response_length=row["new_tokens"],
        num_ppo_epochs=row["epochs"],
        num_sample_generations=0,
        temperature=1.0,
        stop_token="eos",
    )
    said = [0]
    policy = causal()
    generate = policy.generate

    def counted(*args, **options):
        out = generate(*args, **options)
        said[0] += out.sequences.numel() - options["input_ids"].numel()
        return out

    policy.generate = counted
    trainer = PPOTrainer(
        args=settings,
        processing_class=tokenizer,
        model=policy,
        ref_model=causal(),
        reward_model=scalar(),
        value_model=scalar(),
        train_dataset=table,
        eval_dataset=table.select(range(2)),
    )
    return timed(trainer.train), said[0]


def groups(name, spec, row, folder):
    """RLOO or GRPO."""
    import trl
    from datasets import Dataset

    Trainer, Config = (trl.RLOOTrainer, trl.RLOOConfig) if name == "rloo" else (trl.GRPOTrainer, trl.GRPOConfig)
    tokenizer = AutoTokenizer.from_pretrained(spec["start"], padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(spec["start"], dtype=DTYPES[spec["dtype"]])
    answers, said = row["prompts"] * row["k"], [0]

    def window(completion_ids, **_):
        said[0] += sum(len(ids) for ids in completion_ids)
        return [max(0.0, 1.0 - max(0, len(ids) - row["new_tokens"] // 2) / 8) for ids in completion_ids]

    size = min(ANSWERS_AT_ONCE, answers)
    settings = Config(
        **common(spec, size),
        gradient_accumulation_steps=answers // size,
        num_generations=row["k"],
        max_completion_length=row["new_tokens"],
        max_steps=row["rounds"],
        beta=0.05 if name == "rloo" else 0.04,
        num_iterations=row["epochs"],
        temperature=1.0,
        max_grad_norm=1.0,
    )
    table = Dataset.from_list(lines(folder / "prompts.jsonl"))
    trainer = Trainer(model=model, args=settings, reward_funcs=window, train_dataset=table, processing_class=tokenizer)
    return timed(trainer.train), said[0]


def generation(name, spec, row, folder):
    """transformers alone: all answers in one batch, or its continuous batching."""
    tokenizer = AutoTokenizer.from_pretrained(spec["start"], padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(spec["start"], dtype=DTYPES[spec["dtype"]]).eval()
    asked = [one["input_ids"] for one in lines(folder / "tokens.jsonl")]
    end = tokenizer.eos_token_id
    settings = GenerationConfig(
        max_new_tokens=row["new_tokens"], do_sample=True, temperature=1.0, top_k=0, top_p=1.0, eos_token_id=end, pad_token_id=end
    )
    if name == "continuous":
        from transformers import ContinuousBatchingConfig

        every = [ids for ids in asked for _ in range(row["k"])]
        # left to itself it takes six tenths of the free memory; so many blocks hold all answers at once
        blocks = sum(-(-(len(ids) + row["new_tokens"]) // PAGE) for ids in every)
        room = ContinuousBatchingConfig(page_size=PAGE, num_blocks=blocks, max_batch_tokens=1024)
        with torch.no_grad():
            seconds, found = timed(
                lambda: model.generate_batch(inputs=every, generation_config=settings, continuous_batching_config=room), kept=True
            )
        return seconds, sum(len(one.generated_tokens) for one in found.values())
    settings.num_return_sequences = row["k"]
    batch = tokenizer.pad({"input_ids": asked}, return_tensors="pt")
    with torch.no_grad():
        seconds, found = timed(lambda: model.generate(**batch, generation_config=settings), kept=True)
    rows = found[:, batch["input_ids"].shape[1] :].tolist()
    return seconds, sum(ids.index(end) + 1 if end in ids else len(ids) for ids in rows)


def timed(function, kept=False):
    began = time.perf_counter()
    found = function()
    seconds = time.perf_counter() - began
    return (seconds, found) if kept else seconds


def main():
    spec = json.loads(Path(sys.argv[1]).read_text())
    row, folder, name = spec["row"], Path(spec["folder"]), spec["program"]
    torch.manual_seed(0)
    if name == "ppo":
        seconds, tokens = ppo(spec, row, folder)
    elif name in ("rloo", "grpo"):
        seconds, tokens = groups(name, spec, row, folder)
    else:
        seconds, tokens = generation(name, spec, row, folder)
    report = {
        "seconds": seconds,
        "tokens": tokens,
        "peak_gb_trained": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
        "threads": torch.get_num_threads(),
    }
    Path(sys.argv[2]).write_text(json.dumps(report))


if __name__ == "__main__":
    main()
