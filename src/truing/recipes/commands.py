"""What the verbs of the command line do with recipes: find the config, run it, show it."""

import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from typing import Any

from truing.config import describe, dotted, load, sweep
from truing.data.chat import ChatTokenizer
from truing.losses import FEEDBACK_LOSSES, PAIR_LOSSES
from truing.models.load import load_tokenizer
from truing.models.rope import refuse_beyond
from truing.parallel.world import World
from truing.recipes import RECIPES, module_of, reward_report
from truing.recipes import align as align_recipe
from truing.recipes import compare as compare_recipe
from truing.recipes import tasks as tasks_recipe
from truing.recipes.examples import examples
from truing.recipes.fit import load_policy, model_folder, refuse_unsuited, template_of
from truing.recipes.ppo import PRESETS as PPO_PRESETS
from truing.recipes.preflight import preflight
from truing.recipes.selection import asked
from truing.recipes.settings import Shared, torch_dtype
from truing.recipes.showing import token_lines
from truing.records import Demonstration, Feedback, Message, Preference, Prompt, Ranking, Record, Steps
from truing.rollouts.sampler import Decoding
from truing.rollouts.sampler import sample as draw
from truing.runs.sinks import Sink
from truing.settings_text import read_file
from truing.statistics import ends

REPORT = align_recipe.REPORT
"""What a recipe of several stages leaves in its folder, to be printed as it is."""
LIBRARY = Path(__file__).parent / "library"
METHODS = {
    "sft": "sft",
    "reward_model": "reward_model",
    **dict.fromkeys(PAIR_LOSSES, "preference"),
    **dict.fromkeys(FEEDBACK_LOSSES, "feedback"),
    **dict.fromkeys(PPO_PRESETS, "ppo"),
    "process_reward": "process_reward",
    "online": "online",
}
"""Method -> recipe."""
STAGED = {"constitutional": "constitutional"}
"""Way of several trainings, which makes its data as it goes -> recipe."""
KINDS: Mapping[str, tuple[type[Record], ...]] = {
    "sft": (Demonstration,),
    "reward_model": (Ranking, Preference),
    "process_reward": (Steps,),
    "preference": (Preference,),
    "feedback": (Feedback,),
    "ppo": (Prompt,),
    "online": (Prompt,),
}


def train(recipe: str, settings: Sequence[str], sinks: Sequence[Sink]) -> None:
    """Train once, or once for each combination of a sweep, each in a folder of its own; a sweep ends in one comparison."""
    method, file, base = _find(recipe)
    module = module_of((METHODS | STAGED)[method])
    combinations = sweep(settings)
    every = []
    for number, overrides in enumerate(combinations):
        named = overrides
        if len(combinations) > 1:
            stem = next((o.partition("=")[2] for o in overrides if o.startswith("run=")), f"runs/{method}")
            named = [*(o for o in overrides if not o.startswith("run=")), f"run={stem}-{number + 1}"]
        every.append(load(module.Config, file=file, overrides=named, base=base))
    folders = []
    for loaded in every:
        folders.append(module.run(loaded.value, loaded.resolved, sinks))
        if World.here().rank == 0:
            sys.stdout.write(_summary(folders[-1]))
    if len(folders) > 1 and World.here().rank == 0:
        sys.stdout.write(_comparison(combinations, folders))


def align(settings: Sequence[str], sinks: Sequence[Sink], *, as_json: bool) -> None:
    """The whole pipeline, ending in its report on standard output."""
    loaded = load(align_recipe.Config, overrides=settings)
    folder = align_recipe.run(loaded.value, loaded.resolved, sinks)
    name = align_recipe.RESULT if as_json else align_recipe.REPORT
    if World.here().rank == 0:
        sys.stdout.write((folder / name).read_text())


def evaluate(settings: Sequence[str], sinks: Sequence[Sink], *, as_json: bool) -> None:
    """Benchmarks where `tasks=` names some, else models compared on held-out prompts; the report on standard output."""
    recipe = tasks_recipe if any(setting.startswith("tasks=") for setting in settings) else compare_recipe
    loaded = load(recipe.Config, overrides=recipe.settings_of(settings))
    folder = recipe.run(loaded.value, sinks)
    sys.stdout.write((folder / (recipe.RESULT if as_json else recipe.REPORT)).read_text())


