"""Findings for the terminal and for programs. The page with charts is `truing.quality.page`."""

import textwrap

from truing.quality.finding import Finding
from truing.quality.inspection import Inspected
from truing.runs.sinks import printable
from truing.statistics import Estimate, shown

WIDTH = 110
WRAPPER = textwrap.TextWrapper(
    WIDTH, initial_indent=" " * 8, subsequent_indent=" " * 10, break_on_hyphens=False, break_long_words=False
)
"""Lines of a finding; a path that is broken at a hyphen could not be copied."""
MARK = {"act": "ACT    ", "watch": "watch  ", "unknown": "unknown", "fine": "fine   "}


def text(found: Inspected, *, everything: bool = False) -> str:
    """What to act on and what to watch in full, the rest one line each."""
    kinds = ", ".join(found.kinds)
    skipped = found.rows_in - found.rows_used
    lines = [f"{found.file}: {found.rows_in} rows = {found.rows_used} used + {skipped} that cannot be read ({kinds} records)", ""]
    for finding in found.findings:
        lines.append(f"{MARK[finding.level]} {finding.name}: {number(finding)} {finding.said}")
        if finding.level in ("act", "watch") or everything:
            lines += _body(finding, found.file)
    counts = {level: sum(finding.level == level for finding in found.findings) for level in MARK}
    lines += ["", f"{counts['act']} to act on, {counts['watch']} to watch, {counts['unknown']} unknown, {counts['fine']} fine"]
    return printable("\n".join(lines)) + "\n"


def _body(finding: Finding, file: str) -> list[str]:
    lines = [f"  {line}" for line in finding.details]
    lines += [f"  {example.origin}: {example.text}" for example in finding.examples]
    lines.append(f"  why: {finding.why}")
    if finding.mend:
        lines.append(f"  mend: {finding.mend.replace('FILE', file)}")
    return [piece for line in lines for piece in WRAPPER.wrap(line)]


def number(finding: Finding) -> str:
    """The number of a finding with its interval; shares in percent."""
    value = finding.value
    if isinstance(value, Estimate):
        return f"{100 * value.value:.2f}% [{100 * value.low:.2f}, {100 * value.high:.2f}] of {value.n}"
    return f"{value:.3f}"


def as_json(found: Inspected) -> dict[str, object]:
    """Everything but the charts; rows as numbers of the file."""
    return {
        "file": found.file,
        "rows_in": found.rows_in,
        "rows_used": found.rows_used,
        "kinds": list(found.kinds),
        "findings": [_finding(finding, found.file) for finding in found.findings],
    }


def _finding(finding: Finding, file: str) -> dict[str, object]:
    return {
        "name": finding.name,
        "level": finding.level,
        "said": finding.said,
        "value": shown(finding.value) if isinstance(finding.value, Estimate) else {"value": finding.value},
        "why": finding.why,
        "mend": finding.mend.replace("FILE", file),
        "details": list(finding.details),
        "examples": [{"file": e.origin.file, "row": e.origin.row, "text": e.text} for e in finding.examples],
        "rows": list(finding.rows),
    }
