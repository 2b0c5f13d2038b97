"""What makes a model folder safe: checked before transformers sees it, reading JSON and safetensors headers only.

A folder is material from strangers. Refused: pickles, code named by a config, paths and links that leave the folder, headers that
lie about their bytes, and configs that would allocate far more than the file holds. Left out: whether the values are finite and
whether the names fit the architecture, which `truing.models.load` sees once the tensors exist. No torch, no transformers here.
"""

import json
import os
import re
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

Json = Mapping[str, object]

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
MAX_CONFIG_BYTES = 16 << 20
MAX_HEADER_BYTES = 32 << 20
"""The format allows 100 MB; 200,000 tensors need about 26."""
MAX_TENSORS = 200_000
MAX_DIMENSION = 1 << 24
"""No width, vocabulary or context of a published model reaches it; products of two stay far from 64 bits."""
SLACK_ELEMENTS = 1 << 20

DTYPE_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".npy", ".npz", ".msgpack", ".h5", ".gguf")
CONFIGS = (
    "config.json",
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "processor_config.json",
    "preprocessor_config.json",
    "chat_template.json",
)
REFUSED_KEYS = {
    "auto_map": "names Python code to import",
    "trust_remote_code": "asks for remote code",
    "model_file": "names Python code to import",
    "custom_generate": "names Python code to import",
    "custom_pipelines": "names Python code to import",
    "_attn_implementation_internal": "names attention code to download",
    "_experts_implementation_internal": "names expert code to download",
    "transformers_weights": "points at another weights file",
    "quantization_config": "the weights are quantised; give the unquantised model",
}
IMPLEMENTATION_KEYS = ("attn_implementation", "_attn_implementation", "experts_implementation", "_experts_implementation")
IMPLEMENTATIONS = ("eager", "sdpa", "grouped_mm", "batched_mm")
DIMENSION = re.compile(r"(_size|_dim|_heads|_layers|_layer|_experts|_positions|_embeddings|_groups|_labels|_rank)$|^(num|n|d)_")
LAYER_COUNTS = ("num_hidden_layers", "num_layers", "n_layer", "n_layers", "num_decoder_layers", "num_encoder_layers")
TOKENIZER_CLASS = re.compile(r"[A-Za-z0-9_]*(Tokenizer|TokenizerFast|Backend)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensors:
    """What the headers of a folder's weight files say."""

    shapes: Mapping[str, tuple[int, ...]]
    """The shape of each tensor, by name, over all shards."""

    @property
    def elements(self) -> int:
        return sum(prod(shape) for shape in self.shapes.values())


def check_folder(path: str | Path) -> Tensors:
    """Refuse `path`, with a ValueError saying why, unless it is a model folder that is safe to load; give what its weights are."""
    folder = Path(path)
    names = {entry.name for entry in os.scandir(folder)} if folder.is_dir() else set()
    if "config.json" not in names:
        raise ValueError(_not_a_model(folder, names))
    if "adapter_config.json" in names:
        raise ValueError(f"{folder}: holds an adapter (adapter_config.json), not a whole model; name its base model instead")
    _check_links(folder)
    for name in CONFIGS:
        if name in names:
            _check_config(folder / name, _json_object(folder / name, MAX_CONFIG_BYTES))
    tensors = _read_weights(folder)
    _check_sizes(folder / "config.json", _json_object(folder / "config.json", MAX_CONFIG_BYTES), tensors)
    return tensors


def _not_a_model(folder: Path, names: set[str]) -> str:
    if not folder.is_dir():
        return f"{folder}: not a folder; a model is a folder with config.json, *.safetensors and a tokenizer"
    if not names:
        return f"{folder}: the folder is empty; a model is a folder with config.json, *.safetensors and a tokenizer"
    inner = [child.name for child in sorted(folder.iterdir()) if (child / "config.json").is_file()]
    remedy = (
        f"did you mean {folder / inner[-1]}?" if inner else "a model is a folder with config.json, *.safetensors and a tokenizer"
    )
    return f"{folder}: no config.json, only {_some(names)}; {remedy}"


def _some(names: set[str]) -> str:
    return ", ".join(sorted(names)[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _check_links(folder: Path) -> None:
    """Each file must be a regular file inside the folder, or a blob of the hub's cache whose snapshot the folder is."""
    root = folder.resolve()
    allowed = [root]
    if root.parent.name == "snapshots":
        allowed.append(root.parent.parent / "blobs")
    for inside in (folder, folder / "additional_chat_templates"):
        for entry in os.scandir(inside) if inside.is_dir() else ():
            target = Path(entry.path).resolve()
            if not any(target.is_relative_to(place) for place in allowed):
                raise ValueError(f"{entry.path}: a link to {target}, outside the model folder; copy the file into it")
            if not target.exists():
                raise ValueError(f"{entry.path}: a link to {target}, which does not exist")
            if not stat.S_ISREG(target.stat().st_mode) and not target.is_dir():
                raise ValueError(f"{entry.path}: not a regular file")


def _json_object(path: Path, limit: int) -> Json:
    size = path.stat().st_size
    if size > limit:
        raise ValueError(f"{path}: {size:,} bytes; at most {limit:,} are read")
    return _parse_object(path.read_bytes(), path)


def _parse_object(text: bytes, path: Path) -> Json:
    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError("a key occurs twice")
        return found

    try:
        value = json.loads(text, object_pairs_hook=unique)
    except RecursionError as error:
        raise ValueError(f"{path}: JSON nested too deeply") from error
    except ValueError as error:
        raise ValueError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path}: a JSON object was expected")
    return value


def _items(value: object) -> Iterator[tuple[str, object]]:
    """Every key and value, however deep."""
    stack = [value]
    while stack:
        here = stack.pop()
        if isinstance(here, dict):
            yield from here.items()
            stack.extend(here.values())
        elif isinstance(here, list):
            stack.extend(here)


def _check_config(path: Path, config: Json) -> None:
    for key, value in _items(config):
        if key in REFUSED_KEYS and (value or key == "auto_map"):  # transformers stumbles over an empty one
            raise ValueError(f"{path}: key `{key}` is refused ({REFUSED_KEYS[key]}); Truing runs no code that a model folder names")
        if key in IMPLEMENTATION_KEYS and value and value not in IMPLEMENTATIONS:
            raise ValueError(f"{path}: `{key}: {value}` is refused; only {', '.join(IMPLEMENTATIONS)} may be named in a folder")
        if key == "tokenizer_class" and value and not (isinstance(value, str) and TOKENIZER_CLASS.fullmatch(value)):
            raise ValueError(f"{path}: `tokenizer_class: {value}` is not the name of a tokenizer class")


def weight_files(folder: Path) -> list[str]:
    """The names of the files that hold the weights, all present; `model.safetensors` goes before an index, as in transformers."""
    names = {entry.name for entry in os.scandir(folder)}
    if SINGLE in names:
        return [SINGLE]
    if INDEX not in names:
        raise ValueError(_no_weights(folder, names))
    shards = sorted(set(_weight_map(folder).values()))
    for shard in shards:
        if shard != os.path.basename(shard) or "\\" in shard or not shard.endswith(".safetensors"):
            raise ValueError(f"{folder / INDEX}: `{shard}` is not the plain name of a .safetensors file in this folder")
        if shard not in names:
            raise ValueError(f"{folder / INDEX}: names {shard}, which is missing; download the folder again")
    return shards


def _weight_map(folder: Path) -> dict[str, str]:
    index = _json_object(folder / INDEX, MAX_HEADER_BYTES)
    found = index.get("weight_map")
    if not isinstance(found, dict) or not found or not all(isinstance(shard, str) for shard in found.values()):
        raise ValueError(f"{folder / INDEX}: `weight_map` from tensor names to file names is missing")
    if not isinstance(index.get("metadata"), dict):
        raise ValueError(f"{folder / INDEX}: `metadata` is missing; transformers needs it, and an empty object will do")
    return found


def _read_weights(folder: Path) -> Tensors:
    """The headers of every weight file, checked; with shards, their index too."""
    shapes: dict[str, tuple[int, ...]] = {}
    files = weight_files(folder)
    for file in files:
        found = _read_header(folder / file)
        twice = shapes.keys() & found.keys()
        if twice:
            raise ValueError(f"{folder / file}: tensor {min(twice)} is in another shard too")
        shapes.update(found)
    lost = _weight_map(folder).keys() - shapes.keys() if files != [SINGLE] else set()
    if lost:
        raise ValueError(f"{folder / INDEX}: tensor {min(lost)} is in none of the shards")
    if len(shapes) > MAX_TENSORS:
        raise ValueError(f"{folder / INDEX}: {len(shapes):,} tensors; at most {MAX_TENSORS:,} are loaded")
    return Tensors(shapes=shapes)


def _no_weights(folder: Path, names: set[str]) -> str:
    pickles = {name for name in names if name.endswith(PICKLES)}
    others = {name for name in names if name.endswith(".safetensors")}
    if pickles:
        return (
            f"{folder}: weights only as {_some(pickles)}; Truing loads safetensors alone, because a pickle can run code. "
            "Convert them once, on a machine that you can spare, with transformers' `model.save_pretrained(folder)`"
        )
    if others:
        return f"{folder}: {_some(others)} but neither model.safetensors nor model.safetensors.index.json"
    return f"{folder}: no weights (model.safetensors), only {_some(names)}"


def _read_header(path: Path) -> dict[str, tuple[int, ...]]:
    """Shapes by name of one safetensors file; its header must account for every byte, without hole, overlap or rest."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(MAX_HEADER_BYTES, size - 8):
            raise ValueError(f"{path}: not a safetensors file: its first 8 bytes announce a header of {length:,} bytes")
        header = _parse_object(file.read(length), path)
    header = {name: entry for name, entry in header.items() if name != "__metadata__"}
    if len(header) > MAX_TENSORS:
        raise ValueError(f"{path}: {len(header):,} tensors; at most {MAX_TENSORS:,} are loaded")
    spans = []
    shapes = {}
    for name, entry in header.items():
        shapes[name], span = _read_entry(f"{path}: tensor {name}", entry)
        spans.append(span)
    end = 0
    for start, stop in sorted(spans):
        if start != end:
            raise ValueError(f"{path}: tensors overlap or leave a hole at byte {min(start, end):,}")
        end = stop
    if end != size - 8 - length:
        raise ValueError(
            f"{path}: the header describes {end:,} bytes of tensors, the file holds {size - 8 - length:,}; it is cut or padded"
        )
    return shapes


def _read_entry(where: str, entry: object) -> tuple[tuple[int, ...], tuple[int, int]]:
    """Shape and byte span of one header entry."""
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{where}: dtype, shape and data_offsets were expected")
    dtype, shape, offsets = entry["dtype"], _counts(entry["shape"]), _counts(entry["data_offsets"])
    if not isinstance(dtype, str) or dtype not in DTYPE_BYTES:
        raise ValueError(f"{where}: dtype {dtype} is not one of {', '.join(DTYPE_BYTES)}")
    if shape is None or offsets is None or len(offsets) != 2:
        raise ValueError(f"{where}: shape and data_offsets must be whole numbers, 0 or more")
    if offsets[1] - offsets[0] != prod(shape) * DTYPE_BYTES[dtype]:
        raise ValueError(f"{where}: {dtype} of shape {list(shape)} does not fill bytes {offsets[0]:,} to {offsets[1]:,}")
    return shape, (offsets[0], offsets[1])


def _counts(value: object) -> tuple[int, ...] | None:
    if isinstance(value, list) and len(value) <= 16 and all(type(item) is int and item >= 0 for item in value):
        return tuple(value)
    return None


def _check_sizes(path: Path, config: Json, tensors: Tensors) -> None:
    """Refuse a config whose numbers cannot belong to these weights, before anything of that size is allocated."""
    for key, value in _items(config):
        if type(value) is not int:
            continue
        if DIMENSION.search(key) and value > MAX_DIMENSION:
            raise ValueError(f"{path}: `{key}: {value}` is beyond any model ({MAX_DIMENSION:,})")
        if key in LAYER_COUNTS and value > len(tensors.shapes):
            raise ValueError(f"{path}: `{key}: {value}`, but the weights hold only {len(tensors.shapes)} tensors")
    for part in (config, *(value for _, value in _items(config) if isinstance(value, dict))):
        vocabulary, width = part.get("vocab_size"), part.get("hidden_size", part.get("n_embd"))
        if type(vocabulary) is int and type(width) is int and vocabulary * width > 1.5 * tensors.elements + SLACK_ELEMENTS:
            raise ValueError(
                f"{path}: an embedding of {vocabulary:,} x {width:,} numbers is larger than all the weights ({tensors.elements:,})"
            )
