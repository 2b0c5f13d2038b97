"""RLOO from a reward in one file: k answers to each prompt, each held against the others. No critic.

With pi the policy, ref a frozen copy of it as it stood at the start, and y^1..y^k drawn from pi(.|x) at temperature tau (every
log-probability here is of softmax(logits / tau)):

    r_i = score(y^i) - penalty [no end token] - beta (log pi_old(y^i|x) - log ref(y^i|x))     summed over the answer's tokens
    A_i = r_i - mean of the other k - 1                                                      arXiv 2402.14740, eq. 9
    L_i = max(-A_i rho_i, -A_i clip(rho_i, 1-e, 1+e)),  rho_i = pi(y^i|x) / pi_old(y^i|x)     the whole answer is one action

and the mean over answers (Ahmadian et al. 2024). On fresh answers rho is 1, and the gradient is that of -A_i log pi(y^i|x):
REINFORCE with the others as its baseline.

It leaves out what ppo.py leaves out.

    python examples/one_file/rloo.py --model DIR --data prompts.jsonl --pattern 'cat' --rounds 20 --k 4 --out rloo-model

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
    """log pi(y|x) of each answer, summed over its tokens: [answer]."""
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits.float() / temperature
    logps = logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None]).squeeze(-1)
    return logps.masked_fill(~said[:, 1:], 0.0).sum(1)


def leave_one_out(rewards: Tensor) -> Tensor:
    """[prompt, k] -> each reward less the mean of the others to its prompt."""
    k = rewards.shape[1]
    return rewards - (rewards.sum(1, keepdim=True) - rewards) / (k - 1)


def train(
    policy: nn.Module,
    ask: Callable[[nn.Module, int], Sequence[Group]],
    *,
    rounds: int,
    end_ids: Sequence[int],
    lr: float = 3e-6,
    eps: float = 1e-5,
    epochs: int = 1,
    beta: float = 0.05,
    clip: float = 0.2,
    penalty: float = 1.0,
    temperature: float = 1.0,
    max_grad_norm: float = 1.0,
    show: bool = False,
) -> list[dict[str, float]]:
    """`ask(policy, round)` gives the round's prompts with their k answers; each round's numbers come back.

    The rate falls in a line to 0, round by round. Numbers of learning are means over all answers of all updates of the round.
    """
    policy.eval()  # dropout off, else the first ratio is not 1
    reference = copy.deepcopy(policy).requires_grad_(False)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=lr, eps=eps, weight_decay=0.0, fused=False, foreach=False)
    device, history = next(policy.parameters()).device, []
    for number in range(rounds):
        groups = ask(policy, number)
        ids, mask, said = pad(groups, device)
        with torch.no_grad():
            old = logps_of(policy, ids, mask, said, temperature)
            kl = old - logps_of(reference, ids, mask, said, temperature)
        ended = [answer[-1] in end_ids for _, answers in groups for answer, _ in answers]
        scores = torch.tensor([score for _, answers in groups for _, score in answers], device=device)
        rewards = scores - penalty * ~torch.tensor(ended, device=device) - beta * kl
        advantages = leave_one_out(rewards.view(len(groups), -1)).flatten()
        for group in optimizer.param_groups:
            group["lr"] = lr * (1 - number / rounds)
        losses, ratios, norms = [], [], []
        for _ in range(epochs):
            ratio = (logps_of(policy, ids, mask, said, temperature) - old).exp()
            loss = torch.maximum(-advantages * ratio, -advantages * ratio.clamp(1 - clip, 1 + clip))
            optimizer.zero_grad()
            loss.mean().backward()
            norms.append(nn.utils.clip_grad_norm_(policy.parameters(), max_grad_norm).item())
            optimizer.step()
            losses.append(loss.mean().item())
            ratios.append(ratio.mean().item())
        history.append(
            {
                "reward": scores.mean().item(),
                "kl": kl.mean().item(),
                "policy_loss": sum(losses) / epochs,
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
    parser.add_argument("--k", type=int, default=4, help="answers to each prompt")
    parser.add_argument("--max-tokens", type=int, default=48)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--lr", type=float, default=3e-6)
    parser.add_argument("--beta", type=float, default=0.05, help="price of a nat of KL")
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
        penalty=args.penalty,
        temperature=args.temperature,
        show=True,
    )
    if args.out:
        policy.save_pretrained(args.out)
        tokenizer.save_pretrained(args.out)


if __name__ == "__main__":
    main()
