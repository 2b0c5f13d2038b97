"""Fitting one model: what the training recipes have in common, from settings to a finished run with its result.

A recipe says what a batch asks (`Plan`); all else (loading, adapters, reference, the loop, saving, before and after) is here.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from truing.data.chat import ChatTokenizer, Style
from truing.data.packing import pack
from truing.data.source import TreeSource
from truing.data.tree import Tree, TreeBatch
from truing.memory import give_back
from truing.models.load import load_causal, load_tokenizer, save_model, weights_hash
from truing.models.lora import add_lora, has_lora, merge
from truing.models.policy import Policy, probe
from truing.models.reference import with_reference
from truing.models.rope import refuse_beyond
from truing.objectives import AnyObjective, SortedPreference, UnpairedFeedback, WholeBatchObjective, averaged, prepared
from truing.parallel.world import World
from truing.recipes.examples import Examples, Split, examples
from truing.recipes.mismatches import with_mismatches
from truing.recipes.preflight import Concern, preflight, refuse
from truing.recipes.settings import Optimizer, Shared, device, torch_dtype
from truing.records import Record
from truing.runs.durable import STAGING, remove
from truing.runs.read import read_status
from truing.runs.run import Run
from truing.runs.sinks import Sink, Tick, counted
from truing.statistics import paired_difference, shown, win_rate
from truing.train.checkpoint import Checkpoints, seed_random_states
from truing.train.early_stop import EarlyStop
from truing.train.floor import Floor
from truing.train.learner import Learner
from truing.train.loop import Source, train
from truing.train.moving_reference import AgainstMovingReference, MovingReference, TrustRegion

MODEL, RESULT = "model", "result.json"
REFERENCE = "reference"
BEFORE, AFTER = "held_out_before.json", "held_out_after.json"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What distinguishes one method from another."""

    method: str
    kinds: tuple[type[Record], ...]
    objective: AnyObjective
    optimizer: Optimizer
    model: Callable[[Policy], nn.Module]
    outcomes: Callable[[nn.Module, Sequence[Tree], Tick], list[float]] | None
    """For each held-out tree 1 where the model orders its responses rightly, 0 where not, between for ties and rankings."""
    needs_reference: bool = False
    trust_region: TrustRegion | None = None
    """How the reference follows the policy; None where it stays."""
    compared: Callable[[Sequence[Tree]], list[Tree]] = list
    """The trees on which outcomes are measured, made of the held-out ones: those whose responses can be ordered."""
    source: Callable[[TreeSource], Source] = lambda source: source
    """What is trained on, made of the trees' source."""
    complete: Callable[[nn.Module, Sequence[Tree]], Mapping[str, bytes]] = lambda model, trees: {}
    """What is done to the trained model before it is saved, with the trees it learnt from: gives further files of its folder."""
    merged: bool = True
    """Whether adapters are merged into the saved weights; without, they must be among the further files."""
    lines: tuple[str, ...] = ()
    """What is said of it at the start."""
    learn_of: Callable[[Examples, ChatTokenizer], Sequence[str]] = lambda found, chat: ()
    """Tells the method what of the records is in no tree; gives what is worth saying of it."""
    patience: int = 0
    """Evaluations without a better held-out accuracy after which training ends with the best weights; 0 goes to the end."""
    report: Callable[[nn.Module, Split, World, Tick], Mapping[str, Any]] | None = None
    """What else the result says of the trained model, by held-out records; None where there is nothing."""


