"""A study's table as text, CSV, LaTeX and JSON."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from medprobe.leaderboard import METRIC_NAMES, ranks_caption
from medprobe.probe.metrics import METRICS
from medprobe.study.show import Column, StudyTable

if TYPE_CHECKING:
    from medprobe.study.gains import Estimate

_FILE_WIDTH = 170
_NAME_WIDTH = 36  # an encoder of so long a name stays in one line
_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': r"\textquotedbl{}",
}  # fmt: skip


def print_study(table: StudyTable, to: Console) -> None:
    """Print the table, what its numbers rest on, and what has to be known about it."""
    to.print(text_table(table))
    for sentence in explanations(table):
        to.print(sentence, markup=False, highlight=False)
    for note in table.notes:
        to.print(f"note: {note}", style="yellow", markup=False, highlight=False)


def text_table(table: StudyTable) -> Table:
    """Return the table for a terminal: a line a method, a column a data set, the best value of each in bold."""
    best = best_lines(table)
    title = f"{table.study.name}: gain over {table.study.baseline}"
    shown = Table(title=escape(title), title_justify="left", title_style="bold", show_lines=True)
    short = max((len(line.method.encoder) for line in table.lines), default=0) <= _NAME_WIDTH
    shown.add_column("encoder", no_wrap=short, overflow="fold")
    for name in ("view", "head"):
        shown.add_column(name, overflow="fold")
    for column in table.columns:
        shown.add_column(escape("\n".join([column.data, metric_name(column), people(column)])), justify="right")
    for name in ("mean gain", "", "rank", "not told\napart"):
        shown.add_column(name, justify="right" if name != "" else "left")
    for i, line in enumerate(table.lines):
        cells = []
        for column in table.columns:
            value = line.values.get(column.data)
            text = "" if value is None else f"{_number(value.value)}\n{_range(value)}"
            cells.append(f"[bold]{text}[/]" if i in best[column.data] else text)
        gain = f"{_gain(line.gain.value)}\n{_range(line.gain, gain=True)}"
        rank = "" if math.isnan(line.rank) else f"{line.rank:.2f}"
        shown.add_row(*map(escape, line.method), *cells, gain, line.verdict, rank, line.letters)
    return shown


def explanations(table: StudyTable) -> list[str]:
    """Return what the numbers of the table are, in sentences."""
    units = {column.group or "image" for column in table.columns}
    unit = f"{units.pop()}s" if len(units) == 1 else "patients"
    intervals = f"{table.level:.0%} intervals, over {unit} and seeds, for each number alone."
    gain = (
        "Gain: per cent of the value of the baseline with the same head, unless the study names another, on the same "
        f"{unit}; mean over the data sets."
    )
    verdicts = (
        "Inside the noise: the interval holds 0, and nothing says that it is better or worse than the baseline. "
        "Not once corrected: one of so many comparisons may look so by chance (Holm, 5 %)."
    )
    said = [f"{intervals} {gain}", verdicts]
    if table.ranks is not None:
        n = len(table.ranks.tasks)
        said.append(
            f"Ranks over {n} data sets: {ranks_caption(table.ranks)}; methods of one letter are not told apart."
        )
    return said


def to_text(table: StudyTable) -> str:
    """Return what :func:`print_study` prints, for a file."""
    file = io.StringIO()
    print_study(table, Console(file=file, width=_FILE_WIDTH))
    return "".join(f"{line.rstrip()}\n" for line in file.getvalue().splitlines())


def to_csv(table: StudyTable) -> str:
    """Return the table as CSV: a row a method, every number with its interval in columns of its own."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    header = ["encoder", "view", "head"]
    for column in table.columns:
        header += [f"{column.data} {part}" for part in (column.metric, "low", "high", "gain", "gain low", "gain high")]
    header += ["mean gain", "gain low", "gain high", "p", "p (Holm)", "verdict", "against", "rank", "letters"]
    writer.writerow(header)
    for line in table.lines:
        cells: list[Any] = [*line.method]
        for column in table.columns:
            cells += _three(line.values.get(column.data)) + _three(line.gains.get(column.data))
        cells += [
            *_three(line.gain),
            line.gain.p_value,
            line.p_holm,
            line.verdict,
            line.against,
            line.rank,
            line.letters,
        ]
        writer.writerow(["" if isinstance(cell, float) and math.isnan(cell) else cell for cell in cells])
    return file.getvalue()


