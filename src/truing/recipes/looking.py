"""What `truing check FILE` does: look at the data alone, without a model and without torch unless one is asked for."""

import sys
from collections.abc import Sequence
from pathlib import Path

from truing.config import load
from truing.quality import report
from truing.quality.inspection import Settings, inspect
from truing.quality.page import page
from truing.runs.canonical import to_json
from truing.runs.durable import write_file
from truing.runs.sinks import Sink


def check(what: str, settings: Sequence[str], *, shown: int, as_json: bool, everything: bool, sinks: Sequence[Sink]) -> None:
    """A data file is looked at; a method or recipe file is tried without training."""
    path = Path(what)
    if not what.endswith((".yaml", ".yml")) and (path.is_file() or path.suffix):
        look(what, settings, as_json=as_json, everything=everything, sinks=sinks)
        return
    from truing.recipes import commands

    commands.check(what, settings, shown)


def look(file: str, settings: Sequence[str], *, as_json: bool, everything: bool, sinks: Sequence[Sink]) -> None:
    """Every check over one file; the report goes to standard output, JSON and page where the settings say."""
    wanted = load(Settings, base={"path": file}, overrides=settings).value
    taken = {Path(name).resolve() for name in (file, *wanted.held_out, *wanted.benchmarks, wanted.rl_prompts or file)}
    for output in filter(None, (wanted.html, wanted.json)):
        if output.resolve() in taken:
            raise ValueError(f"{output}: is what is read, or is named twice; name another file to write")
        taken.add(output.resolve())

    def progress(rows: int) -> None:
        for sink in sinks:
            sink.message(f"{file}: {rows} rows", "info")

    found = inspect(wanted, progress)
    if wanted.model is not None:
        from truing.recipes.likelihood import by_likelihood

        found = found.plus(by_likelihood(wanted))
    if wanted.html:
        write_file(wanted.html, page(found).encode())
    if wanted.json:
        write_file(wanted.json, to_json(report.as_json(found), indent=1))
    sys.stdout.write(to_json(report.as_json(found)).decode() + "\n" if as_json else report.text(found, everything=everything))
    for path in (wanted.html, wanted.json):
        if path and not as_json:
            sys.stdout.write(f"written: {path}\n")
    if wanted.strict and found.worst:
        names = ", ".join(finding.name for finding in found.worst)
        raise ValueError(f"{file}: strict=true, and these are to be mended first: {names}")