def fit(shared: Shared, plan: Plan, resolved: Mapping[str, object], sinks: Sequence[Sink]) -> Path:
    """Train, save and measure; returns the run's folder. A finished run is left as it is, an interrupted one continued.

    Under torchrun each rank trains on its share of every batch, and rank 0 alone writes.
    """
    folder = shared.run or Path("runs") / plan.method
    world = World.here()
    sinks = sinks if world.rank == 0 else ()
    start = model_folder(shared.model)
    chat = ChatTokenizer.of(load_tokenizer(start), template=shared.data.template)
    tick = counted(sinks, f"{folder.name}: reading and encoding")
    found = examples(shared.data, chat, plan.kinds, run=folder, progress=tick, world=world)
    refuse_unsuited(plan, found)
    concerns = preflight(plan.method, resolved, chat, len(found.train.trees), desirable=found.train.desirable)
    if shared.strict:
        refuse(concerns)
    policy, reason = load_policy(start, torch_dtype(shared.dtype))
    refuse_beyond(policy.reach, shared.data.max_tokens, f"set data.max_tokens={policy.reach}")
    fingerprints = {"data": found.reading.sha256, "tokenizer": chat.fingerprint, "weights": weights_hash(policy.model)}
    policy.recompute_above = {"auto": 2 * shared.micro_tokens, "always": 0, "never": None}[shared.recompute]
    if shared.lora:
        add_lora(policy.model, shared.lora, seed=shared.seed)
    model = plan.model(policy)
    source = _source(shared, found.train.trees, world)
    steps = source.steps_per_epoch * shared.epochs
    config = {**resolved, "method": plan.method}
    with opened(folder, shared, min(steps, shared.max_steps or steps), config, fingerprints, sinks, world) as run:
        if run.finished and (folder / RESULT).is_file():
            return folder
        introduce(run, [*found.lines(), *plan.learn_of(found, chat), *plan.lines], concerns, plain=reason)

        def bar(what: str) -> Tick:
            return counted(sinks, f"{folder.name}: {what}")

        held_out: Sequence[Tree] = found.held_out.trees
        objective, compared = plan.objective, plan.compared(held_out)
        before = _before(run, plan, model, compared, bar("held out, before"), world) if shared.measure_before else None
        if plan.needs_reference and plan.trust_region is None:
            objective, held_out = _with_reference(run, shared, objective, policy, source, held_out, bar, world)
        learner = Learner(model, plan.optimizer, total_steps=run.max_steps, world=world)
        if plan.trust_region is not None:
            reference = MovingReference(learner.trained, plan.trust_region)
            objective = AgainstMovingReference(objective=objective, reference=reference)

        def evaluate() -> dict[str, float]:
            return averages(model, objective, held_out, shared.micro_tokens, world)

        seed_random_states(shared.seed)
        early_stop = EarlyStop(learner.trained, plan.patience) if plan.patience and held_out and shared.evaluate_every else None
        train(
            run,
            learner,
            objective,
            plan.source(source),
            evaluate=evaluate if held_out else None,
            early_stop=early_stop,
            floor=Floor.of(model),
        )
        give_back(all_of_it=True)
        # Measured before saving: a reward model is centred there, and one that was saved before an interruption would not be.
        after = _outcomes(plan, model, compared, bar("held out, after"), world)
        result = _result(run, plan, found, before, after)
        if early_stop:
            result |= {"best_step": early_stop.best_step, "ended_at": run.step}
        if plan.report and held_out:
            result |= plan.report(model, found.held_out, world, bar("held out, report"))
        if world.rank == 0 and not (folder / MODEL / "config.json").is_file():
            save_policy(folder, policy, chat, start, plan.complete(model, found.train.trees), merged=plan.merged)
        run.write(RESULT, result)
        world.wait()
    return folder


def refuse_unsuited(plan: Plan, found: Examples) -> None:
    """Raises ValueError for records that the method cannot learn from, before anything is computed."""
    if isinstance(plan.objective, SortedPreference) and (found.train.trees.uncertain or found.held_out.trees.uncertain):
        raise ValueError(
            f"{found.reading.file}: {plan.method} sorts the margins of certain pairs, and some of these say how probable they are; "
            "leave out the column probability, or take another loss"
        )


def introduce(run: Run, lines: Sequence[str], concerns: Sequence[Concern], *, plain: str | None) -> None:
    """Say what is trained on, how, and what is doubtful about it; `plain` is why the layout is the plain one, if it is."""
    for line in [*lines, *([f"runs in the plain layout: {plain}"] if plain else [])]:
        run.message(line)
    for concern in concerns:
        run.message(str(concern), "warning")


def _with_reference(
    run: Run,
    shared: Shared,
    objective: AnyObjective,
    policy: Policy,
    source: TreeSource,
    held_out: Sequence[Tree],
    bar: Callable[[str], Tick],
    world: World,
) -> tuple[AnyObjective, Sequence[Tree]]:
    """The objective and the held-out trees that know log pi_ref; those of the source know it from now on."""

    def referenced(trees: Sequence[Tree], groups: Iterable[np.ndarray], what: str) -> Sequence[Tree]:
        store, cache, stop = run.folder / REFERENCE, shared.data.cache, run.stop_if_asked
        lent = cache / REFERENCE if cache else None
        return with_reference(policy, trees, groups, store=store, shared=lent, progress=bar(what), world=world, stop=stop)

    evaluated = held_out if shared.evaluate_every else ()
    if isinstance(objective, UnpairedFeedback):
        objective, source.trees = with_mismatches(
            objective, source, evaluated, steps=run.max_steps, budget=shared.micro_tokens, referenced=referenced
        )
    else:
        source.trees = referenced(source.trees, source.first_epoch(run.max_steps), "reference")
    if evaluated:
        held_out = referenced(held_out, pack(held_out, shared.micro_tokens).places, "reference of held-out rows")
    return objective, held_out


def _source(shared: Shared, trees: Sequence[Tree], world: World) -> TreeSource:
    return TreeSource(
        trees,
        batch_size=shared.batch_size,
        micro_tokens=shared.micro_tokens,
        seed=shared.seed,
        rank=world.rank,
        ranks=world.size,
        device=device(),
    )


