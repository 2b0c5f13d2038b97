"""Supervised fine-tuning in one file: the model learns to give the answers that it is shown.

    loss = -(1/N) sum over the N answer tokens y_t of the batch of log pi(y_t | prompt, y_<t)

The end-of-turn token is an answer token, prompt tokens are not. (InstructGPT, Ouyang et al. 2022, arXiv 2203.02155, step 1.)

It leaves out, for the sake of being read: packing, micro-batches, several devices, mixed precision, adapters, conversations of
more than one turn, truncation, evaluation and resuming. The package does these; this file says what its numbers have to be.

    python examples/one_file/sft.py --model DIR --data pairs.csv --steps 10 --out sft-model

DIR is a Hugging Face model folder. The data is a CSV with the columns prompt,good_answer (a column bad_answer is not used here)
or JSONL with the keys prompt, chosen.
"""

import argparse
import csv
import json
import math
import random
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

Example = tuple[
    Sequence[int], Sequence[Sequence[int]]
]  # (context ids, [answer ids]): one answer here, two or more in the other files


def read_rows(path: str) -> list[dict[str, str]]:
    """Rows with the keys prompt and chosen, from CSV or JSONL."""
    with Path(path).open(encoding="utf-8-sig", newline="") as file:
        raw = list(csv.DictReader(file)) if path.endswith(".csv") else [json.loads(line) for line in file if line.strip()]
    rows = []
    for number, row in enumerate(raw, 1):
        found = {"prompt": row.get("prompt"), "chosen": row.get("good_answer", row.get("chosen"))}
        for key, text in found.items():
            if not isinstance(text, str) or not text.strip():
                raise ValueError(f"{path}, row {number}: no text for {key}. Columns: prompt,good_answer. Fill or drop the row.")
        rows.append(found)
    return rows


def encode(tokenizer: PreTrainedTokenizerBase, row: dict[str, str]) -> Example:
    """Prompt and answer are tokenised apart: together, the last character of one may merge with the first of the other."""
    if tokenizer.chat_template:  # the template writes the start token; tokenising its text again would write a second one
        turn = [{"role": "user", "content": row["prompt"]}]
        context = tokenizer.apply_chat_template(turn, add_generation_prompt=True, return_dict=False)
    else:
        context = tokenizer(row["prompt"])["input_ids"]
    answer = tokenizer(row["chosen"], add_special_tokens=False)["input_ids"]
    return context, [[*answer, tokenizer.eos_token_id]]


def pad(examples: Sequence[Example], device: torch.device | str = "cpu") -> tuple[Tensor, Tensor, Tensor]:
    """ids, mask and scored, each [row, time] and one row per answer; filled up on the right, where no real token can look.

    Both masks come from the lengths. A mask made by `ids != pad_id` hides every real token that has the same id,
    and where the padding token is the end token the model never learns to stop.
    """
    rows = [(context, answer) for context, answers in examples for answer in answers]
    longest = max(len(context) + len(answer) for context, answer in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    mask, scored = torch.zeros_like(ids), torch.zeros(len(rows), longest, dtype=torch.bool)
    for i, (context, answer) in enumerate(rows):
        start, end = len(context), len(context) + len(answer)
        ids[i, :end] = torch.tensor([*context, *answer])
        mask[i, :end] = 1
        scored[i, start:end] = True
    return ids.to(device), mask.to(device), scored.to(device)


def loss_of(model: nn.Module, batch: Sequence[Example]) -> Tensor:
    """Negative log-likelihood of the answer tokens: one sum, divided once by their number in the whole batch."""
    ids, mask, scored = pad(batch, next(model.parameters()).device)
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits.float()  # [row, time, vocabulary]
    logps = logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None]).squeeze(-1)  # the logits at t say what stands at t + 1
    scored = scored[:, 1:]
    return -logps[scored].sum() / scored.sum()


def lr_at(step: int, *, lr: float, warmup_steps: int, total_steps: int, schedule: str) -> float:
    """Learning rate of a step counted from 0: lr (s+1)/warmup, then by p = (s-warmup)/max(1, total-warmup).

    linear: lr (1-p); cosine: lr (1+cos(pi p))/2; constant: lr.
    """
    if step < warmup_steps:
        return lr * (step + 1) / warmup_steps
    p = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return lr * {"linear": 1 - p, "cosine": 0.5 * (1 + math.cos(math.pi * p)), "constant": 1.0}[schedule]


def train(
    model: nn.Module,
    batches: Iterable[Sequence[Example]],
    *,
    lr: float,
    total_steps: int,
    warmup_steps: int = 0,
    schedule: str = "cosine",
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    max_grad_norm: float = 1.0,
    show: bool = False,
) -> list[dict[str, float]]:
    """One optimizer step per batch; each step's numbers, as they stood before its update.

    grad_norm is the global L2 norm before clipping; `max_grad_norm=math.inf` clips nothing. Weight decay acts on every parameter.
    """
    model.eval()  # switches dropout off and nothing else: gradients flow as ever
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, fused=False, foreach=False
    )
    history = []
    for step, batch in zip(range(total_steps), batches, strict=False):
        rate = lr_at(step, lr=lr, warmup_steps=warmup_steps, total_steps=total_steps, schedule=schedule)
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = loss_of(model, batch)
        optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm)
        optimizer.step()
        numbers = {"loss": loss.item(), "perplexity": math.exp(loss.item()), "grad_norm": norm.item(), "lr": rate}
        history.append(numbers)
        if show:
            print(f"step {step}", *(f"{key} {value:.4g}" for key, value in numbers.items()))
    return history


def batches_of(examples: Sequence[Example], size: int, seed: int) -> Iterator[Sequence[Example]]:
    """Epoch after epoch, each in a new order; the last batch of an epoch may be smaller."""
    shuffle = random.Random(seed)
    while True:
        order = shuffle.sample(examples, len(examples))
        for start in range(0, len(order), size):
            yield order[start : start + size]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="Hugging Face model folder")
    parser.add_argument("--data", required=True, help="CSV or JSONL file")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--batch", type=int, default=4, help="demonstrations per step")
    parser.add_argument("--lr", type=float, default=2e-5)
    parser.add_argument("--warmup", type=int, default=0, help="steps until the full learning rate")
    parser.add_argument("--schedule", choices=["cosine", "linear", "constant"], default="cosine")
    parser.add_argument("--seed", type=int, default=0, help="order of the rows")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", help="folder for the trained model")
    args = parser.parse_args(arguments)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).to(args.device)
    examples = [encode(tokenizer, row) for row in read_rows(args.data)]
    batches = batches_of(examples, args.batch, args.seed)
    train(model, batches, lr=args.lr, warmup_steps=args.warmup, total_steps=args.steps, schedule=args.schedule, show=True)
    if args.out:
        model.save_pretrained(args.out)
        tokenizer.save_pretrained(args.out)


if __name__ == "__main__":
    main()