def recipes(action: str, name: str | None, to: Path | None) -> None:
    """List, show or copy."""
    files = {path.stem: path for path in sorted(LIBRARY.glob("*.yaml"))}
    if action == "list":
        lines = [
            "Methods (truing train METHOD):",
            *(f"  {method}" for method in METHODS | STAGED),
            "Recipe files (truing recipes copy NAME):",
        ]
        lines += [f"  {stem:<24}{path.read_text().splitlines()[0].lstrip('# ')}" for stem, path in files.items()]
        sys.stdout.write("\n".join(lines) + "\n")
        return
    if action not in ("show", "copy"):
        raise ValueError(f"recipes {action}: choose list, show or copy")
    if action == "copy":
        if name not in files:
            raise ValueError(f"recipes copy {name or ''}: choose one of {', '.join(files)}")
        target = to or Path(f"{name}.yaml")
        if target.exists():
            raise ValueError(f"{target}: exists already; name another file")
        shutil.copyfile(files[name], target)
        sys.stdout.write(f"{target}\n")
        return
    if name in files:
        sys.stdout.write(files[name].read_text())
        return
    halves = {"eval": compare_recipe, "tasks": tasks_recipe}
    if name not in METHODS and name not in RECIPES and name not in halves:
        raise ValueError(f"recipes show {name or ''}: choose one of {', '.join([*METHODS, *halves, *files])}")
    module = halves.get(str(name)) or module_of(METHODS.get(str(name), str(name)))
    for field in describe(module.Config):
        default = "required" if field.required else f"default {field.default}"
        sys.stdout.write(f"{field.key}  ({field.type}; {default}{'; with ' + field.when if field.when else ''})\n    {field.doc}\n")


def check(recipe: str, settings: Sequence[str], shown: int) -> None:
    """Everything that training would do before its first step, in words; of a sweep, that every run can be read, and the first."""
    method, file, base = _find(recipe)
    module = module_of((METHODS | STAGED)[method])
    combinations = sweep(settings)
    loaded, *others = [load(module.Config, file=file, overrides=overrides, base=base) for overrides in combinations]
    config = loaded.value
    out = sys.stdout
    if others:
        out.write(f"a sweep of {len(combinations)} runs, of which this is the first:\n")
    out.write(f"{method}\n" + "".join(f"  {key} = {value}\n" for key, value in dotted(loaded.resolved).items()))
    if not isinstance(config, Shared):
        found = module.concerns(config, loaded.resolved)
        out.writelines(f"  warning: {concern}\n" for concern in found)
        out.write("its data is made as it goes: `truing check sft`, `truing check dpo` and so on look at that of one training\n")
        return
    start = model_folder(config.model)
    chat = ChatTokenizer.of(load_tokenizer(start), template=config.data.template)
    split = examples(config.data, chat, KINDS[METHODS[method]])
    if hasattr(module, "plan"):
        refuse_unsuited(module.plan(config), split)
    training = split.train
    out.write("\n".join(split.lines()) + "\n")
    prompts = training.records if KINDS[METHODS[method]] == (Prompt,) else ()
    concerns = preflight(method, loaded.resolved, chat, len(training.trees), desirable=training.desirable, prompts=prompts)
    out.writelines(f"  warning: {concern}\n" for concern in concerns)
    trees = list(training.trees[:shown])
    records = list(islice(training.reread(), trees[-1].key + 1)) if trees else []
    for tree in trees:
        record = records[tree.key]
        out.write(token_lines(tree, chat, f"{record.origin}: {len(asked(record))} messages"))
    policy, reason = load_policy(start, torch_dtype(config.dtype))
    refuse_beyond(policy.reach, config.data.max_tokens, f"set data.max_tokens={policy.reach}")
    parameters = sum(p.numel() for p in policy.parameters())
    layout = "runs as trees: each prompt is computed once" if reason is None else f"runs in the plain layout: {reason}"
    out.write(f"\n{config.model}: {parameters / 1e6:.0f} M parameters in {policy.dtype}; {layout}\n")


