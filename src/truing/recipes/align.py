"""The whole way in one command: SFT on the good answers, a reward model, preference optimisation, and what became of it.

With `method=ppo` a policy is trained from the reward model too, and compared with preference optimisation. Each stage is a run of
its own in the folder of this one, so the same command goes on wherever the last one stopped.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from truing.config import OneOf, resolved_of
from truing.data.chat import ChatTokenizer
from truing.evals import alignment, report
from truing.evals.alignment import Held, Measured
from truing.losses import PAIR_LOSSES, PairLoss
from truing.losses.dpo import DPO
from truing.memory import give_back
from truing.models.load import load_tokenizer
from truing.models.lora import LoRA
from truing.parallel.world import World
from truing.recipes import ppo, preference, reward_model, sft
from truing.recipes.examples import STORES, examples
from truing.recipes.fit import AFTER, BEFORE, load_policy, model_folder, model_path
from truing.recipes.reward_folder import load_reward_model
from truing.recipes.settings import Data, Optimizer, torch_dtype
from truing.recipes.stages import PolicyStage, Stage
from truing.records import Preference
from truing.rollouts.sampler import Decoding
from truing.runs.canonical import to_json
from truing.runs.durable import make_folder, write_file
from truing.runs.lock import RunLock
from truing.runs.sinks import Sink

HELD_OUT_TOPICS = ("first aid", "houseplants", "laundry", "music", "photography", "sewing", "swimming")


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of `truing align`. The defaults are the demo: SmolLM2-135M-Instruct on everyday preferences, on two cores."""

    method: Literal["dpo", "ppo"] = "dpo"
    """`ppo` trains a policy from the reward model too, beside the third training, and compares both."""
    data: Data = field(default_factory=lambda: Data(path="everyday", held_out_by="topic", held_out=HELD_OUT_TOPICS, max_tokens=512))
    """Preferences; the columns kind and topic are used where they exist."""
    model: str = "HuggingFaceTB/SmolLM2-135M-Instruct"
    """The base model: a folder or a hub name."""
    run: Path = Path("runs/align")
    """The folder of the whole run. The same command again continues it."""
    seed: int = 0
    """Seed of everything random."""
    dtype: Literal["auto", "fp32", "bf16"] = "auto"
    """Dtype of the weights."""
    lora: LoRA | None = field(default_factory=lambda: LoRA(top_layers=15))
    """Low-rank adapters for all three trainings; null trains all weights. Only half of the default model's layers."""
    micro_tokens: Annotated[int, Field(gt=0)] = 1024
    """Tokens computed at once; memory grows with it, results do not change."""
    loss: Annotated[PairLoss, OneOf(PAIR_LOSSES)] = field(default_factory=DPO)
    """The preference loss of the third training."""
    sft: Stage = field(default_factory=lambda: Stage(lr=5e-4))
    """Supervised fine-tuning on the good answers."""
    reward_model: Stage = field(default_factory=lambda: Stage(lr=5e-4))
    """The reward model, from the SFT model."""
    preference: Stage = field(default_factory=lambda: Stage(lr=5e-4))
    """Preference optimisation, from the SFT model."""
    ppo: PolicyStage = field(default_factory=PolicyStage)
    """Policy optimisation, from the SFT model, where `method=ppo` asks for it."""
    answers: Decoding = field(default_factory=lambda: Decoding(max_tokens=40))
    """How the held-out prompts are answered for the comparison."""
    evaluate_rows: Annotated[int, Field(gt=0)] | None = None
    """Compare on the first so many held-out rows of each kind; null uses all."""
    kl_prompts: Annotated[int, Field(gt=0)] = 32
    """Held-out prompts on which the divergence from the SFT model is estimated, by samples at temperature 1."""


RESULT, REPORT = "result.json", "report.txt"
QUICK = ("data.rows=16", "data.held_out=[sewing]", "evaluate_rows=3", "kl_prompts=2", "answers.max_tokens=12", "run=runs/quick")
"""What `truing demo --quick` overrides: the same way in miniature, for checks."""


def run(config: Config, resolved: Mapping[str, object], sinks: Sequence[Sink]) -> Path:
    """Train and compare; `result.json` in the run's folder holds all figures, `report.txt` what is printed.

    Under torchrun all ranks train, and rank 0 alone compares.
    """
    world = World.here()
    if world.rank:
        world.wait()  # until rank 0 has the lock
        for stage in _stages(config).values():
            stage(())
        world.wait()
        return config.run
    make_folder(config.run)
    lock = RunLock.acquire(config.run)
    try:
        world.wait()
        began = time.monotonic()
        stages = _stages(config)
        for name, stage in stages.items():
            stage(sinks)
            give_back(all_of_it=True)
            assert (config.run / name / "model").is_dir()
        measured = _compare(config, sinks)
        result = alignment.result(measured, seed=config.seed)
        result["seconds_of_this_command"] = round(time.monotonic() - began, 1)
        write_file(config.run / RESULT, to_json(result, indent=2))
        write_file(config.run / REPORT, report.text(result, config.run).encode())
        world.wait()
    finally:
        lock.release()
    return config.run


