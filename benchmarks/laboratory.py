"""A laboratory of over-optimisation: a known function is the gold reward, a reward model learned from its noisy pairs the proxy.

    python -m benchmarks.laboratory [--model ../shared/models/stories260k] [--seeds 0 1 2] [--out runs/laboratory]
        [--methods ppo rloo grpo] [--settings NAME ...]
    python -m benchmarks.laboratory --show     # the table of what was measured

Every training is a `truing train` command in this process (sft, reward_model, ppo, rloo, grpo); where MODEL is absent, a tiny model
is trained first. The same command continues. Prints Markdown tables; writes JSON and SVG to benchmarks/results. After Gao, Schulman
and Hilton 2022, arXiv 2210.10760; ensembles after Coste et al. 2023, arXiv 2310.02743.
"""

import argparse
import contextlib
import io
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.laboratory_curves import Course, as_json, cell, chart, chart_of_best, law, points, read_points, table, table_of_best
from benchmarks.laboratory_gold import gold, noisy, prompts
from benchmarks.laboratory_model import made_here, of_the_260k, write_rows
from benchmarks.machine import machine
from truing.data.chat import ChatTokenizer
from truing.evals.best_of_n import Curve, best_of_n
from truing.models.load import load_tokenizer
from truing.recipes import commands
from truing.recipes.fit import load_policy, model_path
from truing.recipes.reward_folder import load_reward_model
from truing.rewards.learned import LearnedScorer
from truing.rollouts.collect import LocalSampler, Question, collect
from truing.rollouts.sampler import Decoding
from truing.rollouts.writer import LocalWriter
from truing.runs.sinks import Silent

