"""A run continues as if nothing had happened, refuses to mix two runs, and has one writer."""

import json
import os
import random
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from truing.runs import environment as environment_module
from truing.runs.durable import StorageError
from truing.runs.lock import RunBusyError
from truing.runs.read import flat, list_runs, listing, read_rows, read_run, read_status
from truing.runs.run import Interrupted, Run, RunDiffersError
from truing.train.checkpoint import Checkpoints, newest

CALLS = ("open", "write", "fsync", "rename", "unlink", "mkdir", "rmdir", "ftruncate")
STEPS = 9

CONFIG: dict[str, object] = {
    "seed": 7,
    "method": "dpo",
    "loss": {"beta": 0.1, "label_smoothing": 0.0, "length_normalise": False},
    "optim": {"lr": 1e-3, "betas": (0.9, 0.95), "warmup": 10, "weight_decay": 0.0},
    "data": {"files": ["a.jsonl", "b.jsonl"], "shuffle": True, "max_tokens": 512},
    "model": {"name": "tiny", "dtype": "float32", "lora": None},
    "batch": 8,
    "save_every": 3,
    "keep": 2,
    "name": "first",
    "logging": {"level": "info", "console": True},
}
PRINTS = {"data": "d" * 64, "tokenizer": "e" * 64, "template": "f" * 64, "model": "0" * 64}


class Heard:
    """A sink that remembers."""

    def __init__(self) -> None:
        self.messages: list[str] = []
        self.ends: list[tuple[str, str]] = []

    def stage(self, name: str, total: int) -> None:
        return

    def step(self, step: int, metrics: Mapping[str, float], seconds_left: float) -> None:
        return

    def message(self, text: str, level: str) -> None:
        self.messages.append(f"{level}: {text}")

    def done(self, state: str, reason: str) -> None:
        self.ends.append((state, reason))


def opened(folder: Path, config: Mapping[str, object] = CONFIG, **changes: Any) -> Run:
    settings: dict[str, Any] = {
        **{"fingerprints": PRINTS, "max_steps": STEPS, "save_every": 3, "evaluate_every": 4, "store": Checkpoints},
        **changes,
    }
    return Run.open(folder, config, **settings)


