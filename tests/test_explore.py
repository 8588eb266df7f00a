"""The explorer below its page: states, links, commands, answers, operating points."""

from __future__ import annotations

import dataclasses
import json
import shlex
from pathlib import Path

import numpy as np
import pytest
from conftest import make_store
from explore_helpers import N, hostile, samples, stores
from test_bags import store_of
from typer.testing import CliRunner

import medprobe
from medprobe.cli import app
from medprobe.errors import DataError, UsageError
from medprobe.explore.board import boards, measures
from medprobe.explore.choices import condition, joined, named, targets
from medprobe.explore.command import command_line, python_code
from medprobe.explore.images import Images
from medprobe.explore.pictures import Pictures
from medprobe.explore.session import Kept, Session
from medprobe.explore.state import State
from medprobe.predictions import Predictions
from medprobe.probe.conditions import Conditions
from medprobe.probe.leaks import some_tested
from medprobe.probe.operating import operating_point, outcome
from medprobe.probe.ridge import Moments, indicators
from medprobe.probe.splits import fold_split
from medprobe.probe.stopping import Stopped, stopping
from medprobe.probe.sums import RowSums
from medprobe.probe.thresholds import npv, ppv, sensitivity_specificity
from medprobe.report.words import number

pytest.importorskip("duckdb")
pytest.importorskip("altair")

FULL = State(
    stores=("a b", "ü&="), target="grade", probe="knn", view="mean", group="none", n_folds=3, where="age > 30 OR site = 'A'",
    relabel=("g2,g3=high up", "g0="), uncertain="ones", shots=5, subgroup="site", duplicates="keep", seed=3, encoder="x",
    positive="<b>", threshold=0.25, prevalence=0.05, projection="umap", colour="age", region=(-1.5, 2.0, 0.0, 1e-3),
)  # fmt: skip


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return stores(tmp_path_factory.mktemp("explore"), samples())


@pytest.fixture(scope="module")
def session(paths: list[Path]) -> Session:
    return Session(paths)


def test_a_link_restores_every_field():
    assert State.from_query(FULL.to_query()) == FULL
    assert State.from_query("") == State()
    assert State().to_query() == ""
    same = [f.name for f in dataclasses.fields(State) if getattr(FULL, f.name) == f.default]
    assert same == ["metric", "split_col", "test_size", "leave_out"]  # not to be combined with folds


@pytest.mark.parametrize(
    "query",
    ["nothing=1", "shots=many", "threshold=2", "prevalence=0", "probe=svm", "region=1&region=2", "projection=tsne"],
)
def test_a_link_that_makes_no_sense_is_refused(query):
    with pytest.raises(UsageError):
        State.from_query(query)


def test_the_command_prints_what_the_session_answers(session, paths):
    state = State(
        target="grade",
        probe="logreg",
        where="age > 35 AND site <> 'it''s'",
        relabel=("g2,g3=high up", "g0="),
        n_folds=2,
        seed=1,
    )
    words = shlex.split(command_line(state, [str(path) for path in paths]))
    done = CliRunner().invoke(app, [*words[1:], "--json"])
    assert done.exit_code == 0, done.output
    printed = {(r["encoder"], r["probe"], r["metric"]): r for r in json.loads(done.stdout)}
    *_, last = boards(session, state)
    assert len(last.results) == len(printed) == 28
    for row in last.results:
        other = printed[row.encoder, row.probe, row.metric]
        assert other["value"] == pytest.approx(row.value, abs=1e-9)
        assert (other["ci_low"], other["ci_high"]) == pytest.approx((row.ci_low, row.ci_high), abs=1e-9, nan_ok=True)


def test_python_reproduces_the_operating_point(session, paths):
    state = State(target="sick", probe="ridge", threshold=0.3, prevalence=0.1)
    *_, last = boards(session, state)
    found: dict[str, object] = {}
    exec(python_code(state, [str(path) for path in paths], (last.focus.encoder, last.shown, last.positive)), found)
    point, own = found["point"], last.at(0.3, 0.1)
    for name in ("sensitivity", "specificity", "ppv", "npv"):
        assert dataclasses.astuple(getattr(point, name)) == pytest.approx(dataclasses.astuple(getattr(own, name)))
    assert (own.threshold, own.prevalence) == (0.3, 0.1)


def test_values_come_first_and_intervals_after(session):
    seen = [
        (b.shown, b.sure, bool(np.isfinite(b.focus.ci_low)), b.waiting) for b in boards(session, State(target="sick"))
    ]
    assert seen == [
        ("ridge", False, False, "intervals of ridge, then logreg"),
        ("ridge", True, True, "logreg"),
        ("logreg", False, False, "intervals of logreg"),
        ("logreg", True, True, ""),
    ]