def _stages(config: Config) -> dict[str, Callable[[Sequence[Sink]], Path]]:
    def shared(stage: Stage | PolicyStage, model: str, name: str) -> dict[str, Any]:
        return {
            "data": _shared_data(config),
            "model": model,
            "run": config.run / name,
            "seed": config.seed,
            "dtype": config.dtype,
            "lora": config.lora,
            "epochs": stage.epochs,
            "batch_size": stage.batch_size,
            "micro_tokens": config.micro_tokens,
            "save_every": 10,
            "evaluate_every": 0,
            "measure_before": name == "preference",
            "optimizer": Optimizer(lr=stage.lr),
        }

    start = str(config.run / "sft")
    imitate = sft.Config(**shared(config.sft, config.model, "sft"))
    judge = reward_model.Config(**shared(config.reward_model, start, "reward_model"))
    prefer = preference.Config(**shared(config.preference, start, "preference"), loss=config.loss)
    stages: dict[str, Callable[[Sequence[Sink]], Path]] = {
        "sft": lambda sinks: sft.run(imitate, resolved_of(imitate), sinks),
        "reward_model": lambda sinks: reward_model.run(judge, resolved_of(judge), sinks),
        "preference": lambda sinks: preference.run(prefer, resolved_of(prefer), sinks),
    }
    if config.method == "ppo":
        settings = {**shared(config.ppo, start, "ppo"), "measure_before": True}
        improve = config.ppo.recipe(settings, reward="learned", model=config.run / "reward_model", answers=config.answers)
        stages["ppo"] = lambda sinks: ppo.run(improve, resolved_of(improve), sinks)
    return stages


def _shared_data(config: Config) -> Data:
    """The data, encoded once for all stages that read it alike."""
    return config.data if config.data.cache else replace(config.data, cache=config.run / STORES)


def _compare(config: Config, sinks: Sequence[Sink]) -> dict[str, Measured]:
    """Base, SFT and tuned models on the held-out rows; what was measured before an interruption is not measured again."""
    models = {"base": model_folder(config.model), "sft": config.run / "sft", "tuned": config.run / "preference"}
    if config.method == "ppo":
        models["ppo"] = config.run / "ppo"
    folder = config.run / "evaluation"
    make_folder(folder)
    dtype = torch_dtype(config.dtype)
    chat = ChatTokenizer.of(load_tokenizer(model_path(config.run / "sft")), template=config.data.template)
    rows = examples(_shared_data(config), chat, (Preference,)).held_out
    held = Held.of(rows.records, rows.trees, chat, config.evaluate_rows)
    for sink in sinks:
        sink.stage("evaluation", 3 * len(models))
    measured_in_training = {"sft": config.run / "preference" / BEFORE, "tuned": config.run / "preference" / AFTER}
    step = 0

    def tick(metrics: Mapping[str, float]) -> None:
        nonlocal step
        step += 1
        left = (time.monotonic() - began) / step * (3 * len(models) - step)
        for sink in sinks:
            sink.step(step, metrics, left)

    began = time.monotonic()
    found: dict[str, Measured] = {}
    for name in models:
        path = folder / f"{name}.json"
        if path.is_file():
            found[name] = Measured(**json.loads(path.read_bytes()))
            step += 3
    missing = [
        name for name in ("sft", "base", "tuned", "ppo") if name in models and name not in found
    ]  # SFT first: it is what the others diverge from
    reference = load_policy(model_path(config.run / "sft"), dtype)[0] if missing else None
    for name in missing:
        place = models[name]
        policy = reference if name == "sft" else load_policy(model_path(place) if isinstance(place, Path) else place, dtype)[0]
        assert policy is not None
        outcomes = json.loads(measured_in_training[name].read_bytes())["outcomes"] if name in measured_in_training else None
        found[name] = alignment.measure(
            policy,
            None if name == "sft" else reference,
            held,
            config.answers,
            prefers=None if outcomes is None else [outcomes[place] for place in held.places],
            kl_prompts=config.kl_prompts,
            seed=config.seed,
            tick=tick,
        )
        write_file(folder / f"{name}.json", to_json(found[name].as_json()))
        del policy  # before the next is loaded
        give_back(all_of_it=True)
    del reference
    give_back(all_of_it=True)
    judge = load_reward_model(config.run / "reward_model", dtype)
    for measured in found.values():
        measured.rewards = alignment.rewards_of(judge, held, measured)
    for sink in sinks:
        sink.done("finished", "")
    return {name: found[name] for name in models}
