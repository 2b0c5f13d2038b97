"""A reward model in one file: a language model with a scalar head learns which of two answers people prefer.

    loss = -log sigmoid(r(x, y_w) - r(x, y_l) - m)

(Bradley and Terry 1952; InstructGPT, Ouyang et al. 2022, arXiv 2203.02155, eq. 1; the margin m, where people said how much
better: Llama 2, Touvron et al. 2023, arXiv 2307.09288, eq. 2.) r is one linear layer on the final hidden state of the answer's
last real token, its end token. A ranking of k answers counts as all its k(k-1)/2 pairs: the mean over the pairs of a
ranking, then the mean over rankings, so that a long ranking weighs as much as a short one.

It leaves out, for the sake of being read: packing, micro-batches, several devices, mixed precision, adapters, conversations,
truncation, centring the scores, evaluation and resuming. The package does these; this file says what its numbers have to be.

    python examples/one_file/reward_model.py --model DIR --data pairs.csv --steps 10 --out reward-model

DIR is a Hugging Face model folder, best the one that sft.py made. The data is a CSV with the columns
prompt,good_answer,bad_answer or JSONL with the keys prompt, chosen, rejected. Rankings come in through `train`.
"""

import argparse
import csv
import itertools
import json
import math
import random
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import logsigmoid
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

Example = tuple[Sequence[int], Sequence[Sequence[int]]]  # (context ids, [answer ids, best first]): two answers or more


def read_rows(path: str) -> list[dict[str, str]]:
    """Rows with the keys prompt, chosen and rejected, from CSV or JSONL."""
    with Path(path).open(encoding="utf-8-sig", newline="") as file:
        raw = list(csv.DictReader(file)) if path.endswith(".csv") else [json.loads(line) for line in file if line.strip()]
    rows = []
    for number, row in enumerate(raw, 1):
        good, bad = row.get("good_answer", row.get("chosen")), row.get("bad_answer", row.get("rejected"))
        found = {"prompt": row.get("prompt"), "chosen": good, "rejected": bad}
        for key, text in found.items():
            if not isinstance(text, str) or not text.strip():
                raise ValueError(
                    f"{path}, row {number}: no text for {key}. Columns: prompt,good_answer,bad_answer. Fill or drop the row."
                )
        rows.append(found)
    return rows


def encode(tokenizer: PreTrainedTokenizerBase, row: dict[str, str]) -> Example:
    """Prompt and answers are tokenised apart: together, the last character of one may merge with the first of the other."""
    if tokenizer.chat_template:  # the template writes the start token; tokenising its text again would write a second one
        turn = [{"role": "user", "content": row["prompt"]}]
        context = tokenizer.apply_chat_template(turn, add_generation_prompt=True, return_dict=False)
    else:
        context = tokenizer(row["prompt"])["input_ids"]
    answers = [tokenizer(row[key], add_special_tokens=False)["input_ids"] for key in ("chosen", "rejected")]
    return context, [[*answer, tokenizer.eos_token_id] for answer in answers]


def pad(examples: Sequence[Example], device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """ids and mask, each [row, time] and one row per answer; filled up on the right, where no real token can look.

    The mask comes from the lengths. A mask made by `ids != pad_id` hides every real token that has the same id,
    and where the padding token is the end token the score would be read one token too early.
    """
    rows = [(context, answer) for context, answers in examples for answer in answers]
    longest = max(len(context) + len(answer) for context, answer in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for i, (context, answer) in enumerate(rows):
        end = len(context) + len(answer)
        ids[i, :end] = torch.tensor([*context, *answer])
        mask[i, :end] = 1
    return ids.to(device), mask.to(device)


class RewardModel(nn.Module):
    """The body of a language model, without its vocabulary, and a head of one number."""

    def __init__(self, language_model: nn.Module) -> None:
        super().__init__()
        self.body = language_model.base_model
        width = language_model.config.hidden_size
        self.head = nn.Linear(width, 1)
        nn.init.normal_(self.head.weight, std=1 / math.sqrt(width + 1))
        nn.init.zeros_(self.head.bias)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """[row, time] -> [row]: the score at each row's last real token."""
        hidden = self.body(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state.float()
        return self.head(hidden[torch.arange(len(ids), device=ids.device), mask.sum(1) - 1]).squeeze(-1)


def scores_of(model: nn.Module, batch: Sequence[Example]) -> list[Tensor]:
    """One [k] tensor per example, in the order of its answers."""
    flat = model(*pad(batch, next(model.parameters()).device))
    return list(flat.split([len(answers) for _, answers in batch]))


def loss_of(model: nn.Module, batch: Sequence[Example], margins: Sequence[float] | None = None) -> tuple[Tensor, dict[str, float]]:
    """Mean over pairs, then over rankings, and the numbers worth watching, weighted alike. margins: one per example, for pairs."""
    losses, rows = [], []
    for i, scores in enumerate(scores_of(model, batch)):
        better, worse = torch.triu_indices(len(scores), len(scores), offset=1)  # best first: i < j says that i won
        won, lost = scores[better], scores[worse]
        losses.append(-logsigmoid(won - lost - (margins[i] if margins else 0.0)).mean())
        columns = ((won > lost).float(), won - lost, won, lost)
        rows.append(torch.stack([column.detach().mean() for column in columns]))
    means = torch.stack(rows).mean(0).tolist()
    return torch.stack(losses).mean(), dict(zip(("accuracy", "margin", "reward_chosen", "reward_rejected"), means, strict=True))


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
    margins: Iterable[Sequence[float]] | None = None,
    show: bool = False,
) -> list[dict[str, float]]:
    """One optimizer step per batch; each step's numbers, as they stood before its update.

    grad_norm is the global L2 norm before clipping; `max_grad_norm=math.inf` clips nothing. Weight decay acts on every parameter.
    margins has an entry per batch. The head's bias cancels in every pair: its gradient is rounding noise, which Adam blows up to
    steps of up to lr, so two right implementations may part there and nowhere else.
    """
    model.eval()  # switches dropout off and nothing else: gradients flow as ever
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, fused=False, foreach=False
    )
    history = []
    margins = itertools.repeat(None) if margins is None else margins
    for step, batch, margin in zip(range(total_steps), batches, margins, strict=False):
        rate = lr_at(step, lr=lr, warmup_steps=warmup_steps, total_steps=total_steps, schedule=schedule)
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss, numbers = loss_of(model, batch, margin)
        optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm)
        optimizer.step()
        numbers = {"loss": loss.item(), **numbers, "grad_norm": norm.item(), "lr": rate}
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
    parser.add_argument("--batch", type=int, default=4, help="pairs per step")
    parser.add_argument("--lr", type=float, default=1e-5)
    parser.add_argument("--warmup", type=int, default=0, help="steps until the full learning rate")
    parser.add_argument("--schedule", choices=["cosine", "linear", "constant"], default="cosine")
    parser.add_argument("--seed", type=int, default=0, help="order of the rows and start of the head")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", help="folder for the trained model; the head goes to head.safetensors")
    args = parser.parse_args(arguments)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    torch.manual_seed(args.seed)
    model = RewardModel(AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)).to(args.device)
    examples = [encode(tokenizer, row) for row in read_rows(args.data)]
    batches = batches_of(examples, args.batch, args.seed)
    train(model, batches, lr=args.lr, warmup_steps=args.warmup, total_steps=args.steps, schedule=args.schedule, show=True)
    if args.out:
        model.body.save_pretrained(args.out)
        save_file(model.head.state_dict(), Path(args.out) / "head.safetensors")
        tokenizer.save_pretrained(args.out)


if __name__ == "__main__":
    main()
