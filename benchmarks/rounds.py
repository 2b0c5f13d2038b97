"""Policy optimisation and sampling against their peers: each row one piece of work, where its time goes, the floor of each part.

    python -m benchmarks ppo-full-fp32 rloo-k8 [--pairs 3] [--quick]

Rows are measured as those of `benchmarks.rows` are: ours and the peer in turn, each in a process of its own.
"""

import json
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import children, peers
from benchmarks.machine import machine
from benchmarks.measure import RATE, SMOLLM2, Conditions, say
from benchmarks.ratios import Spread

HERE = Path(__file__).parent
MICRO_TOKENS = 2048
OURS = "truing"
"""The environment of a peer that is Truing itself, at another method."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """Example: `Round(method="rloo", peers={"trl": "rloo"}, prompts=4, k=8, prompt_tokens=400, new_tokens=64, target="4x")`."""

    method: str
    """What `truing train` is told to train; `sample` where answers are only drawn."""
    peers: Mapping[str, str]
    """Environment of `benchmarks.peers` -> what is run there, by its name in `benchmarks.rounds_peer`; the first is the peer of
    the ratios. `truing` -> a module `benchmarks.rounds_NAME`."""
    prompts: int
    """Prompts of a round."""
    new_tokens: int
    """Longest answer."""
    target: str
    """What is to be reached."""
    rounds: int = 2
    """How many rounds are run."""
    k: int = 1
    """Answers to each prompt."""
    epochs: int = 1
    """Passes over each round."""
    below: int = 1024
    """Only prompts of fewer tokens are taken."""
    prompt_tokens: int | None = None
    """Length to which every prompt is brought by text before it; None leaves prompts as they are."""
    dtype: str = "bf16"
    """Dtype of the weights: ours, and the peers' in the order of `peers` where they differ."""
    peer_dtype: str | None = None
    """Dtype of the peer's weights; None is the same."""
    learned: bool = False
    """Whether a reward model scores answers; else a window of their lengths does."""
    settings: tuple[str, ...] = ()
    """Further settings of `truing train`."""
    notes: tuple[str, ...] = ()
    """Where the sides do not do the same, and whom that helps."""

    @property
    def lora(self) -> bool:
        return any(setting.startswith("lora.") for setting in self.settings)

    @property
    def top_layers(self) -> int | None:
        """Layers, from the uppermost down, that have adapters and are trained; None is all of them."""
        return next(
            (int(value) for key, _, value in (one.partition("=") for one in self.settings) if key == "lora.top_layers"), None
        )


MASTERS = "with bf16 weights Truing keeps fp32 masters and fp32 moments, TRL plain bf16 AdamW: that costs Truing time and memory"
CUT = "TRL always draws `response_length` tokens, until every row of a batch has ended; Truing drops a row when it ends"


def _ppo(**changes: object) -> Round:
    """The workload of TRL's PPO: all four roles of SmolLM2's size, 8 short prompts a round, 4 epochs."""
    same: dict[str, object] = {
        "method": "ppo",
        "peers": {"trl_ppo": "ppo"},
        "prompts": 8,
        "new_tokens": 32,
        "epochs": 4,
        "below": 128,
        "learned": True,
        "notes": (CUT,),
    }
    return Round(**(same | changes))  # type: ignore[arg-type]


HYDRA = ("lora.rank=16", "lora.top_layers=10")
"""A third of SmolLM2's layers; those beneath are the trunk that all four roles share."""
UPPER = "Truing's roles are adapters in the uppermost 10 of 30 layers, TRL trains all weights of policy and critic"
BESIDE_SFT = "the peer is Truing's LoRA SFT, one of the four roles: as many prompts, answers as long, as many tokens at once"
ROUNDS: dict[str, Round] = {
    "ppo-full-fp32": _ppo(dtype="fp32", target="1.4x, 0.65 of the floor, at most 0.7x the memory"),
    "ppo-full-bf16": _ppo(target="1.4x, 0.65 of the floor, at most 0.7x the memory", notes=(CUT, MASTERS)),
    "ppo-lora-hydra": _ppo(
        settings=HYDRA, peer_dtype="fp32", target="6x TRL's full run in fp32, at most 0.25x the memory", notes=(CUT, UPPER)
    ),
    "ppo-lora-hydra-bf16": _ppo(settings=HYDRA, target="3x TRL's full run in bf16, at most 0.25x the memory", notes=(CUT, UPPER)),
    "ppo-lora-hydra-all-layers": _ppo(settings=("lora.rank=16",), target="none: the same with adapters in all layers, in bf16"),
    "ppo-lora-hydra-beside-sft": _ppo(
        settings=HYDRA,
        peers={OURS: "sft"},
        target="at most 1.3x the memory of LoRA SFT, same tokens at once",
        notes=(BESIDE_SFT,),
    ),
    "rloo-k8": Round(
        method="rloo",
        peers={"trl": "rloo"},
        prompts=4,
        k=8,
        new_tokens=64,
        prompt_tokens=400,
        target="4x, at most 0.4x the memory",
        notes=(MASTERS, "TRL computes the prompt once for each of the k answers, and the LM head for all positions of the answers"),
    ),
    "grpo-k8": Round(
        method="grpo",
        peers={"trl": "grpo"},
        prompts=4,
        k=8,
        new_tokens=64,
        prompt_tokens=400,
        target="4x, at most 0.4x the memory",
        notes=(MASTERS, "TRL computes the prompt once for each of the k answers, and the LM head for all positions of the answers"),
    ),
    "sampling": Round(
        method="sample",
        peers={"trl": "generate"},
        prompts=32,
        k=8,
        rounds=1,
        new_tokens=128,
        below=256,
        target="2x transformers' generate, by tokens a second",
    ),
    "sampling-continuous": Round(
        method="sample",
        peers={"trl": "continuous"},
        prompts=32,
        k=8,
        rounds=1,
        new_tokens=128,
        below=256,
        target="1.3x transformers' continuous batching, by tokens a second",
        notes=("the peer's cache has the room that all answers need: left to itself it takes six tenths of the memory",),
    ),
}
"""Row -> work. The answers drawn differ from side to side, so `sampling` counts tokens, all other rows answers."""


