"""What is shown, where, how often, and that showing never stops a run."""

import io
import json
import math
import os
from pathlib import Path

import pytest

from truing.runs.sinks import JsonLines, PlainLines, ProgressBar, Silent, Sink, console, duration, figures, printable


class Clock:
    """A clock that is set by hand."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def played(sink: Sink, clock: Clock, steps: int, seconds: float) -> None:
    sink.stage("sft", steps)
    for step in range(1, steps + 1):
        clock.now += seconds
        sink.step(step, {"loss": 1 / step, "accuracy": 0.5, "tokens": 512.0}, seconds * (steps - step))
    sink.done("finished", "")


def test_plain_lines_by_hand() -> None:
    out, clock = io.StringIO(), Clock()
    sink = PlainLines(out, clock)
    played(sink, clock, 2, 3.0)
    sink.message("careful", "warning")
    sink.message("by the way", "info")
    assert out.getvalue().splitlines() == [
        "sft: 2 steps",
        "sft: step 1 of 2, loss 1, accuracy 0.5, 3 s left",
        "sft: step 2 of 2, loss 0.5, accuracy 0.5, 0 s left",
        "sft: finished",
        "warning: careful",
        "by the way",
    ]


@pytest.mark.parametrize(
    ("steps", "seconds", "fewest", "most"),
    [
        (10_000, 0.001, 11, 13),  # ten seconds: the tenths
        (100, 1.0, 11, 22),  # a hundred seconds: the tenths and the tens of seconds
        (3600, 10.0, 200, 700),  # ten hours: a line in a minute at most
        (3, 1000.0, 3, 3),
    ],
)
def test_plain_lines_stay_readable(steps: int, seconds: float, fewest: int, most: int) -> None:
    out, clock = io.StringIO(), Clock()
    played(PlainLines(out, clock), clock, steps, seconds)
    lines = [line for line in out.getvalue().splitlines() if ": step" in line]
    assert fewest <= len(lines) <= most
    assert f"step {steps} of {steps}" in lines[-1]


def test_json_lines_are_json_whatever_the_numbers() -> None:
    out = io.StringIO()
    sink = JsonLines(out)
    sink.stage("dpo", 3)
    sink.step(1, {"loss": math.nan}, 4.0)
    sink.message("two\nlines", "info")
    sink.done("failed", "Crash: at 1")
    assert [json.loads(line) for line in out.getvalue().splitlines()] == [
        {"event": "stage", "name": "dpo", "total": 3},
        {"event": "step", "step": 1, "metrics": {"loss": "nan"}, "seconds_left": 4.0},
        {"event": "message", "text": "two\nlines", "level": "info"},
        {"event": "done", "state": "failed", "reason": "Crash: at 1"},
    ]


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_the_bar_shows_the_time_left_and_ticks_the_stage_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    out, clock = Terminal(), Clock()
    sink = ProgressBar(out, clock)
    played(sink, clock, 2, 100.0)
    assert "1 min 40 s left, loss 1, accuracy 0.5" in out.getvalue()
    assert "✓ sft  finished  step 2 of 2, loss 0.5, accuracy 0.5" in out.getvalue()
    sink.stage("dpo", 1)
    sink.message("[red]a model's \x1b[31m words[/red]", "warning")
    sink.done("failed", "[/nothing] to close")
    assert "warning: [red]a model's �[31m words[/red]" in out.getvalue()
    assert "✗ dpo  failed    [/nothing] to close" in out.getvalue()


def test_the_bar_is_drawn_ten_times_a_second_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    out, clock = Terminal(), Clock()
    played(ProgressBar(out, clock), clock, 1000, 0.001)
    assert 9 <= out.getvalue().count("s left") <= 14
    assert "1000/1000" in out.getvalue()


def test_a_closed_pipe_does_not_stop_a_run() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    stream = os.fdopen(writer, "w")
    clock = Clock()
    for sink in (PlainLines(stream, clock), JsonLines(stream), ProgressBar(stream), Silent()):
        played(sink, clock, 3, 1.0)
        sink.message("still here", "info")
    with pytest.raises(BrokenPipeError):
        stream.close()


def test_a_log_file_gets_plain_lines_and_a_terminal_the_bar(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("sys.stderr", io.StringIO())
    assert isinstance(console(), PlainLines)
    monkeypatch.setattr("sys.stderr", Terminal())
    assert isinstance(console(), ProgressBar)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-1, "0 s"), (0.4, "0 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (3599.6, "1 h 00 min"), (7500.0, "2 h 05 min")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_figures_are_those_worth_a_glance() -> None:
    assert figures({"tokens": 5.0, "accuracy": 0.512345, "loss": 0.693147}) == ", loss 0.6931, accuracy 0.5123"
    assert printable("a\x1b[2Jb\nc") == "a�[2Jb\nc"
