"""How a report looks: HTML elements, number formats, the style sheet. Knows nothing of runs or metrics.

Everything that comes from a file passes through `text` or an attribute of `element`; both escape it. The page
loads nothing: its content security policy admits only inline styles and `data:` images and sounds.
"""

import html
import math

ABSENT = "n/a"
"""What a table shows where a number is missing or not a number."""


def text(value: object) -> str:
    """Escape `value` for use between tags.

    >>> text("<script>")
    '&lt;script&gt;'
    """
    return html.escape(str(value))


def element(name: str, *inner: str, **attributes: object) -> str:
    """Return one element with its closing tag.

    Args:
        name: tag name of a non-void element.
        inner: contents that are HTML already; plain words go through `text` first.
        attributes: values are escaped; a trailing `_` is dropped and other `_` become `-`.

    >>> element("p", text("a < b"), class_="note", aria_label='"x"')
    '<p class="note" aria-label="&quot;x&quot;">a &lt; b</p>'
    """
    listed = "".join(f' {key.rstrip("_").replace("_", "-")}="{text(v)}"' for key, v in attributes.items())
    return f"<{name}{listed}>{''.join(inner)}</{name}>"


def number(value: float, digits: int = 0, *, signed: bool = False) -> str:
    """Write a number with `digits` decimals, thousands separators and a true minus sign.

    >>> number(-1234.5, 1), number(2, 2, signed=True), number(float("nan"))
    ('−1,234.5', '+2.00', 'n/a')
    """
    if math.isnan(value):
        return ABSENT
    return f"{value:{'+' if signed else ''},.{digits}f}".replace("-", "−")


def size(count: float) -> str:
    """Write a number of bytes in kB or, from a million on, in MB (powers of ten).

    >>> size(61_440), size(3_809_792)
    ('61.4 kB', '3.81 MB')
    """
    return f"{number(count / 1e6, 2)} MB" if count >= 1e6 else f"{number(count / 1e3, 1)} kB"


def duration(seconds: float) -> str:
    """Write a time span in its two largest units.

    >>> duration(8.24), duration(754), duration(12000)
    ('8.2 s', '12 min 34 s', '3 h 20 min')
    """
    if not math.isfinite(seconds):
        return ABSENT
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def row(head: str, *cells: str, words: int = 1) -> str:
    """Return a table row: a row header, then cells, all HTML; `words` as in `table`."""
    sides = [{"class_": "text"}] * (words - 1) + [{}] * len(cells)
    return element("tr", element("th", head, scope="row"), *(element("td", c, **side) for c, side in zip(cells, sides)))


def table(caption: str, columns: list[str], rows: list[str], foot: str = "", words: int = 1) -> str:
    """Return a captioned table that scrolls sideways, by touch or keyboard, where the page is too narrow.

    Args:
        caption: plain text, also the label of the scrolling region.
        columns: column headers as HTML, the row header's column first.
        rows: `<tr>` elements; see `row`.
        foot: `<tr>` of totals, or nothing.
        words: number of leading columns that hold words and stand flush left; the others hold numbers.
    """
    sides = ["text"] * words + ["number"] * len(columns)
    heads = (element("th", column, scope="col", class_=side) for column, side in zip(columns, sides))
    parts = [
        element("caption", text(caption)),
        element("thead", element("tr", *heads)),
        element("tbody", *rows),
    ]
    parts += [element("tfoot", foot)] if foot else []
    return element("div", element("table", *parts), class_="scroll", role="region", tabindex=0, aria_label=caption)


def facts(pairs: list[tuple[str, str]]) -> str:
    """Return a list of (plain term, HTML description)."""
    inner = (element("div", element("dt", text(term)), element("dd", value)) for term, value in pairs)
    return element("dl", *inner)


def missing(what: str) -> str:
    """Return the plain statement that something is not there, in place of it."""
    return element("p", text(what), class_="missing")


def section(title: str, *inner: str) -> str:
    """Return a section of the page under its own heading."""
    return element("section", element("h2", text(title)), *inner)


