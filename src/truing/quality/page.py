"""Findings as one HTML page: each with its number, chart, examples, why it matters and what mends it."""

from truing import pages
from truing.charts import bars
from truing.pages import listed, text
from truing.quality.finding import Finding
from truing.quality.inspection import Inspected
from truing.quality.report import number

STYLE = """
section{border-left:6px solid #b8c0c6;padding:.4rem 1rem;margin:1.2rem 0}
section h2{margin:0 0 .3rem}
.act{border-color:#b3261e}
.watch{border-color:#c8762c}
.fine{border-color:#3f8f5b}
.level{font-variant:small-caps;font-weight:600;margin-right:.5rem}
"""


def page(found: Inspected) -> str:
    """The whole page."""
    title = f"What is in {found.file}"
    skipped, kinds = found.rows_in - found.rows_used, ", ".join(found.kinds)
    rows = f"{found.rows_in} rows = {found.rows_used} used + {skipped} that cannot be read; {kinds} records."
    head = f"<h1>{text(title)}</h1><p>{text(rows)} Brackets are 95% intervals.</p>"
    return pages.page(title, [head, *(_section(finding, found.file) for finding in found.findings)], STYLE)


def _section(finding: Finding, file: str) -> str:
    examples = [f'<span class="place">{text(example.origin)}</span> {text(example.text)}' for example in finding.examples]
    mend = f"<p>Mend: <code>{text(finding.mend.replace('FILE', file))}</code></p>" if finding.mend else ""
    return (
        f'<section class="{finding.level}"><h2><span class="level">{finding.level}</span>{text(finding.name)}</h2>'
        f"<p><strong>{text(number(finding))}</strong> {text(finding.said)}</p>"
        f"{listed([text(line) for line in finding.details])}{bars(finding.chart) if finding.chart else ''}"
        f"{listed(examples)}<p>Why: {text(finding.why)}.</p>{mend}</section>"
    )