def opened(
    folder: Path,
    shared: Shared,
    steps: int,
    config: Mapping[str, object],
    fingerprints: Mapping[str, str],
    sinks: Sequence[Sink],
    world: World,
) -> Run:
    """The run, on rank 0; the others follow it once it is there."""
    run = None
    if world.rank == 0:
        run = Run.open(
            folder,
            config,
            fingerprints=fingerprints,
            max_steps=steps,
            save_every=shared.save_every,
            evaluate_every=shared.evaluate_every,
            store=Checkpoints,
            sinks=sinks,
            largest=world.largest,
        )
    world.wait()
    return run or Run.follow(
        folder,
        max_steps=steps,
        save_every=shared.save_every,
        evaluate_every=shared.evaluate_every,
        store=Checkpoints,
        largest=world.largest,
    )


def load_policy(start: Path | str, dtype: torch.dtype) -> tuple[Policy, str | None]:
    """The policy in its fastest right layout, and why that is the plain one, if it is."""
    probed = probe(load_causal(start, dtype=dtype, device=device()))
    return probed.policy, probed.reason_for_plain


def model_path(folder: Path) -> Path:
    """The model's folder: inside a run's folder, or the folder itself."""
    return folder / MODEL if (folder / MODEL / "config.json").is_file() else folder


def model_folder(name: str) -> Path | str:
    """A finished run stands for the model that it trained; anything else is a folder or a hub name."""
    path = Path(name)
    if (path / "status.json").is_file() and not (path / MODEL).is_dir():
        raise ValueError(
            f"{name}: this run is {read_status(path).state} and has no model yet; finish it with the command that began it"
        )
    return model_path(path) if path.is_dir() else name


def template_of(run: Path) -> Style:
    """How the run that trained a model wrote conversations; `auto` for a model that no run here trained."""
    if not (run / "status.json").is_file():
        return "auto"
    style: Style = json.loads((run / "config.json").read_bytes())["data"]["template"]
    return style


@torch.no_grad()
def averages(model: nn.Module, objective: AnyObjective, trees: Sequence[Tree], budget: int, world: World) -> dict[str, float]:
    """The objective's metrics over a set of trees, of which each rank takes its share."""
    groups = pack(trees, budget)[world.rank :: world.size]
    if not isinstance(objective, WholeBatchObjective):
        return averaged(world.gather([objective(model, TreeBatch.of(group, device())).metrics for group in groups]))
    batches = [TreeBatch.of(group, device()) for group in groups]
    found = zip(batches, prepared(objective, model, batches, world).of_batches, strict=True)
    return averaged(world.gather([objective(model, batch, *statistic).metrics for batch, statistic in found]))


def _before(run: Run, plan: Plan, model: nn.Module, held_out: Sequence[Tree], progress: Tick, world: World) -> list[float] | None:
    """Held-out outcomes of the untrained model, measured once, since a continued run no longer has it."""
    path = run.folder / BEFORE
    kept: list[list[float]] = world.gather(
        [json.loads(path.read_bytes())["outcomes"]] if world.rank == 0 and path.is_file() else []
    )
    outcomes = kept[0] if kept else _outcomes(plan, model, held_out, progress, world)
    if outcomes is not None and not kept:
        run.write(BEFORE, {"outcomes": outcomes})
    return outcomes


def _outcomes(plan: Plan, model: nn.Module, held_out: Sequence[Tree], progress: Tick, world: World) -> list[float] | None:
    """What the held-out records say of the model; None where the method has nothing to say, or none is held out."""
    outcomes = plan.outcomes
    if outcomes is None or not held_out:
        return None
    return world.spread(held_out, lambda share: outcomes(model, share, progress))


def save_policy(
    folder: Path,
    policy: Policy,
    chat: ChatTokenizer,
    start: Path | str,
    extra: Mapping[str, bytes] | None = None,
    *,
    merged: bool = True,
) -> None:
    """The policy's model into the run's folder, adapters merged into the weights that it started from, or these alone; once is
    enough."""
    for left_over in folder.glob(f"{STAGING}{MODEL}*"):
        remove(left_over)
    if (folder / MODEL / "config.json").is_file():
        return
    whole = policy.model
    if has_lora(whole):
        give_back(all_of_it=True)  # the whole model in fp32 comes on top of what is held
        begun = load_causal(start, dtype=torch.float32)
        whole = merge(policy.model, begun) if merged else begun
    save_model(whole, chat.tokenizer, folder / MODEL, extra=extra)


def _result(run: Run, plan: Plan, found: Examples, before: list[float] | None, after: list[float] | None) -> dict[str, Any]:
    """What `result.json` says: how much was trained on, and held-out accuracy before and after."""
    trained, held_out = len(found.train.trees), len(found.held_out.trees)
    result: dict[str, Any] = {"method": plan.method, "train": trained, "held_out": held_out}
    if after is not None:
        run.write(AFTER, {"outcomes": after})
        result["accuracy_after"] = shown(win_rate(after))
        if before is not None:
            result["accuracy_before"] = shown(win_rate(before))
            result["accuracy_gain"] = shown(paired_difference(after, before, seed=0))
    return result
