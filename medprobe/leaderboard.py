"""Results as tables in a terminal: rankings, subgroups, learning curves, differences in pairs, ranks over tasks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from medprobe.console import console
from medprobe.results import Question, Row, ranked, subgroups

if TYPE_CHECKING:
    from medprobe.probe.cka import Alignment
    from medprobe.probe.compare import Difference, Ranks

_PARAMETERS = "parameters_trained"
# What a training took, as its settings say it.
COSTS = {
    _PARAMETERS: "parameters trained",
    "images_seen": "images seen",
    "energy_gpu_wh": "Wh of GPU",
    "energy_cpu_wh": "Wh of CPU",
}
_NOT_SHOWN = {"seed", "weights", "mode", *COSTS}
_NAME_WIDTH = 32  # an encoder of so long a name stays in one line

METRIC_NAMES = {
    "auroc": "AUROC",
    "average_precision": "average precision",
    "balanced_accuracy": "balanced accuracy",
    "quadratic_kappa": "quadratic kappa",
    "macro_f1": "macro F1",
    "macro_recall": "macro recall",
    "log_loss": "log loss",
    "brier": "Brier score",
    "ece": "calibration error",
}


def leaderboard_tables(rows: Iterable[Row]) -> list[Table]:
    """Return a table for each question: encoders and probes, the best first, each with its interval."""
    tables = []
    for question, ranking in ranked(row for row in rows if not row.shots).items():
        unit = ranking[0].group or "image"
        table = _table(_title(question))
        table.add_column("#", justify="right")
        short = max(len(row.encoder) for row in ranking) <= _NAME_WIDTH
        table.add_column("encoder", no_wrap=short, overflow="fold")
        for column in ("view", "probe"):
            table.add_column(column, overflow="fold")
        table.add_column(_metric(question), justify="right", style="bold")
        table.add_column(f"{ranking[0].ci_level:.0%} interval", justify="right", no_wrap=True)
        table.add_column("tested images", justify="right")
        if unit != "image":
            table.add_column(f"{unit}s", justify="right")
        table.add_column("trained on", justify="right")
        table.add_column("settings", overflow="fold")
        for place, row in enumerate(ranking, 1):
            groups = [str(row.n_groups)] if unit != "image" else []
            _add(table,
                str(place), row.encoder, row.view, row.probe, _number(row.value), _interval(row),
                str(row.n_images), *groups, str(row.n_train), describe_settings(row.settings),
            )  # fmt: skip
        tables.append(table)
    return tables


def subgroup_tables(rows: Iterable[Row]) -> list[Table]:
    """Return a table for each question that was asked of subgroups, too: encoders and probes in each of them."""
    tables = []
    for question, some in subgroups(row for row in rows if not row.shots).items():
        table = _table(f"{_title(question)}, by subgroup")
        for column in ("subgroup", "encoder", "view", "probe"):
            table.add_column(column, overflow="fold")
        for column in (_metric(question), "interval", "tested images", f"{some[0].group or 'image'}s"):
            table.add_column(column, justify="right", no_wrap=True)
        by_name: dict[str, list[Row]] = {}
        for row in some:
            by_name.setdefault(row.subgroup, []).append(row)
        for name, found in by_name.items():
            table.add_section()
            for i, row in enumerate(found):
                _add(table,
                    "" if i else name, row.encoder, row.view, row.probe, _number(row.value), _interval(row),
                    str(row.n_images), str(row.n_groups),
                )  # fmt: skip
        tables.append(table)
    return tables


def curve_tables(rows: Iterable[Row]) -> list[Table]:
    """Return a table for each learning curve: encoders and probes against the number of labelled images of a class."""
    curves: dict[tuple[str, str, str], list[Row]] = {}
    for question, ranking in ranked(row for row in rows if row.shots).items():
        curves.setdefault((question.data, question.target, question.metric), []).extend(ranking)
    tables = []
    for (data, target, metric), points in curves.items():
        budgets = sorted({row.shots for row in points})
        table = _table(_title(Question(data, target, metric, "few labels of each class")))
        for column in ("encoder", "view", "probe"):
            table.add_column(column, overflow="fold")
        for shots in budgets:
            table.add_column(f"{shots} shot{'s' * (shots > 1)}", justify="right")
        lines: dict[tuple[str, str, str], dict[int, Row]] = {}
        for row in points:
            lines.setdefault((row.encoder, row.view, row.probe), {})[row.shots] = row
        for method, by_shots in lines.items():
            found = [by_shots.get(shots) for shots in budgets]
            _add(table, *method, *("" if row is None else f"{_number(row.value)}\n{_interval(row)}" for row in found))
        tables.append(table)
    return tables


def difference_tables(differences: Iterable[Difference]) -> list[Table]:
    """Return a table for each question: differences in pairs, with intervals and corrected p-values."""
    by_question: dict[Question, list[Difference]] = {}
    for difference in differences:
        by_question.setdefault(difference.question, []).append(difference)
    tables = []
    for question, found in by_question.items():
        table = _table(f"{_title(question)}: differences on the same images")
        for column in ("better", "than"):
            table.add_column(column, overflow="fold")
        delong = any(math.isfinite(d.p_delong) for d in found)
        unit = found[0].first.group or "image"
        for column in ("difference", "interval", "p", "p (Holm)", *(["p (DeLong)"] if delong else []), "images"):
            table.add_column(column, justify="right", no_wrap=True)
        if unit != "image":
            table.add_column(f"{unit}s", justify="right")
        for d in found:
            interval = "not defined" if math.isnan(d.low) else f"{d.low:+.3f} to {d.high:+.3f}"
            p_values = [d.p_value, d.p_holm, *([d.p_delong] if delong else [])]
            groups = [str(d.n_groups)] if unit != "image" else []
            _add(table,
                _method(d.first), _method(d.second), f"{d.difference:+.3f}", interval,
                *map(_p_value, p_values), str(d.n_images), *groups,
            )  # fmt: skip
        tables.append(table)
    return tables


def ranks_table(ranks: Ranks) -> Table:
    """Return a table of average ranks over tasks; methods of one letter are not told apart."""
    table = _table(f"Average rank over {len(ranks.tasks)} tasks")
    for column in ("encoder", "view", "probe"):
        table.add_column(column, overflow="fold")
    table.add_column("rank", justify="right", style="bold")
    table.add_column("not told apart")
    for place, (method, average) in enumerate(zip(ranks.methods, ranks.average, strict=True)):
        _add(table, *method, f"{average:.2f}", ranks.letters(place))
    table.caption = ranks_caption(ranks)
    return table


def ranks_caption(ranks: Ranks) -> str:
    """Return what two average ranks have to differ by, and whether any do."""
    friedman = "" if math.isnan(ranks.p_value) else f"; Friedman's test: p = {_p_value(ranks.p_value)}"
    return f"critical difference {ranks.critical_difference:.2f} (Nemenyi, 5 %){friedman}"


def print_leaderboard(rows: list[Row], to: Console | None = None) -> None:
    """Print the tables of result rows, and what has to be known about them."""
    to = to or console()
    for table in (*leaderboard_tables(rows), *curve_tables(rows), *subgroup_tables(rows)):
        to.print(table)
    if (cost := cost_table(rows)) is not None:
        to.print(cost)
    if any(row.is_control for row in rows):
        from medprobe.probe.controls import verdicts

        for sentence in verdicts(rows):
            to.print(sentence, markup=False, highlight=False)
    for note in dict.fromkeys(note for row in rows if row.primary and not row.subgroup for note in row.notes):
        _note(to, note)
    failed = {row.encoder: row.n_failed for row in rows if row.n_failed}
    for encoder, count in failed.items():
        _note(to, f"{encoder}: {count} images without features take no part")


def print_comparison(differences: Sequence[Difference], ranks: Ranks | None, to: Console | None = None) -> None:
    """Print what is told apart: in pairs for each question, by ranks over several."""
    to = to or console()
    for table in difference_tables(differences):
        to.print(table)
    if differences:
        delong = any(math.isfinite(d.p_delong) for d in differences)
        said = "p: bootstrap over groups; Holm: corrected for all lines of a table"
        said += "; DeLong takes every image as a patient." if delong else "."
        to.print(said, markup=False, highlight=False)
    if ranks is not None:
        to.print(ranks_table(ranks))


def print_alignment(found: Alignment, to: Console | None = None) -> None:
    """Print how alike the views of two encoders are."""
    table = _table(f"Linear CKA over {found.n_images} images: {found.first} (rows), {found.second} (columns)")
    table.add_column("")
    for column in found.columns:
        table.add_column(column, justify="right")
    for name, values in zip(found.rows, found.values, strict=True):
        _add(table, name, *("not defined" if math.isnan(value) else f"{value:.3f}" for value in values))
    (to or console()).print(table)


def cost_table(rows: Iterable[Row]) -> Table | None:
    """Return a table of what each training took, beside the probes of the same questions; None where nothing was trained."""
    primary = [row for row in rows if row.primary and not row.subgroup and not row.encoder.startswith("control: ")]
    costs = {id(row): _cost(row.settings) for row in primary}
    if not any(costs.values()):
        return None
    table = _table("What it took")
    for column in ("encoder", "view", "probe"):
        table.add_column(column, overflow="fold")
    names = {name: title for name, title in COSTS.items() if any(name in cost for cost in costs.values())}
    for title in (*names.values(), "seconds"):
        table.add_column(title, justify="right")
    for row in primary:
        cost = costs[id(row)]
        cells = ["" if name not in cost else _amount(name, cost[name]) for name in names]
        _add(table, row.encoder, row.view, row.probe, *cells, f"{row.seconds:.1f}")
    return table


def _cost(settings: Any) -> dict[str, float]:
    """Return what trainings took: the sum over folds, but for the parameters, which are the same in each."""
    several = [settings] if isinstance(settings, Mapping) else list(settings or ())
    return {
        name: (max if name == _PARAMETERS else sum)(s[name] for s in several)
        for name in COSTS
        if several and all(name in s for s in several)
    }


def _amount(name: str, value: float) -> str:
    return f"{value:.2f}" if name.endswith("_wh") else f"{value:,.0f}"


def describe_settings(settings: Any) -> str:
    """Return settings as short text; of folds, the range of their values."""
    if isinstance(settings, Mapping):
        return ", ".join(f"{k}={_short(v)}" for k, v in settings.items() if v is not None and k not in _NOT_SHOWN)
    merged: dict[str, list[Any]] = {}
    for fold in settings:
        for key, value in fold.items():
            if value is not None and key not in _NOT_SHOWN:
                merged.setdefault(key, []).append(value)
    return ", ".join(f"{key}={_range(values)}" for key, values in merged.items())


def _table(title: str) -> Table:
    return Table(title=escape(title), title_justify="left", title_style="bold")


def _add(table: Table, *cells: str) -> None:
    table.add_row(*map(escape, cells))  # a column's name or value may look like markup


def _title(question: Question) -> str:
    data = f"{question.data}, " if question.data else ""
    return f"{data}{question.target}: {_metric(question)} on {question.split}"


def _metric(question: Question) -> str:
    return METRIC_NAMES.get(question.metric, question.metric)


def _method(row: Row) -> str:
    return f"{row.encoder} {row.view}, {row.probe}"


def _number(value: float) -> str:
    return "not defined" if math.isnan(value) else f"{value:.3f}"


def _interval(row: Row) -> str:
    return "not defined" if math.isnan(row.ci_low) else f"{row.ci_low:.3f} to {row.ci_high:.3f}"


def _p_value(p: float) -> str:
    return "" if math.isnan(p) else "< 0.001" if p < 0.001 else f"{p:.3f}"


def _note(to: Console, note: str) -> None:
    to.print(f"note: {note}", style="yellow", markup=False, highlight=False)


def _range(values: list[Any]) -> str:
    if any(isinstance(value, str) for value in values):
        return "/".join(dict.fromkeys(map(str, values)))
    low, high = _short(min(values)), _short(max(values))
    return low if low == high else f"{low}..{high}"


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    return "x".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
