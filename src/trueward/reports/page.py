"""The frame of every report: one HTML page that needs nothing else, for phones and large screens, light and dark."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from html import escape

_LIGHT = ("#2563eb", "#d9480f", "#087f5b", "#9c36b5", "#b08900", "#0c8599", "#c2255c", "#5c7a00")
_DARK = ("#7aa7ff", "#ff9a5c", "#4fd1a5", "#dc9bf0", "#e9c46a", "#5fd3e6", "#ff8fb3", "#b5d957")


def _series(colours: Iterable[str]) -> str:
    return "".join(f"--series-{k}:{colour};" for k, colour in enumerate(colours))


_DARK_VALUES = (
    "--page:#101418;--card:#181d23;--text:#e6e9ec;--soft:#9aa5b1;--line:#2b333c;--strong:#7aa7ff;--best:#16322a;"
    + _series(_DARK)
)

STYLE = f"""
:root{{color-scheme:light dark;--page:#f6f7f9;--card:#fff;--text:#1b2127;--soft:#5d6874;--line:#dde2e7;--strong:#2563eb;--best:#e3f6ee;{_series(_LIGHT)}}}
@media (prefers-color-scheme:dark){{:root{{{_DARK_VALUES}}}}}
*{{box-sizing:border-box}}
html{{-webkit-text-size-adjust:100%}}
body{{margin:0;background:var(--page);color:var(--text);font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}}
main{{max-width:1180px;margin:0 auto;padding:28px 20px 48px}}
h1{{font-size:1.75rem;line-height:1.2;margin:0 0 6px;letter-spacing:-.015em;text-wrap:balance}}
h2{{font-size:1.2rem;margin:38px 0 4px;letter-spacing:-.01em}}
h3{{font-size:.95rem;margin:0 0 8px;font-weight:600}}
p{{margin:6px 0;max-width:75ch}}
.lead{{font-size:1.05rem}}
.note{{color:var(--soft);font-size:.9rem}}
.card{{background:var(--card);border:1px solid var(--line);border-radius:12px;padding:16px;margin:12px 0}}
.cards{{display:grid;gap:14px;grid-template-columns:repeat(auto-fit,minmax(min(100%,430px),1fr));margin:12px 0}}
.cards .card{{margin:0}}
.scroll{{overflow-x:auto;-webkit-overflow-scrolling:touch}}
code{{font:.92em ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}}
pre{{margin:0;padding:12px 14px;background:var(--card);border:1px solid var(--line);border-radius:10px;white-space:pre-wrap;overflow-wrap:anywhere}}
table{{border-collapse:collapse;font-size:.92rem;width:100%}}
th,td{{padding:6px 12px;text-align:right;border-bottom:1px solid var(--line);white-space:nowrap;font-variant-numeric:tabular-nums}}
th{{font-weight:600;color:var(--soft)}}
th:first-child,td:first-child{{text-align:left}}
tbody tr:last-child td{{border-bottom:0}}
tr.first td{{border-top:2px solid var(--line)}}
td.best{{background:var(--best);font-weight:650}}
small{{color:var(--soft);font-weight:400}}
.tiles{{display:grid;gap:12px;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));margin:14px 0 0}}
.tile{{margin:0;padding:12px 14px}}
.tile p{{margin:0}}
.tile .winner{{font-weight:650;display:flex;flex-wrap:wrap;gap:0 8px;align-items:center;margin:2px 0}}
.tile .winner span{{overflow-wrap:anywhere}}
.legend{{display:flex;flex-wrap:wrap;gap:6px 20px;margin:10px 0 0;padding:0;list-style:none;font-size:.95rem}}
.legend li{{display:flex;align-items:center;gap:8px}}
svg.mark{{width:30px;height:14px;flex:none}}
svg.chart{{display:block;width:100%;height:auto;overflow:visible}}
svg .line{{fill:none;stroke:currentColor;stroke-width:2;stroke-linejoin:round}}
svg .bar{{fill:none;stroke:currentColor;stroke-width:1.3;opacity:.75}}
svg circle,svg rect,svg polygon{{fill:currentColor;stroke:var(--card);stroke-width:1}}
svg .area{{fill:currentColor;opacity:.14;stroke:none}}
svg rect.heat{{fill:var(--strong);stroke:none}}
svg rect.frame{{fill:none;stroke:var(--line)}}
svg .grid{{stroke:var(--line);stroke-width:1}}
svg .axis{{stroke:var(--soft);stroke-width:1}}
svg text{{fill:var(--soft);font-size:12.5px}}
svg .label{{font-size:13px;fill:var(--text)}}
svg .floor{{stroke:var(--soft);stroke-width:1.4;stroke-dasharray:5 4}}
svg .floor-label{{font-size:12px}}
svg.scatter{{display:block;width:100%;max-width:180px;border:1px solid var(--line);border-radius:6px;background:var(--card)}}
svg.scatter path{{stroke:var(--strong);stroke-width:2;stroke-linecap:round;opacity:.55;fill:none}}
svg.curves path{{stroke-width:1;opacity:.9;stroke-linejoin:round}}
{"".join(f".series-{k}{{color:var(--series-{k})}}" for k in range(8))}
.pictures{{display:grid;gap:14px 16px;align-items:start;--tile:118px;--names:140px}}
.pictures figure{{margin:0}}
.pictures figure{{max-width:240px}}
.pictures img{{display:block;width:100%;height:auto;image-rendering:pixelated;border-radius:4px}}
.pictures figcaption{{font-size:.85rem;color:var(--soft);margin-top:4px;font-variant-numeric:tabular-nums}}
.pictures .name{{position:sticky;left:0;align-self:stretch;background:var(--card);font-weight:600;font-size:.95rem;padding-right:8px;overflow-wrap:anywhere;z-index:1}}
.pictures .name .mark{{display:block;margin-bottom:4px}}
.pictures .head{{font-size:.85rem;color:var(--soft);font-weight:600}}
dl{{display:grid;grid-template-columns:max-content 1fr;gap:4px 18px;margin:0;font-size:.92rem}}
dt{{color:var(--soft)}}
dd{{margin:0;overflow-wrap:anywhere}}
details summary{{cursor:pointer;color:var(--soft)}}
@media (max-width:560px){{
.pictures{{--tile:104px;--names:82px;gap:12px 10px}}
.pictures .name{{font-size:.85rem}}
.pictures figcaption{{font-size:.75rem}}
main{{padding:18px 12px 36px}}
h1{{font-size:1.4rem}}
.card{{padding:12px;border-radius:10px}}
dl{{grid-template-columns:1fr;gap:0}}
dd{{margin-bottom:8px}}
th,td{{padding:6px 8px}}
td:first-child{{white-space:normal;overflow-wrap:anywhere;min-width:8.5em}}
}}
@media print{{body{{background:#fff}}.card{{break-inside:avoid}}}}
"""


def facts(entries: Mapping[str, str]) -> str:
    """Names and values as a definition list; the values are text."""
    return "<dl>" + "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in entries.items()) + "</dl>"


def whole_page(title: str, body: str) -> str:
    """A complete document around `body` (HTML)."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )
