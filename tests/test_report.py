from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from conftest import make_store
from markdown_it import MarkdownIt
from scipy.stats import binomtest
from sklearn.calibration import calibration_curve
from sklearn.metrics import confusion_matrix, precision_recall_curve, roc_curve
from typer.testing import CliRunner

import medprobe
from medprobe.cli import app
from medprobe.errors import UsageError
from medprobe.predictions import Predictions
from medprobe.probe.bootstrap import group_weights
from medprobe.probe.compare import Comparison, compare
from medprobe.report import curves
from medprobe.report.build import build
from medprobe.report.content import Figure, Table
from medprobe.report.figures import differences, leaderboard, learning_curve, save, subgroup
from medprobe.report.html import to_html
from medprobe.report.prediction_figures import calibration, confusion, precision_recall, roc
from medprobe.report.run import report
from medprobe.report.summary import controls, leader_of, standing
from medprobe.report.words import interval, labels, number, p_value, plain, short
from medprobe.results import Results, Row, ranked, write_results

HOSTILE = [
    "<script>alert(1)</script>",
    '</script><img src="http://evil.example/x.png" onerror="alert(1)">',
    "<!-- --><style>@import url(http://evil.example)</style>",
    "=cmd|' /C calc'!A0",
    "\\input{/etc/passwd} $x$ ^_~%#&",
    "| a | b |\n\n[click](javascript:alert(1)) ![](http://evil.example) `x` **y** http://evil.example www.evil.example",
    "\u202ereversed\x00\x1b[31m",
    "x" * 10_000,
]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    """Two encoders, one of them better, with controls and subgroups; three labels, grades and few shots of the same images."""
    rng = np.random.default_rng(0)
    patient = np.repeat(np.arange(50), 4)
    X = rng.normal(size=(200, 8)).astype(np.float32)
    grade = np.clip(np.round(X[:, 0] + rng.normal(size=200) * 0.5 + 1), 0, 2).astype(int)
    samples = pd.DataFrame(
        {
            "sick": np.where(X[:, 0] + 0.8 * rng.normal(size=200) > 0, "yes", "no"),
            "grade": grade,
            "finding_a": (X[:, 1] + rng.normal(size=200) > 0).astype(float),
            "finding_b": np.where(rng.random(200) < 0.2, np.nan, X[:, 2] > 0.5),
            "sex": np.where(patient % 2, "f", "m"),
            "patient": [f"p{p:02d}" for p in patient],
        }
    )
    folder = tmp_path_factory.mktemp("stores")
    stores = [
        make_store(
            folder / f"{name}.zarr", (X + noise * rng.normal(size=X.shape)).astype(np.float32), samples,
            group="patient", encoder=f"fake/{name}", fingerprint=name[0] * 64, data="toy",
            appearance=rng.random((200, 4)),
        )
        for name, noise in (("alpha", 0.1), ("beta", 3.0))
    ]  # fmt: skip
    how = {"probes": ["logreg", "knn"], "n_folds": 3, "n_resamples": 200}
    parts = [
        medprobe.probe(stores, "sick", controls=True, control_cols=["sex"], subgroups=["sex"], **how),
        medprobe.probe(stores, "grade", **how),
        medprobe.probe(stores, "finding", **how),
        medprobe.probe(stores, "sick", test_size=0.4, probes=["prototype"], shots=(1, 5), n_resamples=200),
    ]
    results = Results([row for part in parts for row in part])
    for part in parts:
        results.predictions |= part.predictions
    return compare(results, n_resamples=200)


def of_target(found: Comparison, target: str) -> list[Row]:
    return [row for row in found.rows if row.target == target and not row.shots]


def values(chart: object, *keys: str) -> list[dict]:
    """Return the records of a chart that have these keys, wherever they stand in its specification."""
    records = []

    def look(part: object) -> None:
        if isinstance(part, dict):
            for item in part.values():
                look(item)
        elif isinstance(part, list | tuple):
            for item in part:
                look(item)
            if part and isinstance(part[0], dict) and set(keys) <= set(part[0]):
                records.extend(part)

    look({"spec": chart.to_dict()})
    unique = {json.dumps(record, sort_keys=True): record for record in records}
    return list(unique.values())