def to_json(table: StudyTable) -> str:
    """Return the table as JSON; a number that is not defined is null."""
    content = {
        "study": table.study.name,
        "baseline": table.study.baseline,
        "level": table.level,
        "columns": [asdict(column) for column in table.columns],
        "lines": [{**asdict(line), "method": line.method._asdict()} for line in table.lines],
        "ranks": table.ranks and {**asdict(table.ranks), "tasks": [task.data for task in table.ranks.tasks]},
        "notes": table.notes,
    }
    return json.dumps(_plain(content), indent=1) + "\n"


def to_latex(table: StudyTable) -> str:
    """Return the table as a LaTeX ``table*`` (package booktabs): the best value of each data set in bold."""
    best = best_lines(table)
    columns = table.columns
    heads = ["Encoder", "Head", *(tex(c.data) for c in columns), "Mean gain (\\%)", "Rank"]
    below = ["", "", *(tex(metric_name(c)) for c in columns), "", ""]
    who = ["", "", *(tex(people(c)) for c in columns), "", ""]
    lines = [
        "% needs \\usepackage{booktabs}",
        "\\begin{table*}",
        "\\centering",
        "\\begin{tabular}{ll" + "r" * (len(columns) + 2) + "}",
        "\\toprule",
        *(" & ".join(row) + " \\\\" for row in (heads, below, who)),
        "\\midrule",
    ]
    for i, line in enumerate(table.lines):
        view = f" ({line.method.view})" if line.method.view else ""
        cells = [tex(line.method.encoder + view), tex(line.method.head)]
        for column in columns:
            value = line.values.get(column.data)
            text = "" if value is None else f"{tex(_number(value.value))} {{\\scriptsize {tex(_range(value))}}}"
            cells.append(f"\\textbf{{{text}}}" if i in best[column.data] else text)
        sure = "$^{*}$" if line.verdict in {"better", "worse"} else ""
        cells.append(f"{tex(_gain(line.gain.value))}{sure} {{\\scriptsize {tex(_range(line.gain, gain=True))}}}")
        letters = f"$^{{{line.letters}}}$" if line.letters else ""
        cells.append("" if math.isnan(line.rank) else f"{line.rank:.2f}{letters}")
        lines.append(" & ".join(cells) + " \\\\")
    said = [*explanations(table), "*: better or worse than the baseline after Holm's correction."]
    lines += [
        "\\bottomrule",
        "\\end{tabular}",
        f"\\caption{{{tex(table.study.name)}: gain over {tex(table.study.baseline)}. {tex(' '.join(said))}}}",
        "\\end{table*}",
    ]
    return "\n".join(lines) + "\n"


FORMATS: Mapping[str, Callable[[StudyTable], str]] = {
    "text": to_text, "csv": to_csv, "latex": to_latex, "json": to_json,
}  # fmt: skip
"""What writes the table, by the format's name."""


def best_lines(table: StudyTable) -> dict[str, set[int]]:
    """Return, of each data set, the places of the lines with the best value as it is shown."""
    found = {}
    for column in table.columns:
        sign = 1 if METRICS[column.metric].higher_is_better else -1
        values = {
            i: sign * round(line.values[column.data].value, 3)
            for i, line in enumerate(table.lines)
            if column.data in line.values and math.isfinite(line.values[column.data].value)
        }
        found[column.data] = {i for i, value in values.items() if value == max(values.values())}
    return found


def tex(text: str) -> str:
    """Return text in which nothing means anything to LaTeX; a minus is a real one."""
    escaped = "".join(_LATEX.get(char, char) for char in " ".join(text.split()))
    return re.sub(r"(?<![\w.-])-(?=\d)", "$-$", escaped)


def metric_name(column: Column) -> str:
    """Return what the metric of a column is called."""
    return METRIC_NAMES.get(column.metric, column.metric.replace("_", " "))


def people(column: Column) -> str:
    """Return how many images, and of how many patients, a column was tested on."""
    groups = f", {column.n_groups} {column.group}s" if column.group else ""
    return f"{column.n_images} images{groups}"


def _number(value: float) -> str:
    return "not defined" if math.isnan(value) else f"{value:.3f}"


def _gain(value: float) -> str:
    return "" if math.isnan(value) else f"{value:+.1f} %" if value else "0"


def _range(estimate: Estimate, gain: bool = False) -> str:
    if math.isnan(estimate.low):
        return ""
    low, high = (f"{end:+.1f}" if gain else f"{end:.3f}" for end in (estimate.low, estimate.high))
    return f"{low} to {high}"


def _three(estimate: Estimate | None) -> list[float]:
    return [math.nan] * 3 if estimate is None else [estimate.value, estimate.low, estimate.high]


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
