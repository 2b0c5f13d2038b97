"""Killed at any moment, the same command goes on to the same bytes: weights, optimizer, logs, saved model and result.

The command runs in children of a process that has everything imported (`zygote.py`) and is killed at random instants, from the
moment its run folder begins to the end. What is compared: every file of the run, but those that hold the clock or the process.
"""

import json
import random
import shutil
import signal
from dataclasses import dataclass
from pathlib import Path

import pytest

from folders import differences, files
from parted import PARTS
from truing.runs.read import read_rows, read_status
from truing.train.checkpoint import newest
from zygote import Zygote

METHODS = ("sft", "reward_model", "dpo")
ADAPTERS = {"full": ("dtype=bf16",), "lora": ("dtype=fp32", "lora.rank=4", "optimizer.lr=1e-3")}
WEIGHTS = {**ADAPTERS, "upper": ("dtype=fp32", "lora.rank=4", "lora.top_layers=1", "optimizer.lr=3e-3")}
VARIANTS = [
    *((method, weights) for method in METHODS for weights in ADAPTERS),
    ("kto", "full"),
    ("tr-dpo", "full"),
    ("ppo", "full"),
    ("ppo", "upper"),
]
ON_POLICY = ("ppo", "rloo", "grpo")
SOAKED = [*VARIANTS, *((method, weights) for method in ON_POLICY for weights in ADAPTERS if (method, weights) not in VARIANTS)]
ROUNDS = (
    *("reward.short=length_window", "reward.short.most=5", "answers.max_tokens=8", "replay.epochs=2", "replay.kl_budget=0.02"),
    *("kl=adaptive", "optimizer.lr=1e-3"),
)
SETTINGS = {"tr-dpo": ("trust_region.every=2",), **dict.fromkeys(ON_POLICY, (*ROUNDS, "rounds.samples=2"))}
SETTINGS["ppo"] = ROUNDS
STEPS = 12


@dataclass(frozen=True, kw_only=True)
class Undisturbed:
    """An uninterrupted run, against which the others are held."""

    argv: list[str]
    """The command, but its run folder."""
    folder: Path
    begins: float
    """The share of its time after which its run folder was there."""
    seconds: float


@pytest.fixture(scope="module")
def undisturbed(zygote: Zygote, pairs_file: Path, tiny_model_folder: Path, tmp_path_factory: pytest.TempPathFactory):
    """method, weights -> its uninterrupted run, made once."""
    made: dict[tuple[str, str], Undisturbed] = {}

    def of(method: str, weights: str) -> Undisturbed:
        if (method, weights) not in made:
            argv = [
                *("train", method, f"data.path={pairs_file}", f"model={tiny_model_folder}", "data.held_out_share=0.2"),
                *(f"max_steps={STEPS}", "epochs=2", "batch_size=2", "micro_tokens=64", "save_every=3", "evaluate_every=4"),
                *SETTINGS.get(method, ()),
                *WEIGHTS[weights],
            ]
            folder = tmp_path_factory.mktemp("undisturbed") / "run"
            log = folder.parent / "log"
            assert zygote([*argv, f"run={folder}"], log) == [0], log.read_text()
            seconds = zygote.seconds
            ended = (folder / "result.json").stat().st_mtime
            begins = 1 - (ended - (folder / "fingerprints.json").stat().st_mtime) / seconds
            assert 0 < begins < 1
            made[method, weights] = Undisturbed(argv=argv, folder=folder, begins=begins, seconds=seconds)
        return made[method, weights]

    return of


def kills(
    zygote: Zygote, whole: Undisturbed, folder: Path, *, least: int, seed: str, parts: frozenset[str] = frozenset()
) -> list[str]:
    """Kills the command and starts it again until it has been killed `least` times and has finished; says where each kill fell.

    A command that finishes earlier is compared too, and begun anew in another folder. Kills go on until each of `parts`, some of
    which take a machine only moments, has had one, up to ten times as many.
    """
    rng, fell = random.Random(seed), []

    def enough() -> bool:
        return len(fell) >= least and (parts <= set(fell) or len(fell) >= 10 * least)

    for number in range(100 * least):
        run = folder / str(number)
        log = folder / f"{number}.log"
        while True:
            seconds = rng.uniform(0.95 * whole.begins, 1.0) * whole.seconds
            stop = {} if enough() else {"seconds": seconds}
            codes = zygote([*whole.argv, f"run={run}"], log, **stop)
            if codes == [0]:
                break
            assert codes == [-signal.SIGKILL], log.read_text()
            fell.append(where(run))
        assert differences(run, whole.folder) == [], log.read_text()
        if enough():
            return fell
        shutil.rmtree(run)
    raise AssertionError("the command outruns its killer")


def where(run: Path) -> str:
    """In which part of its work a command was killed, as far as its files tell."""
    if not (run / "config.json").is_file():
        return "before"
    if list((run / "checkpoints").glob(".tmp-*")):
        return "checkpoint"
    if list(run.glob(".tmp-model*")) or (run / "model").is_dir():
        return "ending"
    learnt, sampled = last_step(run / "metrics.jsonl"), last_step(run / "samples.jsonl")
    if sampled is not None:
        return "learning" if sampled > (learnt or 0) else "sampling and scoring"
    return "steps" if learnt is not None else "reference and first evaluation"