def test_intervals_that_are_still_to_come_are_not_called_undefined(session):
    first, sure = (
        board for board, _ in zip(boards(session, State(target="sick", probe="ridge")), range(2), strict=False)
    )
    shown = json.loads(dict(first.panels())["leaderboard"].spec)
    (records,) = shown["datasets"].values()
    texts = [record["text"] for record in records]
    assert texts == [number(row.value) for row in first.rows if row.primary]
    assert "those of ridge are to come" in shown["title"]["subtitle"][1]
    assert "not defined" not in "".join(panel.spec for _, panel in first.panels())
    assert {ends for _, _, ends in measures(first.at(0.5, None, n_resamples=0))} == {"…"}
    (records,) = json.loads(dict(sure.panels())["leaderboard"].spec)["datasets"].values()
    assert all(" to " in record["text"] for record in records)
    assert all(" to " in ends for _, _, ends in measures(sure.at(0.5, None)))


def test_nothing_is_computed_for_a_question_that_is_stale(session):
    with pytest.raises(Stopped), stopping(lambda: True):
        next(boards(session, State(target="sick", seed=9)))


def test_figures_that_cannot_be_say_why(session):
    board = next(boards(session, State(target="sick", probe="ridge")))
    panels = dict(board.panels())
    assert "no subgroups" in panels["subgroup"].missing
    assert json.loads(panels["roc"].spec)["title"]["subtitle"]
    with pytest.raises(UsageError, match="--target nothing"):
        next(boards(session, State(target="nothing")))
    with pytest.raises(UsageError, match="store x"):
        session.chosen(State(stores=("x",)))
    with pytest.raises(UsageError, match="at least one"):
        Session([])


@pytest.mark.parametrize("labels", [1, 3])
def test_kept_sums_answer_as_ridge_does(tmp_path, labels):
    """More rows than features, so that sums are used; several labels of which some are missing have sums of their own."""
    table = samples()
    rng = np.random.default_rng(4)
    X = (rng.normal(size=(N, 7)) * 5 + 100).astype(np.float32)
    names = [f"label_{k}" for k in range(labels)]
    for k, name in enumerate(names):
        X[:, k] += 4 * (found := rng.integers(0, 2, N).astype(float))
        found[rng.random(N) < (0.1 if labels > 1 else 0)] = np.nan
        table[name] = found
    path = make_store(tmp_path / "s.zarr", X, table, labels=tuple(names), group="patient").path
    session, target = Session([path]), ",".join(names)
    for where in ("", "age > 40", "site = 'A'", "age > 42"):  # each next to what is known by then
        state = State(target=target, probe="ridge", where=where, n_folds=3)
        *_, last = boards(session, state)
        rows = medprobe.probe(path, target, probes=["ridge"], where=where or None, n_folds=3)
        assert [row.settings for row in last.results] == [row.settings for row in rows]
        assert [row.value for row in last.results] == pytest.approx([row.value for row in rows], abs=1e-9)


def test_sums_of_any_rows_are_those_of_the_rows():
    rng = np.random.default_rng(0)
    X, T = rng.normal(size=(300, 9)).astype(np.float32), indicators(rng.integers(0, 3, 300), 3)
    sums = RowSums(X, most=4)
    for _ in range(12):
        rows = np.sort(rng.choice(300, rng.integers(1, 301), replace=False))
        sums.moments(rows, T[rows])
        found, direct = sums.moments(rows, T[rows]), Moments.of(X[rows], T[rows])  # and again, of rows that are known
        for name in ("n", "x", "t", "xx", "xt"):
            np.testing.assert_allclose(getattr(found, name), getattr(direct, name), rtol=0, atol=1e-9)
    assert len(sums._known) <= 4


def test_sums_of_a_changed_question_read_the_changed_rows_alone(monkeypatch):
    rng = np.random.default_rng(0)
    X, T = rng.normal(size=(4000, 9)).astype(np.float32), indicators(rng.integers(0, 3, 4000), 3)
    sums, read = RowSums(X), []
    summed = RowSums._summed
    monkeypatch.setattr(RowSums, "_summed", lambda self, mask: read.append(int(mask.sum())) or summed(self, mask))
    train, val = np.arange(3000), np.arange(3000, 3600)
    sums.path(train, T[train])
    sums.moments(np.arange(3600), T[:3600])
    fewer = np.setdiff1d(np.arange(3600), np.arange(0, 3600, 100))
    for rows in (np.intersect1d(train, fewer), fewer):
        found, direct = sums.moments(rows, T[rows]), Moments.of(X[rows], T[rows])
        np.testing.assert_allclose(found.xx, direct.xx, rtol=0, atol=1e-9)
        np.testing.assert_allclose(found.xt, direct.xt, rtol=0, atol=1e-9)
    assert [n for n in read if n] == [3000, len(val), 30, 6]  # never what has not changed


