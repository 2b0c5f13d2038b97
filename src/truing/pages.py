"""HTML pages that need nothing but a browser: no script, no font, no network. Every text in them is escaped here."""

import html
from collections.abc import Iterable, Sequence

STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:64rem;margin:2rem auto;padding:0 1rem;color:#1c1c1e;background:#fff}
h1{font-size:1.5rem}
h2{font-size:1.1rem;margin-top:2.2rem}
table{border-collapse:collapse;margin:.8rem 0;font-size:.9rem}
td,th{border-bottom:1px solid #ddd;padding:.3rem .7rem;text-align:right;vertical-align:top}
td:first-child,th:first-child,table.answers td{text-align:left}
table.answers td{white-space:pre-wrap;max-width:24rem;overflow-wrap:anywhere}
p.said{background:#f3f5f8;border-left:4px solid #2f6fb2;padding:.7rem 1rem;white-space:pre-wrap}
code{background:#eef1f3;padding:.1rem .3rem}
li{overflow-wrap:anywhere}
small,figcaption,.place{color:#5b5b60}
figure{margin:0;display:inline-block;vertical-align:top;margin-right:1.5rem}
svg{max-width:100%;height:auto}
svg text{font:11px system-ui,sans-serif}
@media (prefers-color-scheme:dark){
body{background:#16191c;color:#e3e7ea}
p.said,code{background:#2a3035}
small,figcaption,.place{color:#9aa5ad}
svg text{fill:#e3e7ea}
}
"""
POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def page(title: str, body: Sequence[str], style: str = "") -> str:
    """The whole page; `body` is markup, the title is text."""
    head = (
        f'<meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f'<meta name="viewport" content="width=device-width"><title>{text(title)}</title><style>{STYLE}{style}</style>'
    )
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{"".join(body)}</body></html>\n'


def text(value: object) -> str:
    """Anything as text that cannot be markup."""
    return html.escape(str(value), quote=True)


def table(rows: Iterable[Sequence[str]], kind: str = "") -> str:
    """Texts; the first row is the head. `kind` is a class of the style."""
    first, *rest = list(rows)
    head = "".join(f"<th>{text(cell)}</th>" for cell in first)
    body = "".join("<tr>" + "".join(f"<td>{text(cell)}</td>" for cell in row) + "</tr>" for row in rest)
    return f'<table class="{kind}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'


def figure(svg: str, caption: str) -> str:
    """A chart of `truing.charts` over a line of text."""
    return f"<figure>{svg}<figcaption>{text(caption)}</figcaption></figure>"


def listed(lines: Sequence[str]) -> str:
    """Markup in points; nothing for no lines."""
    return f"<ul>{''.join(f'<li>{line}</li>' for line in lines)}</ul>" if lines else ""
