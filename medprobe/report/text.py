"""A report as Markdown, and its leaderboards as LaTeX."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from medprobe.report.content import Block, Figure, Items, Report, Table, Text
from medprobe.report.style import save

_LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "_": r"\_", "%": r"\%",
    "^": r"\textasciicircum{}", "~": r"\textasciitilde{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': r"\textquotedbl{}", "`": r"\textasciigrave{}", "'": r"\textquotesingle{}",
    "−": r"$-$", "…": r"\ldots{}", "[": "{[}", "]": "{]}",
    "\N{REPLACEMENT CHARACTER}": "?",
}  # fmt: skip

_MARKDOWN = {char: f"\\{char}" for char in "\\`*_{}[]#|~$!^="} | {"<": "&lt;", ">": "&gt;", "&": "&amp;", "@": "&#64;"}


def to_markdown(report: Report, figures: Path) -> str:
    """Return a report as Markdown; its figures are written to a folder beside it as SVG files.

    Args:
        report: To write.
        figures: The folder; made where there are figures.

    """
    count = 0

    def picture(figure: Figure) -> str:
        nonlocal count
        if figure.chart is None:
            return f"*Missing figure, {_markdown(figure.name)}: {_markdown(figure.missing)}.*"
        count += 1
        figures.mkdir(parents=True, exist_ok=True)
        path = save(figure.chart, figures / f"figure{count}.svg")
        name = _markdown(figure.name[:1].upper() + figure.name[1:])
        caption = f"**Figure {count}. {name}.** {_markdown(figure.caption)}"
        # A path with spaces or brackets is one only between these.
        return f"![{name}](<{_in_angles(figures.name)}/{path.name}>)\n\n{caption}"

    parts = [f"# {_markdown(report.title)}", "## Summary"]
    for part in report.summary:
        parts += [f"### {_markdown(part.title)}", *(_block(block, picture) for block in part.blocks)]
    for section in report.sections:
        parts += [f"## {_markdown(section.title)}", *(_block(block, picture) for block in section.blocks)]
    return "\n\n".join(parts) + "\n"


def to_latex(report: Report) -> str:
    """Return the leaderboards and learning curves of a report as LaTeX tables (package booktabs)."""
    tables = [
        block for section in report.sections for block in section.blocks if isinstance(block, Table) and block.main
    ]
    return "% \\usepackage{booktabs,textcomp} and \\usepackage[T1]{fontenc}\n" + "\n".join(map(_latex_table, tables))


def _block(block: Block, picture: Callable[[Figure], str]) -> str:
    if isinstance(block, Text):
        return _markdown(block.text)
    if isinstance(block, Items):
        return "\n".join(f"- {_markdown(item)}" for item in block.items)
    if isinstance(block, Figure):
        return picture(block)
    lines = [" | ".join(map(_markdown, block.header))]
    lines.append(" | ".join("---:" if i in block.numeric else "---" for i in range(len(block.header))))
    lines += [" | ".join(map(_markdown, row)) for row in block.rows]
    return f"**{_markdown(block.caption)}**\n\n" + "\n".join(f"| {line} |" for line in lines)


def _markdown(text: str) -> str:
    """Return text in which nothing is markup, HTML, or an address that a viewer would turn into a link."""
    escaped = "".join(_MARKDOWN.get(char, char) for char in text)
    escaped = escaped.replace("://", "&#58;//").replace("www.", "www&#46;").replace("WWW.", "WWW&#46;")
    return f"\\{escaped}" if escaped[:1] in {"-", "+"} else escaped


def _in_angles(text: str) -> str:
    return text.replace("\\", "\\\\").replace("<", "\\<").replace(">", "\\>")


def _latex_table(table: Table) -> str:
    columns = "".join("r" if i in table.numeric else "l" for i in range(len(table.header)))
    lines = [
        r"\begin{table}",
        rf"\caption{{{_latex(table.caption)}}}",
        rf"\begin{{tabular}}{{{columns}}}",
        r"\toprule",
        " & ".join(map(_latex, table.header)) + r" \\",
        r"\midrule",
        *(" & ".join(map(_latex, row)) + r" \\" for row in table.rows),
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def _latex(text: str) -> str:
    escaped = "".join(_LATEX.get(char, char) for char in text)
    return re.sub("-(?=-)", "-{}", escaped)  # two hyphens would become a dash