def test_volumes_have_a_map_and_the_picture_of_their_middle_slice(tmp_path):
    store, *_ = store_of(tmp_path / "s.zarr", 40, shuffled=True)
    session = Session([store.path])
    pictures = Pictures(session, Images())
    state = State(target="label", probe="ridge", n_folds=2, projection="pca", region=(-50, 50, -50, 50))
    (name,) = session.stores
    *_, board = boards(session, state)
    assert pictures.places(name, state).shape == (40, 2)
    assert "40 samples" in pictures.map(name, state)
    inside = pictures.inside(name, state)
    assert inside.tolist() == list(range(40))
    entries = pictures.entries(board, inside)
    assert {entry.given for entry in entries} == {"no", "yes"}
    bags = session.stores[name]
    middle = bags.store.manifest.iloc[bags.middle(inside)]
    assert middle["volume"].tolist() == [entry.name for entry in entries]
    order = bags.store.manifest.groupby("volume")["slice"].agg(list)
    assert middle["slice"].tolist() == [order[v][len(order[v]) // 2] for v in middle["volume"]]


def test_of_very_many_tested_images_some_are_compared():
    y = np.arange(400) % 2
    split = fold_split(y, None, 4, 0)
    assert some_tested(split, 10**6, 0) == (split, "")
    some, words = some_tested(split, 30_000, 0)
    assert sum(len(part.fitted) * len(part.test) for part in some.parts) <= 30_000
    assert words == "100 of the 400 tested images, at random, were compared with all others"
    for part, whole in zip(some.parts, split.parts, strict=True):
        assert set(part.test) < set(whole.test)


def test_what_is_kept_is_made_once_and_the_oldest_goes():
    kept, made = Kept(2), []
    for key in ("a", "a", "b", "c", "a"):
        kept.get(key, lambda key=key: made.append(key) or key)
    assert made == ["a", "b", "c", "a"]
    with pytest.raises(ZeroDivisionError):
        kept.get("d", lambda: 1 // 0)
    assert kept.get("d", lambda: 1) == 1


def test_an_operating_point_is_that_of_thresholds():
    rng = np.random.default_rng(0)
    y, groups = rng.integers(0, 2, 300), np.arange(300) // 3
    score = np.clip(0.5 + 0.2 * (y - 0.5) + rng.normal(0, 0.2, 300), 0, 1)
    point = operating_point(y, score, groups, threshold=0.45, prevalence=0.07)
    assert (point.sensitivity.value, point.specificity.value) == sensitivity_specificity(y, score, threshold=0.45)
    assert point.ppv.value == pytest.approx(ppv(y, score, threshold=0.45, prevalence=0.07))
    assert point.npv.value == pytest.approx(npv(y, score, threshold=0.45, prevalence=0.07))
    assert point.table.sum(axis=1).tolist() == np.bincount(y).tolist()
    # The interval is close to the binomial one, of as many rows, as groups here say nothing about the outcome.
    width = 2 * 1.96 * np.sqrt(point.sensitivity.value * (1 - point.sensitivity.value) / y.sum())
    assert point.sensitivity.high - point.sensitivity.low == pytest.approx(width, rel=0.25)
    assert np.isnan(operating_point(y, score, n_resamples=0).npv.low)
    with pytest.raises(DataError, match="with and without"):
        operating_point(np.ones(5), np.ones(5))
    with pytest.raises(UsageError, match="prevalence"):
        operating_point(y, score, prevalence=1.5)


def test_the_outcome_is_one_class_or_the_known_rows_of_a_label():
    names = np.array(["a", "b", "c"])
    proba = np.random.default_rng(0).dirichlet(np.ones(3), size=(2, 4))
    held = Predictions(np.arange(4), np.arange(4), np.array([0, 1, 2, 1]), proba, "multiclass", names)
    assert outcome(held, "b").truth.tolist() == [0, 1, 0, 1]
    assert outcome(held).score.tolist() == proba[0, :, 2].tolist()
    labels = np.array([[1, 0, np.nan], [0, 1, 1], [0, 0, 0], [1, 1, np.nan]])
    several = dataclasses.replace(held, y=labels, task="multilabel")
    assert outcome(several, "c").truth.tolist() == [1, 0]
    with pytest.raises(UsageError, match="class z"):
        outcome(held, "z")


def test_values_are_quoted_in_conditions(tmp_path):
    store = Session([hostile(tmp_path)]).leading(State())
    column = targets(store)[0]
    for value in store.samples[column].unique():
        mask = Conditions(store.samples).where(condition(store, column, [value]))
        assert mask.tolist() == (store.samples[column] == value).tolist()
    assert joined("a OR b", "c") == "(a OR b) AND c"
    assert all(len(shown) <= 60 for shown in named([*store.samples.columns]).values())
