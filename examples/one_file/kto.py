"""Kahneman-Tversky optimisation in one file, with two relatives: learning from single answers, each approved of or not.

With pi the policy, ref a frozen copy of the model as it stood at the start, an answer's log-ratio is

    r = log pi(y|x)/ref(y|x)                                        log-probs summed over the answer's tokens

    kto           lambda_D sigmoid(-beta (r - z))  for a desirable answer, lambda_U sigmoid(beta (r - z)) for an undesirable one,
                  z = max(0, mean of log pi(y'|x)/ref(y'|x) where y' answers another prompt of the batch), a constant
                                                                    Ethayarajh et al. 2024, arXiv 2402.01306, eq. 7
    bco           -log sigmoid(beta (r - d)) for a desirable answer, -log sigmoid(-beta (r - d)) for an undesirable one,
                  d the middle between both classes' mean log-ratios (moving averages over the steps), a constant
                                                                    Jung et al. 2024, arXiv 2404.04656
    aot_unpaired  mean over quantiles of -log sigmoid(beta (r_D - r_U)), the batch's desirable and undesirable log-ratios sorted
                                                                    Melnyk et al. 2024, arXiv 2406.05882, section 3

and for kto and bco the mean over the answers of the batch. A batch with one prompt only has no y': z is 0 there. A batch with one
class only has nothing to sort against: its aot_unpaired loss is 0.

It leaves out, for the sake of being read: packing, micro-batches, several devices, mixed precision, adapters, stored reference
log-probs, conversations, truncation, evaluation and resuming. The package does these; this file says what its numbers have to be.

    python examples/one_file/kto.py --model DIR --data feedback.jsonl --steps 10 --out kto-model

DIR is a Hugging Face model folder, best the one that sft.py made. The data is JSONL with the keys prompt, completion and label
(true or false), or a CSV with the columns prompt,completion,label.
"""

import argparse
import copy
import csv
import json
import math
import random
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

Example = tuple[Sequence[int], Sequence[int], bool]  # (context ids, answer ids, desirable)


def read_rows(path: str) -> list[dict[str, str | bool]]:
    """Rows with the keys prompt, completion and label, from CSV or JSONL."""
    with Path(path).open(encoding="utf-8-sig", newline="") as file:
        raw = list(csv.DictReader(file)) if path.endswith(".csv") else [json.loads(line) for line in file if line.strip()]
    rows = []
    for number, row in enumerate(raw, 1):
        label = {"true": True, "false": False}.get(str(row.get("label")).lower())
        texts = [row.get("prompt"), row.get("completion")]
        if label is None or not all(isinstance(text, str) and text.strip() for text in texts):
            raise ValueError(
                f"{path}, row {number}: it needs texts for prompt and completion, and label true or false. Fill or drop the row."
            )
        rows.append({"prompt": texts[0], "completion": texts[1], "label": label})
    return rows


def encode(tokenizer: PreTrainedTokenizerBase, row: dict[str, str | bool]) -> Example:
    """Prompt and answer are tokenised apart: together, the last character of one may merge with the first of the other."""
    if tokenizer.chat_template:  # the template writes the start token; tokenising its text again would write a second one
        turn = [{"role": "user", "content": row["prompt"]}]
        context = tokenizer.apply_chat_template(turn, add_generation_prompt=True, return_dict=False)
    else:
        context = tokenizer(row["prompt"])["input_ids"]
    answer = tokenizer(row["completion"], add_special_tokens=False)["input_ids"]
    return context, [*answer, tokenizer.eos_token_id], bool(row["label"])


def mismatched(batch: Sequence[Example]) -> list[Example]:
    """Each prompt with the answer of the next example that has another prompt, cyclically; none where all prompts are one."""
    found = []
    for i, (context, _, label) in enumerate(batch):
        others = [*batch[i + 1 :], *batch[:i]]
        found += [(context, answer, label) for other, answer, _ in others if list(other) != list(context)][:1]
    return found


def pad(examples: Sequence[Example], device: torch.device | str = "cpu") -> tuple[Tensor, Tensor, Tensor]:
    """ids, mask and scored, each [row, time]; filled up on the right, where no real token can look.

    Both masks come from the lengths. A mask made by `ids != pad_id` hides every real token that has the same id,
    and where the padding token is the end token the model never learns to stop.
    """
    longest = max(len(context) + len(answer) for context, answer, _ in examples)
    ids = torch.zeros(len(examples), longest, dtype=torch.long)
    mask, scored = torch.zeros_like(ids), torch.zeros(len(examples), longest, dtype=torch.bool)
    for i, (context, answer, _) in enumerate(examples):
        start, end = len(context), len(context) + len(answer)
        ids[i, :end] = torch.tensor([*context, *answer])
        mask[i, :end] = 1
        scored[i, start:end] = True
    return ids.to(device), mask.to(device), scored.to(device)


def answer_logps(model: nn.Module, batch: Sequence[Example]) -> Tensor:
    """log pi(y|x) summed over the answer's tokens: [answer]."""
    ids, mask, scored = pad(batch, next(model.parameters()).device)
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits.float()  # [row, time, vocabulary]
    logps = logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None]).squeeze(-1)  # the logits at t say what stands at t + 1
    return logps.masked_fill(~scored[:, 1:], 0.0).sum(1)


@torch.no_grad()
def baseline_of(model: nn.Module, reference: nn.Module, batch: Sequence[Example]) -> float:
    """z: an estimate of KL(pi || ref), from answers that nobody gave to these prompts."""
    others = mismatched(batch)
    if not others:
        return 0.0
    return max(0.0, (answer_logps(model, others) - answer_logps(reference, others)).mean().item())


