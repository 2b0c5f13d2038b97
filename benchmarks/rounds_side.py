"""Truing's side of a row of `benchmarks.rounds`: `truing train` as a user calls it, or its sampler alone, with clocks inside.

    python -m benchmarks.rounds_side SPEC.json RESULT.json

What is timed is the loop: rounds of sampling, scoring, rewarding and learning, with their logs. Loading, encoding, the last
checkpoint and the saved model are not. Nothing is changed in how the recipe runs.
"""

import json
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.truing_side import Stopwatch, peak_gb


class Inside:
    """Clocks of parts that lie in others: only the outermost of them runs. Example: `inside.timed("reward", scorer)`."""

    def __init__(self) -> None:
        self.watch = Stopwatch(time.perf_counter)
        self.depth = 0

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        clocked = self.watch.timed(name, function)

        def run(*args: Any, **options: Any) -> Any:
            self.depth += 1
            try:
                return (clocked if self.depth == 1 else function)(*args, **options)
            finally:
                self.depth -= 1

        return run


def clock_parts(inside: Inside, tokens: list[int]) -> None:
    """Puts clocks around the parts of a round, and counts the tokens that are said."""
    from truing.models.heads import ValueModel
    from truing.models.policy import Policy
    from truing.rewards.base import WeightedSum
    from truing.rollouts import on_policy
    from truing.rollouts.scoring import Reference
    from truing.train.replay import ReplayLearner

    collect = on_policy.collect

    def counted(*args: Any, **options: Any) -> Any:
        groups = collect(*args, **options)
        tokens[0] += sum(len(one.completion.tokens) for group in groups for one in group)
        return groups

    on_policy.collect = inside.timed("sampling", counted)
    # a pass of the policy that stands in none of the others is its own scoring
    places: list[tuple[str, Any, str]] = [
        ("scoring: policy", Policy, "log_probs"),
        ("scoring: reference", Reference, "log_probs"),
        ("scoring: critic", ValueModel, "values_and_after"),
        ("reward", WeightedSum, "__call__"),
        ("update", ReplayLearner, "update"),
    ]
    for name, owner, method in places:
        setattr(owner, method, inside.timed(name, getattr(owner, method)))


def settings(spec: Mapping[str, Any]) -> list[str]:
    """What `truing train` is told."""
    row, folder = spec["row"], Path(spec["folder"])
    if row["learned"]:
        reward = ["reward.score=learned", f"reward.score.run={spec['reward_model']}"]
    else:
        reward = ["reward.score=length_window", f"reward.score.most={row['new_tokens'] // 2}", "reward.score.slope=8"]
    return [
        *(f"data.path={folder / 'prompts.jsonl'}", "data.held_out_share=0", f"model={spec['start']}", f"run={folder / 'run'}"),
        *(f"dtype={row['dtype']}", f"batch_size={row['prompts']}", f"rounds.samples={row['k']}"),
        *(f"replay.epochs={row['epochs']}", f"answers.max_tokens={row['new_tokens']}", f"micro_tokens={spec['micro_tokens']}"),
        *("recompute=never", "seed=0", "save_every=0", "evaluate_every=0", "measure_before=false"),
        *(f"optimizer.lr={spec['lr']}", "optimizer.schedule=constant", *reward, *row["settings"]),
    ]


def train(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Rounds of training."""
    from truing.recipes import commands, ppo
    from truing.runs.run import Run

    inside, tokens, peaks = Inside(), [0], []
    clock_parts(inside, tokens)
    loop, finish = Stopwatch(time.perf_counter), Run.finish

    def finished(self: Any, *args: Any, **options: Any) -> None:
        peaks.append(peak_gb())
        loop.timed("last checkpoint", finish)(self, *args, **options)

    inside_only = inside.watch.seconds

    def loop_only(*args: Any, **options: Any) -> Any:
        inside_only.clear()  # what came before the loop is set-up
        tokens[0] = 0
        try:
            return loop.timed("loop", actual)(*args, **options)
        finally:
            found.update(inside_only)

    found: dict[str, float] = {}
    actual = ppo.train
    ppo.train = loop_only
    Run.finish = finished  # type: ignore[method-assign]
    said = [0]
    commands.train(spec["row"]["method"], settings(spec), [])
    said[0] = tokens[0]
    assert {"sampling", "scoring: policy", "scoring: reference", "reward", "update"} <= found.keys(), (
        "the parts are called as timed"
    )
    return {
        "seconds": loop.seconds["loop"] - loop.seconds["last checkpoint"],
        "parts": found,
        "tokens": said[0],
        "peak_gb_trained": peaks[0],
    }


def sample(spec: Mapping[str, Any]) -> dict[str, Any]:
    """The sampler alone."""
    import torch

    from truing.data.chat import ChatTokenizer
    from truing.models.load import load_tokenizer
    from truing.recipes.fit import load_policy
    from truing.rollouts.sampler import Decoding
    from truing.rollouts.sampler import sample as draw

    row = spec["row"]
    policy, _ = load_policy(spec["start"], {"bf16": torch.bfloat16, "fp32": torch.float32}[row["dtype"]])
    stop = ChatTokenizer.of(load_tokenizer(spec["start"])).stop_ids
    asked = [tuple(json.loads(line)["input_ids"]) for line in (Path(spec["folder"]) / "tokens.jsonl").read_text().splitlines()]
    prompts = [tokens for tokens in asked for _ in range(row["k"])]
    draw(policy, prompts[:2], Decoding(max_tokens=2, temperature=1.0), stop_ids=stop, seed=1)  # warms up, as the peers do
    began = time.perf_counter()
    said = draw(policy, prompts, Decoding(max_tokens=row["new_tokens"], temperature=1.0), stop_ids=stop, seed=0)
    seconds = time.perf_counter() - began
    tokens = sum(len(one.tokens) for one in said)
    return {"seconds": seconds, "parts": {"sampling": seconds}, "tokens": tokens, "peak_gb_trained": peak_gb()}


def main() -> None:
    spec = json.loads(Path(sys.argv[1]).read_text())
    report = sample(spec) if spec["row"]["method"] == "sample" else train(spec)
    Path(sys.argv[2]).write_text(json.dumps(report))


if __name__ == "__main__":
    main()
