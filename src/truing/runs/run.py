"""A run writes: its config and surroundings, its logs, its checkpoints and its status, as files in one folder that it alone owns.

The same command again continues it: `restore` loads the newest whole checkpoint and cuts the logs back to where that one stood, so
that nothing tells an interrupted run from one that was not, byte for byte, but timing.jsonl. What a checkpoint looks like is
`truing.train.checkpoint`; reading is `truing.runs.read`.
"""

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict
from fnmatch import fnmatchcase
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, ClassVar, Protocol, runtime_checkable

from truing.runs import read
from truing.runs.canonical import to_json
from truing.runs.durable import StorageError, make_folder, storage_errors, write_file
from truing.runs.environment import environment
from truing.runs.lock import RunLock
from truing.runs.logs import Logs
from truing.runs.read import Status, changes, flat
from truing.runs.sinks import Level, Sink

REASON_LIMIT = 300

Largest = Callable[[int], int]
"""The largest of the numbers that the ranks of a run have; on one process the number itself."""


@runtime_checkable
class Part(Protocol):
    """Something a checkpoint holds: a learner, a source, a controller."""

    def state_tensors(self) -> Mapping[str, Any]:
        """Its tensors by name, as they are: no copies."""
        ...

    def state_dict(self) -> Mapping[str, object]:
        """The rest of its state, as JSON can hold it."""
        ...

    def load_state(self, tensors: Mapping[str, Any], state: Mapping[str, Any]) -> None:
        """Takes back what the two gave."""
        ...


@runtime_checkable
class CheckpointStore(Protocol):
    """Where checkpoints go and come from."""

    def save(self, step: int, parts: Mapping[str, Part]) -> None:
        """Writes a checkpoint, whole or not at all, and lets older ones go."""
        ...

    def tidy(self) -> None:
        """Removes what a killed save left."""
        ...

    def load_newest(self, parts: Mapping[str, Part], complain: Callable[[str], None]) -> int:
        """Fills the parts from the newest whole checkpoint and returns its step, 0 where there is none; names those passed over."""
        ...


class RunDiffersError(ValueError):
    """The run was started with other settings: the text names each key, its old and its new value."""

    def __init__(self, folder: Path, changes: Mapping[str, tuple[object, object]], settings: Sequence[str] = ()) -> None:
        self.keys = tuple(changes)
        lines = [f"  {key}: {_short(old)} -> {_short(new)}" for key, (old, new) in changes.items()]
        remedy = f"Take them back to continue, choose another run folder, or delete {folder} to start over."
        remedy += "".join(f" To go on with the new one all the same, set {setting}=true." for setting in settings)
        super().__init__(
            "\n".join([f"{folder}: was started with other settings, so continuing would mix two runs:", *lines, remedy])
        )