def aot_loss(wanted: Tensor, other: Tensor, beta: float) -> Tensor:
    """Mean over quantiles, exactly: quantile functions are steps, so both change at multiples of one over n or m only."""
    n, m = len(wanted), len(other)
    if not n or not m:
        return 0.0 * (wanted.sum() + other.sum())
    wanted, other = wanted.sort().values, other.sort().values
    steps = sorted({i / n for i in range(n + 1)} | {j / m for j in range(m + 1)})
    parts = []
    for start, end in pairwise(steps):
        middle = (start + end) / 2
        parts.append((end - start) * -logsigmoid(beta * (wanted[int(middle * n)] - other[int(middle * m)])))
    return torch.stack(parts).sum()


def loss_of(
    model: nn.Module,
    reference: nn.Module,
    batch: Sequence[Example],
    *,
    loss: str = "kto",
    beta: float = 0.1,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
    shift_decay: float = 0.9,
    means: dict[str, float] | None = None,
) -> tuple[Tensor, dict[str, float]]:
    """The loss of a batch, and the numbers worth watching.

    The weights are lambda_D and lambda_U, read by kto alone. bco reads shift_decay and keeps its moving averages in `means`.
    """
    policy = answer_logps(model, batch)
    with torch.no_grad():
        fixed = answer_logps(reference, batch)
    wanted = torch.tensor([label for _, _, label in batch], device=policy.device)
    lengths = torch.tensor([float(len(answer)) for _, answer, _ in batch])
    ratios = policy - fixed
    numbers = {"share_desirable": wanted.float().mean().item()}
    for name, side in (("desirable", wanted), ("undesirable", ~wanted)):
        if side.any():
            numbers[f"reward_{name}"] = beta * ratios[side].mean().item()
            numbers[f"logp_{name}"] = policy[side].mean().item()
            numbers[f"length_{name}"] = lengths[side.cpu()].mean().item()
    if loss == "aot_unpaired":
        return aot_loss(ratios[wanted], ratios[~wanted], beta), numbers
    if loss == "bco":
        means = {"desirable": 0.0, "undesirable": 0.0} if means is None else means
        for name, side in (("desirable", wanted), ("undesirable", ~wanted)):
            if side.any():
                means[name] = shift_decay * means[name] + (1 - shift_decay) * ratios[side].mean().item()
        z = (means["desirable"] + means["undesirable"]) / 2
    elif loss == "kto":
        z = baseline_of(model, reference, batch)
    else:
        raise ValueError(f"loss {loss!r} is none of kto, bco, aot_unpaired")
    gain = beta * (ratios - z)
    if loss == "bco":
        losses = -logsigmoid(torch.where(wanted, gain, -gain))
    else:
        losses = torch.where(wanted, desirable_weight * torch.sigmoid(-gain), undesirable_weight * torch.sigmoid(gain))
    right = torch.where(wanted, gain > 0, gain < 0)
    return losses.mean(), {**numbers, "baseline": z, "accuracy": right.float().mean().item()}


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
    **method: str | float,
) -> list[dict[str, float]]:
    """One optimizer step per batch; each step's numbers, as they stood before its update.

    grad_norm is the global L2 norm before clipping; `max_grad_norm=math.inf` clips nothing. Weight decay acts on every parameter.
    method is loss, beta and the weights, as in `loss_of`. The reference is the model in memory as it is now, not whatever its name
    would load from disk, unless one is given. So the first loss is half the answers' mean weight (kto) or ln 2 (the others).
    """
    model.eval()  # dropout off, else policy and reference differ from the first step; gradients flow as ever
    if reference is None:
        reference = copy.deepcopy(model).requires_grad_(False)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, fused=False, foreach=False
    )
    history, means = [], {"desirable": 0.0, "undesirable": 0.0}
    for step, batch in zip(range(total_steps), batches, strict=False):
        rate = lr_at(step, lr=lr, warmup_steps=warmup_steps, total_steps=total_steps, schedule=schedule)
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss, numbers = loss_of(model, reference, batch, means=means, **method)
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
    parser.add_argument("--data", required=True, help="JSONL or CSV file")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--batch", type=int, default=8, help="answers per step")
    parser.add_argument("--lr", type=float, default=1e-6)
    parser.add_argument("--warmup", type=int, default=0, help="steps until the full learning rate")
    parser.add_argument("--schedule", choices=["cosine", "linear", "constant"], default="cosine")
    parser.add_argument("--loss", choices=["kto", "bco", "aot_unpaired"], default="kto")
    parser.add_argument("--beta", type=float, default=0.1, help="how dearly distance from the reference is paid for")
    parser.add_argument("--desirable-weight", type=float, default=1.0, help="kto: lambda_D")
    parser.add_argument("--undesirable-weight", type=float, default=1.0, help="kto: lambda_U")
    parser.add_argument("--seed", type=int, default=0, help="order of the rows")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", help="folder for the trained model")
    args = parser.parse_args(arguments)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).to(args.device)
    examples = [encode(tokenizer, row) for row in read_rows(args.data)]
    batches = batches_of(examples, args.batch, args.seed)
    weights = {"desirable_weight": args.desirable_weight, "undesirable_weight": args.undesirable_weight}
    method = {"loss": args.loss, "beta": args.beta, **weights}
    steps = {"warmup_steps": args.warmup, "total_steps": args.steps, "schedule": args.schedule}
    train(model, batches, lr=args.lr, show=True, **steps, **method)
    if args.out:
        model.save_pretrained(args.out)
        tokenizer.save_pretrained(args.out)


if __name__ == "__main__":
    main()
