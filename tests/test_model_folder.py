"""Hostile and broken model folders: each is refused with a reason, or loaded without running, importing or fetching anything."""

import json
import os
import pickle
import shutil
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from truing.models.folder import MAX_TENSORS, check_folder
from truing.models.load import load_causal, load_tokenizer

CANARY = "canary-was-here"
FORBIDDEN = ("pickle.find_class", "socket.connect", "socket.getaddrinfo", "subprocess.Popen", "os.system", "os.exec")
_watched: list[Path] = []
_seen: list[str] = []


def _audit(event: str, args: tuple[object, ...]) -> None:
    if not _watched:
        return
    code_here = event == "exec" and str(_watched[0]) in str(getattr(args[0], "co_filename", ""))
    python_here = event == "open" and str(args[0]).startswith(str(_watched[0])) and str(args[0]).endswith(".py")
    if event in FORBIDDEN or code_here or python_here:
        _seen.append(event)


sys.addaudithook(_audit)


@contextmanager
def nothing_runs(folder: Path) -> Iterator[None]:
    """Fails when anything inside unpickles, connects, starts a process, or runs code that lies in `folder`."""
    _seen.clear()
    _watched.append(folder)
    try:
        yield
    finally:
        _watched.clear()
    assert _seen == []
    assert not (folder / CANARY).exists()


class Bomb:
    """Unpickled, it leaves a canary in the folder."""

    def __init__(self, folder: Path) -> None:
        self.command = f"touch {folder / CANARY}"

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (self.command,)


def bomb(folder: Path) -> bytes:
    return pickle.dumps(Bomb(folder))


def edit(folder: Path, name: str = "config.json", **changes: object) -> None:
    path = folder / name
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def header(folder: Path, tensors: dict[str, object], data: bytes = b"") -> None:
    text = json.dumps(tensors).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)


def entry(dtype: str, shape: list[int], start: int, stop: int) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


def pickled(folder: Path, name: str) -> None:
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(bomb(folder))


def object_array(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    np.save(folder / "weights.npy", np.array([Bomb(folder)], dtype=object), allow_pickle=True)


def code(folder: Path) -> None:
    (folder / "modeling_x.py").write_text(f"open({str(folder / CANARY)!r}, 'w')")


def remote_code(folder: Path) -> None:
    code(folder)
    edit(folder, auto_map={"AutoModelForCausalLM": "modeling_x.X", "AutoConfig": "modeling_x.X"})


def tokenizer_code(folder: Path) -> None:
    code(folder)
    edit(folder, "tokenizer_config.json", auto_map={"AutoTokenizer": ["modeling_x.X", None]})


def shards(folder: Path, shard: str, *, present: bool = False) -> None:
    (folder / "model.safetensors").rename(folder / "part.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": {"model.norm.weight": shard}}))
    if present:
        shutil.copy(folder / "part.safetensors", folder / "again.safetensors")
        weight_map = {"model.norm.weight": "part.safetensors", "model.embed_tokens.weight": "again.safetensors"}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def link_out(folder: Path) -> None:
    outside = folder.parent / "outside.json"
    outside.write_text("{}")
    (folder / "generation_config.json").unlink()
    (folder / "generation_config.json").symlink_to(outside)


def fifo(folder: Path) -> None:
    (folder / "generation_config.json").unlink()
    os.mkfifo(folder / "generation_config.json")


def huge_header(folder: Path) -> None:
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", 100_000_000))
        file.truncate(150_000_000)


def many_tensors(folder: Path) -> None:
    header(folder, {str(i): entry("F32", [0], 0, 0) for i in range(MAX_TENSORS + 1)})


def cut(folder: Path, keep: float) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])


def twice(folder: Path) -> None:
    text = b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}'
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + b"x")


def poison(folder: Path, value: float) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"][3] = value
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