RESULTS = Path(__file__).parent / "results"
LONGEST = 48
MEMBERS = 3
"""Of the ensemble."""
PAIRS = 16
"""Labelled pairs for each of the 64 prompts."""
DRAWS = 24
"""Stories drawn for each prompt to make the demonstrations of."""
POOL = 32
"""Answers to each prompt for best-of-n."""
COMMON = ("dtype=fp32", "save_every=0", "evaluate_every=0", "micro_tokens=8192", "data.template=plain")
POLICY = (
    *COMMON,
    *("data.held_out_share=0", "measure_before=false", "batch_size=16", "rounds.samples=4"),
    "optimizer.schedule=constant",
)
RATES = {"ppo": "optimizer.lr=3e-4", "rloo": "optimizer.lr=1e-3", "grpo": "optimizer.lr=1e-3"}
FREE, ENSEMBLE = "no KL", "ensemble minimum, no KL"
SETTINGS = {
    FREE: ("kl.name=fixed", "kl.coefficient=0"),
    "KL budget of 20 nats": ("kl.name=fixed", "kl.coefficient=0.02", "replay.kl_budget=20"),
    ENSEMBLE: ("kl.name=fixed", "kl.coefficient=0", "reward.proxy.aggregate=minimum"),
    "length penalty, no KL": ("kl.name=fixed", "kl.coefficient=0", "reward.length=length", "reward.length.weight=-0.05"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Laboratory:
    """Where the work lies, and how much of it there is."""

    out: Path
    model: Path
    seeds: tuple[int, ...]
    rounds: int
    methods: tuple[str, ...]
    settings: tuple[str, ...] = tuple(SETTINGS)
    """With the free one, against which the others are held."""

    def train(self, method: str, folder: Path, *settings: str) -> Path:
        """One `truing train`; a finished run is left as it is."""
        with contextlib.redirect_stdout(io.StringIO()):
            commands.train(method, [*settings, f"run={folder}"], [Silent()])
        return folder

    def start(self) -> Path:
        """The policy that all runs start from: SFT on two sentences."""
        rows, base = self.out / "demonstrations.jsonl", self.out / "base"
        if not rows.is_file():
            found = (
                of_the_260k(self.model, base, draws=DRAWS)
                if (self.model / "stories260K.bin").is_file()
                else made_here(base, draws=DRAWS)
            )
            write_rows(rows, found[1])
        scratch = not (self.model / "stories260K.bin").is_file()
        passes = ("epochs=4", "optimizer.lr=3e-3") if scratch else ("epochs=1", "optimizer.lr=1e-3")
        return self.train("sft", self.out / "sft", *COMMON, *passes, f"data.path={rows}", f"model={base}", "batch_size=32")

    def writer(self, start: Path) -> LocalWriter:
        """The start as it samples."""
        folder = model_path(start)
        chat = ChatTokenizer.of(load_tokenizer(folder), template="plain")
        decoding = Decoding(max_tokens=LONGEST, temperature=1.0)
        return LocalWriter(policy=load_policy(folder, torch.float32)[0], chat=chat, decoding=decoding)

    def labelled(self, seed: int, start: Path) -> tuple[Path, float]:
        """Pairs of the start's answers in the order of the noisy gold, and how often that is the gold's own order."""
        path = self.out / f"pairs-{seed}.jsonl"
        if not path.is_file():
            asked = prompts(seed)
            rows = []
            for prompt, answers in zip(asked, self.writer(start)(asked, samples=2 * PAIRS, seed=seed), strict=True):
                texts = [answer.text if answer.stop == "end" else "" for answer in answers]
                for pair in zip(texts[::2], texts[1::2], strict=True):
                    if all(pair) and pair[0] != pair[1]:
                        better, worse = sorted(pair, key=lambda text: -noisy(text, str(seed)))
                        rows.append({"prompt": prompt.messages[0].content, "chosen": better, "rejected": worse})
            write_rows(path, rows)
            write_rows(self.out / f"prompts-{seed}.jsonl", [{"prompt": p.messages[0].content, "seed": str(seed)} for p in asked])
        gaps = [gold(row["chosen"]) - gold(row["rejected"]) for row in map(json.loads, path.read_text().splitlines())]
        told = [gap for gap in gaps if gap]
        return path, sum(gap > 0 for gap in told) / len(told)

    def proxy(self, seed: int, start: Path, members: int) -> Path:
        """A reward model on the pairs of a seed."""
        settings = (f"model={start}", f"data.path={self.labelled(seed, start)[0]}", f"seed={seed}", f"ensemble={members}")
        passes = ("epochs=2", "batch_size=32", "lora.rank=8", "optimizer.lr=5e-3")
        return self.train("reward_model", self.out / f"proxy-{seed}-of-{members}", *COMMON, *settings, *passes)

    def policy(self, method: str, setting: str, seed: int, start: Path) -> Path:
        """One run of policy optimisation against the proxy."""
        proxy = self.proxy(seed, start, MEMBERS if setting == ENSEMBLE else 1)
        name = f"{method}-{setting.replace(',', '').replace(' ', '-')}-{seed}"
        return self.train(
            method,
            self.out / name,
            *POLICY,
            RATES[method],
            f"answers.max_tokens={LONGEST}",
            f"epochs={-(-self.rounds * 16 // 64)}",
            f"max_steps={self.rounds}",
            f"data.path={self.out}/prompts-{seed}.jsonl",
            f"model={start}",
            f"seed={seed}",
            "reward.proxy=learned",
            f"reward.proxy.run={proxy}",
            *SETTINGS[setting],
        )

    def best(self, seed: int, start: Path) -> Curve:
        """Best-of-n by the proxy out of one pool of the start's answers."""
        path = self.out / f"pool-{seed}.json"
        if not path.is_file():
            writer = self.writer(start)
            asked = [
                Question(number=i, prompt=prompt, trunk=writer.chat.prompt_tokens(prompt.messages))
                for i, prompt in enumerate(prompts(seed))
            ]
            groups = collect(
                LocalSampler(policy=writer.policy),
                asked,
                writer.decoding,
                samples=POOL,
                stop_ids=writer.chat.stop_ids,
                decode=writer.chat.decode,
                seed=seed + 1000,
            )
            scorer = LearnedScorer(load_reward_model(self.proxy(seed, start, 1), torch.float32), budget=8192)
            rows = [(scorer(group), [gold(rollout.response) for rollout in group]) for group in groups]
            path.write_text(json.dumps({"proxy": [row[0] for row in rows], "gold": [row[1] for row in rows]}))
        found = json.loads(path.read_text())
        proxy = np.array(found["proxy"])
        return best_of_n((proxy - proxy.mean()) / proxy.std(), np.array(found["gold"]), draws=500)


def over_optimisation(lab: Laboratory, start: Path) -> tuple[dict[str, object], str]:
    """All runs of policy optimisation: their curves as JSON, the table and a chart a method beside the results."""
    courses: dict[tuple[str, str], list[Course]] = {}
    rows: list[dict[str, object]] = []
    for method in lab.methods:
        curves = {setting: [points(lab.policy(method, setting, seed, start)) for seed in lab.seeds] for setting in lab.settings}
        (RESULTS / f"laboratory-{method}.svg").write_text(chart(curves, FREE))
        for setting, found in curves.items():
            courses[method, setting] = [Course.of(curve) for curve in found]
            rows += [
                {"method": method, "setting": setting, "seed": seed, "law": law(curve), "points": as_json(curve)}
                for seed, curve in zip(lab.seeds, found, strict=True)
            ]
    laws = [
        f"| {method} | " + " | ".join(cell(list(values)) for values in zip(*filter(None, fits), strict=True)) + " |"
        for method in lab.methods
        if all(fits := [law(points(lab.policy(method, FREE, seed, start))) for seed in lab.seeds])
    ]
    fitted = "\n".join(["| method, no KL | alpha | beta |", "|---|---|---|", *laws])
    return {"runs": rows}, f"{table(courses, FREE)}\n\n{fitted}"


def best(lab: Laboratory, start: Path) -> tuple[dict[str, object], str]:
    """Best-of-n of all seeds."""
    curves = [lab.best(seed, start) for seed in lab.seeds]
    (RESULTS / "laboratory-best-of-n.svg").write_text(chart_of_best(curves))
    return {"curves": [asdict(curve) for curve in curves]}, table_of_best(curves)


def proxies(lab: Laboratory, start: Path) -> tuple[list[dict[str, object]], str]:
    """How good labels and proxies are."""
    rows: list[dict[str, object]] = []
    sizes = (1, MEMBERS) if ENSEMBLE in lab.settings else (1,)
    heads = ["seed", "pairs", "labels in the gold's order", *(f"held-out accuracy, {size} member(s)" for size in sizes)]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for seed in lab.seeds:
        path, right = lab.labelled(seed, start)
        found = [json.loads((lab.proxy(seed, start, members) / "result.json").read_bytes()) for members in sizes]
        pairs = len(path.read_text().splitlines())
        rows.append({"seed": seed, "pairs": pairs, "labels": right, "accuracy": [one["accuracy_after"] for one in found]})
        cells = [
            f"{100 * e['value']:.1f} [{100 * e['low']:.1f}, {100 * e['high']:.1f}], n = {e['n']}"
            for e in (one["accuracy_after"] for one in found)
        ]
        lines.append(f"| {seed} | {pairs} | {100 * right:.1f} | {' | '.join(cells)} |")
    return rows, "\n".join(lines)


def shown(path: Path) -> str:
    """The table of the policies that a file holds, of those with more than one seed."""
    courses: dict[tuple[str, str], list[Course]] = {}
    for row in sorted(json.loads(path.read_bytes())["policies"]["runs"], key=lambda row: row["seed"]):
        courses.setdefault((row["method"], row["setting"]), []).append(Course.of(read_points(row["points"])))
    order = [(method, setting) for method in RATES for setting in SETTINGS]
    return table({key: courses[key] for key in order if len(courses.get(key, ())) > 1}, FREE)


def _with_earlier(found: dict[str, Any], path: Path) -> dict[str, Any]:
    """With the runs of other methods and settings that the file holds already."""
    if not path.is_file():
        return found
    rows = [*json.loads(path.read_bytes())["policies"]["runs"], *found["policies"]["runs"]]
    kept = {(row["method"], row["setting"], row["seed"]): row for row in rows}
    return {**found, "policies": {"runs": list(kept.values())}}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("../shared/models/stories260k"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rounds", type=int, default=17)
    parser.add_argument("--methods", nargs="+", default=list(RATES), choices=list(RATES))
    parser.add_argument("--settings", nargs="+", default=list(SETTINGS), choices=list(SETTINGS))
    parser.add_argument("--out", type=Path, default=Path("runs/laboratory"))
    parser.add_argument("--show", action="store_true", help="measure nothing: print the table of what was measured")
    args = parser.parse_args(arguments)
    if args.show:
        print(shown(RESULTS / "laboratory.json"))
        return
    args.out.mkdir(parents=True, exist_ok=True)
    RESULTS.mkdir(exist_ok=True)
    began, about = time.process_time(), machine("cpu")
    lab = Laboratory(
        out=args.out,
        model=args.model,
        seeds=tuple(args.seeds),
        rounds=args.rounds,
        methods=tuple(args.methods),
        settings=tuple(setting for setting in SETTINGS if setting == FREE or setting in args.settings),
    )
    start = lab.start()
    parts = {"proxies": proxies(lab, start), "best_of_n": best(lab, start), "policies": over_optimisation(lab, start)}
    found = {
        "base": "stories260k" if (args.model / "stories260K.bin").is_file() else "trained by the laboratory",
        "machine": about,
        "seeds": args.seeds,
        "rounds": args.rounds,
        "cpu_seconds_of_this_command": round(time.process_time() - began, 1),
        **{name: value for name, (value, _) in parts.items()},
    }
    path = RESULTS / "laboratory.json"
    path.write_text(json.dumps(_with_earlier(found, path), indent=1) + "\n")
    print("\n\n".join(text for _, text in parts.values()))


if __name__ == "__main__":
    main()
