"""Findings as one HTML page that needs nothing but a browser: no script, no network, charts as inline SVG, all text escaped."""

from html import escape

from truing.quality.finding import Chart, Finding
from truing.quality.inspection import Inspected
from truing.quality.report import number

COLOURS = ("#2f6f9f", "#c8762c")
WIDTH, HEIGHT, FOOT, TOP = 640, 200, 36, 22
STYLE = """
body { font: 16px/1.5 sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #1d2327; background: #fff }
h1 { font-size: 1.5rem } h2 { font-size: 1.1rem; margin: 0 0 .3rem }
section { border-left: 6px solid #b8c0c6; padding: .4rem 1rem; margin: 1.2rem 0 }
.act { border-color: #b3261e } .watch { border-color: #c8762c } .fine { border-color: #3f8f5b }
.level { font-variant: small-caps; font-weight: 600; margin-right: .5rem } .place { color: #5b6770 }
code { background: #eef1f3; padding: .1rem .3rem } li { overflow-wrap: anywhere } svg { max-width: 100%; height: auto }
@media (prefers-color-scheme: dark) {
  body { background: #16191c; color: #e3e7ea } code { background: #2a3035 } .place { color: #9aa5ad } svg text { fill: #e3e7ea }
}
"""


def page(found: Inspected) -> str:
    """The whole page."""
    title = f"What is in {found.file}"
    body = "".join(_section(finding, found.file) for finding in found.findings)
    skipped, kinds = found.rows_in - found.rows_used, ", ".join(found.kinds)
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style></head><body><h1>{escape(title)}</h1>'
        f"<p>{found.rows_in} rows = {found.rows_used} used + {skipped} that cannot be read; {escape(kinds)} records."
        f" Brackets are 95% intervals.</p>{body}</body></html>\n"
    )


def _section(finding: Finding, file: str) -> str:
    details = "".join(f"<li>{escape(line)}</li>" for line in finding.details)
    examples = "".join(
        f'<li><span class="place">{escape(str(example.origin))}</span> {escape(example.text)}</li>' for example in finding.examples
    )
    mend = f"<p>Mend: <code>{escape(finding.mend.replace('FILE', file))}</code></p>" if finding.mend else ""
    return (
        f'<section class="{finding.level}"><h2><span class="level">{finding.level}</span>{escape(finding.name)}</h2>'
        f"<p><strong>{escape(number(finding))}</strong> {escape(finding.said)}</p>"
        f"{f'<ul>{details}</ul>' if details else ''}{svg(finding.chart) if finding.chart else ''}"
        f"{f'<ul>{examples}</ul>' if examples else ''}<p>Why: {escape(finding.why)}.</p>{mend}</section>"
    )


def svg(chart: Chart) -> str:
    """Grouped bars from zero, each with its value as a tooltip."""
    highest = max((value for values in chart.series.values() for value in values), default=0) or 1.0
    slot = WIDTH / max(1, len(chart.labels))
    bar = 0.8 * slot / max(1, len(chart.series))
    parts = [f'<text x="0" y="14" font-size="13">{escape(chart.title)}</text>']
    for place, (name, values) in enumerate(chart.series.items()):
        colour = COLOURS[place % len(COLOURS)]
        if len(chart.series) > 1:
            left = WIDTH - 150 * (len(chart.series) - place)
            parts.append(f'<rect x="{left}" y="4" width="10" height="10" fill="{colour}"/>')
            parts.append(f'<text x="{left + 14}" y="14" font-size="12">{escape(name)}</text>')
        for i, value in enumerate(values):
            tall = (HEIGHT - FOOT - TOP) * value / highest
            x, y = i * slot + 0.1 * slot + place * bar, HEIGHT - FOOT - tall
            parts.append(
                f'<rect x="{x:.1f}" y="{y:.1f}" width="{bar:.1f}" height="{tall:.1f}" fill="{colour}">'
                f"<title>{escape(chart.labels[i])}: {escape(name)} {value:g}</title></rect>"
            )
    for i, label in enumerate(chart.labels):
        middle = (i + 0.5) * slot
        parts.append(f'<text x="{middle:.1f}" y="{HEIGHT - FOOT + 16}" font-size="11" text-anchor="middle">{escape(label)}</text>')
    parts.append(f'<text x="0" y="{HEIGHT - 4}" font-size="11">highest bar: {highest:g}</text>')
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" role="img" aria-label="{escape(chart.title)}">{"".join(parts)}</svg>'
    )