class Page(HTMLParser):
    """The elements of a page, the text that is shown, and the cells of its tables."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.numbers = ""
        self.tables: dict[str, list[list[str]]] = {}
        self._open: list[str] = []
        self._caption = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in {"meta", "link", "img"}:
            self._open.append(tag)
        if tag == "tr":
            self.tables.setdefault(self._caption, []).append([])
        if tag in {"td", "th"}:
            self.tables[self._caption][-1].append("")

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data):
        inside = self._open[-1] if self._open else ""
        if inside == "script":
            self.numbers += data
        elif inside != "style":
            self.texts.append(data)
        if inside == "caption":
            self._caption = data
        if inside in {"td", "th"}:
            self.tables[self._caption][-1][-1] += data


def table(page: Page, start: str) -> list[dict[str, str]]:
    rows = next(rows for caption, rows in page.tables.items() if caption.startswith(start))
    return [dict(zip(rows[0], row, strict=True)) for row in rows[1:]]


@pytest.fixture(scope="module")
def text(found: Comparison) -> str:
    return to_html(build(found, n_resamples=50))


@pytest.fixture(scope="module")
def page(text: str) -> Page:
    return Page(text)


def test_the_leaderboard_is_that_of_the_rows(found, page):
    for question, rows in ranked(row for row in found.rows if not row.shots).items():
        shown = table(page, f"Leaderboard: toy, {question.target}")
        assert [line["#"] for line in shown] == [str(place) for place in range(1, len(rows) + 1)]
        for line, row in zip(shown, rows, strict=True):
            assert line["95% interval"] == interval(row.ci_low, row.ci_high)
            assert line["encoder"] == row.encoder
            assert (line["images"], line["patients"]) == (str(row.n_images), str(row.n_groups))
            assert number(row.value) in line.values()
    assert len(page.tables["Leaderboard: toy, sick: AUROC on 3 folds"]) == 1 + 7


def test_differences_are_those_of_compare(found, page):
    shown = table(page, "Differences in pairs: toy, sick: AUROC on 3 folds")
    expected = [d for d in found.differences if d.question.target == "sick" and not d.first.shots]
    assert len(shown) == len(expected) == 5
    for line, d in zip(shown, expected, strict=True):
        assert line["difference"] == number(d.difference, signed=True)
        assert line["interval"] == interval(d.low, d.high, signed=True)
        assert (line["p"], line["p (Holm)"]) == (p_value(d.p_value), p_value(d.p_holm))
        assert line["p (DeLong)"] == p_value(d.p_delong)


def test_the_numbers_are_in_the_page_as_json(found, page):
    numbers = json.loads(page.numbers)
    assert numbers["rows"] == [row.to_dict() for row in found.rows]
    assert [d["p_holm"] for d in numbers["differences"]] == [d.p_holm for d in found.differences]
    assert [d["difference"] for d in numbers["differences"]] == [d.difference for d in found.differences]
    assert numbers["ranks"]["average"] == list(found.ranks.average)


def test_nothing_is_loaded_from_outside_and_nothing_runs(text, page):
    check_harmless(page, text)
    assert len(ElementTree.fromstring(text[text.index("<svg") : text.index("</svg>") + 6]).findall(".//*")) > 20
    assert text.count("<svg") == 3 * 6 + 1 + 1
    identifiers = re.findall(r'\bid="([^"]+)"', text)
    assert len(identifiers) == len(set(identifiers))


def check_harmless(page: Page, text: str) -> None:
    policy = [a["content"] for tag, a in page.elements if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy == ["default-src 'none'; style-src 'unsafe-inline'; img-src data:"]
    for tag, attributes in page.elements:
        assert tag not in {"link", "iframe", "object", "embed", "img", "base", "form", "foreignobject", "image", "use"}
        assert tag != "script" or attributes == {"type": "application/json", "id": "numbers"}
        for name, value in attributes.items():
            assert not name.startswith("on")
            assert name not in {"src", "srcset", "action", "data", "poster"}
            assert "href" not in name or (value or "").startswith("#")
            if name != "aria-label" and "url(" in (value or ""):
                assert re.fullmatch(r"url\(#[\w-]+\)", value)
    assert [tag for tag, _ in page.elements].count("script") == 1
    assert [tag for tag, _ in page.elements].count("style") == 1
    style = text[text.index("<style>") : text.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style
    assert "<" not in page.numbers


def test_the_summary_says_who_is_ahead_and_whether_a_control_does_as_well(found):
    rows = [row for row in of_target(found, "sick") if row.primary and not row.subgroup]
    board = next(iter(ranked(rows).values()))
    pairs = [d for d in found.differences if d.question == board[0].question]
    leader = leader_of(board, pairs)
    assert leader.encoder == "fake/alpha"
    assert leader is next(row for row in board if not row.is_control)
    said = " ".join(standing(board, pairs))
    assert f"AUROC {number(leader.value)} (95% interval {interval(leader.ci_low, leader.ci_high)})" in said
    rival = min(
        (d for d in pairs if d.second.encoder == "fake/beta"), key=lambda d: abs(d.difference)
    )  # the leader has the other probe, too, but that is no other encoder
    assert f"difference {number(rival.difference, signed=True)}" in said
    assert ("is more than chance would do" in said) == (rival.p_holm < 0.05)
    assert not any(verdict.alarm for verdict in controls(board, pairs))

    as_good = [replace(d, p_holm=0.4) if d.second.is_control else d for d in pairs]
    assert "Caution: control columns alone reaches" in " ".join(standing(board, as_good))
    ahead = [replace(d, first=d.second, second=d.first, p_holm=0.01) if d.second.is_control else d for d in pairs]
    assert "better than fake/alpha" in " ".join(standing(board, ahead))
    noise = [replace(d, p_holm=0.4) for d in pairs]
    assert "is inside the noise" in " ".join(standing(board, noise))
    assert "cannot be said" in " ".join(standing(board, []))
    assert "No control was run" in " ".join(standing([row for row in board if not row.is_control], []))
    leaky = [replace(row, value=leader.value) if row.encoder.endswith("shuffled labels") else row for row in board]
    assert "SOMETHING LEAKS" in " ".join(standing(leaky, pairs))


def test_roc_points_are_those_of_scikit_learn(found):
    rows = of_target(found, "sick")
    chart = roc(rows, found.rows.predictions, n_resamples=20)
    points = values(chart, "method", "place", "x", "y")
    best = leader_of(ranked(rows)[rows[0].question], [])
    held = found.rows.predictions[best.trial]
    false_positive, true_positive, _ = roc_curve(held.y, held.proba[0, :, 1])
    auroc = next(row for row in rows if row.trial == best.trial and row.metric == "auroc" and not row.subgroup)
    name = f"{best.encoder}, {best.probe}: {number(auroc.value)} ({interval(auroc.ci_low, auroc.ci_high)})"
    mine = [point for point in points if point["method"] == name]
    np.testing.assert_array_equal([point["x"] for point in mine], false_positive)
    np.testing.assert_array_equal([point["y"] for point in mine], true_positive)
    assert len({point["method"] for point in points}) == 5


def test_precision_recall_points_are_those_of_scikit_learn(found):
    rows = of_target(found, "grade")
    chart = precision_recall(rows, found.rows.predictions, n_resamples=20)
    best = leader_of(next(iter(ranked(rows).values())), [])
    held = found.rows.predictions[best.trial]
    precision, recall, _ = precision_recall_curve(held.y == 1, held.proba[0, :, 1], drop_intermediate=True)
    name = f"1 ({np.count_nonzero(held.y == 1)} of 200 images)"
    mine = [point for point in values(chart, "method", "place", "x", "y") if point["method"] == name]
    np.testing.assert_array_equal([point["x"] for point in mine], recall[::-1][1:])
    np.testing.assert_array_equal([point["y"] for point in mine], precision[::-1][1:])


@pytest.mark.parametrize("kind", ["roc", "precision_recall"])
def test_bands_are_quantiles_of_curves_of_whole_resampled_groups(kind):
    rng = np.random.default_rng(1)
    groups = np.repeat(np.arange(20), 3)
    truth = rng.integers(0, 2, 60)
    score = np.round(truth * 0.3 + rng.random(60), 1)  # with ties
    curve = getattr(curves, kind)(truth, score, groups, n_resamples=40, level=0.9, seed=3)
    expected = []
    for weights in group_weights(groups, 60, 40, np.random.default_rng(3)).astype(int):
        rows = np.repeat(np.arange(60), weights)
        if kind == "roc":
            x, y, _ = roc_curve(truth[rows], score[rows], drop_intermediate=False)
            # Just right of a vertical part of the curve is its upper end.
            expected.append([np.interp(min(at + 1e-9, 1), x, y) for at in curve.grid])
        else:
            precision, recall, _ = precision_recall_curve(truth[rows], score[rows])
            expected.append([precision[recall >= at - 1e-9][-1] for at in curve.grid])
    low, high = np.quantile(expected, [0.05, 0.95], axis=0)
    np.testing.assert_allclose(curve.low, low, atol=1e-6)
    np.testing.assert_allclose(curve.high, high, atol=1e-6)
    assert np.all(curve.low <= curve.high)


def test_the_confusion_matrix_is_that_of_scikit_learn(found):
    rows = of_target(found, "grade")
    best = leader_of(next(iter(ranked(rows).values())), [])
    held = found.rows.predictions[best.trial]
    expected = confusion_matrix(held.y, held.proba[0].argmax(axis=1))
    shown = values(confusion(rows, found.rows.predictions), "true", "predicted", "count", "share")
    counts = {(cell["true"], cell["predicted"]): cell["count"] for cell in shown}
    assert counts == {(str(j), str(k)): expected[j, k] for j in range(3) for k in range(3)}
    assert sum(cell["share"] for cell in shown if cell["true"] == "0") == pytest.approx(1)
    accuracy = next(row for row in rows if row.trial == best.trial and row.metric == "accuracy")
    assert np.trace(expected) / expected.sum() == pytest.approx(accuracy.value)


def test_calibration_bins_are_those_of_the_calibration_error(found):
    rows = of_target(found, "sick")
    best = leader_of(ranked(rows)[rows[0].question], [])
    held = found.rows.predictions[best.trial]
    shown = curves.reliability(held.y, held.proba[0, :, 1], held.groups)
    frequency, mean = calibration_curve(held.y, held.proba[0, :, 1], n_bins=15)
    np.testing.assert_allclose(shown.observed, frequency)
    np.testing.assert_allclose(shown.predicted, mean)
    error = np.sum(shown.count * np.abs(shown.observed - shown.predicted)) / shown.count.sum()
    ece = next(row for row in rows if row.trial == best.trial and row.metric == "ece" and not row.subgroup)
    assert error == pytest.approx(ece.value, abs=1e-6)
    assert np.all((shown.low <= shown.observed) & (shown.observed <= shown.high))
    drawn = values(calibration(rows, found.rows.predictions), "predicted", "observed", "count")
    assert {record["predicted"] for record in drawn} >= set(shown.predicted.tolist())


def test_reliability_intervals_know_of_groups():
    rng = np.random.default_rng(0)
    outcome, probability = rng.integers(0, 2, 400), np.full(400, 0.5)
    alone = curves.reliability(outcome, probability, np.arange(400))
    wilson = binomtest(int(outcome.sum()), 400).proportion_ci(method="wilson")
    assert (alone.low[0], alone.high[0]) == pytest.approx((wilson.low, wilson.high), abs=1e-3)
    copies = curves.reliability(np.repeat(outcome, 5), np.repeat(probability, 5), np.repeat(np.arange(400), 5))
    assert (copies.low[0], copies.high[0]) == pytest.approx((alone.low[0], alone.high[0]))
    all_sick = curves.reliability(np.ones(12), np.full(12, 0.97), np.repeat([0, 1, 2], 4))
    three = binomtest(3, 3).proportion_ci(method="wilson")
    assert (all_sick.low[0], all_sick.high[0]) == pytest.approx((three.low, 1.0))


def test_leaderboard_difference_subgroup_and_curve_figures_show_the_rows(found):
    rows = of_target(found, "sick")
    board = ranked(rows)[rows[0].question]
    shown = {record["method"]: record for record in values(leaderboard(rows), "method", "kind")}
    for name, row in zip(labels(board), board, strict=True):
        assert (shown[name]["value"], shown[name]["low"], shown[name]["high"]) == (row.value, row.ci_low, row.ci_high)
        assert (shown[name]["kind"] == "encoder") == (not row.is_control)
    pairs = [d for d in found.differences if d.question == board[0].question]
    forest = values(differences(pairs, leader_of(board, pairs)), "method", "p_holm")
    assert sorted(record["p_holm"] for record in forest) == sorted(d.p_holm for d in pairs)
    turned = [replace(d, first=d.second, second=d.first) for d in pairs]
    mirrored = values(differences(turned, leader_of(board, pairs)), "method", "p_holm")
    assert sorted(r["value"] for r in mirrored) == pytest.approx(sorted(-r["value"] for r in forest))
    parts = values(subgroup(rows), "subgroup", "method")
    assert {row.value for row in rows if row.subgroup and row.primary} >= {
        record["value"] for record in parts if record["subgroup"].startswith("sex = ")
    }
    assert {record["subgroup"] for record in parts} == {
        "all · 200 images of 50 patients", "sex = f · 100 images of 25 patients", "sex = m · 100 images of 25 patients",
    }  # fmt: skip
    few = [row for row in found.rows if row.shots]
    curve = values(learning_curve(few), "shots", "value")
    expected = {(row.shots, row.value) for row in few if row.primary}
    assert {(record["shots"], record["value"]) for record in curve} == expected


@pytest.mark.parametrize("target", ["sick", "grade", "finding"])
@pytest.mark.parametrize("figure", [roc, precision_recall, confusion, calibration])
def test_every_figure_of_predictions_becomes_svg_of_every_task(found, tmp_path, target, figure):
    chart = figure(of_target(found, target), found.rows.predictions)
    root = ElementTree.fromstring(save(chart, tmp_path / "figure.svg").read_text())
    shown = " ".join(root.itertext())
    assert "200 images of 50 patients" in shown
    assert f"toy, {target}" in shown
    assert len(list(root.iter("{http://www.w3.org/2000/svg}path"))) > 4


def test_every_figure_becomes_a_file_of_each_kind(found, tmp_path):
    chart = leaderboard(of_target(found, "sick"))
    starts = {".svg": b"<svg", ".png": b"\x89PNG", ".pdf": b"%PDF", ".html": b"<!DOCTYPE html>"}
    for suffix, start in starts.items():
        assert save(chart, tmp_path / f"figure{suffix}").read_bytes().startswith(start)
    assert "<script" not in (tmp_path / "figure.html").read_text()
    with pytest.raises(UsageError, match=r"\.svg, \.png, \.pdf, \.html"):
        save(chart, tmp_path / "figure.gif")


def test_what_cannot_be_drawn_is_missing_with_its_reason(found, tmp_path):
    rows = of_target(found, "sick")
    for figure in (roc, precision_recall, confusion, calibration):
        with pytest.raises(UsageError, match="no predictions stand beside these rows"):
            figure(rows, {})
    with pytest.raises(UsageError, match="no differences in pairs"):
        differences([], rows[0])
    with pytest.raises(UsageError, match="--shots"):
        learning_curve(rows)
    with pytest.raises(UsageError, match="--subgroup"):
        subgroup(of_target(found, "grade"))
    write_results([row for row in rows if not row.subgroup], tmp_path)  # rows alone, without predictions
    text = report([tmp_path], tmp_path / "report.html").read_text()
    assert "Missing figure, ROC curves: no predictions stand beside these rows" in text
    assert "Missing figure, differences in pairs" in text
    assert "cannot be said" in text
    with pytest.raises(UsageError, match="a report needs a row"):
        report(Results([row for row in rows if not row.primary]), tmp_path / "none.html")


def test_many_classes_have_no_confusion_matrix_and_six_curves(tmp_path):
    results = results_of(classes=[f"c{k}" for k in range(25)])
    with pytest.raises(UsageError, match="a confusion matrix of 25 classes cannot be read"):
        confusion(results, results.predictions)
    chart = roc(results, results.predictions, n_resamples=10)
    assert len({point["method"] for point in values(chart, "method", "place")}) == 6
    assert "(6 of 25 classes)" in json.dumps(chart.to_dict())


def results_of(classes: Sequence[str], *, encoders: Sequence[str] = ("fake/a", "fake/b"), **fields: object) -> Results:
    """Return two rows and their predictions, with names of any kind."""
    rng = np.random.default_rng(0)
    n, k = 300, len(classes)
    y = np.arange(n) % k
    results = Results()
    task = "binary" if k == 2 else "multiclass"
    metric = "auroc" if k == 2 else "balanced_accuracy"
    for encoder in encoders:
        row = Row(
            encoder=encoder, view="cls", probe="logreg", target="t", task=task, metric=metric, value=0.8, ci_low=0.7,
            ci_high=0.9, ci_level=0.95, primary=True, split="5 folds", n_images=n, n_groups=100, group="patient",
            n_train=240, n_failed=2, settings=[{"C": 1.0}], seconds=1.0, seed=0, fingerprint=encoder[:64],
            medprobe="0.1.0",
        )  # fmt: skip
        row = replace(row, **fields)
        proba = rng.random((n, k)) + (y[:, None] == np.arange(k))
        proba /= proba.sum(axis=1, keepdims=True)
        names = np.array([f"s{i}" for i in range(n)])
        results.append(row)
        results.predictions[row.trial] = Predictions(names, np.arange(n) // 3, y, proba[None], task, np.array(classes))
    return results


@pytest.fixture(scope="module", params=range(0, len(HOSTILE), 2))
def hostile(request: pytest.FixtureRequest) -> Results:
    """Results in which every name that a user can choose is an attack, each another one."""
    names = [HOSTILE[(request.param + i) % len(HOSTILE)] for i in range(len(HOSTILE))]
    fields = {
        "target": names[0], "view": names[1], "probe": names[2], "data": names[3], "split": names[4], "notes": (names[5],),
        "settings": [{"C": 1.0, names[6]: names[7]}], "group": names[5],
    }  # fmt: skip
    encoders = [names[6], names[7], f"control: {names[0]}"]
    results = results_of([names[0], f"{names[1]} no", names[2]], encoders=encoders, **fields)
    part = replace(results[0], subgroup=f"{names[3]} = {names[4]}")
    few = [replace(row, shots=5, split=f"{names[1]} 5 shots") for row in results]
    more = Results([*results, part, *few], results.predictions)
    more.predictions |= {row.trial: results.predictions[old.trial] for row, old in zip(few, results, strict=False)}
    return more


def test_hostile_names_are_text_in_html(hostile):
    text = to_html(build(compare(hostile, n_resamples=20), n_resamples=20))
    page = Page(text)
    check_harmless(page, text)
    row = hostile[0]
    shown = " ".join(page.texts)
    names = (short(row.target), short(row.encoder, 48), short(hostile[1].encoder, 48), short(row.view, 40))
    for name in (*names, short(row.probe, 24), short(row.data, 40), short(row.split)):
        assert name in shown
    assert max(map(len, page.texts)) < 3000
    assert json.loads(page.numbers)["rows"][0]["target"] == row.target


def test_hostile_names_are_text_in_markdown(hostile, tmp_path):
    path = report(hostile, tmp_path / "report.md", n_resamples=20)
    page = Page(MarkdownIt("commonmark", {"html": True}).enable("table").render(path.read_text()))
    allowed = {"h1", "h2", "h3", "p", "ul", "li", "table", "thead", "tbody", "tr", "th", "td", "strong", "em", "img"}
    assert {tag for tag, _ in page.elements} <= allowed
    images = [attributes["src"] for tag, attributes in page.elements if tag == "img"]
    assert images
    assert all(re.fullmatch(r"report_figures/figure\d+\.svg", source) for source in images)
    assert short(hostile[0].encoder, 48) in " ".join(page.texts)
    assert "://" not in path.read_text()
    assert max(map(len, path.read_text().splitlines())) < 4000


def test_hostile_names_are_text_in_latex(hostile, tmp_path):
    text = report(hostile, tmp_path / "report.tex", n_resamples=20).read_text()
    commands = set(re.findall(r"\\([a-zA-Z]+)", text.partition("\n")[2]))
    assert commands <= {
        "begin", "end", "caption", "toprule", "midrule", "bottomrule", "textbackslash", "textasciicircum",
        "textasciitilde", "textless", "textgreater", "textbar", "textquotedbl", "textasciigrave", "textquotesingle",
        "ldots",
    }  # fmt: skip
    for line in text.splitlines()[1:]:
        bare = re.sub(r"\\[\\{}$&#_%]|\\[a-z]+\{\}|\$-\$", "", line)
        assert not set("$#%^~_") & set(bare)
    columns = [line.count("&") - line.count("\\&") for line in text.splitlines() if line.endswith("\\\\")]
    assert set(columns) <= {8, 3}


def test_names_are_shortened_and_cleaned():
    assert short("a" * 30 + "b" * 30 + "c" * 30, 31) == "a" * 20 + "…" + "c" * 10
    assert plain("a\nb\x00\u202ec\ud800") == "a b\ufffd\ufffdc\ufffd"
    rows = [replace(results_of(["a", "b"])[0], encoder="e" * 5000 + str(i) + "e" * 5000) for i in range(3)]
    assert len(set(labels(rows))) == 3


@pytest.mark.parametrize(
    ("suffix", "file_format", "start"),
    [
        (".html", None, "<!DOCTYPE html>"),
        (".md", None, "# medprobe report: sick"),
        (".tex", None, "% \\usepackage{booktabs"),
        (".json", None, "{"),
        (".txt", "json", "{"),
    ],
)
def test_the_command_writes_every_format(found, tmp_path, suffix, file_format, start):
    rows = [row for row in of_target(found, "sick") if row.primary]
    write_results(Results(rows, {row.trial: found.rows.predictions[row.trial] for row in rows}), tmp_path / "results")
    out = tmp_path / f"report{suffix}"
    arguments = ["report", str(tmp_path / "results"), "-o", str(out), "--bootstrap", "20"]
    done = CliRunner().invoke(app, arguments + (["--format", file_format] if file_format else []))
    assert done.exit_code == 0, done.stderr
    assert str(out) in done.stderr
    text = out.read_text(encoding="utf-8")
    assert text.startswith(start)
    leader = ranked(rows)[rows[0].question][0]
    assert (str(leader.value) if suffix in {".json", ".txt"} else number(leader.value)) in text
    if suffix == ".md":
        assert len(list((tmp_path / "report_figures").glob("figure*.svg"))) == 7
    assert not list(tmp_path.glob("*.draft"))


def test_against_names_the_encoder_that_others_are_compared_with(found, tmp_path):
    rows = Results([row for row in of_target(found, "sick") if row.primary], found.rows.predictions)
    text = report(rows, tmp_path / "report.html", against="fake/beta", n_resamples=20).read_text()
    assert "Compared with all others: fake/beta" in text
    assert "Best: fake/alpha" in text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-o", "report.pdf", "--map", "tsne"], "--map tsne: one of pca, umap"),
        (["-o", "report.docx"], "--format takes one of html, md, pdf, latex-table, json"),
        (["-o", "report.html", "--format", "rtf"], "--format rtf"),
        (["-o", "report.html", "--against", "nobody"], "--against nobody"),
    ],
)
def test_mistakes_get_one_line_that_says_what_to_do(found, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    write_results([row for row in of_target(found, "sick") if row.primary], tmp_path / "results")
    done = CliRunner().invoke(app, ["report", "results", *arguments])
    assert done.exit_code == 2
    assert words in done.stderr
    assert not list(tmp_path.glob("report*"))


@pytest.mark.parametrize("package", ["altair", "vl_convert"])
def test_without_altair_the_error_names_what_to_install(found, tmp_path, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    rows = Results([row for row in of_target(found, "sick") if row.primary])
    with pytest.raises(UsageError, match=re.escape("pip install 'medprobe[report]'")):
        report(rows, tmp_path / "report.html", n_resamples=20)
    with pytest.raises(UsageError, match=re.escape("pip install 'medprobe[report]'")):
        leaderboard(rows)
    assert json.loads(report(rows, tmp_path / "report.json", n_resamples=20).read_text())["rows"]
    assert report(rows, tmp_path / "report.tex", n_resamples=20).read_text().count("\\toprule") == 1


def test_the_methods_cite_what_was_used_in_the_order_of_the_text(found):
    contents = build(found, figures=False)
    section = next(section for section in contents.sections if section.title == "Methods")
    said = " ".join(block.text for block in section.blocks[:-1])
    references = section.blocks[-1].items
    marks = list(dict.fromkeys(re.findall(r"\[(\d+)\]", said)))
    assert marks == [str(place) for place in range(1, len(references) + 1)]
    for author in ("Efron", "DeLong", "Holm", "Nocedal", "Collins", "Tejani", "Demšar"):
        assert sum(author in reference for reference in references) == 1
    assert "Hoerl" not in " ".join(references)  # no ridge probe was run
    assert not any("http" in reference for reference in references)


def test_the_data_section_counts_classes_and_patients(found):
    contents = build(found, figures=False)
    data = next(section for section in contents.sections if section.title == "Data")
    classes = [block for block in data.blocks if isinstance(block, Table)]
    held = next(p for p in found.rows.predictions.values() if p.task == "multiclass")
    counted = next(table for table in classes if table.caption.startswith("grade"))
    for k, line in enumerate(counted.rows):
        rows = held.y == k
        assert line[1] == str(np.count_nonzero(rows))
        assert line[3] == str(len(np.unique(held.groups[rows])))
    assert not any(isinstance(block, Figure) for section in contents.sections for block in section.blocks)
