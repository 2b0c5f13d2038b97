"""PPO from a reward in one file: sample, score, give credit, replay.

With pi the policy, ref a frozen copy of it as it stood at the start, V the critic, x a prompt and y_1..y_T an answer drawn from pi
at temperature tau (every log-probability here is of softmax(logits / tau)):

    R_t = -beta (log pi_old(y_t) - log ref(y_t)) + [t = T] (score - penalty [no end token])     per-token KL (k1) in the reward
    d_t = R_t + gamma V_{t+1} - V_t,  A_t = d_t + gamma lambda A_{t+1}                          arXiv 1506.02438, eq. 16
    A <- (A - mean) / sqrt(var + 1e-8) over all tokens of the round;  G_t = A_t + V_t before that
    L_pi = max(-A_t rho_t, -A_t clip(rho_t, 1-e, 1+e)),  rho_t = pi(y_t) / pi_old(y_t)          arXiv 1707.06347, eq. 7
    L_V  = 1/2 max((V_t - G_t)^2, (clip(V_t, V_old-e, V_old+e) - G_t)^2)
    loss = sum over tokens of (L_pi + 0.1 L_V) / tokens, for some epochs over minibatches dealt anew

as in Huang et al. 2024, arXiv 2403.17031. V_{T+1} = 0: an answer ends where it ends, also at its longest.

It leaves out, for the sake of being read: packing, micro-batches, several devices, mixed precision, adapters, reward models,
adaptive KL, early stop, the KL budget, conversations, resuming. The package does these; this file says what its numbers have to be.

    python examples/one_file/ppo.py --model DIR --data prompts.jsonl --pattern 'cat' --rounds 20 --out ppo-model

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

Answer = tuple[Sequence[int], Sequence[int], float]  # (context ids, answer ids with the end token if it was said, score)
Deal = Callable[[int, int, int], Sequence[Sequence[int]]]  # (round, epoch, answers) -> the numbers of each minibatch's answers


class Critic(nn.Module):
    """A language model's body with a head that starts at 0: what is still to come, before each token."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.body = copy.deepcopy(model.base_model)
        self.head = nn.Linear(model.config.hidden_size, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        states = self.body(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        return self.head(states).squeeze(-1)  # [row, time]


def pad(answers: Sequence[Answer], device: torch.device | str = "cpu") -> tuple[Tensor, Tensor, Tensor]:
    """ids, mask and said, each [row, time]; filled up on the right. Both masks come from lengths, never from a padding id."""
    longest = max(len(context) + len(answer) for context, answer, _ in answers)
    ids = torch.zeros(len(answers), longest, dtype=torch.long)
    mask, said = torch.zeros_like(ids), torch.zeros(len(answers), longest, dtype=torch.bool)
    for i, (context, answer, _) in enumerate(answers):
        start, end = len(context), len(context) + len(answer)
        ids[i, :end] = torch.tensor([*context, *answer])
        mask[i, :end] = 1
        said[i, start:end] = True
    return ids.to(device), mask.to(device), said.to(device)


def logps_of(model: nn.Module, ids: Tensor, mask: Tensor, said: Tensor, temperature: float) -> Tensor:
    """log pi of what stands at t + 1, at t: [row, time - 1], and 0 where nothing was said, so that a KL is exactly 0 there."""
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits.float() / temperature
    logps = logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None]).squeeze(-1)
    return logps.masked_fill(~said[:, 1:], 0.0)


def gae(rewards: Tensor, values: Tensor, said: Tensor, *, gamma: float, lam: float) -> Tensor:
    """Advantages, [row, time]; a token that was not said hands on what comes after it."""
    advantages, carried, following = torch.zeros_like(values), torch.zeros(len(values)), torch.zeros(len(values))
    for t in reversed(range(values.shape[1])):
        delta = rewards[:, t] + gamma * following - values[:, t]
        carried = torch.where(said[:, t], delta + gamma * lam * carried, carried)
        following = torch.where(said[:, t], values[:, t], following)
        advantages[:, t] = torch.where(said[:, t], carried, 0.0)
    return advantages


def credit(
    old: Tensor,
    reference: Tensor,
    values: Tensor,
    said: Tensor,
    scores: Tensor,
    *,
    beta: float,
    gamma: float = 1.0,
    lam: float = 0.95,
) -> tuple[Tensor, Tensor]:
    """Whitened advantages and returns, [row, time]: the score stands at the last token that was said."""
    rewards = -beta * (old - reference)
    last = said.shape[1] - 1 - said.flip(1).int().argmax(1)
    rewards[torch.arange(len(rewards)), last] += scores
    advantages = gae(rewards, values, said, gamma=gamma, lam=lam)
    returns = advantages + values
    mean, variance = advantages[said].mean(), advantages[said].var(unbiased=False)
    return (advantages - mean) * (variance + 1e-8) ** -0.5, returns


def losses_of(
    logps: Tensor, old: Tensor, advantages: Tensor, values: Tensor, old_values: Tensor, returns: Tensor, clip: float
) -> tuple[Tensor, Tensor]:
    """The policy's and the critic's loss of each token."""
    ratio = (logps - old).exp()
    policy = torch.maximum(-advantages * ratio, -advantages * ratio.clamp(1 - clip, 1 + clip))
    bounded = torch.minimum(torch.maximum(values, old_values - clip), old_values + clip)
    return policy, 0.5 * torch.maximum((values - returns) ** 2, (bounded - returns) ** 2)