class Interrupted(SystemExit):
    """Asked to stop by a signal, and saved: the exit status is 130 (SIGINT) or 143 (SIGTERM)."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.reason = f"stopped by {signal.Signals(number).name} and saved; the same command continues"


class Run:
    """One run. Example: `with Run.open(folder, config, ..., store=Checkpoints) as run: train(run, learner, objective, source)`."""

    HARMLESS: ClassVar[tuple[str, ...]] = (
        *("logging.*", "data.cache", "save_every", "keep", "name", "folder", "run", "strict", "run.name", "run.folder"),
        *("run.save_every", "run.keep", "run.logging.*", "train.save_every", "train.keep"),
        *("on_failure", "people.file", "*endpoint.key_variable", "*endpoint.seconds", "*endpoint.retries", "*endpoint.wait"),
        *("*endpoint.longest_wait", "*endpoint.concurrent", "*endpoint.input_price", "*endpoint.output_price"),
        *("sampler.endpoint.url", "sampler.memory_share", "reward_changed"),
    )
    """Dotted config keys (with `*`) that may change when a run continues, no other may: where and how often to write, how patiently
    a server is asked, what comes later, where a sampler is (what it says is held against the policy in every round)."""
    ADMITTED: ClassVar[Mapping[str, str]] = {"reward * (by hash)": "reward_changed"}
    """What may be another where a setting says so: what a reward is worth to a run is for the user to know."""

    def __init__(self, folder: Path, lock: RunLock | None, store: CheckpointStore, sinks: Sequence[Sink], largest: Largest) -> None:
        self.folder = folder
        self.max_steps = self.save_every = self.evaluate_every = 0
        self.interrupted = 0
        """The number of the signal on which all ranks stop; 0 for none."""
        self._lock, self._store, self._sinks, self._largest = lock, store, tuple(sinks), largest
        self._logs = Logs(folder if lock else None, self._warn)
        self._signal = 0
        self._handlers: dict[int, Any] = {}
        self._step = self._restored = self._saved = 0
        self._state = "running"
        self._began = self._last = time.monotonic()

    @classmethod
    def open(
        cls,
        folder: Path,
        config: Mapping[str, object],
        *,
        fingerprints: Mapping[str, str],
        max_steps: int,
        save_every: int,
        evaluate_every: int,
        store: Callable[[Path], CheckpointStore],
        sinks: Sequence[Sink] = (),
        largest: Largest = int,
    ) -> "Run":
        """Creates the run of this folder, or continues it; `store` is made for the folder of checkpoints.

        Fingerprints are hashes of what the numbers depend on beside the config: data, tokenizer, template, model.
        `save_every` and `evaluate_every` count steps; 0 is never.
        """
        with storage_errors(folder):
            foreign = (folder / read.CONFIG).exists() and not (folder / read.STATUS).exists()
        if foreign:
            raise ValueError(f"{folder}: holds a {read.CONFIG} but no {read.STATUS}, so it is no run; choose another run folder")
        make_folder(folder)
        with ExitStack() as undo:
            lock = RunLock.acquire(folder)
            undo.callback(lock.release)
            run = cls(folder, lock, store(folder / read.CHECKPOINTS), sinks, largest)
            undo.callback(run._logs.close)
            run.max_steps, run.save_every, run.evaluate_every = max_steps, save_every, evaluate_every
            # As it will be read back: a tuple in it is a list from here on.
            run._begin(json.loads(to_json(config)), dict(fingerprints))
            undo.pop_all()
        return run

    @classmethod
    def follow(
        cls,
        folder: Path,
        *,
        max_steps: int,
        save_every: int,
        evaluate_every: int,
        store: Callable[[Path], CheckpointStore],
        largest: Largest,
    ) -> "Run":
        """The run that rank 0 has opened, for another rank: the same steps out of the same checkpoints, and nothing is written."""
        if not read.is_run(folder):
            raise ValueError(
                f"{folder}: rank 0 has opened it and it is not here; choose a run folder on a disk that all ranks share"
            )
        run = cls(folder, None, store(folder / read.CHECKPOINTS), (), largest)
        run.max_steps, run.save_every, run.evaluate_every = max_steps, save_every, evaluate_every
        status = read.read_status(folder)
        run._step, run._state = status.step, "finished" if status.state == "finished" else "running"
        return run

    def _begin(self, config: dict[str, object], fingerprints: dict[str, str]) -> None:
        assert self._lock is not None
        if self._lock.previous is not None:
            self._say(f"taking over from process {self._lock.previous.pid}, which ended without a word", "info")
        surroundings = environment(config.get("seed"))
        # The config is written last: a folder without it has not begun and is begun anew.
        if (self.folder / read.CONFIG).exists():
            self._continue(config, fingerprints)
            self._compare_environment(surroundings)
        elif read.step_folders(self.folder / read.CHECKPOINTS):
            raise ValueError(
                f"{self.folder}: holds checkpoints but no {read.CONFIG}; restore it from a copy, or take another run folder"
            )
        else:
            self.write(read.FINGERPRINTS, fingerprints)
            self.write(read.ENVIRONMENT, {"now": surroundings, "earlier": []})
            self._write_status()
        self.write(read.CONFIG, config)

    def _continue(self, config: dict[str, object], fingerprints: dict[str, str]) -> None:
        before = read.read_status(self.folder)
        found = {
            **changes(flat(read.read_json(self.folder / read.CONFIG)), flat(config)),
            **changes(_named(read.read_json(self.folder / read.FINGERPRINTS)), _named(fingerprints)),
            **changes({"max_steps": before.max_steps}, {"max_steps": self.max_steps}),
        }
        admitted = {pattern for pattern, setting in self.ADMITTED.items() if config.get(setting)}
        serious = {
            key: change for key, change in found.items() if not any(fnmatchcase(key, free) for free in (*self.HARMLESS, *admitted))
        }
        if serious:
            settings = [name for pattern, name in self.ADMITTED.items() if any(fnmatchcase(key, pattern) for key in serious)]
            raise RunDiffersError(self.folder, serious, settings)
        for key in (key for key in found if any(fnmatchcase(key, pattern) for pattern in admitted)):
            self._say(f"{key} is another after step {before.step}", "warning")
            self.write(read.FINGERPRINTS, fingerprints)
        self._step = before.step
        if before.state == "finished":
            self._state = "finished"
            self._say(f"{self.folder}: finished at step {before.step} of {before.max_steps}", "info")
        else:
            self._write_status()

    def _compare_environment(self, now: dict[str, object]) -> None:
        record = read.read_json(self.folder / read.ENVIRONMENT)
        found = changes(flat(record["now"]), flat(now))
        if found:
            for key, (old, new) in found.items():
                self._say(f"{key} was {_short(old)} and is {_short(new)}: the numbers may differ in their last bits", "warning")
            earlier = record["earlier"]
            assert isinstance(earlier, list)
            self.write(read.ENVIRONMENT, {"now": now, "earlier": [*earlier, record["now"]]})

    @property
    def finished(self) -> bool:
        """Whether the last step is done and saved: opened again, there is nothing left to train."""
        return self._state == "finished"

    @property
    def step(self) -> int:
        """The last step that was logged or restored."""
        return self._step

    def restore(self, parts: Mapping[str, Part]) -> None:
        """Fills the parts from the newest whole checkpoint and cuts the logs back to it; without one, everything starts over."""
        step = self._store.load_newest(self._with_logs(parts), self._warn)
        if self._lock:
            self._store.tidy()
        if not step == self._largest(step) == -self._largest(-step):
            raise ValueError(f"{self.folder}: the ranks found different checkpoints; choose a run folder on a disk that all share")
        if step == 0:
            self._logs.load_state({}, {read.METRICS: 0, read.SAMPLES: 0})
        if self.finished and step < self._step:
            self._say(f"{self.folder}: the last checkpoint is damaged, so the steps after {step} are done again", "warning")
            self._state = "running"
        self._step = self._restored = self._saved = step
        for sink in self._sinks:
            sink.stage(self.folder.name, self.max_steps)
        if step:
            self._say(f"continuing after step {step} of {self.max_steps}", "info")
        self._began = self._last = time.monotonic()

    def remaining_steps(self) -> Iterator[int]:
        """The steps still to do; raises Interrupted between two steps, once a signal has come and the last step is saved."""
        for step in range(self._restored + 1, self.max_steps + 1):
            self.interrupted = self._largest(self._signal)
            if self.interrupted and self._saved == self._step:
                raise Interrupted(self.interrupted)
            yield step

    def stop_if_asked(self) -> None:
        """Raises Interrupted once a signal has come to any rank: for work before the first step that keeps its own results."""
        self.interrupted = self._largest(self._signal)
        if self.interrupted:
            raise Interrupted(self.interrupted)

    def log(
        self, step: int, metrics: Mapping[str, float | int], *, tokens: float | None = None, least: float | None = None
    ) -> None:
        """Adds a line to metrics.jsonl. Nothing that depends on the clock goes in: a continued run has the same bytes.

        Seconds go to timing.jsonl, with how many of the step's tokens (of all ranks, prompts counted once a tree) each second saw,
        and which share of them is the `least` that the step's products with the weights take on this machine.
        """
        assert "step" not in metrics, "the step is given apart"
        numbers = {name: float(value) for name, value in metrics.items()}
        self._logs.append(read.METRICS, {"step": step, **numbers})
        now = time.monotonic()
        if step > self._step:
            seconds = max(now - self._last, 1e-9)
            speed = {} if tokens is None else {"tokens": tokens, "tokens_per_second": tokens / seconds}
            speed |= {} if least is None else {"share_of_floor": least / seconds}
            self._logs.append(read.TIMING, {"step": step, "seconds": seconds, "time": time.time(), **speed})
            self._step, self._last = step, now
        left = (now - self._began) / max(1, step - self._restored) * (self.max_steps - step)
        for sink in self._sinks:
            sink.step(step, numbers, left)

    def sample(self, row: Mapping[str, object]) -> None:
        """Adds a line to samples.jsonl."""
        self._logs.append(read.SAMPLES, row)

    def message(self, text: str, level: Level = "info") -> None:
        """Tells the user something in passing."""
        self._say(text, level)

    def due_evaluation(self, step: int) -> bool:
        """Whether to evaluate after this step. A signal has no say: a stopped and continued run evaluates at the same steps."""
        return self.evaluate_every > 0 and (step % self.evaluate_every == 0 or step == self.max_steps)

    def due_save(self, step: int) -> bool:
        """Whether to save after this step: when it is its turn, and when a signal asked to stop."""
        self.interrupted = self._largest(self._signal)
        return bool(self.interrupted) or (self.save_every > 0 and step % self.save_every == 0)

    def save(self, step: int, parts: Mapping[str, Part]) -> None:
        """Writes a checkpoint of the parts, the logs' lengths in it."""
        if self._lock:
            if not self._lock.held():
                raise ValueError(f"{self.folder}: was removed or replaced while the run was writing it; start the run again")
            self._logs.sync()
            self._store.save(step, self._with_logs(parts))
        self._saved = self._step = step
        self._write_status()

    def finish(self, parts: Mapping[str, Part]) -> None:
        """The last save; from here on the run is finished."""
        if self._saved != self._step:
            self.save(self._step, parts)
        if not self.finished:
            if self._lock:
                self._logs.sync()
            self._end("finished", "")

    def _with_logs(self, parts: Mapping[str, Part]) -> dict[str, Part]:
        assert "run" not in parts, "the run adds itself"
        return {**parts, "run": self._logs}

    def __enter__(self) -> "Run":
        if threading.current_thread() is threading.main_thread():
            self._handlers = {number: signal.signal(number, self._on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        # A full disk is the likely reason for being here: it must not hide the error that is on its way out.
        with suppress(StorageError):
            if not self.finished:
                self._end(*_how_it_ended(error))
        self.close()
        if error is None and (self._signal or self.interrupted):
            raise Interrupted(self._signal or self.interrupted)

    def close(self) -> None:
        """Gives the folder free for another process."""
        self._logs.close()
        if self._lock:
            self._lock.release()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        # No sink in here: the signal may have come in the middle of one.
        if self._signal:
            os.write(2, b"\nstopped at once; the last checkpoint is whole and the same command continues from it\n")
            os._exit(128 + number)
        self._signal = number
        os.write(2, b"\nstopping after this step; once more stops at once\n")

    def _end(self, state: str, reason: str) -> None:
        self._state = state
        self._write_status(reason)
        for sink in self._sinks:
            sink.done(state, reason)

    def _write_status(self, reason: str = "") -> None:
        status = Status(state=self._state, step=self._step, max_steps=self.max_steps, reason=reason)
        self.write(read.STATUS, asdict(status))

    def write(self, name: str, value: Mapping[str, object]) -> None:
        """Writes a JSON file into the folder, whole or not at all."""
        if self._lock:
            write_file(self.folder / name, to_json(value, indent=2))

    def _warn(self, text: str) -> None:
        self._say(text, "warning")

    def _say(self, text: str, level: Level) -> None:
        for sink in self._sinks:
            sink.message(text, level)


def _how_it_ended(error: BaseException | None) -> tuple[str, str]:
    if error is None:
        return "stopped", "left before the last step; the same command continues"
    if isinstance(error, Interrupted):
        return "stopped", error.reason
    if isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit):
        return "stopped", f"{type(error).__name__}; the same command continues from the last checkpoint"
    first = (str(error).splitlines() or [""])[0]
    return "failed", f"{type(error).__name__}: {first}"[:REASON_LIMIT]


def _named(fingerprints: Mapping[str, object]) -> dict[str, object]:
    return {f"{name} (by hash)": value for name, value in fingerprints.items()}


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:60]}...{text[-17:]}"