def fitted(row: Round, conditions: Conditions) -> Round:
    """The row as it is measured under the conditions."""
    if conditions.quick:
        return replace(row, prompts=2, k=min(row.k, 2), new_tokens=4, rounds=1, epochs=min(row.epochs, 2), prompt_tokens=None)
    return row


def measure(name: str, row: Round, conditions: Conditions) -> dict[str, Any]:
    """Measure a row and write its JSON; returns what was written."""
    assert conditions.device == "cpu", "policy optimisation is measured on the CPU"
    row = fitted(row, conditions)
    folder = conditions.scratch / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    own = [sys.executable, "-m"]
    spec = {
        "row": asdict(row),
        "data_folder": str(conditions.data),
        "model": "tiny" if conditions.quick else SMOLLM2,
        "micro_tokens": MICRO_TOKENS,
        "folder": str(folder),
        "lr": RATE,
    }
    prepared = children.run([*own, "benchmarks.rounds_prepare"], spec, folder, "prepared", env=env).report
    spec |= {"start": prepared["model"], "reward_model": prepared["reward_model"]}
    floors: list[dict[str, float]] = []
    pairs: list[dict[str, Any]] = []
    for number in range(conditions.pairs):
        say(f"{name}: {number + 1} of {conditions.pairs}")
        shutil.rmtree(folder / "run", ignore_errors=True)
        pair = {"ours": _outcome([*own, "benchmarks.rounds_side"], spec, folder, "ours", env)}
        work = {"parts": parts_of(row, prepared, pair["ours"]["report"]), "shapes": prepared["shapes"], "dtype": row.dtype}
        floors.append(children.run([*own, "benchmarks.rounds_floor"], work, folder, "floor", env=env).report)
        script = str(HERE / "rounds_peer.py")
        for environment, program in row.peers.items():
            if environment == OURS:
                pair[program] = _outcome([*own, f"benchmarks.rounds_{program}"], spec, folder, program, env)
                continue
            theirs = {**peers.environment(), "CUDA_VISIBLE_DEVICES": ""}
            given = {**spec, "program": program, "dtype": row.peer_dtype or row.dtype}
            pair[program] = _outcome([peers.python(environment), script], given, folder, program, theirs)
        pairs.append(pair)
    result = {
        "name": name,
        "row": asdict(row),
        "model": spec["model"],
        "machine": machine(conditions.device),
        "date": datetime.now(UTC).date().isoformat(),
        "prepared": {key: value for key, value in prepared.items() if key not in ("model", "shapes", "reward_model")},
        "figures": figures(row, floors, pairs),
        "measurements": pairs,
    }
    conditions.results.mkdir(parents=True, exist_ok=True)
    (conditions.results / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
    shutil.rmtree(folder)
    return result


def _outcome(command: list[str], spec: Mapping[str, Any], folder: Path, name: str, env: Mapping[str, str]) -> dict[str, Any]:
    outcome = children.run(command, spec, folder, name, env=env)
    report = outcome.report
    say(f"  {name}: {report['seconds']:.1f} s of {outcome.seconds:.1f} s, {report['tokens']} tokens, {outcome.peak_gb:.2f} GB")
    return asdict(outcome)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """Products with the weights that a part cannot do without: `count` passes of so many tokens at once."""

    tokens: int
    """Tokens that go through the layers."""
    scored: int
    """Of which so many go through the LM head."""
    count: float = 1
    trained: str = ""
    """Empty where it is only read; `all` or `adapters` where gradients are made too."""
    layers: float = 1
    """The share of the layers that they go through."""


def parts_of(row: Round, prepared: Mapping[str, Any], report: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The least work of each part, by what was drawn: prompts once for their answers, the head for the answers' tokens alone, and
    the layers beneath all adapters once a round.
    """
    answers, prompts = row.prompts * row.k * row.rounds, row.prompts * row.rounds
    said = report["tokens"]
    of_round = prepared["prompt_tokens"] // row.rounds + said // row.rounds
    at_once = min(of_round, MICRO_TOKENS)
    times = row.rounds * of_round / at_once
    head = round(said / row.rounds / (of_round / at_once))
    read = Pass(tokens=at_once, scored=head, count=times)
    headless = Pass(tokens=at_once, scored=0, count=times)
    parts = {
        "sampling": [
            Pass(tokens=prepared["prompt_tokens"] // row.rounds, scored=prompts // row.rounds, count=row.rounds),
            Pass(tokens=row.prompts * row.k, scored=row.prompts * row.k, count=max(0.0, said / answers - 1) * row.rounds),
        ]
    }
    if row.method != "sample":
        trained = "adapters" if row.lora else "all"
        upper = min(1.0, row.top_layers / prepared["layers"]) if row.top_layers else 1.0
        again, headless_again = replace(read, layers=upper), replace(headless, layers=upper)
        parts |= {"scoring: policy": [read], "scoring: reference": [again]}
        parts["update"] = [replace(again, count=times * row.epochs, trained=trained)]
        if row.method == "ppo":
            parts |= {"scoring: critic": [headless_again], "reward": [headless_again]}
            parts["update"].append(replace(headless_again, count=times * row.epochs, trained=trained))
    return {name: [asdict(one) for one in passes] for name, passes in parts.items()}


def figures(row: Round, floors: Sequence[Mapping[str, float]], pairs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Speeds and their ratios, memory, and each part's seconds with its floor; medians over the pairs."""
    units = "tokens" if row.method == "sample" else "answers"

    def speed(outcome: Mapping[str, Any]) -> float:
        report = outcome["report"]
        return (report["tokens"] if units == "tokens" else row.prompts * row.k * row.rounds) / report["seconds"]

    peer = next(iter(row.peers.values()))
    ours, theirs = [pair["ours"] for pair in pairs], [pair[peer] for pair in pairs]
    names = list(dict.fromkeys(name for one in ours for name in one["report"]["parts"]))
    parts = {name: median(one["report"]["parts"].get(name, 0.0) for one in ours) for name in names}
    floor = {name: median(one[name] for one in floors) for name in floors[0]}
    whole = median(one["report"]["seconds"] for one in ours)
    peak, peer_peak = (median(one["peak_gb"] for one in side) for side in (ours, theirs))
    return {
        "unit": units,
        "per_second": Spread.of([speed(one) for one in ours]).as_json(),
        "peer_per_second": Spread.of([speed(one) for one in theirs]).as_json(),
        "speed_ratio": Spread.of([speed(a) / speed(b) for a, b in zip(ours, theirs, strict=True)]).as_json(),
        "peak_gb": peak,
        "peer_peak_gb": peer_peak,
        "memory_ratio": peak / peer_peak,
        "seconds": whole,
        "parts": parts,
        "outside": max(0.0, whole - sum(parts.values())) / whole,
        "floor": floor,
        "share_of_floor": Spread.of(
            [sum(least.values()) / one["report"]["seconds"] for least, one in zip(floors, ours, strict=True)]
        ).as_json(),
    }


HEADER = (
    "| row | unit/s | peer's | times as fast, median [min, max] | peak GB | peer's | memory | share of the floor | outside parts "
    "| to reach |\n|---|---|---|---|---|---|---|---|---|---|"
)


def show(results: Sequence[Mapping[str, Any]]) -> str:
    """A table of the rows, then for each where its time goes, then where the sides differ."""
    lines = [HEADER, *(_line(one) for one in results)]
    for one in results:
        found = one["figures"]
        lines += ["", f"{one['name']}, seconds of {one['row']['rounds']} round(s), in all {found['seconds']:.1f}:", ""]
        lines += ["| part | seconds | share | floor | share of its floor |", "|---|---|---|---|---|"]
        for name, seconds in found["parts"].items():
            floor = found["floor"].get(name)
            cells = [f"{seconds:.2f}", f"{100 * seconds / found['seconds']:.0f}%"]
            cells += [f"{floor:.2f}", f"{floor / seconds:.2f}"] if floor and seconds else ["-", "-"]
            lines.append(f"| {name} | {' | '.join(cells)} |")
    notes: dict[str, list[str]] = {}
    for one in results:
        for note in one["row"]["notes"]:
            notes.setdefault(note, []).append(one["name"])
    return "\n".join([*lines, "", *(f"- {note} ({', '.join(names)})." for note, names in notes.items())])


def _line(result: Mapping[str, Any]) -> str:
    found = result["figures"]

    def spread(values: Mapping[str, float]) -> str:
        return f"{values['median']:.2f} [{values['min']:.2f}, {values['max']:.2f}]"

    cells = [
        result["name"],
        f"{found['per_second']['median']:.2f} {found['unit']}",
        f"{found['peer_per_second']['median']:.2f}",
        spread(found["speed_ratio"]),
        f"{found['peak_gb']:.2f}",
        f"{found['peer_peak_gb']:.2f}",
        f"{found['memory_ratio']:.2f}",
        spread(found["share_of_floor"]),
        f"{100 * found['outside']:.0f}%",
        result["row"]["target"],
    ]
    return "| " + " | ".join(cells) + " |"
