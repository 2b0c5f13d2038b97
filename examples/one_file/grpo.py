"""GRPO from a reward in one file: k answers to each prompt, each held against their mean, token by token. No critic.

With pi the policy, ref a frozen copy of it as it stood at the start, and y^1..y^k drawn from pi(.|x) at temperature tau (every
log-probability here is of softmax(logits / tau)):

    r_i = score(y^i) - penalty [no end token]
    A_i = (r_i - mean of the k) / (deviation of the k + 1e-4)                       arXiv 2402.03300, section 4.1.2
    rho_t = pi(y_t) / pi_old(y_t)
    k3_t = exp(-d_t) - 1 + d_t,  d_t = log pi(y_t) - log ref(y_t)                   eq. 4
    L_i = mean over tokens of max(-A_i rho_t, -A_i clip(rho_t, 1-e, 1+e)) + beta k3_t     eq. 3, as a loss

and the mean over answers (Shao et al. 2024). The deviation is the sample's (k - 1). With `scale=False` there is none: Dr. GRPO
(Liu et al. 2025, arXiv 2503.20783); a `clip_high` above `clip` is clip-higher (Yu et al. 2025, arXiv 2503.14476).

It leaves out what ppo.py leaves out.

    python examples/one_file/grpo.py --model DIR --data prompts.jsonl --pattern 'cat' --rounds 20 --k 8 --out grpo-model

DIR is a Hugging Face model folder. The data is JSONL with the key prompt. The score is 1 where the pattern is found in the answer.
"""

import argparse
import copy
import json
import random
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

Group = tuple[Sequence[int], Sequence[tuple[Sequence[int], float]]]  # (context ids, k x (answer ids with any end token, score))


def pad(groups: Sequence[Group], device: torch.device | str = "cpu") -> tuple[Tensor, Tensor, Tensor]:
    """ids, mask and said, each [answer, time]; filled up on the right. Both masks come from lengths, never from a padding id."""
    rows = [(context, answer) for context, answers in groups for answer, _ in answers]
    longest = max(len(context) + len(answer) for context, answer in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    mask, said = torch.zeros_like(ids), torch.zeros(len(rows), longest, dtype=torch.bool)
    for i, (context, answer) in enumerate(rows):
        start, end = len(context), len(context) + len(answer)
        ids[i, :end] = torch.tensor([*context, *answer])
        mask[i, :end] = 1
        said[i, start:end] = True
    return ids.to(device), mask.to(device), said.to(device)


def logps_of(model: nn.Module, ids: Tensor, mask: Tensor, said: Tensor, temperature: float) -> Tensor:
    """log pi of each token that was said, 0 elsewhere: [answer, time], each under its own place."""
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits.float() / temperature
    logps = logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None]).squeeze(-1)
    return nn.functional.pad(logps, (1, 0)).masked_fill(~said, 0.0)


def group_mean(rewards: Tensor, scale: bool = True) -> Tensor:
    """[prompt, k] -> each reward less the mean of its prompt's, over their deviation."""
    centred = rewards - rewards.mean(1, keepdim=True)
    return centred / (rewards.std(1, keepdim=True) + 1e-4) if scale else centred


def losses_of(logps: Tensor, old: Tensor, ref: Tensor, advantages: Tensor, clip: tuple[float, float]) -> tuple[Tensor, Tensor]:
    """The policy's loss and the KL, [answer, time]; `advantages` are [answer]."""
    ratio, advantages = (logps - old).exp(), advantages[:, None]
    policy = torch.maximum(-advantages * ratio, -advantages * ratio.clamp(1 - clip[0], 1 + clip[1]))
    difference = logps - ref
    return policy, (-difference).exp() - 1 + difference


