"""What a report takes from stores (maps, exclusions, columns, cards), the report as a PDF, and a store in a notebook."""

from __future__ import annotations

import json
import re
import sys
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import make_store
from test_report import HOSTILE, Page, check_harmless, results_of, values
from typer.testing import CliRunner

import medprobe
from medprobe.cli import app
from medprobe.errors import UsageError
from medprobe.probe.atlas import embedding_map
from medprobe.report import map_figure
from medprobe.report.map_figure import embedding
from medprobe.report.run import report
from medprobe.report.style import COLOURS, GREY, save
from medprobe.results import Results, write_results
from medprobe.store import FeatureStore, open_store
from medprobe.store_records import Failure
from medprobe.store_writer import write_block

N = 120


def drawn(path: Path, samples: pd.DataFrame | None = None, **fields: object) -> FeatureStore:
    """Return a store of two classes whose rows 3, 7 and 70 have no features."""
    rng = np.random.default_rng(0)
    label = np.arange(N) % 2
    X = (rng.normal(size=(N, 8)) + 3 * label[:, None]).astype(np.float32)
    if samples is None:
        samples = pd.DataFrame({
            "label": np.where(label, "sick", "well"),
            "patient": [f"p{i // 3:02d}" for i in range(N)],
            "age": np.where(np.arange(N) % 40, np.arange(N) / 2 + 20, np.nan),
            "site": [f"site {i % 9}" for i in range(N)],
        })  # fmt: skip
    how: dict = {"labels": ("label",), "group": "patient", "data": "toy", "encoder": "fake/alpha", **fields}
    store = make_store(path, X, samples, **how)
    for index, failures in ((0, [Failure(3, "read", "truncated"), Failure(7, "read", "truncated")]),
                            (1, [Failure(70, "encode", "features are not finite, in fp32 either")])):  # fmt: skip
        rows = store.plan.block(index)
        arrays = {name: store._array(name, rows).copy() for name in store.array_names}
        for failure in failures:
            arrays["features/cls"][failure.row - rows.start] = np.nan
        write_block(store, index, arrays, failures, {})
    return open_store(path)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    return drawn(tmp_path_factory.mktemp("stores") / "a.zarr")


@pytest.fixture(scope="module")
def results(store: FeatureStore) -> Results:
    return medprobe.probe(store, "label", probes=["ridge"], n_folds=3, n_resamples=50)


def test_a_map_shows_every_image_with_features_at_its_place(store):
    chart = embedding(store, "label")
    points = values(chart, "x", "y", "value")
    places = embedding_map(store)
    present = np.isfinite(places).all(axis=1)
    expected = {
        (float(x), float(y), label) for (x, y), label in zip(places[present], store.samples["label"], strict=True)
    }
    assert {(p["x"], p["y"], p["value"]) for p in points} == expected
    text = json.dumps(chart.to_dict())
    for words in ("117 images of 40 patients; 3 images without features", "First principal component", "view cls"):
        assert words in text


def test_values_are_told_apart_without_colours_and_the_rest_is_grey(store, monkeypatch):
    scale = embedding(store, "label").to_dict()["encoding"]
    assert scale["color"]["scale"]["range"] == list(COLOURS[:2])
    assert len(set(scale["shape"]["scale"]["range"])) == 2
    of_nine = embedding(store, "site").to_dict()["encoding"]["color"]["scale"]
    assert of_nine["domain"][-1] == "other values"
    assert (len(of_nine["domain"]), of_nine["range"][-1]) == (7, GREY)
    ages = embedding(store, "age").to_dict()["encoding"]["color"]["scale"]["domain"]
    assert len(ages) == 5  # quarters, and those without a value
    assert ages[-1] == "no value"
    monkeypatch.setattr(map_figure, "MOST_POINTS", 50)
    few = embedding(store, "label")
    assert len(values(few, "x", "y", "value")) <= 50
    assert "117 images of 40 patients; 50 of them drawn" in json.dumps(few.to_dict())
    with pytest.raises(UsageError, match="no column 'nothing'"):
        embedding(store, "nothing")


def test_a_report_with_its_store_tells_what_was_left_out_and_why(store, results, tmp_path):
    page = Page(report(results, tmp_path / "report.html", stores=[store], n_resamples=20).read_text())
    assert page.tables["Images without features, and why"][1:] == [
        ["fake/alpha", "read", "truncated", "2"],
        ["fake/alpha", "encode", "features are not finite, in fp32 either", "1"],
    ]
    assert page.tables["Stores: what went in"][1] == ["fake/alpha", "toy", "120", "3", "40", "patients", "117"]
    assert page.tables["Encoders"][1][0] == "fake/alpha"
    shown = " ".join(" ".join(page.texts).split())
    assert "label: well 60 and sick 60." in shown
    assert "age: median 49.75 (20.5 to 79.5); 3 images without a value." in shown
    assert "embedding map of fake/alpha by label".lower() in shown.lower()
    assert "patient:" not in shown  # who is in it is nobody's business