HOSTILE: dict[str, tuple[Callable[[Path], object], str]] = {
    "pickle bin": (
        lambda f: pickled(f, "pytorch_model.bin"),
        r"only as pytorch_model\.bin.*a pickle can run code.*save_pretrained",
    ),
    "pickle pt": (lambda f: pickled(f, "model.pt"), "loads safetensors alone"),
    "pickle ckpt": (lambda f: pickled(f, "model.ckpt"), "loads safetensors alone"),
    "joblib": (lambda f: pickled(f, "model.joblib"), "loads safetensors alone"),
    "object array": (object_array, "loads safetensors alone"),
    "gguf": (lambda f: pickled(f, "model.gguf"), "loads safetensors alone"),
    "pickle called safetensors": (lambda f: (f / "model.safetensors").write_bytes(bomb(f)), "not a safetensors file"),
    "remote code": (remote_code, "`auto_map` is refused"),
    "tokenizer code": (tokenizer_code, r"tokenizer_config\.json: key `auto_map` is refused"),
    "attention code": (
        lambda f: edit(f, _attn_implementation_internal="evil/kernel"),
        "`_attn_implementation_internal` is refused",
    ),
    "expert code": (
        lambda f: edit(f, _experts_implementation_internal="evil/kernel"),
        "`_experts_implementation_internal` is refused",
    ),
    "attention from the hub": (
        lambda f: edit(f, attn_implementation="evil/kernel"),
        "attn_implementation: evil/kernel` is refused",
    ),
    "model file": (lambda f: edit(f, model_file="modeling_x.py"), "`model_file` is refused"),
    "nested trust": (lambda f: edit(f, text_config={"deep": [{"trust_remote_code": True}]}), "`trust_remote_code` is refused"),
    "other weights": (lambda f: edit(f, transformers_weights="../x.safetensors"), "`transformers_weights` is refused"),
    "quantised": (lambda f: edit(f, quantization_config={"quant_method": "gptq"}), "unquantised"),
    "adapter": (lambda f: (f / "adapter_config.json").write_text('{"base_model_name_or_path": "evil/base"}'), "holds an adapter"),
    "generation hook": (lambda f: edit(f, "generation_config.json", custom_generate="evil/gen"), "`custom_generate` is refused"),
    "tokenizer class": (
        lambda f: edit(f, "tokenizer_config.json", tokenizer_class="os.system"),
        "not the name of a tokenizer class",
    ),
    "absolute shard": (lambda f: shards(f, "/etc/passwd.safetensors"), "not the plain name"),
    "parent shard": (lambda f: shards(f, "../part.safetensors"), "not the plain name"),
    "missing shard": (
        lambda f: shards(f, "model-00001-of-00002.safetensors"),
        "names model-00001-of-00002.safetensors, which is missing",
    ),
    "tensor in two shards": (lambda f: shards(f, "", present=True), "is in another shard too"),
    "link out of the folder": (link_out, "outside the model folder"),
    "pipe": (fifo, "not a regular file"),
    "header of 100 MB": (huge_header, "announce a header of 100,000,000 bytes"),
    "many tensors": (many_tensors, r"200,001 tensors; at most 200,000"),
    "overlap": (
        lambda f: header(f, {"a": entry("U8", [4], 0, 4), "b": entry("U8", [4], 2, 6)}, b"123456"),
        "overlap or leave a hole",
    ),
    "hole": (lambda f: header(f, {"a": entry("U8", [2], 0, 2), "b": entry("U8", [2], 4, 6)}, b"123456"), "overlap or leave a hole"),
    "beyond the end": (lambda f: header(f, {"a": entry("U8", [9], 0, 9)}, b"123"), "the file holds 3; it is cut or padded"),
    "shape overflow": (lambda f: header(f, {"a": entry("U8", [1 << 40, 1 << 40], 0, 0)}), "does not fill bytes"),
    "dtype mismatch": (
        lambda f: header(f, {"a": entry("F32", [2], 0, 4)}, b"1234"),
        r"F32 of shape \[2\] does not fill bytes 0 to 4",
    ),
    "unknown dtype": (lambda f: header(f, {"a": entry("OBJ", [1], 0, 1)}, b"1"), "dtype OBJ is not one of"),
    "negative shape": (lambda f: header(f, {"a": entry("U8", [-1], 0, 1)}, b"1"), "whole numbers, 0 or more"),
    "name twice": (twice, "a key occurs twice"),
    "empty weights": (lambda f: cut(f, 0.0), "not a safetensors file"),
    "half the weights": (lambda f: cut(f, 0.5), "it is cut or padded"),
    "one byte short": (lambda f: cut(f, 0.999999), "it is cut or padded"),
    "deep JSON": (
        lambda f: (f / "config.json").write_text("[" * 100_000),
        r"config\.json: (JSON nested too deeply|not valid JSON)",
    ),
    "config not an object": (lambda f: (f / "config.json").write_text("[]"), "a JSON object was expected"),
    "config too long": (lambda f: (f / "config.json").write_bytes(b" " * (17 << 20)), "17,825,792 bytes; at most 16,777,216"),
    "vocabulary of 10^9": (lambda f: edit(f, vocab_size=10**9), "vocab_size: 1000000000` is beyond any model"),
    "vocabulary of 10^7": (lambda f: edit(f, vocab_size=10**7), "10,000,000 x 64 numbers is larger than all the weights"),
    "10^9 layers": (lambda f: edit(f, num_hidden_layers=10**6), "the weights hold only 20 tensors"),
    "width of 10^7": (lambda f: edit(f, intermediate_size=10**7), "describes 3,84.,...,... numbers, but the weights hold 93,248"),
    "words for numbers": (lambda f: edit(f, hidden_size="wide"), "no model can be made of it"),
    "no heads": (lambda f: edit(f, num_attention_heads=0), "no model can be made of it"),
    "unknown architecture": (lambda f: edit(f, model_type="evil"), "`model_type: evil` is not a causal language model"),
    "not a language model": (lambda f: edit(f, model_type="detr"), "`model_type: detr` is not a causal language model"),
    "NaN": (lambda f: poison(f, float("nan")), "model.norm.weight holds 1 values that are NaN or infinite"),
    "infinity": (lambda f: poison(f, float("inf")), "model.norm.weight holds 1 values that are NaN or infinite"),
    "no config": (lambda f: (f / "config.json").unlink(), r"no config\.json, only .*model\.safetensors"),
}