def train(
    policy: nn.Module,
    ask: Callable[[nn.Module, int], Sequence[Group]],
    *,
    rounds: int,
    end_ids: Sequence[int],
    lr: float = 3e-6,
    eps: float = 1e-5,
    epochs: int = 1,
    beta: float = 0.04,
    scale: bool = True,
    clip: float = 0.2,
    clip_high: float = 0.2,
    penalty: float = 1.0,
    temperature: float = 1.0,
    max_grad_norm: float = 1.0,
    show: bool = False,
) -> list[dict[str, float]]:
    """`ask(policy, round)` gives the round's prompts with their k answers; each round's numbers come back.

    The rate falls in a line to 0, round by round. Numbers of learning are means over all tokens of all updates of the round.
    """
    policy.eval()  # dropout off, else the first ratio is not 1
    reference = copy.deepcopy(policy).requires_grad_(False)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=lr, eps=eps, weight_decay=0.0, fused=False, foreach=False)
    device, history = next(policy.parameters()).device, []
    for number in range(rounds):
        groups = ask(policy, number)
        ids, mask, said = pad(groups, device)
        with torch.no_grad():
            old, ref = (logps_of(model, ids, mask, said, temperature) for model in (policy, reference))
        ended = [answer[-1] in end_ids for _, answers in groups for answer, _ in answers]
        scores = torch.tensor([score for _, answers in groups for _, score in answers], device=device)
        rewards = scores - penalty * ~torch.tensor(ended, device=device)
        advantages = group_mean(rewards.view(len(groups), -1), scale).flatten()
        for group in optimizer.param_groups:
            group["lr"] = lr * (1 - number / rounds)
        losses, kls, ratios, norms = [], [], [], []
        for _ in range(epochs):
            logps = logps_of(policy, ids, mask, said, temperature)
            policy_loss, kl = losses_of(logps, old, ref, advantages, (clip, clip_high))
            per_answer = ((policy_loss + beta * kl) * said).sum(1) / said.sum(1)
            optimizer.zero_grad()
            per_answer.mean().backward()
            norms.append(nn.utils.clip_grad_norm_(policy.parameters(), max_grad_norm).item())
            optimizer.step()
            losses.append(policy_loss[said].mean().item())
            kls.append(kl[said].mean().item())
            ratios.append((logps - old)[said].exp().mean().item())
        history.append(
            {
                "reward": scores.mean().item(),
                "kl": (old - ref).sum(1).mean().item(),
                "policy_loss": sum(losses) / epochs,
                "kl_loss": sum(kls) / epochs,
                "ratio": sum(ratios) / epochs,
                "grad_norm": sum(norms) / epochs,
            }
        )
        if show:
            print(f"round {number + 1}", *(f"{key} {value:.4g}" for key, value in history[-1].items()))
    return history


def asker(tokenizer, prompts: Sequence[str], pattern: str, *, k: int, batch: int, max_tokens: int, temperature: float, seed: int):
    """Draws answers from the whole distribution (no top-k, no top-p: the ratio would be wrong) and scores them."""
    shuffle = random.Random(seed)

    @torch.no_grad()
    def ask(policy: nn.Module, number: int) -> list[Group]:
        torch.manual_seed(seed * 1_000_003 + number)
        groups = []
        for prompt in shuffle.sample(prompts, batch):
            context = tokenizer(prompt)["input_ids"]
            drawn = GenerationConfig(do_sample=True, temperature=temperature, top_k=0, top_p=1.0, max_new_tokens=max_tokens)
            drawn.eos_token_id = drawn.pad_token_id = end = tokenizer.eos_token_id
            ids = torch.tensor([context] * k, device=next(policy.parameters()).device)
            answers = []
            for row in policy.generate(inputs=ids, generation_config=drawn, use_cache=True)[:, len(context) :].tolist():
                said = row[: row.index(end) + 1] if end in row else row  # what follows the end token is padding
                text = tokenizer.decode(said, skip_special_tokens=True)
                answers.append((said, float(re.search(pattern, text) is not None)))
            groups.append((context, answers))
        return groups

    return ask


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="Hugging Face model folder")
    parser.add_argument("--data", required=True, help="JSONL file with the key prompt")
    parser.add_argument("--pattern", required=True, help="regular expression that answers are to contain")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--batch", type=int, default=8, help="prompts per round")
    parser.add_argument("--k", type=int, default=8, help="answers to each prompt")
    parser.add_argument("--max-tokens", type=int, default=48)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--lr", type=float, default=3e-6)
    parser.add_argument("--beta", type=float, default=0.04, help="weight of the KL")
    parser.add_argument("--clip-high", type=float, default=0.2, help="how far a ratio may rise; 0.28 for clip-higher")
    parser.add_argument("--penalty", type=float, default=1.0, help="for an answer without its end token")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", help="folder for the trained model")
    args = parser.parse_args(arguments)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    policy = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
    prompts = [json.loads(line)["prompt"] for line in Path(args.data).read_text(encoding="utf-8").splitlines() if line.strip()]
    how = {"k": args.k, "batch": min(args.batch, len(prompts)), "max_tokens": args.max_tokens, "temperature": args.temperature}
    train(
        policy,
        asker(tokenizer, prompts, args.pattern, **how, seed=args.seed),
        rounds=args.rounds,
        end_ids=[tokenizer.eos_token_id],
        lr=args.lr,
        beta=args.beta,
        clip_high=args.clip_high,
        penalty=args.penalty,
        temperature=args.temperature,
        show=True,
    )
    if args.out:
        policy.save_pretrained(args.out)
        tokenizer.save_pretrained(args.out)


if __name__ == "__main__":
    main()
