"""A sweep trains one run for each combination and ends in one comparison of them."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from torch import Tensor

from folders import files
from truing.config import ConfigError
from truing.data.tree import Tree
from truing.models import reference
from truing.models.policy import Policy
from truing.recipes import commands
from truing.runs.sinks import Silent


def test_a_sweep_ends_in_one_comparison(
    pairs_file: Path, tiny_model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = [f"data.path={pairs_file}", f"model={tiny_model_folder}", "dtype=fp32", "data.held_out_share=0.3", "max_steps=1"]
    commands.train("dpo", [*settings, f"run={tmp_path / 'run'}", "loss.beta=0.05,0.5", "batch_size=2,4"], [Silent()])
    table = capsys.readouterr().out.splitlines()[-5:]
    assert table[0].split()[:6] == ["accuracy", "after", "accuracy", "before", "accuracy", "gain"]
    assert [line.split("  ")[0] for line in table[1:]] == [
        f"loss.beta={beta} batch_size={size}" for beta in ("0.05", "0.5") for size in (2, 4)
    ]
    assert [line.split()[-1] for line in table[1:]] == [str(tmp_path / f"run-{number}") for number in range(1, 5)]
    assert len({line.index("[") for line in table[1:]}) == 1, "columns are aligned"


def test_the_runs_of_a_sweep_share_data_and_reference_where_a_cache_is_named(
    pairs_file: Path, tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[int] = []
    actual = reference._computed

    def counted(policy: Policy, share: Sequence[Sequence[Tree]], tick: Callable[[int], None]) -> list[Tensor]:
        passes.append(len(share))
        return actual(policy, share, tick)

    monkeypatch.setattr(reference, "_computed", counted)
    settings = [f"data.path={pairs_file}", f"model={tiny_model_folder}", "dtype=fp32", "data.held_out_share=0.3", "max_steps=1"]
    cache = f"data.cache={tmp_path / 'cache'}"
    commands.train("dpo", [*settings, cache, f"run={tmp_path / 'run'}", "loss.beta=0.05,0.1,0.5"], [Silent()])
    assert len(passes) == 2, "of the training rows and the held-out ones, by the first run"
    kept = [{name: data for name, data in files(tmp_path / f"run-{n}").items() if "reference" in name} for n in (1, 2, 3)]
    assert kept[0]
    assert kept[0] == kept[1] == kept[2]


def test_a_sweep_with_a_mistake_in_its_last_run_does_not_begin(pairs_file: Path, tiny_model_folder: Path, tmp_path: Path) -> None:
    settings = [f"data.path={pairs_file}", f"model={tiny_model_folder}", f"run={tmp_path / 'run'}", "loss.beta=0.05,oops"]
    with pytest.raises(ConfigError, match="oops"):
        commands.train("dpo", settings, [Silent()])
    assert not list(tmp_path.glob("run*"))


def test_check_takes_a_sweep(pairs_file: Path, tiny_model_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = [f"data.path={pairs_file}", f"model={tiny_model_folder}", "dtype=fp32"]
    commands.check("dpo", [*settings, "loss.beta=0.05,0.1"], 0)
    said = capsys.readouterr().out
    assert said.startswith("a sweep of 2 runs, of which this is the first:\ndpo\n")
    assert "loss.beta = 0.05" in said
    with pytest.raises(ConfigError, match="oops"):
        commands.check("dpo", [*settings, "loss.beta=0.05,oops"], 0)


def test_one_run_has_nothing_to_be_compared_with(
    pairs_file: Path, tiny_model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = [f"data.path={pairs_file}", f"model={tiny_model_folder}", "dtype=fp32", "max_steps=1", f"run={tmp_path / 'run'}"]
    commands.train("dpo", settings, [Silent()])
    assert "accuracy after" not in capsys.readouterr().out
