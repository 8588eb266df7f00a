"""A report as one HTML file that asks for nothing from outside and holds no script that runs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from html import escape
from itertools import count

from medprobe.report.content import Block, Figure, Items, Report, Section, Table, Text
from medprobe.report.style import svg

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"

_STYLE = """
:root { color-scheme: light dark; --ink: #1c1c1e; --paper: #fff; --soft: #f3f4f6; --line: #d6d8dc; --mark: #0072b2; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8e8ea; --paper: #17181a; --soft: #232528; --line: #3b3e43; --mark: #56b4e9; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 72rem; color: var(--ink); background: var(--paper);
  font: 1rem/1.5 system-ui, "Helvetica Neue", Arial, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.2; }
h2 { font-size: 1.25rem; margin-top: 2.5rem; border-bottom: 1px solid var(--line); padding-bottom: .25rem; }
h3 { font-size: 1rem; margin-bottom: .25rem; }
a { color: var(--mark); }
p, li { max-width: 60rem; }
nav ul { columns: 20rem; padding-left: 1.2rem; }
.summary { background: var(--soft); border-left: .3rem solid var(--mark); padding: .5rem 1rem; }
.summary h3:first-child { margin-top: .25rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; margin: .5rem 0; }
caption { text-align: left; font-weight: 600; padding-bottom: .25rem; }
th, td { padding: .25rem .6rem; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line);
  overflow-wrap: normal; max-width: 24rem; }
td { min-width: 3rem; }
thead th { background: var(--soft); }
.n { text-align: right; white-space: nowrap; }
figure { margin: 1.5rem 0; }
figure .wide { background: #fff; border: 1px solid var(--line); border-radius: .25rem; }
figure svg { display: block; max-width: 100%; height: auto; margin: 0 auto; }
figcaption { font-size: .875rem; margin-top: .25rem; }
.missing { border: 1px dashed var(--line); padding: .5rem 1rem; font-size: .875rem; }
footer { margin-top: 3rem; font-size: .8rem; }
@media (max-width: 44rem) { figure svg { max-width: none; } }
@media print {
  :root { --ink: #000; --paper: #fff; --soft: #f3f4f6; --line: #bbb; --mark: #000; color-scheme: light; }
  body { max-width: none; padding: 0; font-size: 10pt; }
  nav { display: none; }
  .wide { overflow: visible; }
  table { font-size: 7.5pt; }
  td, th { padding: .15rem .3rem; }
  .n { white-space: normal; }
  figure, tr, .summary li { break-inside: avoid; }
  h2, h3, caption { break-after: avoid; }
  figure .wide { border: none; }
}
"""


def to_html(report: Report) -> str:
    """Return a report as an HTML document: text, tables, drawings, and the numbers as JSON in a block that is no program.

    Everything is escaped; the policy in its head lets a browser load nothing and run nothing.
    """
    sections = list(enumerate(report.sections, 1))
    links = "".join(f'<li><a href="#s{i}">{escape(section.title)}</a></li>' for i, section in sections)
    figures = count(1)
    body = "".join(_section(section, f"s{i}", figures) for i, section in sections)
    answers = "".join(f"<h3>{escape(part.title)}</h3>{_blocks(part, figures)}" for part in report.summary)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
<title>{escape(report.title)}</title>
<style>{_STYLE}</style>
</head>
<body>
<h1>{escape(report.title)}</h1>
<section class="summary" aria-label="Summary">{answers}</section>
<nav aria-label="Contents"><ul>{links}</ul></nav>
<main>{body}</main>
<footer>Made by medprobe. The numbers stand in this file as JSON, in the element with the id numbers.</footer>
<script type="application/json" id="numbers">{_json(report)}</script>
</body>
</html>
"""


def _section(section: Section, anchor: str, figures: Iterator[int]) -> str:
    return f'<section id="{anchor}"><h2>{escape(section.title)}</h2>{_blocks(section, figures)}</section>\n'


def _blocks(section: Section, figures: Iterator[int]) -> str:
    return "\n".join(_block(block, figures) for block in section.blocks)


def _block(block: Block, figures: Iterator[int]) -> str:
    if isinstance(block, Text):
        return f"<p>{escape(block.text)}</p>"
    if isinstance(block, Items):
        return f"<ul>{''.join(f'<li>{escape(item)}</li>' for item in block.items)}</ul>"
    if isinstance(block, Table):
        return _table(block)
    return _figure(block, figures)


def _table(table: Table) -> str:
    kinds = [' class="n"' if i in table.numeric else "" for i in range(len(table.header))]
    head = "".join(f'<th scope="col"{kind}>{escape(name)}</th>' for name, kind in zip(table.header, kinds, strict=True))
    rows = "".join(
        "<tr>" + "".join(f"<td{kind}>{escape(cell)}</td>" for cell, kind in zip(row, kinds, strict=True)) + "</tr>\n"
        for row in table.rows
    )
    inner = f"<caption>{escape(table.caption)}</caption><thead><tr>{head}</tr></thead><tbody>{rows}</tbody>"
    return f'<div class="wide" tabindex="0" role="region" aria-label="{escape(table.caption)}"><table>{inner}</table></div>'


def _figure(figure: Figure, figures: Iterator[int]) -> str:
    if figure.chart is None:
        return f'<p class="missing">Missing figure, {escape(figure.name)}: {escape(figure.missing)}.</p>'
    place = next(figures)
    drawn = svg(figure.chart, label=f"{figure.name}. {figure.caption}", prefix=f"f{place}-")
    name = escape(figure.name[:1].upper() + figure.name[1:])
    caption = f"<figcaption><b>Figure {place}. {name}.</b> {escape(figure.caption)}</figcaption>"
    return f'<figure><div class="wide" tabindex="0">{drawn}</div>{caption}</figure>'


def _json(report: Report) -> str:
    """Return JSON that cannot end the element that it stands in: no character in it opens a tag or a comment."""
    text = json.dumps(report.numbers)
    for char in "<>&\u2028\u2029":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return text
