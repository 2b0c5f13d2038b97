"""Truing's side of a measurement: `truing train` as a user calls it, with clocks around its parts.

    python -m benchmarks.truing_side SPEC.json RESULT.json

What is timed is the training: the pass of the reference and the loop, with its logging. Loading, encoding, the last checkpoint and
the saved model are not, as the peers are told to save nothing; they are reported apart. Nothing is changed in how the recipe runs.
"""

import json
import resource
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


class Stopwatch:
    """Seconds by part. Example: `fit.train = watch.timed("train", fit.train)`."""

    def __init__(self, now: Callable[[], float]) -> None:
        self.now = now
        self.began = now()
        self.first: float | None = None
        self.seconds: dict[str, float] = {}

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, whose time is added to the part of that name."""

        def run(*args: Any, **options: Any) -> Any:
            start = self.now()
            self.first = start if self.first is None else self.first
            try:
                return function(*args, **options)
            finally:
                self.seconds[name] = self.seconds.get(name, 0.0) + self.now() - start

        return run


def clock(torch: Any) -> Callable[[], float]:
    """Seconds, once the device has done what it was given."""

    def now() -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter()

    return now


class Counted:
    """Tokens that enter a model, with gradient and without."""

    def __init__(self, torch: Any) -> None:
        self.torch = torch
        self.trained = 0
        self.read = 0
        self.counting = False

    def watch(self, model: Any) -> None:
        """Count what goes through the embeddings of a model."""

        def seen(_module: Any, args: tuple[Any, ...]) -> None:
            if not self.counting:
                return
            if self.torch.is_grad_enabled():
                self.trained += args[0].numel()
            else:
                self.read += args[0].numel()

        model.get_input_embeddings().register_forward_pre_hook(seen)


def peak_gb() -> float:
    """The process's own peak so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def measure(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Train once; times, losses, tokens and memory."""
    began = time.perf_counter()
    import torch

    from truing.recipes import commands, fit
    from truing.runs.run import Run
    from truing.runs.sinks import Silent
    from truing.train.learner import Learner

    now = clock(torch)
    watch, counted = Stopwatch(now), Counted(torch)
    watch.began = began
    steps: list[tuple[float, float]] = []
    peaks: list[float] = []

    load, update, finish = fit.load_policy, Learner.update, Run.finish

    def load_policy(*args: Any, **options: Any) -> Any:
        policy, reason = load(*args, **options)
        counted.watch(policy.model)
        return policy, reason

    def updated(self: Any, *args: Any, **options: Any) -> Any:
        metrics = update(self, *args, **options)
        steps.append((now(), metrics["loss"]))
        return metrics

    def finished(self: Any, *args: Any, **options: Any) -> None:
        peaks.append(peak_gb())
        watch.timed("last checkpoint", finish)(self, *args, **options)

    def while_counting(function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **options: Any) -> Any:
            counted.counting = True
            try:
                return function(*args, **options)
            finally:
                counted.counting = False

        return run

    fit.load_policy = load_policy
    fit.with_reference = watch.timed("reference", while_counting(fit.with_reference))
    fit.train = watch.timed("loop", while_counting(fit.train))
    Learner.update = updated  # type: ignore[method-assign]
    Run.finish = finished  # type: ignore[method-assign]
    commands.train(spec["method"], spec["settings"], [Silent()])
    assert watch.first is not None, "the recipe calls the functions that are timed"
    assert steps, "the recipe trains by the learner that is timed"
    parts = {"reference": watch.seconds.get("reference", 0.0), "loop": watch.seconds["loop"] - watch.seconds["last checkpoint"]}
    return {
        "seconds": sum(parts.values()),
        "parts": parts,
        "set_up_seconds": watch.first - began,
        "last_checkpoint_seconds": watch.seconds["last checkpoint"],
        "step_seconds": [step - watch.first for step, _ in steps],
        "losses": [loss for _, loss in steps],
        "tokens": {"trained": counted.trained, "read": counted.read},
        "peak_gb_trained": peaks[0],
        "device_peak_gb": torch.cuda.max_memory_allocated() / 1e9 if torch.cuda.is_available() else None,
        "threads": torch.get_num_threads(),
        "versions": {"torch": torch.__version__},
    }


def main() -> None:
    report = measure(json.loads(Path(sys.argv[1]).read_text()))
    Path(sys.argv[2]).write_text(json.dumps(report))


if __name__ == "__main__":
    main()