def train(
    policy: nn.Module,
    critic: Critic,
    ask: Callable[[nn.Module, int], Sequence[Answer]],
    *,
    rounds: int,
    end_ids: Sequence[int],
    lr: float = 3e-6,
    eps: float = 1e-5,
    epochs: int = 4,
    deal: Deal | None = None,
    beta: float = 0.05,
    gamma: float = 1.0,
    lam: float = 0.95,
    clip: float = 0.2,
    value_weight: float = 0.1,
    penalty: float = 1.0,
    temperature: float = 1.0,
    max_grad_norm: float = 1.0,
    show: bool = False,
) -> list[dict[str, float]]:
    """`ask(policy, round)` gives the round's answers with their scores; each round's numbers come back.

    The rate falls in a line to 0, round by round. Numbers of learning are means over all tokens of all updates of the round.
    """
    policy.eval()  # dropout off, else the first ratio is not 1
    critic.eval()
    reference = copy.deepcopy(policy).requires_grad_(False)
    trained = [*policy.parameters(), *critic.parameters()]
    optimizer = torch.optim.AdamW(trained, lr=lr, eps=eps, weight_decay=0.0, fused=False, foreach=False)
    device, history = next(policy.parameters()).device, []
    for number in range(rounds):
        answers = ask(policy, number)
        ids, mask, spoken = pad(answers, device)
        said = spoken[:, 1:]
        with torch.no_grad():
            old = logps_of(policy, ids, mask, spoken, temperature)
            ref = logps_of(reference, ids, mask, spoken, temperature)
            old_values = critic(ids, mask)[:, :-1]
        scores = torch.tensor([score - penalty * (answer[-1] not in end_ids) for _, answer, score in answers], device=device)
        advantages, returns = credit(old, ref, old_values, said, scores, beta=beta, gamma=gamma, lam=lam)
        for group in optimizer.param_groups:
            group["lr"] = lr * (1 - number / rounds)
        sums = {"policy_loss": 0.0, "value_loss": 0.0, "ratio": 0.0, "clip_fraction": 0.0}
        tokens, norms = 0, []
        for epoch in range(epochs):
            for part in deal(number, epoch, len(answers)) if deal else [range(len(answers))]:
                rows = torch.tensor(list(part))
                here = said[rows]
                logps = logps_of(policy, ids[rows], mask[rows], spoken[rows], temperature)
                values = critic(ids[rows], mask[rows])[:, :-1]
                batch = (logps, old[rows], advantages[rows], values, old_values[rows], returns[rows])
                policy_loss, value_loss = (loss[here] for loss in losses_of(*batch, clip))
                optimizer.zero_grad()
                ((policy_loss + value_weight * value_loss).sum() / here.sum()).backward()
                norms.append(nn.utils.clip_grad_norm_(trained, max_grad_norm).item())
                optimizer.step()
                ratio, up = (logps - old[rows])[here].exp().detach(), advantages[rows][here] > 0
                clipped = ((ratio > 1 + clip) & up) | ((ratio < 1 - clip) & ~up)
                tokens += int(here.sum())
                for name, found in zip(sums, (policy_loss, value_loss, ratio, clipped.float()), strict=True):
                    sums[name] += found.sum().item()
        error = (returns - old_values)[said]
        history.append(
            {
                "reward": sum(score for *_, score in answers) / len(answers),
                "kl": (old - ref).sum(1).mean().item(),
                "explained_variance": 1 - (error.var(unbiased=False) / returns[said].var(unbiased=False)).item(),
                **{name: value / tokens for name, value in sums.items()},
                "grad_norm": sum(norms) / len(norms),
            }
        )
        if show:
            print(f"round {number + 1}", *(f"{key} {value:.4g}" for key, value in history[-1].items()))
    return history


def asker(tokenizer, prompts: Sequence[str], pattern: str, *, batch: int, max_tokens: int, temperature: float, seed: int):
    """Draws answers from the whole distribution (no top-k, no top-p: the ratio would be wrong) and scores them."""
    shuffle = random.Random(seed)

    @torch.no_grad()
    def ask(policy: nn.Module, number: int) -> list[Answer]:
        torch.manual_seed(seed * 1_000_003 + number)
        answers = []
        for prompt in shuffle.sample(prompts, batch):
            context = tokenizer(prompt)["input_ids"]
            drawn = GenerationConfig(do_sample=True, temperature=temperature, top_k=0, top_p=1.0, max_new_tokens=max_tokens)
            drawn.eos_token_id = drawn.pad_token_id = tokenizer.eos_token_id
            ids = torch.tensor([context], device=next(policy.parameters()).device)
            said = policy.generate(inputs=ids, generation_config=drawn, use_cache=True)[0, len(context) :].tolist()
            text = tokenizer.decode(said, skip_special_tokens=True)
            answers.append((context, said, float(re.search(pattern, text) is not None)))
        return answers

    return ask


def dealer(minibatches: int, seed: int) -> Deal:
    """Every answer once an epoch, in minibatches shuffled anew."""

    def deal(number: int, epoch: int, answers: int) -> list[list[int]]:
        order = random.Random(f"{seed} {number} {epoch}").sample(range(answers), answers)
        return [order[i::minibatches] for i in range(minibatches)]

    return deal


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="Hugging Face model folder")
    parser.add_argument("--data", required=True, help="JSONL file with the key prompt")
    parser.add_argument("--pattern", required=True, help="regular expression that answers are to contain")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--batch", type=int, default=16, help="prompts per round")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--minibatches", type=int, default=1)
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
    how = {
        "batch": min(args.batch, len(prompts)),
        "max_tokens": args.max_tokens,
        "temperature": args.temperature,
        "seed": args.seed,
    }
    train(
        policy,
        Critic(policy),
        asker(tokenizer, prompts, args.pattern, **how),
        rounds=args.rounds,
        end_ids=[tokenizer.eos_token_id],
        lr=args.lr,
        epochs=args.epochs,
        deal=dealer(args.minibatches, args.seed),
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