def last_step(log: Path) -> int | None:
    """The step of the last whole line."""
    lines = log.read_bytes().split(b"\n")[:-1] if log.is_file() else []
    return int(json.loads(lines[-1])["step"]) if lines else None


@pytest.mark.parametrize(("method", "weights"), VARIANTS)
def test_trap_23_killed_at_any_moment_the_same_command_ends_at_the_same_bytes(
    method: str, weights: str, zygote: Zygote, undisturbed, tmp_path: Path
) -> None:
    whole = undisturbed(method, weights)
    last = f"checkpoints/step-{STEPS:06}/learner.safetensors"
    assert {"metrics.jsonl", last, "model/model.safetensors", "result.json"} <= files(whole.folder).keys()
    if method == "ppo":
        last_line = json.loads((whole.folder / "metrics.jsonl").read_bytes().splitlines()[-1])
        assert 0 < last_line["rejected"] < STEPS, "some updates are taken back, and some are not"
        held_out = {row["step"] for row in read_rows(whole.folder / "samples.jsonl") if row["held_out"]}
        assert held_out == {0, 4, 8, 12}, "answers to held-out prompts are among what is compared"
    least = 5 if method in METHODS else 2  # the others run the same parts, and their own few
    assert len(kills(zygote, whole, tmp_path, least=least, seed=f"{method} {weights}")) >= least


def assert_goes_on_after_a_kill_in(part: str, zygote: Zygote, whole: Undisturbed, folder: Path, *, seed: str) -> None:
    """Kills the command inside a part of one of its rounds, and lets it go on to the end."""
    folder.mkdir()
    run, log, marks = folder / "run", folder / "log", folder / "marks"
    argv = [*whole.argv, f"run={run}"]
    assert zygote([str(marks), "0", *argv], log, call="parted:command") == [0], log.read_text()
    assert differences(run, whole.folder) == [], "to be watched changes nothing"
    shutil.rmtree(run)
    said = marks.read_text().splitlines()
    marks.unlink()
    begins = [number for number, line in enumerate(said, 1) if line == part]
    assert begins, f"no round has come to {part}"
    at = random.Random(seed).choice(begins)
    codes = zygote([str(marks), str(at), *argv], log, call="parted:command", lines=(marks, at))
    assert codes == [-signal.SIGKILL], log.read_text()
    assert marks.read_text().splitlines()[at - 1 :] == [part]
    assert zygote(argv, log) == [0], log.read_text()
    assert differences(run, whole.folder) == [], log.read_text()


@pytest.mark.parametrize("part", ["taking back", "answering held-out prompts", "saving the model"])
def test_trap_23_killed_where_policy_optimisation_alone_has_a_part(part: str, zygote: Zygote, undisturbed, tmp_path: Path) -> None:
    assert_goes_on_after_a_kill_in(part, zygote, undisturbed("ppo", "upper"), tmp_path / "killed", seed=part)


@pytest.mark.soak
@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize(("method", "weights"), [variant for variant in SOAKED if variant[0] in ON_POLICY])
def test_killed_inside_each_part_of_a_round(
    method: str, weights: str, part: str, zygote: Zygote, undisturbed, tmp_path: Path
) -> None:
    whole = undisturbed(method, weights)
    for number in range(3):
        assert_goes_on_after_a_kill_in(part, zygote, whole, tmp_path / str(number), seed=f"{method} {weights} {part} {number}")


@pytest.mark.soak
@pytest.mark.parametrize(("method", "weights"), SOAKED)
def test_killed_many_times_in_every_part_of_its_work(
    method: str, weights: str, zygote: Zygote, undisturbed, tmp_path: Path
) -> None:
    parts = frozenset({"sampling and scoring", "learning", "checkpoint"} if method in ON_POLICY else {"steps", "checkpoint"})
    fell = kills(zygote, undisturbed(method, weights), tmp_path, least=25, seed=f"soak {method} {weights}", parts=parts)
    assert parts <= set(fell), fell


def test_without_interruption_two_commands_give_the_same_bytes(zygote: Zygote, undisturbed, tmp_path: Path) -> None:
    """Each process has its own global random states; the run sets them."""
    whole = undisturbed("dpo", "lora")
    assert zygote([*whole.argv, f"run={tmp_path / 'run'}"], tmp_path / "log") == [0]
    assert differences(tmp_path / "run", whole.folder) == []


@pytest.mark.parametrize(("number", "expected"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_and_the_same_command_ends_at_the_same_bytes(
    number: int, expected: int, zygote: Zygote, undisturbed, tmp_path: Path
) -> None:
    whole = undisturbed("dpo", "full")
    run, log = tmp_path / "run", tmp_path / "log"
    codes = zygote([*whole.argv, f"run={run}", "save_every=0"], log, signal=number, lines=(run / "metrics.jsonl", 5))
    assert codes == [expected], log.read_text()
    status = read_status(run)
    assert status.state == "stopped"
    assert 0 < status.step < STEPS
    saved = newest(run / "checkpoints")
    assert saved is not None
    assert saved.step == status.step, "nothing else saves here"
    assert "Traceback" not in log.read_text()
    assert zygote([*whole.argv, f"run={run}"], log) == [0]
    assert differences(run, whole.folder) == [], log.read_text()
