"""Differences in pairs and ranks over tasks."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from conftest import make_store
from scipy import stats
from sklearn.metrics import roc_auc_score
from typer.testing import CliRunner

import medprobe
from medprobe.cli import app
from medprobe.errors import DataError, UsageError
from medprobe.leaderboard import print_comparison
from medprobe.predictions import Predictions, read_predictions
from medprobe.probe.bootstrap import delong, holm, paired_difference
from medprobe.probe.compare import critical_difference
from medprobe.probe.metrics import Scorer
from medprobe.results import Results, read_results, write_results

N = 240


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> list[medprobe.FeatureStore]:
    """Three encoders of falling quality; the third lacks some samples and holds the others in another order."""
    folder = tmp_path_factory.mktemp("stores")
    rng = np.random.default_rng(0)
    label = (rng.random(N // 3) < 0.5).astype(int).repeat(3)
    samples = pd.DataFrame(
        {
            "id": [f"s{i:05d}" for i in range(N)],
            "label": label,
            "patient": np.arange(N) // 3,
            "split": np.where(np.arange(N) < 120, "train", "test"),
        }
    )
    made = []
    for name, strength in (("good", 2.0), ("fair", 1.2), ("poor", 0.1)):
        X = rng.normal(size=(N, 6)).astype(np.float32)
        X[:, 0] += strength * label
        order = rng.permutation(N)[10:] if name == "poor" else np.arange(N)
        options = {"labels": ("label",), "group": "patient", "split": "split", "data": "toy"}
        of_name = {"encoder": f"fake/{name}", "fingerprint": name}
        made.append(
            make_store(
                folder / f"{name}.zarr", X[order], samples.iloc[order].reset_index(drop=True), **options, **of_name
            )
        )
    return made


@pytest.fixture(scope="module")
def results(stores: list[medprobe.FeatureStore]) -> Results:
    return medprobe.probe(stores, probes=["ridge"], controls=True, n_resamples=200)


def test_differences_are_paired_on_the_same_images_and_corrected(results):
    found = medprobe.compare(results, n_resamples=500)
    by_second = {d.second.encoder: d for d in found.differences}
    assert set(by_second) == {"fake/fair", "fake/poor", "control: size and brightness"}  # no shuffled labels
    assert {d.first.encoder for d in found.differences} == {"fake/good"}
    kept = {row.encoder: results.predictions[row.trial] for row in results if row.primary}
    common = sorted(set(kept["fake/good"].ids) & set(kept["fake/poor"].ids))
    assert 100 < len(common) < 120
    d = by_second["fake/poor"]
    assert (d.n_images, d.n_groups) == (len(common), 40)

    def of(name):
        place = {i: k for k, i in enumerate(kept[name].ids)}
        rows = [place[i] for i in common]
        return kept[name].y[rows], kept[name].proba[0, rows], kept[name].groups[rows]

    (y, good, groups), (_, poor, _) = of("fake/good"), of("fake/poor")
    assert d.difference == pytest.approx(roc_auc_score(y, good[:, 1]) - roc_auc_score(y, poor[:, 1]), abs=1e-12)
    assert d.p_delong == delong(y, good[:, 1], poor[:, 1]).p_value
    one = paired_difference(Scorer("binary", y, good), Scorer("binary", y, poor), "auroc", groups, 500)
    assert (d.low, d.high, d.p_value) == (one.low, one.high, one.p_value)
    assert d.p_value < 0.01
    assert [x.p_holm for x in found.differences] == holm([x.p_value for x in found.differences]).tolist()
    assert found.ranks is None  # one question only


def test_the_order_of_the_groups_of_another_store_does_not_matter(results):
    """Group numbers are counted within a trial: those of one of them serve for all."""
    shifted = Results(results, results.predictions)
    for row in results:
        if row.encoder == "fake/fair":
            own = results.predictions[row.trial]
            shifted.predictions[row.trial] = replace(own, groups=own.groups[::-1].max() - own.groups)
    before, after = (medprobe.compare(r, n_resamples=200).differences for r in (results, shifted))
    assert [(d.low, d.p_value) for d in before] == [(d.low, d.p_value) for d in after]


def test_another_encoder_or_every_pair_may_be_asked_for(results):
    fair = medprobe.compare(results, against="fake/fair", n_resamples=100).differences
    assert all("fake/fair" in (d.first.encoder, d.second.encoder) for d in fair)
    assert all(d.difference >= 0 for d in fair)
    every = medprobe.compare(results, every_pair=True, n_resamples=100).differences
    n = len(fair) + 1
    assert len(every) == n * (n - 1) // 2
    with pytest.raises(UsageError, match=r"--against fake/none.*fake/fair"):
        medprobe.compare(results, against="fake/none")


def test_predictions_are_kept_beside_the_rows_and_read_back(results, tmp_path):
    write_results(results, tmp_path)
    found = read_results([tmp_path])
    assert found == list(results)
    assert found.predictions.keys() == results.predictions.keys()
    for trial, own in results.predictions.items():
        again = found.predictions[trial]
        np.testing.assert_array_equal(again.ids, own.ids)
        np.testing.assert_array_equal(again.y, own.y)
        np.testing.assert_allclose(again.proba, own.proba, atol=1e-7)
    assert len(medprobe.compare(tmp_path, n_resamples=50).differences) == len(
        medprobe.compare(results, n_resamples=50).differences
    )


def test_damaged_predictions_are_named(results, tmp_path):
    own = next(iter(results.predictions.values()))
    path = tmp_path / "p.npz"
    own.write(path)
    whole = path.read_bytes()
    for size in (0, 10, len(whole) // 2, len(whole) - 5):
        path.write_bytes(whole[:size])
        with pytest.raises(DataError, match=r"p\.npz: damaged predictions"):
            read_predictions(path)
    np.savez(path, ids=np.array([object()], dtype=object))
    with pytest.raises(DataError, match="damaged predictions"):
        read_predictions(path)
    short = Predictions(own.ids[:-1], own.groups, own.y, own.proba, own.task, own.classes)
    short.write(path)
    with pytest.raises(DataError, match="damaged predictions"):
        read_predictions(path)


def test_the_command_prints_what_is_told_apart(results, tmp_path):
    write_results(results, tmp_path)
    runner = CliRunner()
    said = runner.invoke(app, ["compare", str(tmp_path), "--bootstrap", "200"])
    assert said.exit_code == 0, said.output
    assert "differences on the same images" in said.stdout
    assert "DeLong takes every image as a patient" in said.stdout
    read = json.loads(runner.invoke(app, ["compare", str(tmp_path), "--json", "--bootstrap", "50"]).stdout)
    assert {"rows", "differences", "ranks"} == read.keys()
    assert read["differences"][0]["question"]["data"] == "toy"
    assert read["differences"][0]["first"]["encoder"] == "fake/good"


def of_tasks(results: Results, values: dict[str, list[float]], metric: str = "auroc") -> list:
    row = next(r for r in results if r.primary and r.encoder == "fake/good")
    n_tasks = len(next(iter(values.values())))
    return [
        replace(row, encoder=name, target=f"task{i}", value=by_task[i], metric=metric)
        for name, by_task in values.items()
        for i in range(n_tasks)
    ]


def test_critical_differences_are_those_of_demsar(results):
    """The worked example of Demsar (JMLR 2006, tables 6 and section 3.2.2): 4 classifiers on 14 data sets."""
    values = {
        "C4.5": [.763, .599, .954, .628, .882, .936, .661, .583, .775, 1.0, .940, .619, .972, .957],
        "C4.5+m": [.768, .591, .971, .661, .888, .931, .668, .583, .838, 1.0, .962, .666, .981, .978],
        "C4.5+cf": [.771, .590, .968, .654, .886, .916, .609, .563, .866, 1.0, .965, .614, .9751, .946],
        "C4.5+m+cf": [.798, .569, .967, .657, .898, .931, .685, .625, .875, 1.0, .962, .669, .975, .970],
    }  # fmt: skip
    ranks = critical_difference(of_tasks(results, values))
    average = {method[0]: rank for method, rank in zip(ranks.methods, ranks.average, strict=True)}
    assert average == pytest.approx({"C4.5": 3.143, "C4.5+m": 2.0, "C4.5+cf": 2.893, "C4.5+m+cf": 1.964}, abs=0.001)
    assert ranks.critical_difference == pytest.approx(2.569 * np.sqrt(4 * 5 / (6 * 14)), abs=0.002)
    assert ranks.methods[0][0] == "C4.5+m+cf"
    assert ranks.p_value == pytest.approx(stats.friedmanchisquare(*values.values()).pvalue)
    assert ranks.cliques == ((0, 3),)
    assert len(ranks.tasks) == 14


def test_other_splits_and_budgets_of_a_task_are_no_further_tasks(results):
    rows = of_tasks(results, {"a": [0.9, 0.8, 0.7], "b": [0.8, 0.9, 0.6]})
    again = [replace(row, split="leave out site", value=1 - row.value) for row in rows]
    few = [replace(row, split="5 shots", shots=5, target=f"{row.target} of few") for row in rows]
    ranks = critical_difference(rows + again + few)
    assert ranks == critical_difference(rows)
    assert [task.target for task in ranks.tasks] == ["task0", "task1", "task2"]


def test_shuffled_labels_are_no_rival_even_if_the_tested_ones_stayed(results):
    kept = Results(results, results.predictions)
    truth = next(kept.predictions[row.trial] for row in results if row.encoder == "fake/good")
    for row in results:
        if row.encoder == "control: shuffled labels":
            kept.predictions[row.trial] = truth
    found = medprobe.compare(kept, n_resamples=50).differences
    assert "control: shuffled labels" not in {d.second.encoder for d in found}


def test_ranks_need_several_tasks_and_know_which_way_is_better(results, capsys):
    clear = {f"e{k}": [0.9 - 0.1 * k + 0.001 * i for i in range(40)] for k in range(5)}
    ranks = critical_difference(of_tasks(results, clear))
    assert [m[0] for m in ranks.methods] == [f"e{k}" for k in range(5)]
    assert ranks.cliques == ()  # a critical difference below one rank
    lower = critical_difference(of_tasks(results, clear, metric="brier"))
    assert [m[0] for m in lower.methods] == [f"e{k}" for k in reversed(range(5))]
    rows = of_tasks(results, clear)
    assert critical_difference([r for r in rows if r.target == "task0"]) is None
    holes = [r for r in rows if (r.encoder, r.target) != ("e0", "task3")]
    assert "e0" not in {m[0] for m in critical_difference(holes).methods}
    two = critical_difference([r for r in rows if r.encoder in {"e0", "e1"}])
    assert np.isnan(two.p_value)
    print_comparison([], ranks)
    assert "critical difference" in capsys.readouterr().out
