"""The controls at the side: each shows a part of the state, changes it, and has a place for what is wrong with it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from nicegui import ui

from medprobe.explore import choices
from medprobe.explore.board import Board
from medprobe.explore.session import Session
from medprobe.explore.state import PROBES, State
from medprobe.probe.features import AUTO
from medprobe.probe.task import UNCERTAIN
from medprobe.report.words import short

BUDGETS = (0, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
"""Labelled images of each class; 0 for all that there are."""

_SPLITS = {"recorded": "as recorded", "folds": "folds", "hold-out": "hold-out", "leave-out": "leave one out"}
_WAIT = "debounce=250"


class Controls:
    """All controls.

    Args:
        session: The open stores.
        state: Gives the present state.
        ask: Changes the state and asks anew.
        turn: Changes threshold or prevalence, which need no new answer.

    """

    def __init__(
        self, session: Session, state: Callable[[], State], ask: Callable[..., None], turn: Callable[..., None]
    ) -> None:
        self._session, self._state, self._ask, self._turn = session, state, ask, turn
        self._shown = ""  # class that curves are about
        self._errors: dict[str, ui.label] = {}
        self._now: dict[str, ui.label] = {}
        self._store = session.leading(state())
        self._columns = choices.named(choices.columns(self._store))
        self._general = ui.label("").classes("general").props("data-testid=general-error")
        self._features()
        self._target()
        self._samples()
        self._split()
        self._point()

    def fail(self, message: str) -> None:
        """Say what is wrong, beside the control whose option the message names."""
        for label in (*self._errors.values(), self._general):
            label.set_text("")
        named = re.match(r"--([a-z-]+)", message)
        label = self._errors.get(named.group(1) if named else "", self._general)
        label.set_text(short(message, 400))

    def answered(self, board: Board) -> None:
        """Take note of an answer: nothing is wrong, and there are classes to choose from."""
        for label in (*self._errors.values(), self._general):
            label.set_text("")
        self._shown = board.positive
        self._positive.set_options(choices.named(board.classes), value=board.positive)
        encoders = dict.fromkeys(row.encoder for row in board.rows)
        chosen = self._state().encoder if self._state().encoder in encoders else ""
        self._encoder.set_options({"": "the best one", **choices.named(list(encoders))}, value=chosen)

    @contextmanager
    def _control(self, caption: str, *flags: str, testid: str = "") -> Iterator[None]:
        with ui.element("div").classes("control").props(f"data-testid={testid or flags[0]}"):
            with ui.element("div").classes("caption"):
                ui.label(caption)
                self._now[testid or (flags[0] if flags else caption)] = ui.label("").classes("now")
            yield
            error = ui.label("").classes("error").props(f"data-testid=error-{testid or flags[0]}")
            self._errors |= dict.fromkeys(flags, error)

    def _select(self, options: Mapping[Any, str], value: Any, change: Callable[[Any], None], **more: Any) -> ui.select:
        known = (
            dict(options) if isinstance(value, list | tuple) or value in options else {**options, value: short(value)}
        )
        return ui.select(known, value=value, on_change=lambda event: change(event.value), **more).props(
            "dense options-dense outlined"
        )

    def _features(self) -> None:
        state, session = self._state(), self._session
        ui.element("h2").props["innerHTML"] = "Features"
        with self._control("Encoders", "store", testid="stores"):
            self._select(choices.named(list(session.stores)), session.chosen(state), self._stores, multiple=True).props(
                "use-chips"
            )
        views = dict.fromkeys(view for store in session.stores.values() for view in store.views)
        with self._control("View", "view"):
            self._select(
                {None: "each encoder's own", AUTO: "auto", **choices.named(list(views))},
                state.view, lambda value: self._ask(view=value),
            )  # fmt: skip
        with self._control("Probe, after ridge", "probe"):
            self._select({name: name for name in PROBES}, state.probe, lambda value: self._ask(probe=value))

    def _stores(self, names: list[str]) -> None:
        every = list(self._session.stores)
        self._ask(stores=() if len(names) in {0, len(every)} else tuple(n for n in every if n in names))

    def _target(self) -> None:
        state = self._state()
        ui.element("h2").props["innerHTML"] = "Target"
        known = choices.targets(self._store)
        with self._control("Column, list a,b or pattern", "target"):
            target = state.target or (known[0] if known else "")
            self._select(
                choices.named(known), target, self._take_target, with_input=True, new_value_mode="add-unique"
            )  # fmt: skip
        with self._control("Classes: merge or drop", "relabel"):
            self._rules = ui.element("div").classes("rules").props("data-testid=rules")
            options = choices.named(choices.classes(self._store, state))
            self._classes = ui.select(options, multiple=True, value=[]).props(
                "dense options-dense outlined data-testid=classes"
            )  # fmt: skip
            with ui.element("div").classes("line"):
                self._merged = ui.input(placeholder="new name").props("dense outlined data-testid=merged")
                ui.button("Merge", on_click=self._merge).props("dense flat no-caps data-testid=merge")
                ui.button("Drop", on_click=self._drop).props("dense flat no-caps data-testid=drop")
            self._show_rules()
        with self._control("Uncertain labels (−1)", "uncertain"):
            self._select(
                {None: "as they are", **{name: name for name in UNCERTAIN}},
                state.uncertain, lambda value: self._ask(uncertain=value),
            )  # fmt: skip

    def _take_target(self, value: str | None) -> None:
        self._ask(target=value or None, relabel=(), positive="")
        self._classes.set_options(choices.named(choices.classes(self._store, self._state())), value=[])
        self._show_rules()

    def _merge(self) -> None:
        if self._classes.value and (name := (self._merged.value or "").strip()):
            self._add_rule(f"{','.join(self._classes.value)}={name}")

    def _drop(self) -> None:
        if self._classes.value:
            self._add_rule(f"{','.join(self._classes.value)}=")

    def _add_rule(self, rule: str) -> None:
        self._ask(relabel=(*self._state().relabel, rule), positive="")
        self._classes.set_value([])
        self._merged.set_value("")
        self._show_rules()

    def _remove_rule(self, rule: str) -> None:
        self._ask(relabel=tuple(other for other in self._state().relabel if other != rule), positive="")
        self._show_rules()

    def _show_rules(self) -> None:
        self._rules.clear()
        with self._rules:
            for rule in self._state().relabel:
                said = f"drop {rule[:-1]}" if rule.endswith("=") else rule.replace("=", " → ")
                ui.chip(
                    short(said, 40), removable=True, on_value_change=lambda _, rule=rule: self._remove_rule(rule)
                ).props("dense square")

    def _samples(self) -> None:
        state = self._state()
        ui.element("h2").props["innerHTML"] = "Samples"
        with self._control("Filter (SQL over the columns)", "where"):
            self._where = ui.input(value=state.where, placeholder="age > 60 AND sex = 'F'", on_change=lambda event: (
                self._ask(where=(event.value or "").strip())
            )).props(f"dense outlined clearable {_WAIT} data-testid=where-input")  # fmt: skip
            with ui.element("div").classes("line"):
                self._column = self._select({None: "column", **self._columns}, None, self._pick).props(
                    "data-testid=pick-column"
                )
                self._values = ui.select({}, multiple=True, value=[]).props(
                    "dense options-dense outlined data-testid=pick-values"
                )
                ui.button("Add", on_click=self._narrow).props("dense flat no-caps data-testid=pick-add")
        with self._control("Labelled images a class", "shots"):
            place = BUDGETS.index(state.shots) if state.shots in BUDGETS else 0
            ui.slider(min=0, max=len(BUDGETS) - 1, value=place, on_change=self._budget).props(
                f"{_WAIT} snap data-testid=budget"
            )  # fmt: skip
            self._now["shots"].set_text(str(state.shots or "all"))

    def _pick(self, column: str | None) -> None:
        options = choices.values(self._store, column) if column else []
        self._values.set_options(choices.named(options), value=[])

    def _narrow(self) -> None:
        if self._column.value and self._values.value:
            more = choices.condition(self._store, self._column.value, self._values.value)
            self._where.set_value(choices.joined(self._state().where, more))

    def _budget(self, event: Any) -> None:
        shots = BUDGETS[int(event.value)]
        self._now["shots"].set_text(str(shots or "all"))
        self._ask(shots=shots)

    def _split(self) -> None:
        state = self._state()
        ui.element("h2").props["innerHTML"] = "Who is tested"
        chosen = {"folds": state.n_folds, "hold-out": state.test_size, "leave-out": state.leave_out}
        kind = next((name for name, value in chosen.items() if value is not None), "recorded")
        with self._control("Split", "folds", "test-size", "leave-out", "split-col", "duplicates", testid="split"):
            with ui.element("div").classes("line"):
                self._kind = self._select(_SPLITS, kind, lambda _: self._resplit())
                self._folds = self._select(
                    {k: str(k) for k in (2, 3, 5, 10)}, state.n_folds or 5, lambda _: self._resplit()
                )
                self._share = self._select(
                    {s: f"{s:.0%}" for s in (0.1, 0.2, 0.3, 0.5)}, state.test_size or 0.3, lambda _: self._resplit()
                )
                self._site = self._select({None: "column", **self._columns}, state.leave_out, lambda _: self._resplit())
            self._show_split()
        with self._control("Patients (group)", "group"):
            recorded = self._store.roles["group"]
            own = f"as recorded ({short(recorded, 24)})" if recorded else "as recorded (none)"
            self._select(
                {None: own, "none": "no grouping", **self._columns}, state.group, lambda value: self._ask(group=value)
            )
        with self._control("Subgroups by", "subgroup"):
            self._select(
                {None: "none", **self._columns}, state.subgroup, lambda value: self._ask(subgroup=value)
            )  # fmt: skip
        with self._control("Equal pictures on two sides", testid="duplicates-choice"):
            self._select(
                {"error": "are an error", "drop": "leave training", "keep": "stay"},
                state.duplicates, lambda value: self._ask(duplicates=value),
            )  # fmt: skip

    def _resplit(self) -> None:
        kind = self._kind.value
        self._show_split()
        self._ask(
            n_folds=self._folds.value if kind == "folds" else None,
            test_size=self._share.value if kind == "hold-out" else None,
            leave_out=self._site.value if kind == "leave-out" else None,
        )

    def _show_split(self) -> None:
        for select, kind in ((self._folds, "folds"), (self._share, "hold-out"), (self._site, "leave-out")):
            select.set_visibility(self._kind.value == kind)

    def _point(self) -> None:
        state = self._state()
        ui.element("h2").props["innerHTML"] = "Operating point"
        with self._control("Figures of", testid="encoder"):
            self._encoder = self._select({"": "the best one"}, "", self._look_at)
        with self._control("Positive class", testid="positive"):
            self._positive = self._select({}, None, self._call_positive)
        with self._control("Threshold", testid="threshold"):
            ui.slider(min=0, max=1, step=0.01, value=state.threshold, on_change=self._threshold).props(
                "data-testid=threshold-slider"
            )
            self._now["threshold"].set_text(f"{state.threshold:.2f}")
        with self._control("Prevalence in practice", testid="prevalence"):
            place = 0 if state.prevalence is None else state.prevalence
            ui.slider(min=0, max=0.99, step=0.01, value=place, on_change=self._prevalence).props(
                "data-testid=prevalence-slider"
            )
            self._now["prevalence"].set_text("as tested" if state.prevalence is None else f"{state.prevalence:.2f}")

    def _look_at(self, encoder: str | None) -> None:
        if (encoder or "") != self._state().encoder:
            self._ask(encoder=encoder or "")

    def _call_positive(self, name: str | None) -> None:
        if name and name != self._shown:
            self._ask(positive=name)

    def _threshold(self, event: Any) -> None:
        self._now["threshold"].set_text(f"{event.value:.2f}")
        self._turn(threshold=float(event.value))

    def _prevalence(self, event: Any) -> None:
        share = float(event.value) or None
        self._now["prevalence"].set_text("as tested" if share is None else f"{share:.2f}")
        self._turn(prevalence=share)