class Learner:
    """Weights that move by the batch and by chance, so that a lost random state shows."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.w, self.updates = torch.zeros(4), 0

    def state_tensors(self) -> Mapping[str, Tensor]:
        return {"w": self.w}

    def state_dict(self) -> Mapping[str, object]:
        return {"updates": self.updates}

    def load_state(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        self.w.copy_(tensors["w"])
        self.updates = state["updates"]

    def update(self, batch: int) -> dict[str, float]:
        self.w = 0.9 * self.w + batch + torch.randn(4)
        self.updates += 1
        return {"loss": float(self.w.sum()), "batch": batch, "gap": float("nan")}


class Source:
    """0, 1, 2 and so on, and where it stands."""

    def __init__(self) -> None:
        self.at = 0

    def state_tensors(self) -> Mapping[str, Tensor]:
        return {}

    def state_dict(self) -> Mapping[str, object]:
        return {"at": self.at}

    def load_state(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        self.at = state["at"]

    def __iter__(self) -> Iterator[int]:
        while True:
            self.at += 1
            yield self.at - 1


def train(run: Run, between: Callable[[int], object] = lambda step: None) -> None:
    learner, source = Learner(), Source()
    parts = {"learner": learner, "source": source}
    run.restore(parts)
    for step, batch in zip(run.remaining_steps(), source, strict=False):
        metrics = learner.update(batch)
        if run.due_evaluation(step):
            metrics["held_out_loss"] = metrics["loss"] / 2
            run.sample({"step": step, "text": "été \ud800", "value": float("inf")})
        run.log(step, metrics)
        between(step)
        if run.due_save(step):
            run.save(step, parts)
    run.finish(parts)


def trained(folder: Path, between: Callable[[int], object] = lambda step: None, **changes: Any) -> None:
    with opened(folder, **changes) as run:
        train(run, between)


def outcome(folder: Path) -> tuple[bytes, bytes, list[float], str]:
    found = newest(folder / "checkpoints")
    assert found is not None
    assert found.step == STEPS
    logs = [(folder / name).read_bytes() for name in ("metrics.jsonl", "samples.jsonl")]
    return logs[0], logs[1], found.tensors("learner")["w"].tolist(), read_status(folder).state


@pytest.fixture
def undisturbed(tmp_path: Path) -> tuple[bytes, bytes, list[float], str]:
    trained(tmp_path / "undisturbed")
    return outcome(tmp_path / "undisturbed")


def in_child(work: Callable[[], None]) -> int:
    """Runs work in a forked child; its exit code, or minus the signal that killed it."""
    pid = child(work)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def child(work: Callable[[], None]) -> int:
    pid = os.fork()
    if pid == 0:
        try:
            work()
        except SystemExit as stop:
            os._exit(int(str(stop.code)))
        except BaseException:
            traceback.print_exc()
            os._exit(70)
        os._exit(0)
    return pid


def test_a_run_by_hand(tmp_path: Path) -> None:
    folder = tmp_path / "r"
    with opened(folder) as run:
        assert not run.finished
        assert [s for s in range(1, 10) if run.due_save(s)] == [3, 6, 9]
        assert [s for s in range(1, 10) if run.due_evaluation(s)] == [4, 8, 9]
        learner = Learner()
        run.restore({"learner": learner})
        assert list(run.remaining_steps()) == [1, 2, 3, 4, 5, 6, 7, 8, 9]
        run.log(1, {"loss": 0.1, "accuracy": 1, "kl": float("-inf")})
        run.sample({"prompt": "2+2?", "response": "4"})
    assert (folder / "metrics.jsonl").read_bytes() == b'{"accuracy":1.0,"kl":"-inf","loss":0.1,"step":1}\n'
    assert (folder / "samples.jsonl").read_bytes() == b'{"prompt":"2+2?","response":"4"}\n'
    assert json.loads((folder / "config.json").read_text()) == json.loads(json.dumps(CONFIG))
    environment = json.loads((folder / "environment.json").read_text())["now"]
    assert environment["versions"]["torch"] == version("torch")
    assert environment["seed"] == 7
    view = read_run(folder)
    assert view.metrics == ({"accuracy": 1.0, "kl": float("-inf"), "loss": 0.1, "step": 1},)
    assert (view.status.state, view.status.step, view.status.max_steps) == ("stopped", 1, 9)
    assert [sorted(row) for row in view.timing] == [["seconds", "step", "time"]]


def test_a_finished_run_says_so(tmp_path: Path) -> None:
    trained(tmp_path / "r")
    heard = Heard()
    before = (tmp_path / "r" / "metrics.jsonl").read_bytes()
    with opened(tmp_path / "r", sinks=[heard]) as run:
        assert run.finished
        train(run)
        assert run.finished
    assert "finished at step 9 of 9" in heard.messages[0]
    assert (tmp_path / "r" / "metrics.jsonl").read_bytes() == before
    assert read_status(tmp_path / "r").state == "finished"


def test_a_finished_run_whose_last_checkpoint_is_damaged_is_not_finished(tmp_path: Path, undisturbed: tuple[object, ...]) -> None:
    folder = tmp_path / "r"
    trained(folder)
    (folder / "checkpoints" / "step-000009" / "state.json").unlink()
    heard = Heard()
    trained(folder, sinks=[heard])
    assert "warning: " in heard.messages[2]
    assert "the steps after 6 are done again" in heard.messages[2]
    assert outcome(folder) == undisturbed


class Crash(Exception):  # noqa: N818
    """The learner broke."""


def stop_at(at: int) -> Callable[[int], None]:
    def between(step: int) -> None:
        if step == at:
            raise Crash(f"at {step}\nsecond line")

    return between


def test_continued_after_every_step_the_logs_are_equal_byte_for_byte(tmp_path: Path, undisturbed: tuple[object, ...]) -> None:
    assert len(undisturbed[0].splitlines()) == STEPS
    for step in range(1, STEPS + 1):
        folder = tmp_path / str(step)
        with pytest.raises(Crash):
            trained(folder, stop_at(step))
        status = read_status(folder)
        assert (status.state, status.step, status.reason) == ("failed", step, f"Crash: at {step}")
        assert len(list(read_rows(folder / "metrics.jsonl"))) == step
        heard = Heard()
        trained(folder, sinks=[heard])
        assert outcome(folder) == undisturbed
        last_save = (step - 1) // 3 * 3
        assert heard.messages == ([f"info: continuing after step {last_save} of 9"] if last_save else [])


def test_restoring_cuts_the_logs_to_the_checkpoint(tmp_path: Path) -> None:
    folder = tmp_path / "r"
    with pytest.raises(Crash):
        trained(folder, stop_at(5))
    with (folder / "metrics.jsonl").open("ab") as log:
        log.write(b'{"torn')
    assert len(read_run(folder).metrics) == 5, "a reader leaves the torn line out"
    lines = (folder / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    with opened(folder) as run:
        run.restore({"learner": Learner(), "source": Source()})
        assert run.step == 3
        assert (folder / "metrics.jsonl").read_bytes() == b"".join(lines[:3])
        assert (folder / "samples.jsonl").read_bytes() == b"", "step 4 and its sample will come again"


def test_trap_22_a_broken_newest_checkpoint_repeats_no_step_in_the_logs(tmp_path: Path, undisturbed: tuple[object, ...]) -> None:
    folder = tmp_path / "r"
    with pytest.raises(Crash):
        trained(folder, stop_at(8))
    (folder / "checkpoints" / "step-000006" / "learner.safetensors").write_bytes(b"")
    assert [(s.step, s.fault == "") for s in read_run(folder).checkpoints] == [(3, True), (6, False)]
    heard = Heard()
    trained(folder, sinks=[heard])
    assert "step-000006: is not whole (learner.safetensors has 0 bytes" in heard.messages[0]
    assert heard.messages[1] == "info: continuing after step 3 of 9"
    assert outcome(folder) == undisturbed


def test_a_lost_log_does_not_stop_the_training(tmp_path: Path) -> None:
    with pytest.raises(Crash):
        trained(tmp_path / "r", stop_at(4))
    (tmp_path / "r" / "metrics.jsonl").unlink()
    heard = Heard()
    trained(tmp_path / "r", sinks=[heard])
    assert "metrics.jsonl: " in heard.messages[0]
    assert "training goes on without them" in heard.messages[0]
    assert len(list(read_rows(tmp_path / "r" / "metrics.jsonl"))) == 6


def killed_at(k: int, folder: Path) -> int:
    """Trains in a child that is killed before its k-th call that changes the disk; a write goes half way first."""

    def work() -> None:
        count = 0

        def wrapped(real: Callable[..., Any], half: bool) -> Callable[..., Any]:
            def call(*args: Any, **more: Any) -> Any:
                nonlocal count
                count += 1
                if count == k:
                    if half:
                        real(args[0], args[1][: len(args[1]) // 2])
                    os.kill(os.getpid(), signal.SIGKILL)
                return real(*args, **more)

            return call

        for name in CALLS:
            setattr(os, name, wrapped(getattr(os, name), name == "write"))
        trained(folder)

    return in_child(work)


def test_trap_23_killed_at_any_call_a_run_continues_to_the_same_end(tmp_path: Path, undisturbed: tuple[object, ...]) -> None:
    """From making the folder to the last status: killed at a call, and once more on the way, until it is done."""
    rng = random.Random(23)
    k, points = 1, 0
    while True:
        folder = tmp_path / str(k)
        code = killed_at(k, folder)
        assert code in (0, -signal.SIGKILL)
        if code == 0:
            break
        assert killed_at(rng.randrange(1, 60), folder) in (0, -signal.SIGKILL)
        trained(folder)
        assert outcome(folder) == undisturbed, k
        k, points = k + rng.randrange(1, 9), points + 1
    assert points > 30


def test_a_killed_run_reads_as_died_and_is_taken_over(tmp_path: Path) -> None:
    folder = tmp_path / "r"
    code = in_child(lambda: trained(folder, lambda step: os.kill(os.getpid(), signal.SIGKILL) if step == 5 else None))
    assert code == -signal.SIGKILL
    assert read_status(folder).state == "died"
    heard = Heard()
    trained(folder, sinks=[heard])
    assert "taking over from process" in heard.messages[0]


def test_a_second_writer_is_refused_by_name(tmp_path: Path) -> None:
    with opened(tmp_path / "r") as run:
        assert read_status(run.folder).state == "running"
        with pytest.raises(RunBusyError, match=f"process {os.getpid()} on .*kill {os.getpid()}"):
            opened(tmp_path / "r")
    opened(tmp_path / "r").close()


HARMLESS = [
    ("save_every", 100),
    ("keep", 5),
    ("name", "second"),
    ("logging.level", "debug"),
    ("logging.console", False),
    ("logging.new", 1),
    ("reward_changed", True),
]
SERIOUS = [
    *(
        ("seed", 8),
        ("method", "ipo"),
        ("batch", 16),
        ("loss.beta", 0.2),
        ("loss.label_smoothing", 0.1),
        ("loss.length_normalise", True),
    ),
    *(("loss.length_normalise", 0), ("optim.lr", 2e-3), ("optim.betas", [0.9, 0.999]), ("optim.warmup", 0), ("optim.new", None)),
    *(("data.files", ["b.jsonl", "a.jsonl"]), ("data.shuffle", False), ("data.max_tokens", 513), ("model.name", "large")),
    *(("model.dtype", "bfloat16"), ("model.lora", {"rank": 8}), ("model.save_every", 1), ("names", "x")),
]


def with_key(key: str, value: object) -> dict[str, object]:
    config = json.loads(json.dumps(CONFIG))
    *place, last = key.split(".")
    inner = config
    for name in place:
        inner = inner[name]
    inner[last] = value
    return config


@pytest.mark.parametrize(("key", "value"), HARMLESS)
def test_harmless_keys_may_change(key: str, value: object, tmp_path: Path) -> None:
    opened(tmp_path).close()
    opened(tmp_path, with_key(key, value)).close()
    assert flat(read_run(tmp_path).config)[key] == value


@pytest.mark.parametrize(("key", "value"), SERIOUS)
def test_keys_of_the_maths_may_not_change(key: str, value: object, tmp_path: Path) -> None:
    opened(tmp_path).close()
    with pytest.raises(RunDiffersError) as refused:
        opened(tmp_path, with_key(key, value))
    old = flat(CONFIG).get(key, "not set")
    if key == "model.lora":
        assert refused.value.keys == ("model.lora", "model.lora.rank")
        assert "model.lora.rank: not set -> 8" in str(refused.value)
    else:
        assert refused.value.keys == (key,)
        shown = "not set" if old == "not set" else repr(json.loads(json.dumps(old)))
        assert f"  {key}: {shown} -> {value!r}\n" in str(refused.value)
    assert f"choose another run folder, or delete {tmp_path} to start over" in str(refused.value)
    opened(tmp_path).close()


def test_a_reward_may_be_another_where_a_setting_says_so_and_that_is_the_remedy(tmp_path: Path) -> None:
    opened(tmp_path, fingerprints={"data": "a", "reward mine": "b"}).close()
    changed = {"data": "a", "reward mine": "c"}
    with pytest.raises(RunDiffersError, match=r"reward mine \(by hash\): 'b' -> 'c'(?s:.)* set reward_changed=true\."):
        opened(tmp_path, fingerprints=changed)
    admitting = with_key("reward_changed", True)
    with pytest.raises(RunDiffersError, match="data ") as refused:
        opened(tmp_path, admitting, fingerprints={**changed, "data": "b"})
    assert "reward_changed" not in str(refused.value)
    opened(tmp_path, admitting, fingerprints=changed).close()
    opened(tmp_path, fingerprints=changed).close()  # it is the run's own now


def test_all_differing_keys_are_named_at_once_and_int_and_float_are_one(tmp_path: Path) -> None:
    opened(tmp_path).close()
    config = with_key("loss.beta", 0.3) | {"batch": 4}
    with pytest.raises(RunDiffersError) as refused:
        opened(tmp_path, config, max_steps=10)
    assert refused.value.keys == ("batch", "loss.beta", "max_steps")
    opened(tmp_path, with_key("batch", 8.0)).close()


@pytest.mark.parametrize("name", ["data", "tokenizer", "template", "model"])
def test_changed_data_tokenizer_template_or_model_is_refused(name: str, tmp_path: Path) -> None:
    opened(tmp_path).close()
    with pytest.raises(RunDiffersError, match=rf"{name} \(by hash\): '{PRINTS[name][:20]}.* -> 'aaaa"):
        opened(tmp_path, fingerprints=PRINTS | {name: "a" * 64})


def test_a_changed_package_is_told_and_recorded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened(tmp_path).close()
    real = environment_module.version
    monkeypatch.setattr(environment_module, "version", lambda name: "99.0" if name == "transformers" else real(name))
    told = []
    for _ in range(2):
        heard = Heard()
        opened(tmp_path, sinks=[heard]).close()
        told.append(heard.messages)
    assert told == [
        [f"warning: versions.transformers was '{real('transformers')}' and is '99.0': the numbers may differ in their last bits"],
        [],
    ]
    record = read_run(tmp_path).environment
    assert record["now"]["versions"]["transformers"] == "99.0"
    assert [e["versions"]["transformers"] for e in record["earlier"]] == [real("transformers")]


def test_checkpoints_without_a_config_are_not_trained_on(tmp_path: Path) -> None:
    with pytest.raises(Crash):
        trained(tmp_path, stop_at(4))
    (tmp_path / "config.json").unlink()
    with pytest.raises(ValueError, match=r"holds checkpoints but no config.json"):
        opened(tmp_path)


def test_a_removed_folder_is_not_written_into(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="was removed or replaced"), opened(tmp_path) as run:
        train(run, lambda step: (tmp_path / "lock").unlink() if step == 1 else None)


def until(ready: Callable[[], bool]) -> None:
    for _ in range(500):
        if ready():
            return
        time.sleep(0.02)
    raise AssertionError("it takes too long")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_one_signal_saves_and_exits_and_the_same_command_continues(
    number: signal.Signals, code: int, tmp_path: Path, undisturbed: tuple[object, ...]
) -> None:
    folder = tmp_path / "r"
    pid = child(lambda: trained(folder, lambda step: time.sleep(0.1)))
    until(lambda: len(list(read_rows(folder / "metrics.jsonl"))) >= 4)
    os.kill(pid, number)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == code
    status = read_status(folder)
    assert (status.state, status.reason) == ("stopped", f"stopped by {number.name} and saved; the same command continues")
    assert 4 <= status.step < STEPS
    assert newest(folder / "checkpoints").step == status.step == len(list(read_rows(folder / "metrics.jsonl")))
    trained(folder)
    assert outcome(folder) == undisturbed


def test_a_second_signal_exits_at_once_and_the_older_checkpoint_is_whole(tmp_path: Path, undisturbed: tuple[object, ...]) -> None:
    folder = tmp_path / "r"
    pid = child(lambda: trained(folder, lambda step: [time.sleep(1) for _ in range(60 * (step == 5))]))
    until(lambda: len(list(read_rows(folder / "metrics.jsonl"))) == 5)
    os.kill(pid, signal.SIGINT)
    time.sleep(0.2)
    assert os.waitpid(pid, os.WNOHANG) == (0, 0), "the first one waits for the step"
    began = time.monotonic()
    os.kill(pid, signal.SIGINT)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 130
    assert time.monotonic() - began < 1
    assert newest(folder / "checkpoints").step == 3
    trained(folder)
    assert outcome(folder) == undisturbed


@pytest.mark.parametrize("when", ["before the first step", "in the last step"])
def test_a_signal_at_the_edges(when: str, tmp_path: Path) -> None:
    old = signal.getsignal(signal.SIGINT)

    def work() -> None:
        with opened(tmp_path) as run:
            if when == "before the first step":
                signal.raise_signal(signal.SIGINT)
                train(run, lambda step: pytest.fail("no step is done"))
            train(run, lambda step: signal.raise_signal(signal.SIGINT) if step == STEPS else None)

    with pytest.raises(Interrupted) as stopped:
        work()
    assert stopped.value.code == 130
    assert read_status(tmp_path).state == ("stopped" if when == "before the first step" else "finished")
    assert signal.getsignal(signal.SIGINT) is old


def test_a_signal_after_the_save_was_decided_costs_one_more_step(tmp_path: Path) -> None:
    """It comes between `due_save` and the next step: leaving now would lose the step."""

    def work() -> None:
        with opened(tmp_path) as run:
            parts = {"learner": Learner()}
            run.restore(parts)
            for step in run.remaining_steps():
                run.log(step, {"loss": 0.0})
                due = run.due_save(step)
                if step == 4:
                    signal.raise_signal(signal.SIGTERM)
                if due:
                    run.save(step, parts)

    with pytest.raises(Interrupted):
        work()
    assert newest(tmp_path / "checkpoints").step == 5


def test_a_clock_that_jumps_changes_nothing_but_timing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undisturbed: tuple[object, ...]
) -> None:
    days = iter(range(1000))
    monkeypatch.setattr(time, "time", lambda: 86_400.0 * (-1) ** next(days))
    trained(tmp_path / "r")
    assert outcome(tmp_path / "r") == undisturbed


def test_a_full_disk_is_told_and_the_run_continues_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undisturbed: tuple[object, ...]
) -> None:
    real = os.write

    def full(fd: int, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    with pytest.raises(StorageError, match=r"metrics\.jsonl: No space left.*free some space"):
        trained(tmp_path / "r", lambda step: monkeypatch.setattr(os, "write", full) if step == 5 else None)
    monkeypatch.setattr(os, "write", real)
    trained(tmp_path / "r")
    assert outcome(tmp_path / "r") == undisturbed


def test_runs_are_listed_with_their_stages(tmp_path: Path) -> None:
    for name in ("align", "align/sft", "align/dpo", "other"):
        trained(tmp_path / name)
    (tmp_path / "other" / "status.json").write_text("{")
    (tmp_path / "not a run").mkdir()
    found = list_runs(tmp_path)
    assert [(str(run.folder.relative_to(tmp_path)), run.status.state) for run in found] == [
        *(("align", "finished"), ("align/dpo", "finished"), ("align/sft", "finished"), ("other", "unreadable")),
    ]
    assert found[0].last["step"] == STEPS
    lines = listing(found, as_json=False).splitlines()
    assert lines[1].split() == [str(tmp_path / "align" / "dpo"), "finished", "9/9", "loss", f"{found[1].last['loss']:.4g}"]
    assert lines[3].startswith(f"{tmp_path / 'other'}      unreadable  0/0  {tmp_path / 'other' / 'status.json'}: is no JSON")
    assert json.loads(listing(found, as_json=True).splitlines()[1])["status"]["state"] == "finished"
    assert listing([], as_json=False) == "no runs here\n"
    with pytest.raises(ValueError, match="is no run folder"):
        read_run(tmp_path / "not a run")


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    (tmp_path / "m").write_bytes(b'{"a":1}\n{"a":\n{"a":2}\n')
    with pytest.raises(ValueError, match=r"m:2: is no JSON"):
        list(read_rows(tmp_path / "m"))
