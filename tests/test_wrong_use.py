"""Wrong use of the command line: one block on standard error that names place and remedy, exit status 2, nothing half-written."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from folders import files
from truing import cli
from truing.recipes import commands
from truing.runs.run import Run
from truing.train.checkpoint import Checkpoints
from zygote import Zygote

SMALLEST, LARGEST = 4, 800
"""KiB of a disk on which not even the first file has room, and of one on which all has."""


class Wrong:
    """Runs `truing` in this process, on settings that are right but for those given."""

    def __init__(self, model: Path, data: Path, folder: Path, capsys, monkeypatch) -> None:
        self.settings = {"model": str(model), "data.path": str(data), "run": str(folder / "run"), "max_steps": "2", "dtype": "fp32"}
        self.capsys, self.monkeypatch = capsys, monkeypatch

    def __call__(self, *argv: str) -> tuple[int, str]:
        """Exit status and standard error."""
        self.monkeypatch.setattr(sys, "argv", ["truing", *argv])
        self.capsys.readouterr()
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        return code, self.capsys.readouterr().err

    def train(self, method: str = "dpo", **changed: object) -> str:
        """The error of a training that cannot be."""
        given = {name.replace("__", "."): value for name, value in changed.items()}
        settings = {**self.settings, **given}
        before = content(Path(str(settings["run"])))
        code, said = self("train", method, *(f"{key}={value}" for key, value in settings.items() if value is not None))
        assert code == 2, said
        assert said.startswith("error: "), said
        assert said.count("error: ") == 1
        assert "Traceback" not in said
        assert content(Path(str(settings["run"]))) == before, "nothing half-written"
        return said.removeprefix("error: ").rstrip("\n")


def content(folder: Path) -> dict[str, bytes] | None:
    return files(folder) if folder.is_dir() else None


@pytest.fixture
def wrong(tiny_model_folder: Path, pairs_file: Path, tmp_path: Path, capsys, monkeypatch) -> Wrong:
    return Wrong(tiny_model_folder, pairs_file, tmp_path, capsys, monkeypatch)


# -- settings


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("optimiser.lr=1e-3", "command line: optimiser.lr=1e-3: unknown key 'optimiser' (did you mean 'optimizer'?)"),
        ("lr=1e-3", "command line: lr=1e-3: unknown key 'lr' (did you mean 'optimizer.lr'?)"),
        ("batchsize=2", "command line: batchsize=2: unknown key 'batchsize' (did you mean 'batch_size'?)"),
        ("loss.bta=2", "command line: loss.bta=2: unknown key 'bta' (did you mean 'beta'?)"),
        ("batch_size=0", "command line: batch_size=0: batch_size must be greater than 0, not 0"),
        ("optimizer.lr=fast", 'command line: optimizer.lr=fast: optimizer.lr must be a number, not "fast"'),
        ("batch_size", "command line: batch_size: expected key=value, such as loss.beta=0.1"),
    ],
)
def test_a_wrong_setting_is_named_with_the_nearest_right_one(setting: str, expected: str, wrong: Wrong) -> None:
    code, said = wrong("train", "dpo", *(f"{key}={value}" for key, value in wrong.settings.items()), setting)
    assert (code, said) == (2, f"error: {expected}\n")
    assert not Path(wrong.settings["run"]).exists()


def test_settings_that_are_missing_are_named_in_full(wrong: Wrong) -> None:
    assert wrong.train(data__path=None) == "command line: data.path needs a value"


def test_an_unknown_method_names_the_nearest_and_all(wrong: Wrong) -> None:
    said = wrong.train("dpoo")
    assert "dpoo: no such method or recipe file; did you mean dpo? Choose one of sft, reward_model, dpo" in said


def test_a_recipe_file_is_named_with_its_line(wrong: Wrong, tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text("method: dpo\ndata:\n  path: x.csv\nbatchsize: 3\n")
    assert wrong("train", str(recipe)) == (2, f"error: {recipe}:4: unknown key 'batchsize' (did you mean 'batch_size'?)\n")
    recipe.write_text("data: {path: x.csv}\n")
    code, said = wrong("train", str(recipe))
    assert code == 2
    assert said.startswith(f"error: {recipe}: `method:` is None; write one of sft, ")
    code, said = wrong("train", str(tmp_path / "none.yaml"))
    assert code == 2
    assert "none.yaml: no such method or recipe file" in said


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["train"], "Missing argument"),
        (["train", "dpo", "--fast"], "No such option: --fast"),
        (["trian"], "No such command 'trian'"),
        (["recipes", "show", "dop"], "recipes show dop: choose one of sft"),
        (["recipes", "copy", "nothing"], "recipes copy nothing: choose one of"),
        (["sample", "no/such/folder"], "no/such/folder: no such folder"),
    ],
)
def test_other_verbs_used_wrongly(argv: list[str], expected: str, wrong: Wrong) -> None:
    code, said = wrong(*argv)
    assert code == 2
    assert expected in said
    assert "Traceback" not in said


# -- data


def test_a_missing_file_and_a_folder_for_a_file(wrong: Wrong, tmp_path: Path) -> None:
    assert wrong.train(data__path=tmp_path / "none.csv") == f"{tmp_path}/none.csv: no such file"
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.csv").write_text("x")
    assert wrong.train(data__path=tmp_path / "data") == f"{tmp_path}/data: a folder; name one file in it: a.csv"


EQUAL = "prompt,chosen,rejected\nq,same,same\nq2,good,bad\nq3,x,x\n"


def test_rows_whose_responses_are_equal_are_listed_and_can_be_left_out(wrong: Wrong, tmp_path: Path) -> None:
    path = tmp_path / "pairs.csv"
    path.write_text(EQUAL)
    assert wrong.train(data__path=path).splitlines() == [
        f"{path}: 2 of 3 rows cannot be used",
        f"  {path}:2: chosen and rejected are equal",
        f"  {path}:4: chosen and rejected are equal",
        f"Correct them, or leave them out: truing data filter {path} to=OUT, or in training on_bad_row=skip",
    ]
    path.write_text(EQUAL.replace("good,bad", "bad,bad"))
    assert "none of its 3 rows can be used" in wrong.train(data__path=path, data__on_bad_row="skip")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "the file is empty"),
        ("prompt,chosen,rejected\n", "the file holds no rows"),
        ("a,b\n1,2\n", 'columns "a", "b" are of no known format. Name yours with a mapping'),
        ("prompt,response\nq,a\n", "holds Demonstration records, and Preference records are needed"),
    ],
)
def test_a_file_without_preferences(text: str, expected: str, wrong: Wrong, tmp_path: Path) -> None:
    path = tmp_path / "pairs.csv"
    path.write_text(text)
    said = wrong.train(data__path=path)
    assert said.startswith(str(path))
    assert expected in said


def test_no_row_fits(wrong: Wrong) -> None:
    said = wrong.train(data__max_tokens=2)
    assert "no row is left to train on" in said
    assert re.search(r"dropped: the prompt leaves no room for a response \(.*pairs\.csv:\d+", said)


def test_held_out_values_that_are_not_there(wrong: Wrong, tmp_path: Path) -> None:
    path = tmp_path / "pairs.csv"
    path.write_text("prompt,chosen,rejected,topic\nq,a,b,tea\nq2,a,b,cake\n")
    data = {"data__path": path, "data__held_out": "[soup]"}
    assert wrong.train(**data, data__held_out_by="topicc") == f"{path}: no column topicc; data.held_out_by can be topic"
    said = wrong.train(**data, data__held_out_by="topic")
    assert said == f"{path}: data.held_out names none of soup of column topic, which holds cake, tea"
    said = wrong.train(data__path=path, data__held_out_by="topic")
    assert said == f"{path}: data.held_out names nothing of column topic, which holds cake, tea"


# -- models


@pytest.fixture
def spoilt(tiny_model_folder: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_model_folder, tmp_path / "spoilt")


def test_folders_without_a_model(wrong: Wrong, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "empty: the folder is empty; a model is a folder with" in wrong.train(model=tmp_path / "empty")
    (tmp_path / "empty" / "README.md").write_text("x")
    assert "empty: no config.json, only README.md; a model is a folder with" in wrong.train(model=tmp_path / "empty")
    assert "nobody/nothing: not found" in wrong.train(model="nobody/nothing")


def test_a_pickle_is_refused(wrong: Wrong, spoilt: Path) -> None:
    (spoilt / "model.safetensors").rename(spoilt / "pytorch_model.bin")
    said = wrong.train(model=spoilt)
    assert "weights only as pytorch_model.bin; Truing loads safetensors alone, because a pickle can run code. Convert them" in said


@pytest.mark.parametrize("template", ["{{ raise_exception('roles must alternate') }}", "{% if %}", "{{ 1 / 0 }}"])
def test_a_template_that_fails(template: str, wrong: Wrong, spoilt: Path) -> None:
    (spoilt / "chat_template.jinja").write_text(template)
    said = wrong.train(model=spoilt)
    assert said.startswith(f"the chat template of {spoilt} failed: ")
    assert "choose template=plain" in said


def test_rows_longer_than_the_length_at_which_rope_changes(wrong: Wrong, spoilt: Path) -> None:
    config = json.loads((spoilt / "config.json").read_text())
    config["rope_parameters"] |= {"rope_type": "dynamic", "factor": 2.0}
    (spoilt / "config.json").write_text(json.dumps(config))
    assert "past 512 this model takes other RoPE frequencies" in wrong.train(model=spoilt, data__max_tokens=513)
    assert wrong.train(model=spoilt, data__max_tokens=513).endswith("; set data.max_tokens=512")


def test_adapters_for_layers_that_are_not_there(wrong: Wrong) -> None:
    assert "lora.targets='nothing' matches no linear layer of LlamaForCausalLM" in wrong.train(lora__targets="nothing")


def test_an_unfinished_run_is_not_a_model(wrong: Wrong, tmp_path: Path) -> None:
    pace = {"max_steps": 9, "save_every": 0, "evaluate_every": 0, "store": Checkpoints}
    Run.open(tmp_path / "sft", {}, fingerprints={}, **pace).close()
    said = wrong.train(model=tmp_path / "sft")
    assert "sft: this run is died and has no model yet; finish it with the command that began it" in said


# -- run folders


def test_a_run_in_use_is_left_to_its_owner(wrong: Wrong, tmp_path: Path) -> None:
    pace = {"max_steps": 9, "save_every": 0, "evaluate_every": 0, "store": Checkpoints}
    with Run.open(tmp_path / "run", {}, fingerprints={}, **pace):
        said = wrong.train()
    assert f"run: is being written by process {os.getpid()} on " in said
    assert f"wait for it, or stop it (kill {os.getpid()}), or take another run folder" in said


def test_a_folder_that_is_no_run_is_not_written_into(wrong: Wrong, spoilt: Path) -> None:
    assert (
        wrong.train(run=spoilt) == f"{spoilt}: holds a config.json but no status.json, so it is no run; choose another run folder"
    )


def test_a_file_where_the_folder_should_be(wrong: Wrong, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for run in (tmp_path / "file", tmp_path / "file" / "run"):
        said = wrong.train(run=run)
        assert said.startswith(f"{tmp_path}/file")
        assert "a file stands where a folder is needed: choose another run folder" in said
    assert (tmp_path / "file").read_text() == "x"


def test_a_name_that_is_too_long(wrong: Wrong, tmp_path: Path) -> None:
    code, said = wrong("train", "dpo", *(f"{k}={v}" for k, v in (wrong.settings | {"run": f"{tmp_path}/{'x' * 300}"}).items()))
    assert code == 2
    assert said.startswith(f"error: {tmp_path}/xxx")
    assert "the name is too long: choose a shorter one" in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root is refused nothing; a read-only disk is another test")
def test_a_folder_without_the_right_to_write(wrong: Wrong, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    assert "permission is missing: choose another run folder" in wrong.train()
    tmp_path.chmod(0o700)


def test_other_settings_for_the_same_folder_are_refused(wrong: Wrong, tmp_path: Path) -> None:
    code, said = wrong("train", "dpo", *(f"{key}={value}" for key, value in wrong.settings.items()))
    assert code == 0, said
    said = wrong.train(seed=3, loss__beta=0.2)
    assert "run: was started with other settings" in said
    assert "  seed: 0 -> 3\n" in said
    assert "  loss.beta: 0.1 -> 0.2\n" in said
    assert "choose another run folder, or delete" in said


def test_numbers_that_overflow_name_the_batch_and_a_remedy(wrong: Wrong, tmp_path: Path) -> None:
    settings = wrong.settings | {"optimizer.lr": "1e30", "max_steps": "9", "batch_size": "2"}
    code, said = wrong("train", "dpo", *(f"{key}={value}" for key, value in settings.items()))
    assert code == 2
    (block,) = [line for line in said.splitlines() if line.startswith("error: ")]
    assert re.search(r"3 steps in a row were not finite; .*; the batch is in .*bad_batch\.json; lower optimizer\.lr", block)
    assert "Traceback" not in said
    assert not (tmp_path / "run" / "model").exists()


def test_ctrl_c_before_anything_has_begun(wrong: Wrong, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(commands, "train", interrupted)
    code, said = wrong("train", "dpo")
    assert (code, said) == (130, "")


def test_a_defect_of_ours_shows_its_traceback(wrong: Wrong, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise AssertionError("an invariant")

    monkeypatch.setattr(commands, "train", broken)
    with pytest.raises(AssertionError):
        wrong("train", "dpo")


# -- disks


@pytest.fixture(scope="module")
def mounting(tiny_model_folder: Path) -> Iterator[Zygote]:
    """A zygote that may mount disks of its own."""
    within = ("unshare", "-Urm")
    if shutil.which("unshare") is None or subprocess.run([*within, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine lets nobody but root mount a small disk")
    running = Zygote(tiny_model_folder, within)
    yield running
    running.close()


@pytest.fixture
def on_disk(mounting: Zygote, tiny_model_folder: Path, pairs_file: Path, tmp_path: Path) -> Callable[..., tuple[dict, str]]:
    """Runs a function of `small_disk.py` on a training; what it reports, and what was said."""
    settings = ("save_every=1", "evaluate_every=2", "dtype=fp32", "lora.rank=4", "micro_tokens=200", "batch_size=8")

    def run(function: str, *options: str) -> tuple[dict, str]:
        report, log = tmp_path / "report", tmp_path / "log"
        log.write_text("")
        argv = ["train", "dpo", f"data.path={pairs_file}", f"model={tiny_model_folder}", *settings]
        done = mounting([str(report), str(tmp_path / "disk"), *options, *argv], log, call=f"small_disk:{function}")
        assert done == [0], log.read_text()
        return json.loads(report.read_text()), log.read_text()

    return run


def test_a_read_only_disk(on_disk) -> None:
    report, said = on_disk("read_only")
    assert report == {"code": 2}
    assert said.startswith("error: ")
    assert "the file system is read-only: choose another run folder" in said
    assert "Traceback" not in said


def test_a_full_disk_at_any_moment_and_the_same_command_once_there_is_room(on_disk) -> None:
    """All that is on the disk is whole, whatever it ran out at; with room, the run ends as if nothing had been."""
    whole, said = on_disk("full", f"{LARGEST}k")
    assert whole["code"] == 0, said
    met = set()
    for size in (SMALLEST, 12, 24, 80, 250, 400, 600):
        report, said = on_disk("full", f"{size}k")
        first, _, _ = said.partition("now there is room")
        assert (report["code"], report["again"]) == (2, 0), said
        (block,) = [line for line in first.splitlines() if line.startswith("error: ")]
        found = re.search(
            r"disk/run(?:/(\w+)\S*)?: No space left on device; \d+ bytes free; the disk is full: free some space", block
        )
        assert found, block
        met.add(found[1])
        assert "Traceback" not in said
        assert report["left over"] == []
        assert report["metrics.jsonl"] == whole["metrics.jsonl"]
        assert report["result.json"] == whole["result.json"]
    assert {"fingerprints", "status", "checkpoints", "model"} <= met, met


# -- processes


def in_a_process(*argv: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1] / "src"), "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *argv], capture_output=True, text=True, env=environment, timeout=120, check=False)


def test_the_command_line_imports_nothing_heavy_before_a_verb_needs_it() -> None:
    code = "import sys, truing.cli; print(sorted({'torch', 'transformers', 'numpy', 'pydantic', 'rich'} & sys.modules.keys()))"
    done = in_a_process("-c", code)
    assert (done.returncode, done.stdout, done.stderr) == (0, "[]\n", "")


def test_help_in_a_process() -> None:
    done = in_a_process("-m", "truing.cli", "--help")
    assert done.returncode == 0
    assert done.stderr == ""
    for verb in ("train", "align", "demo", "recipes", "check", "sample", "runs"):
        assert re.search(rf"^  {verb} ", done.stdout, re.MULTILINE)


def test_an_error_in_a_process(pairs_file: Path, tmp_path: Path) -> None:
    argv = ["train", "dpo", f"data.path={pairs_file}", f"model={tmp_path}/none", f"run={tmp_path}/run"]
    done = in_a_process("-m", "truing.cli", *argv)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith(f"error: {tmp_path}/none: no such folder")
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
