"""The command line: verbs that call recipes. No logic, and nothing heavy is imported before a verb needs it."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from truing.runs.sinks import Sink

app = typer.Typer(
    name="truing",
    help="Bring a language model into line with what people prefer, and see why it worked.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Settings = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Settings such as lora.rank=16; a,b,c runs one after the other."),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object a line, for programs.")]


@app.command()
def train(
    recipe: Annotated[
        str, typer.Argument(metavar="METHOD-or-RECIPE.yaml", help="sft, reward_model, dpo, kto, another loss, or a recipe file.")
    ],
    settings: Settings = None,
    as_json: Json = False,
) -> None:
    """Train one model; the same command again continues it."""
    from truing.recipes import commands

    commands.train(recipe, settings or [], _sinks(as_json))


@app.command()
def align(
    settings: Settings = None,
    method: Annotated[
        str | None, typer.Option(help="dpo; or ppo: a policy from the learned reward too, in the same table.")
    ] = None,
    as_json: Json = False,
) -> None:
    """SFT, reward model, preference optimisation and evaluation in one go."""
    from truing.recipes import commands

    chosen = [f"method={method}"] if method else []
    commands.align([*chosen, *(settings or [])], _sinks(as_json), as_json=as_json)


@app.command()
def demo(
    quick: Annotated[bool, typer.Option("--quick", help="The same way in miniature, in under a minute.")] = False,
    as_json: Json = False,
) -> None:
    """Align SmolLM2-135M-Instruct on the packaged everyday preferences."""
    from truing.recipes import commands
    from truing.recipes.align import QUICK

    commands.align(list(QUICK) if quick else [], _sinks(as_json), as_json=as_json)


@app.command()
def recipes(
    action: Annotated[str, typer.Argument(metavar="[list|show|copy]", help="What to do.")] = "list",
    name: Annotated[str | None, typer.Argument(help="A recipe or method of the list.")] = None,
    to: Annotated[Path | None, typer.Argument(help="Where the copy goes.")] = None,
) -> None:
    """List methods and recipe files, show a method's settings, or copy a recipe file to start from."""
    from truing.recipes import commands

    commands.recipes(action, name, to)


@app.command()
def check(
    what: Annotated[str, typer.Argument(metavar="DATA-or-METHOD-or-RECIPE.yaml", help="A data file, or what train takes.")],
    settings: Settings = None,
    examples: Annotated[int, typer.Option(help="Of a method: how many examples to show as tokens.")] = 2,
    everything: Annotated[bool, typer.Option("--all", help="Of data: what is fine in full too.")] = False,
    as_json: Json = False,
) -> None:
    """What is wrong with a data file; or what training by a method would read, cut and drop, without training."""
    from truing.recipes import looking

    looking.check(what, settings or [], shown=examples, as_json=as_json, everything=everything, sinks=_sinks(as_json))


@app.command()
def data(
    action: Annotated[str, typer.Argument(metavar="ACTION", help="convert, merge, filter, dedupe, split, sample or show.")],
    words: Annotated[
        list[str] | None, typer.Argument(metavar="FILE... [KEY=VALUE]...", help="What to read, and settings such as to=OUT.jsonl.")
    ] = None,
    tokens: Annotated[bool, typer.Option("--tokens", help="show: rows as the tokens that training sees.")] = False,
    as_json: Json = False,
) -> None:
    """Convert, mend, split or show data files: rows in = rows out + rows removed, each with its reason."""
    from truing.recipes import curating

    curating.data(action, words or [], _sinks(as_json), tokens=tokens)


@app.command()
def label(
    words: Annotated[
        list[str] | None, typer.Argument(metavar="[RECIPE.yaml] [KEY=VALUE]...", help="Settings such as data.path=prompts.jsonl.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Answers written, put in order by a reward or a judge, and kept as pairs, rankings, feedback or demonstrations."""
    from truing.recipes import label

    label.command(words or [], _sinks(as_json), as_json=as_json)


@app.command()
def sample(
    model: Annotated[str, typer.Argument(metavar="RUN-or-MODEL", help="A run's folder, a model's folder or a hub name.")],
    prompt: Annotated[list[str] | None, typer.Argument(help="What to ask; without one, each line of standard input.")] = None,
    max_tokens: Annotated[int, typer.Option(help="Longest answer.")] = 128,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Seed of sampling.")] = 0,
) -> None:
    """Ask a model."""
    from truing.recipes import commands

    commands.sample(model, prompt, max_tokens=max_tokens, temperature=temperature, seed=seed)


@app.command("eval")
def evaluate(
    settings: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL-or-NAME=MODEL... [tasks=TASKS] [KEY=VALUE]...",
            help="Models, tasks, settings. `truing recipes show eval` lists every setting of a comparison, "
            "`truing recipes show tasks` those of benchmarks.",
        ),
    ],
    as_json: Annotated[
        bool, typer.Option("--json", help="Progress as one JSON object a line, then comparison.json or tasks.json as it is.")
    ] = False,
) -> None:
    """Compare models on held-out prompts (base=MODEL tuned=RUN), or measure them on benchmarks (tasks=quick, full or by name)."""
    from truing.recipes import commands

    commands.evaluate(settings, _sinks(as_json), as_json=as_json)


@app.command()
def runs(folder: Annotated[Path, typer.Argument(help="Where runs lie.")] = Path("runs"), as_json: Json = False) -> None:
    """List runs with their state and last figures."""
    from truing.runs.read import list_runs, listing

    sys.stdout.write(listing(list_runs(folder), as_json=as_json))


def _sinks(as_json: bool) -> "list[Sink]":
    from truing.runs.sinks import JsonLines, console

    return [JsonLines(sys.stdout)] if as_json else [console()]


def main() -> None:
    """Entry point: what a user can mend is one block and exit status 2; anything else is a defect and shows its traceback."""
    try:
        app()
    except (ValueError, FileNotFoundError, PermissionError) as error:
        sys.stderr.write(f"error: {error}\n")
        raise SystemExit(2) from None
    except RuntimeError as error:
        if int(os.environ.get("RANK", "0")) == 0 or "peer" not in str(error):
            raise
        sys.stderr.write("error: another rank has stopped; what it says tells why\n")
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
