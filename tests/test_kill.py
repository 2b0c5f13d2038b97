"""Killed at any moment, the same command goes on to the same bytes: weights, optimizer, logs, saved model and result.

The command runs in children of a process that has everything imported (`zygote.py`) and is killed at random instants, from the
moment its run folder begins to the end. What is compared: every file of the run, but those that hold the clock or the process.
"""

import json
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from truing.runs.read import read_status
from truing.train.checkpoint import newest

METHODS = ("sft", "reward_model", "dpo")
ADAPTERS = {"full": (), "lora": ("lora.rank=4", "optimizer.lr=1e-3")}
VARIANTS = [(method, weights) for method in METHODS for weights in ADAPTERS]
CLOCKS = ("timing.jsonl", "environment.json", "lock")
STEPS = 12


class Zygote:
    """Runs commands, each in a fork of one warm process."""

    def __init__(self, model: Path) -> None:
        script = Path(__file__).with_name("zygote.py")
        self.process = subprocess.Popen(
            [sys.executable, str(script), str(model)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __call__(self, argv: list[str], log: Path, **stop: object) -> tuple[int, float]:
        """The exit code of `truing *argv`, or minus the signal that killed it, and how long it ran."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(json.dumps({"argv": argv, "log": str(log), **stop}) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        return answer["code"], answer["seconds"]

    def close(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait(30)


@pytest.fixture(scope="module")
def zygote(tiny_model_folder: Path) -> Iterator[Zygote]:
    running = Zygote(tiny_model_folder)
    yield running
    running.close()


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 pairs of unequal lengths."""
    path = tmp_path_factory.mktemp("data") / "pairs.csv"
    rows = [f"What is {i} plus {i}?,It is {2 * i}{' indeed' * (i % 5)}.,No idea{'!' * (i % 3)}" for i in range(24)]
    path.write_text("\n".join(["prompt,chosen,rejected", *rows]) + "\n")
    return path


@dataclass(frozen=True, kw_only=True)
class Undisturbed:
    """An uninterrupted run, against which the others are held."""

    argv: list[str]
    """The command, but its run folder."""
    folder: Path
    begins: float
    """The share of its time after which its run folder was there."""
    seconds: float
    files: dict[str, bytes]


def files(folder: Path) -> dict[str, bytes]:
    """All that must be equal, by path."""
    found = {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
    return {name: data for name, data in found.items() if name not in CLOCKS}


@pytest.fixture(scope="module")
def undisturbed(zygote: Zygote, pairs: Path, tiny_model_folder: Path, tmp_path_factory: pytest.TempPathFactory):
    """method, weights -> its uninterrupted run, made once."""
    made: dict[tuple[str, str], Undisturbed] = {}

    def of(method: str, weights: str) -> Undisturbed:
        if (method, weights) not in made:
            argv = [
                *("train", method, f"data.path={pairs}", f"model={tiny_model_folder}", "data.held_out_share=0.2"),
                *(f"max_steps={STEPS}", "epochs=2", "batch_size=2", "micro_tokens=64", "save_every=3", "evaluate_every=4"),
                *ADAPTERS[weights],
            ]
            folder = tmp_path_factory.mktemp("undisturbed") / "run"
            log = folder.parent / "log"
            code, seconds = zygote([*argv, f"run={folder}"], log)
            assert code == 0, log.read_text()
            ended = (folder / "result.json").stat().st_mtime
            begins = 1 - (ended - (folder / "fingerprints.json").stat().st_mtime) / seconds
            assert 0 < begins < 1
            made[method, weights] = Undisturbed(argv=argv, folder=folder, begins=begins, seconds=seconds, files=files(folder))
        return made[method, weights]

    return of


def kills(zygote: Zygote, whole: Undisturbed, folder: Path, *, least: int, seed: str) -> list[str]:
    """Kills the command and starts it again until it has been killed `least` times and has finished; says where each kill fell.

    A command that finishes earlier is compared too, and begun anew in another folder.
    """
    rng, fell = random.Random(seed), []
    for number in range(100 * least):
        run = folder / str(number)
        log = folder / f"{number}.log"
        while True:
            seconds = rng.uniform(0.95 * whole.begins, 1.0) * whole.seconds
            stop = {"signal": signal.SIGKILL, "seconds": seconds} if len(fell) < least else {}
            code, _ = zygote([*whole.argv, f"run={run}"], log, **stop)
            if code == 0:
                break
            assert code == -signal.SIGKILL, log.read_text()
            fell.append(where(run))
        compare(whole, run, log)
        if len(fell) >= least:
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
    lines = (run / "metrics.jsonl").read_bytes().count(b"\n") if (run / "metrics.jsonl").is_file() else 0
    return "steps" if lines else "reference and first evaluation"


def compare(whole: Undisturbed, run: Path, log: Path) -> None:
    found = files(run)
    assert sorted(found) == sorted(whole.files), log.read_text()
    # the config names the run's folder, which is each one's own
    own = {name: data.replace(str(run).encode(), str(whole.folder).encode()) for name, data in found.items()}
    assert [name for name in whole.files if own[name] != whole.files[name]] == [], log.read_text()


@pytest.mark.parametrize(("method", "weights"), VARIANTS)
def test_trap_23_killed_at_any_moment_the_same_command_ends_at_the_same_bytes(
    method: str, weights: str, zygote: Zygote, undisturbed, tmp_path: Path
) -> None:
    whole = undisturbed(method, weights)
    assert {"metrics.jsonl", "model/model.safetensors", "result.json"} <= whole.files.keys()
    assert f"checkpoints/step-{STEPS:06}/learner.safetensors" in whole.files
    assert len(kills(zygote, whole, tmp_path, least=5, seed=f"{method} {weights}")) >= 5


@pytest.mark.soak
@pytest.mark.parametrize(("method", "weights"), VARIANTS)
def test_killed_many_times_in_every_part_of_its_work(
    method: str, weights: str, zygote: Zygote, undisturbed, tmp_path: Path
) -> None:
    fell = kills(zygote, undisturbed(method, weights), tmp_path, least=25, seed=f"soak {method} {weights}")
    assert {"steps", "checkpoint"} <= set(fell), fell


def test_without_interruption_two_commands_give_the_same_bytes(zygote: Zygote, undisturbed, tmp_path: Path) -> None:
    """Each process has its own global random states; the run sets them."""
    whole = undisturbed("dpo", "lora")
    code, _ = zygote([*whole.argv, f"run={tmp_path / 'run'}"], tmp_path / "log")
    assert code == 0
    compare(whole, tmp_path / "run", tmp_path / "log")


@pytest.mark.parametrize(("number", "expected"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_and_the_same_command_ends_at_the_same_bytes(
    number: int, expected: int, zygote: Zygote, undisturbed, tmp_path: Path
) -> None:
    whole = undisturbed("dpo", "full")
    run, log = tmp_path / "run", tmp_path / "log"
    code, _ = zygote([*whole.argv, f"run={run}", "save_every=0"], log, signal=number, lines=[str(run / "metrics.jsonl"), 5])
    assert code == expected, log.read_text()
    status = read_status(run)
    assert status.state == "stopped"
    assert 0 < status.step < STEPS
    saved = newest(run / "checkpoints")
    assert saved is not None
    assert saved.step == status.step, "nothing else saves here"
    assert "Traceback" not in log.read_text()
    code, _ = zygote([*whole.argv, f"run={run}"], log)
    assert code == 0
    compare(whole, run, log)
