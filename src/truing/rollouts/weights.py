"""The live policy's weights as a folder that another program loads: the adapter in peft's form, or the whole model.

A folder appears whole or not at all, and its name holds a hash of what is in it, so a program that has loaded a name has these
weights and no others. Left out: how the program is told of it.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import save
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from truing.models.load import save_model, weights_hash
from truing.models.lora import POLICY, LoRA, adapter_tensors
from truing.models.policy import Policy
from truing.parallel.world import World
from truing.runs.canonical import to_json
from truing.runs.durable import discard, make_folder, verify_folder, write_folder


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """Weights on the disk. Example: `Written(name="truing-3-1f0c9a2b77e4d310", folder=Path("/runs/rloo/sampler/truing-3-..."))`."""

    name: str
    """How many updates the policy had taken, and a hash of the weights."""
    folder: Path
    """An absolute path."""


@dataclass(frozen=True, kw_only=True)
class LiveWeights:
    """Writes the policy's weights as they are now.

    Example: `LiveWeights(policy=policy, tokenizer=tokenizer, folder=run / "sampler", lora=lora, base=name).write(3)`.
    """

    policy: Policy
    tokenizer: PreTrainedTokenizerBase
    folder: Path
    """Where the folders of weights stand; those before the last are removed."""
    lora: LoRA | None
    """What the policy's adapter was made by; None where all weights are trained."""
    base: str
    """The model that the adapter is for, for readers of its config."""
    world: World

    def write(self, version: int) -> Written:
        """The folder of this version, written by rank 0 unless it stands there; every rank gets its name."""
        names = self.world.gather([self._write(version)] if self.world.rank == 0 else [])
        return Written(name=names[0], folder=self.folder.resolve() / names[0])

    def keep_only(self, written: Written) -> None:
        """Remove every other version."""
        if self.world.rank:
            return
        for other in list(self.folder.iterdir()):
            if other.name != written.name and other.exists():
                discard(other)

    def _write(self, version: int) -> str:
        make_folder(self.folder)
        if self.lora is None:
            name = f"truing-{version}-{weights_hash(self.policy.model)[:16]}"
            if verify_folder(self.folder / name) is None:
                discard(self.folder / name)
                save_model(self.policy.model, self.tokenizer, self.folder / name)
            return name
        files = adapter_files(adapter_tensors(self.policy.model, POLICY), self.lora, self.base)
        name = f"truing-{version}-{hashlib.sha256(b''.join(files.values())).hexdigest()[:16]}"
        if verify_folder(self.folder / name) is None:
            write_folder(self.folder / name, files)
        return name


def adapter_files(tensors: Mapping[str, Tensor], lora: LoRA, base: str) -> dict[str, bytes]:
    """An adapter (`truing.models.lora.adapter_tensors`) as peft keeps one on the disk."""
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "use_rslora": False,
        "use_dora": False,
        "modules_to_save": None,
        "inference_mode": True,
        "target_modules": sorted({key[:-2] for key in tensors}),
    }
    named = {f"base_model.model.{key[:-2]}.lora_{key[-1]}.weight": tensor.cpu().contiguous() for key, tensor in tensors.items()}
    return {"adapter_config.json": to_json(config, indent=2), "adapter_model.safetensors": save(named, {"format": "pt"})}