def document(title: str, *inner: str) -> str:
    """Return the whole page. `title` is plain text, the rest is HTML."""
    body = element("main", element("h1", text(title)), *inner)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
{element("title", text(title))}
<style>{_STYLE}</style>
</head>
<body>
{body}
</body>
</html>
"""


_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; media-src data:"

_STYLE = """
:root { color-scheme: light dark; --paper: #fdfdfc; --ink: #1d2126; --soft: #5b636d; --line: #d9dcdf;
  --grid: #e9ebed; --noisy: #8a6d3b; --enhanced: #17609c; --train: #9aa3ad; --best: #a3324a; }
@media (prefers-color-scheme: dark) { :root { --paper: #15181b; --ink: #e3e6e8; --soft: #9da6af;
  --line: #394047; --grid: #272c31; --noisy: #d0a95f; --enhanced: #6fb3ea; --train: #717b85;
  --best: #ec8098; } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 70rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1 { font-size: 1.75rem; line-height: 1.25; font-weight: 650; margin: 0 0 1rem; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; font-weight: 650; margin: 3rem 0 .75rem; padding-top: .75rem;
  border-top: 1px solid var(--line); }
h3 { font-size: 1rem; font-weight: 650; margin: 2rem 0 .5rem; overflow-wrap: anywhere; }
p, ul { max-width: 46rem; margin: .75rem 0; }
.lead { font-size: 1.08rem; }
.missing { color: var(--soft); border-left: 3px solid var(--line); padding-left: .75rem; }
small, caption, figcaption, dt, .key { color: var(--soft); font-size: .85rem; }
code, pre { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, "Liberation Mono", monospace;
  font-size: .87em; }
code { overflow-wrap: anywhere; }
pre { overflow-x: auto; margin: .75rem 0 0; line-height: 1.45; }
details { border: 1px solid var(--line); border-radius: 4px; padding: .6rem .9rem; }
summary { cursor: pointer; }
dl { margin: 1.25rem 0; }
dl div { display: grid; grid-template-columns: 8.5rem 1fr; padding: .3rem 0;
  border-top: 1px solid var(--grid); }
dt { line-height: 1.8; }
dd { margin: 0; font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: .92rem; line-height: 1.35;
  font-variant-numeric: tabular-nums lining-nums; }
caption { text-align: left; padding-bottom: .5rem; }
th, td { padding: .38rem .9rem; text-align: right; vertical-align: top;
  border-bottom: 1px solid var(--grid); }
th.text, td.text, th[scope=row] { text-align: left; padding-left: 0; }
th { font-weight: 600; }
thead th { white-space: nowrap; }
th[scope=row].group { font-weight: 600; }
th small { font-weight: 400; }
th[scope=row] { font-weight: 500; }
thead th { vertical-align: bottom; border-bottom: 1px solid var(--soft); }
tfoot th, tfoot td { border-top: 1px solid var(--soft); border-bottom: 0; font-weight: 600; }
td small, th small { display: block; white-space: nowrap; }
tr.first > * { border-top: 1px solid var(--line); }
td.text { overflow-wrap: anywhere; }
.share { display: block; height: 4px; margin-top: .3rem; min-width: 4.5rem; background: var(--grid); }
.share > span { display: block; height: 100%; background: var(--enhanced); }
.panels { display: grid; gap: 1.25rem 1.5rem; margin: 1rem 0;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 19rem), 1fr)); }
.panels.two { grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); }
figure { margin: 0; min-width: 0; }
figcaption { margin-bottom: .2rem; }
audio { display: block; width: 100%; height: 2.5rem; margin-top: .35rem; }
svg { display: block; width: 100%; height: auto; max-width: 34rem; }
svg text { fill: var(--soft); font-size: 12px; font-variant-numeric: tabular-nums; }
svg .grid { stroke: var(--grid); } svg .axis { stroke: var(--line); }
svg .curve { fill: none; stroke-width: 1.8; stroke-linejoin: round; }
svg .train { stroke: var(--train); stroke-width: 1.3; }
svg .noisy { stroke: var(--noisy); stroke-dasharray: 5 3; }
svg .enhanced { stroke: var(--enhanced); }
svg .reference { stroke: var(--soft); stroke-dasharray: 5 3; }
svg .series0 { --hue: #3a7fc4; } svg .series1 { --hue: #d1622b; } svg .series2 { --hue: #2f9468; }
svg .series3 { --hue: #a05fc6; } svg .series4 { --hue: #a87f10; } svg .series5 { --hue: #d14d6b; }
svg .series6 { --hue: #2596ad; } svg .series7 { --hue: #868b94; } svg .series8 { --hue: #8a4b2a; }
svg .series9 { --hue: #6f9a1f; }
svg .curve[class*=series] { stroke: var(--hue); } svg circle[class*=series] { fill: var(--hue); }
svg circle.noisy { fill: var(--paper); stroke-dasharray: none; } svg circle.enhanced {
  fill: var(--enhanced); }
svg .best { stroke: var(--best); stroke-dasharray: 2 3; } svg text.best { fill: var(--best); stroke: none; }
.key { margin: 1rem 0 0; } .key span { display: inline-block; margin-right: 1.4rem; white-space: nowrap; }
.key svg { display: inline-block; width: 1.9rem; height: .75rem; margin-right: .4rem; }
.scale { max-width: 22rem; margin: 1rem 0; }
a:focus-visible, [tabindex]:focus-visible, summary:focus-visible { outline: 2px solid var(--enhanced);
  outline-offset: 2px; }
@media (max-width: 36rem) { main { padding: 1.5rem 1rem 3rem; } th, td { padding: .35rem .35rem; }
  table { font-size: .8rem; }
  td small, th small { font-size: .74rem; }
  dl div { grid-template-columns: 1fr; } h1 { font-size: 1.45rem; } }
@media print { :root { --paper: #fff; --ink: #000; --soft: #444; --line: #bbb; --grid: #ddd; --noisy: #8a6d3b;
  --enhanced: #17609c; --train: #999; --best: #a3324a; }
  body { font-size: 10.5pt; } main { max-width: none; padding: 0; } audio { display: none; }
  h2, h3 { break-after: avoid; } figure, tr, .example { break-inside: avoid; } .scroll { overflow: visible; }
  pre { white-space: pre-wrap; } details::details-content { content-visibility: visible; height: auto; }
  .share, .share > span { print-color-adjust: exact; } }
"""