@pytest.fixture
def folder(tiny_model_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model_folder, tmp_path / "model"))


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_folder_is_refused_with_its_reason(name: str, folder: Path) -> None:
    spoil, reason = HOSTILE[name]
    spoil(folder)
    with nothing_runs(folder), pytest.raises(ValueError, match=reason) as told:
        load_causal(folder, dtype=torch.float32)
    assert len(str(told.value)) < 700


@pytest.mark.parametrize("name", ["remote code", "tokenizer code", "adapter", "link out of the folder", "tokenizer class"])
def test_the_tokenizer_is_refused_from_a_hostile_folder_too(name: str, folder: Path) -> None:
    spoil, reason = HOSTILE[name]
    spoil(folder)
    with nothing_runs(folder), pytest.raises(ValueError, match=reason):
        load_tokenizer(folder)


def test_code_and_pickles_that_nothing_names_are_left_alone(folder: Path) -> None:
    code(folder)
    (folder / "pytorch_model.bin").write_bytes(bomb(folder))
    (folder / "training_args.bin").write_bytes(bomb(folder))
    edit(folder, _name_or_path="http://169.254.169.254/evil", quantization_config=None, trust_remote_code=False)
    edit(folder, "tokenizer_config.json", name_or_path="evil/remote")
    with nothing_runs(folder):
        assert load_tokenizer(folder).vocab_size
        assert load_causal(folder, dtype=torch.float32).config.model_type == "llama"


def test_the_watch_itself_sees_a_pickle_that_runs(folder: Path) -> None:
    with pytest.raises(AssertionError), nothing_runs(folder):
        pickle.loads(bomb(folder))
    assert (folder / CANARY).exists()


def test_a_snapshot_of_the_hubs_cache_may_link_to_its_blobs_and_nowhere_else(folder: Path, tmp_path: Path) -> None:
    snapshot, blobs = tmp_path / "models--a--b" / "snapshots" / ("0" * 40), tmp_path / "models--a--b" / "blobs"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for file in folder.iterdir():
        shutil.copy(file, blobs / f"blob-{file.name}")
        (snapshot / file.name).symlink_to(Path("../../blobs") / f"blob-{file.name}")
    assert check_folder(snapshot).elements == 93_248
    (snapshot / "extra.json").symlink_to(folder / "config.json")
    with pytest.raises(ValueError, match="outside the model folder"):
        check_folder(snapshot)


def test_shards_are_read_through_their_index(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    halves = {"model-00001-of-00002.safetensors": sorted(tensors)[:7], "model-00002-of-00002.safetensors": sorted(tensors)[7:]}
    for file, names in halves.items():
        save_file({name: tensors[name] for name in names}, folder / file, metadata={"format": "pt"})
    weight_map = {name: file for file, names in halves.items() for name in names}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (folder / "model.safetensors").unlink()
    loaded = dict(load_causal(folder, dtype=torch.float32).named_parameters())
    assert loaded.keys() == tensors.keys()
    assert all(torch.equal(loaded[name], tensors[name]) for name in tensors)


def test_a_folder_around_the_model_says_where_the_model_is(folder: Path) -> None:
    with pytest.raises(ValueError, match=f"did you mean {folder}"):
        check_folder(folder.parent)


def test_an_empty_folder_says_what_a_model_is(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"the folder is empty; a model is a folder with config\.json"):
        check_folder(tmp_path)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_change_of_bytes_is_refused_by_name_or_harmless(data: st.DataObject, folder: Path, tiny_model_folder: Path) -> None:
    file = data.draw(st.sampled_from(["config.json", "model.safetensors", "tokenizer_config.json"]))
    whole = (tiny_model_folder / file).read_bytes()
    start = data.draw(st.integers(0, min(len(whole), 2500)))
    patch = data.draw(st.binary(max_size=12))
    (folder / file).write_bytes(whole[:start] + patch + whole[start + data.draw(st.integers(0, 12)) :])
    reason = ""
    try:
        check_folder(folder)
    except ValueError as error:
        reason = str(error)
    (folder / file).write_bytes(whole)
    assert reason == "" or str(folder) in reason
