"""Pair losses from the command line: every one trains, mixtures from files and settings, and a new one is a file and a line."""

import json
import math
import shutil
from pathlib import Path

import pytest

from truing.losses import PAIR_LOSSES
from truing.runs.read import read_rows
from zygote import Zygote

SOURCE = Path(__file__).parents[1] / "src" / "truing"
QUICK = ("dtype=fp32", "max_steps=1", "batch_size=3", "data.rows=3", "evaluate_every=0", "data.held_out_share=0", "epochs=2")


class Trained:
    """Runs the command on the tiny model and the pairs, each run in a folder of its own."""

    def __init__(self, zygote: Zygote, model: Path, data: Path, folder: Path) -> None:
        self.zygote, self.settings, self.folder = zygote, (f"model={model}", f"data.path={data}", *QUICK), folder

    def __call__(self, method: str, *settings: str, name: str = "run", copy: Path | None = None) -> dict[str, float]:
        """The metrics of the last step."""
        run = self.folder / name
        argv = ["train", method, *self.settings, f"run={run}", *settings]
        log = self.folder / f"{name}.log"
        call = None if copy is None else "changed_package:main"
        assert self.zygote(argv if copy is None else [str(copy), *argv], log, call=call) == [0], log.read_text()
        return dict(list(read_rows(run / "metrics.jsonl"))[-1])


@pytest.fixture
def trained(zygote: Zygote, tiny_model_folder: Path, pairs_file: Path, tmp_path: Path) -> Trained:
    return Trained(zygote, tiny_model_folder, pairs_file, tmp_path)


@pytest.mark.parametrize("method", PAIR_LOSSES)
def test_every_pair_loss_trains_from_the_command_line(method: str, trained: Trained, tmp_path: Path) -> None:
    found = trained(method)
    assert math.isfinite(found["loss"])
    assert found["grad_norm"] > 0
    needs_reference = PAIR_LOSSES[method]().needs_reference
    assert ("kl_k3" in found) == needs_reference
    assert (tmp_path / "run" / "reference").exists() == needs_reference
    assert json.loads((tmp_path / "run" / "result.json").read_text())["method"] == method
    (timing,) = read_rows(tmp_path / "run" / "timing.jsonl")
    assert timing["tokens_per_second"] == pytest.approx(timing["tokens"] / timing["seconds"])
    assert timing["tokens"] > found["length_chosen"] + found["length_rejected"]
    assert 0 < timing["share_of_floor"] < 1


def test_a_mixture_is_a_list_in_a_file_or_in_a_setting(trained: Trained, tmp_path: Path) -> None:
    recipe = tmp_path / "mixed.yaml"
    recipe.write_text(
        "method: mixture\n"
        "loss:\n"
        "  parts:\n"
        "    - {loss: {name: dpo, beta: 0.5}}\n"
        "    - loss: chosen_nll\n"
        "      weight: 0.1\n"
    )  # fmt: skip
    listed = "loss.parts=[{loss: {name: dpo, beta: 0.5}}, {loss: chosen_nll, weight: 0.1}]"
    of_file, of_setting = trained(str(recipe), name="file"), trained("mixture", listed, name="setting")
    assert of_file == of_setting
    alone = trained("chosen_nll", name="alone")
    assert of_file["loss"] == pytest.approx(math.log(2) + 0.1 * alone["loss"], rel=1e-6)


def test_a_mixture_needs_a_reference_when_a_part_does(trained: Trained, tmp_path: Path) -> None:
    found = trained("mixture", "loss.parts=[{loss: simpo}, {loss: {name: orpo, beta: 0.2}, weight: 0.5}]")
    assert "kl_k3" not in found
    assert not (tmp_path / "run" / "reference").exists()


NEW = '''"""The plainest of losses."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from truing.losses.logps import PairLogps


@dataclass(frozen=True, kw_only=True)
class Linear:
    """L = -scale (log-ratio of y_w - log-ratio of y_l)."""

    needs_reference: ClassVar[bool] = True
    scale: Annotated[float, Field(gt=0)] = 1.0
    """Its only setting."""

    def __call__(self, logps: PairLogps) -> Float[Tensor, " pair"]:
        ratio = logps.log_ratios()
        return -self.scale * (ratio.chosen - ratio.rejected)
'''


def test_a_new_loss_is_one_file_and_one_line(trained: Trained, tmp_path: Path) -> None:
    copy = tmp_path / "copy" / "truing"
    shutil.copytree(SOURCE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    (copy / "losses" / "linear.py").write_text(NEW)
    table = copy / "losses" / "__init__.py"
    table.write_text(table.read_text().replace('    dpo="dpo.DPO",\n', '    dpo="dpo.DPO",\n    linear="linear.Linear",\n'))
    found = trained("linear", "loss.scale=0.25", "max_steps=2", copy=copy.parent)
    assert found["step"] == 2
    assert found["loss"] == pytest.approx(-0.25 * found["margin"], rel=1e-5)
    assert found["margin"] > 0
    assert json.loads((tmp_path / "run" / "config.json").read_text())["loss"] == {"name": "linear", "scale": 0.25}
