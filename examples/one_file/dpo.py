"""Direct preference optimisation in one file, with three relatives.

With pi the policy, ref a frozen copy of the model as it stood at the start, y_w the good answer and y_l the bad one:

    h    = log pi(y_w|x)/ref(y_w|x) - log pi(y_l|x)/ref(y_l|x)                   log-probs summed over the answer's tokens
    dpo  = -log sigmoid(beta h)                                                  Rafailov et al. 2023, arXiv 2305.18290, eq. 7
    cdpo = -(1-e) log sigmoid(beta h) - e log sigmoid(-beta h)                   Mitchell 2023: labels are wrong with probability e
    ipo  = (h' - 1/(2 beta))^2, h' as h but with means over the answer's tokens  Azar et al. 2023, arXiv 2310.12036, eq. 17
    aot  = -log sigmoid(beta (log pi(y_w|x)/pi(y_l|x) - log ref(y_w|x)/ref(y_l|x))), both sorted over the pairs of the batch
                                                                                 Melnyk et al. 2024, arXiv 2406.05882, section 3

and the mean over the pairs of the batch. IPO's beta is the paper's tau; the mean per token is its authors' later correction.

It leaves out, for the sake of being read: packing, micro-batches, several devices, mixed precision, adapters, stored reference
log-probs, conversations, truncation, evaluation and resuming. The package does these; this file says what its numbers have to be.

    python examples/one_file/dpo.py --model DIR --data pairs.csv --steps 10 --out dpo-model

DIR is a Hugging Face model folder, best the one that sft.py made. The data is a CSV with the columns
prompt,good_answer,bad_answer or JSONL with the keys prompt, chosen, rejected.
"""

import argparse
import copy
import csv
import json
import math
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

Example = tuple[Sequence[int], Sequence[Sequence[int]]]  # (context ids, [ids of the good answer, ids of the bad one])


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


def answer_logps(model: nn.Module, batch: Sequence[Example]) -> tuple[Tensor, Tensor]:
    """log pi(y|x) summed over the answer's tokens, and their number: both [pair, 2], the good answer first."""
    ids, mask, scored = pad(batch, next(model.parameters()).device)
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits.float()  # [row, time, vocabulary]
    logps = logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None]).squeeze(-1)  # the logits at t say what stands at t + 1
    scored = scored[:, 1:]
    return logps.masked_fill(~scored, 0.0).sum(1).view(-1, 2), scored.sum(1).view(-1, 2)


def pair_losses(policy: Tensor, reference: Tensor, lengths: Tensor, *, loss: str, beta: float, label_smoothing: float) -> Tensor:
    """The equations above: [pair, 2] log-probs and lengths -> [pair] losses."""
    ratios = policy - reference
    h = ratios[:, 0] - ratios[:, 1]
    if loss == "dpo":
        return -logsigmoid(beta * h)
    if loss == "cdpo":
        return -(1 - label_smoothing) * logsigmoid(beta * h) - label_smoothing * logsigmoid(-beta * h)
    if loss == "ipo":
        means = ratios / lengths
        return (means[:, 0] - means[:, 1] - 1 / (2 * beta)) ** 2
    if loss == "aot":
        margins = [(side[:, 0] - side[:, 1]).sort().values for side in (policy, reference)]
        return -logsigmoid(beta * (margins[0] - margins[1]))
    raise ValueError(f"loss {loss!r} is none of dpo, cdpo, ipo, aot")


def loss_of(
    model: nn.Module,
    reference: nn.Module,
    batch: Sequence[Example],
    *,
    loss: str = "dpo",
    beta: float = 0.1,
    label_smoothing: float = 0.1,
) -> tuple[Tensor, dict[str, float]]:
    """Mean over pairs, and the numbers worth watching. label_smoothing is read by cdpo alone.

    The implicit reward of an answer is beta times its summed log-ratio, for all four losses; margin and accuracy compare the two.
    """
    policy, lengths = answer_logps(model, batch)
    with torch.no_grad():
        fixed, _ = answer_logps(reference, batch)
    rewards = beta * (policy.detach() - fixed)
    numbers = {
        "accuracy": (rewards[:, 0] > rewards[:, 1]).float().mean().item(),
        "margin": (rewards[:, 0] - rewards[:, 1]).mean().item(),
    }
    for side, name in enumerate(("chosen", "rejected")):
        numbers[f"reward_{name}"] = rewards[:, side].mean().item()
        numbers[f"logp_{name}"] = policy[:, side].mean().item()
        numbers[f"length_{name}"] = lengths[:, side].float().mean().item()
    losses = pair_losses(policy, fixed, lengths, loss=loss, beta=beta, label_smoothing=label_smoothing)
    return losses.mean(), numbers


LossOf = Callable[..., tuple[Tensor, dict[str, float]]]


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
    reference: nn.Module | None = None,
    show: bool = False,
    loss_of: LossOf = loss_of,
    **method: str | float,
) -> list[dict[str, float]]:
    """One optimizer step per batch; each step's numbers, as they stood before its update.

    grad_norm is the global L2 norm before clipping; `max_grad_norm=math.inf` clips nothing. Weight decay acts on every parameter.
    method is loss, beta, label_smoothing, as in `loss_of` above, or what another `loss_of` takes. The reference is the model in
    memory as it is now, not whatever its name would load from disk, unless one is given. So the first loss is ln 2 (dpo, cdpo,
    aot) or 1/(2 beta)^2 (ipo).
    """
    model.eval()  # dropout off, else policy and reference differ from the first step; gradients flow as ever
    if reference is None:
        reference = copy.deepcopy(model).requires_grad_(False)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, fused=False, foreach=False
    )
    history = []
    for step, batch in zip(range(total_steps), batches, strict=False):
        rate = lr_at(step, lr=lr, warmup_steps=warmup_steps, total_steps=total_steps, schedule=schedule)
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss, numbers = loss_of(model, reference, batch, **method)
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


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What every method is told: where things are and how long to train."""
    parser.add_argument("--model", required=True, help="Hugging Face model folder")
    parser.add_argument("--data", required=True, help="CSV or JSONL file")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--batch", type=int, default=4, help="pairs per step")
    parser.add_argument("--lr", type=float, default=1e-6)
    parser.add_argument("--warmup", type=int, default=0, help="steps until the full learning rate")
    parser.add_argument("--schedule", choices=["cosine", "linear", "constant"], default="cosine")
    parser.add_argument("--seed", type=int, default=0, help="order of the rows")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", help="folder for the trained model")


def run(args: argparse.Namespace, loss_of: LossOf, method: dict[str, str | float]) -> None:
    """Read, train, save."""
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).to(args.device)
    examples = [encode(tokenizer, row) for row in read_rows(args.data)]
    batches = batches_of(examples, args.batch, args.seed)
    steps = {"warmup_steps": args.warmup, "total_steps": args.steps, "schedule": args.schedule}
    train(model, batches, lr=args.lr, show=True, loss_of=loss_of, **steps, **method)
    if args.out:
        model.save_pretrained(args.out)
        tokenizer.save_pretrained(args.out)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--loss", choices=["dpo", "cdpo", "ipo", "aot"], default="dpo")
    parser.add_argument("--beta", type=float, default=0.1, help="how dearly distance from the reference is paid for")
    parser.add_argument("--label-smoothing", type=float, default=0.1, help="cdpo: share of labels thought to be wrong")
    args = parser.parse_args(arguments)
    run(args, loss_of, {"loss": args.loss, "beta": args.beta, "label_smoothing": args.label_smoothing})


if __name__ == "__main__":
    main()