def sample(model: str, prompts: Sequence[str] | None, *, max_tokens: int, temperature: float, seed: int) -> None:
    """Answer each prompt; without prompts, each line of standard input."""
    start = model_folder(model)
    chat = ChatTokenizer.of(load_tokenizer(start), template=template_of(Path(model)))
    policy, _ = load_policy(start, torch_dtype("auto"))
    decoding = Decoding(max_tokens=max_tokens, temperature=temperature)
    for text in prompts or (line.rstrip("\n") for line in sys.stdin):
        if not text.strip():
            continue
        tokens = chat.prompt_tokens((Message(role="user", content=text),))
        (said,) = draw(policy, [tokens], decoding, stop_ids=chat.stop_ids, seed=seed)
        ending = "" if said.stop == "end" else " [cut at --max-tokens]"
        sys.stdout.write(f"> {text}\n{chat.decode(said.tokens).strip()}{ending}\n\n")
        sys.stdout.flush()


def _find(recipe: str) -> tuple[str, Path | None, dict[str, Any] | None]:
    """Method, file and preset of `METHOD` or `RECIPE.yaml`; a file names its method in the key `method`."""
    if recipe in METHODS | STAGED:
        return recipe, None, _preset(recipe)
    path = Path(recipe) if recipe.endswith((".yaml", ".yml")) else LIBRARY / f"{recipe}.yaml"
    if not path.is_file():
        names = [*METHODS, *STAGED, *sorted(p.stem for p in LIBRARY.glob("*.yaml"))]
        close = "".join(f"did you mean {name}? " for name in get_close_matches(recipe, names, 1))
        raise ValueError(f"{recipe}: no such method or recipe file; {close}Choose one of {', '.join(names)}, or name a .yaml file")
    method = read_file(path, {}, []).get("method")
    if method not in METHODS | STAGED:
        raise ValueError(f"{path}: `method:` is {method!r}; write one of {', '.join(METHODS | STAGED)}")
    return str(method), path, _preset(str(method))


def _preset(method: str) -> dict[str, Any] | None:
    """What naming a method sets: the loss of a family's, the credit and more of policy optimisation."""
    if method in PPO_PRESETS:
        return {"method": method, **PPO_PRESETS[method]}
    return {"loss": method} if method in PAIR_LOSSES or method in FEEDBACK_LOSSES else None


def _comparison(combinations: Sequence[Sequence[str]], folders: Sequence[Path]) -> str:
    """A line for each run of a sweep: what varied, and what each result holds with an interval, a column each."""
    common = set(combinations[0]).intersection(*combinations)
    results = [json.loads((folder / "result.json").read_bytes()) for folder in folders]
    measured = [key for key, value in results[0].items() if isinstance(value, dict) and {"value", "low", "high"} <= value.keys()]
    rows = [["", *(key.replace("_", " ") for key in measured), "run"]]
    for overrides, folder, result in zip(combinations, folders, results, strict=True):
        varied = " ".join(setting for setting in overrides if setting not in common)
        cells = [f"{e['value']:.3f} {ends(e)}" for e in (result[key] for key in measured)]
        rows.append([varied, *cells, str(folder)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n" + "".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() + "\n" for row in rows
    )


def _summary(folder: Path) -> str:
    if (folder / REPORT).is_file():
        return (folder / REPORT).read_text()
    result = json.loads((folder / "result.json").read_bytes())
    lines = [f"{result['method']}: trained on {result['train']} examples, {result['held_out']} held out; {folder}"]
    for key, title in (("accuracy_before", "held-out accuracy before"), ("accuracy_after", "after"), ("accuracy_gain", "gain")):
        if key in result:
            e = result[key]
            lines.append(f"  {title}: {100 * e['value']:.1f}% {ends(e, 1, 100)}, n = {e['n']}")
    for key, title in (("reward_before", "held-out reward before"), ("reward_after", "after"), ("reward_gain", "gain")):
        if key in result:
            e = result[key]
            lines.append(f"  {title}: {e['value']:.3f} {ends(e)}, n = {e['n']}")
    if "best_step" in result:
        lines.append(f"  weights of step {result['best_step']}, of {result['ended_at']} that were trained")
    if "reward_model" in result:
        lines += [f"  {line}" for line in reward_report.lines(result["reward_model"])]
    if "best_round" in result:
        e = result.get("gain")
        over = f", gain over the start {e['value']:.3f} {ends(e)}, n = {e['n']}" if e else ""
        lines.append(f"  {result['rounds']} rounds ({result['ended']}); the model is that of round {result['best_round']}{over}")
    lines.append(f"  next: truing sample {folder}")
    return "\n".join(lines) + "\n"