def test_without_a_store_of_the_results_nothing_is_told_of_one(store, results, tmp_path):
    alone = report(results, tmp_path / "a.html", n_resamples=20).read_text()
    other = drawn(tmp_path / "b.zarr", fingerprint="0" * 64)
    assert report(results, tmp_path / "b.html", stores=[other], n_resamples=20).read_text() == alone
    assert "Stores: what went in" not in alone


def test_hostile_columns_and_values_of_a_store_are_text(tmp_path):
    long, script = HOSTILE[-1], HOSTILE[0]
    samples = pd.DataFrame({
        "t": [HOSTILE[i % 6] for i in range(N)],
        "patient": [script] * N,
        HOSTILE[2].replace("/", ""): [long if i % 2 else script for i in range(N)],
    })  # fmt: skip
    hostile = drawn(
        tmp_path / "a.zarr", samples, labels=("t",), encoder="<b>fake</b>", data=script, fingerprint="h" * 64
    )
    rows = results_of(["a", "b"], encoders=["<b>fake</b>"])
    rows = Results([replace(row, fingerprint="h" * 64) for row in rows], {})
    text = report(rows, tmp_path / "report.html", stores=[hostile], n_resamples=20).read_text()
    page = Page(text)
    check_harmless(page, text)
    assert "embedding map of <b>fake</b> by t" in " ".join(page.texts).replace("Embedding", "embedding")
    assert max(map(len, page.texts)) < 3000
    assert report(rows, tmp_path / "report.pdf", stores=[hostile], n_resamples=20).read_bytes().startswith(b"%PDF")
    cell = Page(hostile._repr_html_())
    assert {tag for tag, _ in cell.elements} <= {"table", "caption", "tbody", "tr", "th", "td"}
    assert "<b>fake</b>, fp32" in cell.texts
    assert len(hostile._repr_html_()) < 3000


def streams(data: bytes) -> bytes:
    """Return what the streams of a PDF hold."""
    found = []
    for part in re.findall(rb"stream\r?\n(.*?)endstream", data, re.DOTALL):
        try:
            found.append(zlib.decompress(part.rstrip(b"\r\n")))
        except zlib.error:
            found.append(part)
    return b"\n".join(found)


def test_a_pdf_holds_the_figures_and_every_number(store, results, tmp_path):
    data = report(results, tmp_path / "report.pdf", stores=[store], n_resamples=20).read_bytes()
    held = streams(data)
    attached = json.loads(re.search(rb'^\{\n "rows".*?^\}', held, re.DOTALL | re.MULTILINE).group())
    assert attached["rows"][0]["value"] == results[0].value
    assert (data + held).count(
        b"/Figure"
    ) == 6  # six figures of predictions and the map, without a second encoder to differ
    assert not re.search(rb"/URI\b|/JavaScript\b|/Launch\b", data + held)


def test_without_typst_the_error_names_what_to_install(results, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "typst", None)
    with pytest.raises(UsageError, match=re.escape("pip install 'medprobe[report]'")):
        report(results, tmp_path / "report.pdf", n_resamples=20)
    assert not list(tmp_path.iterdir())


def test_the_command_takes_stores(store, results, tmp_path):
    write_results(results, tmp_path / "results")
    arguments = ["report", str(tmp_path / "results"), "-o", str(tmp_path / "report.md"), "--bootstrap", "20"]
    done = CliRunner().invoke(app, [*arguments, "--store", str(store.path)])
    assert done.exit_code == 0, done.stderr
    text = (tmp_path / "report.md").read_text()
    assert "Maps of the embeddings" in text
    assert "truncated" in text


def test_a_store_in_a_notebook_is_a_small_table(store, tmp_path):
    cell = Page(store._repr_html_())
    shown = " ".join(cell.texts)
    for words in (
        "FeatureStore a.zarr", "fake/alpha, fp32", "120", "cls (8) *", "label (label), patient (groups), age, site",
        "2 truncated, 1 features are not finite, in fp32 either",
    ):  # fmt: skip
        assert words in shown
    (store.path / "commits" / "1.json").rename(tmp_path / "1.json")
    try:
        assert "1 of 2 blocks are there" in open_store(store.path)._repr_html_()
    finally:
        (tmp_path / "1.json").rename(store.path / "commits" / "1.json")


def test_a_map_becomes_a_file(store, tmp_path):
    assert save(embedding(store, "age"), tmp_path / "map.svg").read_text().count("<path") > 100
