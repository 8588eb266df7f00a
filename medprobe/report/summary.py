"""What results say, in sentences: what was compared, who is ahead, by how much, and whether that is more than noise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from medprobe.probe.compare import Difference
from medprobe.probe.controls import APPEARANCE, COLUMNS, verdicts
from medprobe.report.words import (
    ALPHA,
    counted,
    encoder_name,
    interval,
    labels,
    listed,
    method,
    metric_name,
    number,
    p_equals,
    people,
    short,
)
from medprobe.results import Row


class Verdict(NamedTuple):
    """What a control says, and whether a reader has to be warned."""

    alarm: bool
    text: str


def leader_of(table: Sequence[Row], found: Sequence[Difference]) -> Row:
    """Return the row that the differences of a question compare with all others; without any, the best encoder's.

    Args:
        table: Rows of the question, the best first.
        found: Its differences.

    """
    encoders = [row for row in table if not row.is_control]
    shared = [row for row in table if found and all(row is d.first or row is d.second for d in found)]
    for row in shared:
        if not row.is_control:
            return row
    return shared[0] if shared else encoders[0] if encoders else table[0]


def standing(table: Sequence[Row], found: Sequence[Difference]) -> list[str]:
    """Return sentences on one question: what was compared, who is ahead, by how much and how surely, and the controls.

    Args:
        table: Rows of the question, the best first.
        found: Its differences to one row.

    """
    leader = leader_of(table, found)
    best = next((row for row in table if not row.is_control), table[0])
    said = [_compared(table), f"Best: {_reached(best)}."]
    if best is not leader:
        said.append(f"Compared with all others: {_reached(leader)}.")
    others = [d for d in found if not _other(d, leader).is_control]
    if others:
        said.append(_lead(leader, others))
    elif not found:
        said.append(
            "Which differences are more than chance cannot be said: fewer than two rows have predictions of the same "
            "images. Overlapping intervals do not answer it."
        )
    judged = controls(table, found)
    said += [verdict.text for verdict in judged if verdict.alarm]
    calm = sum(not verdict.alarm for verdict in judged)
    if calm:
        said.append(f"{calm} of {len(judged)} controls and baselines are beaten by more than chance, or show no leak.")
    return said


def controls(table: Sequence[Row], found: Sequence[Difference]) -> list[Verdict]:
    """Return what controls and baselines say about the row that all others are compared with."""
    leader = leader_of(table, found)
    if leader.is_control:
        return [Verdict(True, "No encoder was compared: all rows are controls or baselines.")]
    by_other = {id(_other(d, leader)): d for d in found}
    said = []
    seen = set()
    for row in table:
        if not row.is_control or row.encoder in seen:
            continue
        seen.add(row.encoder)  # the table is ranked: this is its best probe
        difference = by_other.get(id(row))
        if difference is None or math.isnan(difference.p_holm):
            said += [Verdict("as good within" in s or "LEAKS" in s, s) for s in verdicts([_brief(leader), _brief(row)])]
        else:
            said.append(_against_control(leader, row, difference))
    if not seen:
        none = "No control was run (medprobe probe --controls): a shortcut or a leak would not show."
        said.append(Verdict(True, none))
    return said


def _compared(table: Sequence[Row]) -> str:
    tested = [row for row in table if not row.is_control] or list(table)
    beside = len({row.encoder for row in table if row.is_control and row not in tested})
    encoders, probes = {row.encoder for row in tested}, dict.fromkeys(short(row.probe, 24) for row in tested)
    text = f"Compared: {counted(len(encoders), 'encoder')} with {listed(list(probes))}"
    text += f", tested on {people(table)} ({short(table[0].split)})"
    return text + (
        f", beside {counted(beside, 'control')} or {'baseline' if beside == 1 else 'baselines'}." if beside else "."
    )


def _reached(row: Row) -> str:
    value = f"{metric_name(row.metric)} {number(row.value)}"
    return f"{method(row)}, {value} ({row.ci_level:.0%} interval {interval(row.ci_low, row.ci_high)})"


def _lead(leader: Row, others: Sequence[Difference]) -> str:
    """Return a sentence on the next encoder, or on the next probe of the same one, and on how many are told apart."""
    rivals = [d for d in others if _other(d, leader).encoder != leader.encoder] or list(others)
    nearest = min(rivals, key=lambda d: abs(d.difference))
    rival, leading = method(_other(nearest, leader)), labels([leader])[0]
    numbers = _size(nearest, leader)
    if nearest.p_holm < ALPHA:
        text = f"The distance of {leading} from its nearest rival, {rival}, is more than chance would do: {numbers}."
    else:
        text = f"The distance of {leading} from its nearest rival, {rival}, is inside the noise: {numbers}."
    apart = sum(d.p_holm < ALPHA for d in others)
    if len(others) > 1:
        text += f" It is told apart from {apart} of the {len(others)} other methods."
    return text


def _against_control(leader: Row, row: Row, difference: Difference) -> Verdict:
    name = f"control {encoder_name(row)}" if row.encoder.startswith("control: ") else method(row)
    reaches = f"{name[:1].upper()}{name[1:]} reaches {number(row.value)}"
    size = _size(difference, leader)
    leading = labels([leader])[0]
    ahead = difference.first is leader
    if difference.p_holm < ALPHA and ahead:
        return Verdict(False, f"{reaches}: {leading} is better by more than chance would do ({size}).")
    reaches = f"Caution: {name} reaches {number(row.value)}"
    if difference.p_holm < ALPHA:
        return Verdict(True, f"{reaches}, better than {leading} by more than chance would do ({size}).")
    meaning = {
        COLUMNS: "that the images add to what the table's columns tell is not shown, or a column gives the answer away",
        APPEARANCE: "the images' size or exposure may give the answer away",
    }.get(row.encoder, "no gain from the encoder is shown")
    return Verdict(True, f"{reaches}, not told apart from {leading} ({size}): {meaning}.")


def _brief(row: Row) -> Row:
    return replace(
        row, encoder=short(row.encoder), probe=short(row.probe, 24), target=short(row.target), split=short(row.split)
    )


def _other(difference: Difference, leader: Row) -> Row:
    return difference.second if difference.first is leader else difference.first


def _size(difference: Difference, leader: Row) -> str:
    """Return leader minus other, with interval and p-value."""
    sign = 1 if difference.first is leader else -1
    low, high = sorted((sign * difference.low, sign * difference.high))
    ends = interval(low, high, signed=True)
    size = number(sign * difference.difference, signed=True)
    return f"difference {size}, interval {ends}, Holm {p_equals(difference.p_holm)}"
