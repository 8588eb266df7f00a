"""How results are put in words: names that are safe to show, numbers, intervals, and who was tested on."""

from __future__ import annotations

import math
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence

from medprobe.leaderboard import METRIC_NAMES
from medprobe.probe.metrics import METRICS
from medprobe.results import Question, Row

ALPHA = 0.05
"""Two methods are told apart where Holm's corrected p-value is below this."""

_CONTROL = "control: "
_PATIENT_COLUMNS = {
    "patient",
    "patients",
    "patientid",
    "patient_id",
    "patient id",
    "subject",
    "subject_id",
    "subjectid",
}


def plain(text: object) -> str:
    """Return text in one line, every character of which can be seen: no control, direction or half character."""
    shown = []
    for char in str(text):
        kind = unicodedata.category(char)
        shown.append(
            " " if char.isspace() else "\N{REPLACEMENT CHARACTER}" if kind in {"Cc", "Cf", "Cs", "Cn"} else char
        )
    return " ".join("".join(shown).split())


def short(text: object, most: int = 60) -> str:
    """Return plain text of at most so many characters; of a longer one its beginning and its end."""
    whole = plain(text)
    if len(whole) <= most:
        return whole
    end = (most - 1) // 3
    return f"{whole[: most - 1 - end]}…{whole[len(whole) - end :]}"


def number(value: float, signed: bool = False) -> str:
    """Return a value to three decimals; a negative one has a real minus."""
    if not math.isfinite(value):
        return "not defined"
    text = f"{value:+.3f}" if signed else f"{value:.3f}"
    return text.replace("-", "−")


def interval(low: float, high: float, signed: bool = False) -> str:
    """Return both ends of an interval."""
    return "not defined" if math.isnan(low) else f"{number(low, signed)} to {number(high, signed)}"


def p_value(p: float) -> str:
    """Return a p-value to three decimals; nothing where there is none."""
    return "" if math.isnan(p) else "< 0.001" if p < 0.001 else f"{p:.3f}"


def p_equals(p: float) -> str:
    """Return a p-value as a statement, such as ``p = 0.020``."""
    text = p_value(p)
    return "no p-value" if not text else f"p {text}" if text.startswith("<") else f"p = {text}"


def metric_name(metric: str) -> str:
    """Return what a metric is called in text."""
    return METRIC_NAMES.get(metric, metric)


def axis_title(metric: str) -> str:
    """Return the title of an axis of a metric; it says when lower is better."""
    name = metric_name(metric)
    return f"{name[:1].upper()}{name[1:]}" + ("" if METRICS[metric].higher_is_better else " (lower is better)")


def question_title(question: Question) -> str:
    """Return what a question asks, in one line."""
    data = f"{short(question.data, 40)}, " if question.data else ""
    return f"{data}{short(question.target)}: {metric_name(question.metric)} on {short(question.split)}"


def figure_title(question: Question, name: str) -> str:
    """Return the title of a figure that shows more than a question's metric."""
    data = f"{short(question.data, 40)}, " if question.data else ""
    return f"{data}{short(question.target)}: {name} ({short(question.split, 40)})"


def encoder_name(row: Row, most: int = 48) -> str:
    """Return the name of a row's encoder, or of its control."""
    return short(row.encoder.removeprefix(_CONTROL), most)


def method(row: Row) -> str:
    """Return encoder, view and probe of a row; of a control, its name and what it was given."""
    given = short(row.view, 40)
    if row.encoder.startswith(_CONTROL):
        return f"control {encoder_name(row)} ({given})"
    return f"{encoder_name(row)} ({given}), {short(row.probe, 24)}"


def labels(rows: Sequence[Row]) -> list[str]:
    """Return a short name for each row, no two alike: without the view where that says nothing."""
    brief = [
        encoder_name(row) if row.encoder.startswith(_CONTROL) else f"{encoder_name(row)}, {short(row.probe, 24)}"
        for row in rows
    ]
    often = Counter(brief)
    chosen = [name if often[name] == 1 else method(row) for name, row in zip(brief, rows, strict=True)]
    return unlike(chosen)


def unlike(names: Iterable[str]) -> list[str]:
    """Return the names, those that stood before with a number behind."""
    seen: set[str] = set()
    found = []
    for name in names:
        other, count = name, 1
        while other in seen:
            count += 1
            other = f"{name} ({count})"
        seen.add(other)
        found.append(other)
    return found


def group_word(group: str) -> str:
    """Return what the groups of a column are called, in the plural."""
    return "patients" if group.lower() in _PATIENT_COLUMNS else f"groups ({short(group, 30)})"


def people(rows: Sequence[Row]) -> str:
    """Return how many images of how many patients the rows were tested on; a range where they differ."""
    images, groups = _range([row.n_images for row in rows]), _range([row.n_groups for row in rows])
    if not rows[0].group:
        return f"{images} images (no groups known)"
    return f"{images} images of {groups} {group_word(rows[0].group)}"


def counted(n: int, what: str) -> str:
    """Return a number and what it counts, in the plural where it is not one."""
    return f"{n} {what}{'' if n == 1 else 's'}"


def listed(names: Sequence[str], most: int = 12) -> str:
    """Return names as an enumeration; of very many, the first."""
    shown = list(names[:most])
    if len(names) > most:
        return f"{', '.join(shown)} and {len(names) - most} more"
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}" if shown else ""


def _range(counts: Sequence[int]) -> str:
    low, high = min(counts), max(counts)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"
