"""Likely label errors against the paper's formula and against planted ones; near-duplicates across a split; the verb."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import make_store
from typer.testing import CliRunner

import medprobe
from medprobe.cli import app
from medprobe.errors import UsageError
from medprobe.probe.label_errors import likely_label_errors
from medprobe.store import DIGEST_ARRAY, FeatureStore, open_store
from medprobe.store_writer import write_block

N_PATIENTS, EACH, CLASSES = 100, 3, ("benign", "malignant", "unsure")


def paper(P: np.ndarray, y: np.ndarray) -> list[tuple[int, int, int, float]]:
    """Northcutt et al. (2021), section 3.1, row by row: off-diagonal rows of the confident joint, by normalised margin."""
    n, K = P.shape
    thresholds = [
        sum(P[i, k] for i in range(n) if y[i] == k) / sum(y == k) if (y == k).any() else None for k in range(K)
    ]
    found = []
    for i in range(n):
        confident = [k for k in range(K) if thresholds[k] is not None and P[i, k] >= thresholds[k]]
        if not confident:
            continue
        true = max(confident, key=lambda k: P[i, k])
        if true != y[i]:
            margin = P[i, y[i]] - max(P[i, k] for k in range(K) if k != y[i])
            found.append((i, int(y[i]), true, (1 - margin) / 2))
    return sorted(found, key=lambda row: -row[3])


@pytest.mark.parametrize("n_classes", [2, 3, 7])
def test_rows_are_those_of_the_papers_formula(n_classes):
    rng = np.random.default_rng(n_classes)
    y = rng.integers(0, n_classes - (n_classes > 2), 400)  # the last of several classes is nobody's label
    P = rng.dirichlet(np.ones(n_classes), 400)
    P[np.arange(400), y] += 0.4
    P /= P.sum(axis=1, keepdims=True)
    found = likely_label_errors(P, y)
    expected = paper(P, y)
    assert len(expected) > 10
    assert list(found.columns) == ["row", "given", "suggested", "confidence"]
    assert found[["row", "given", "suggested"]].to_numpy().tolist() == [list(row[:3]) for row in expected]
    np.testing.assert_allclose(found["confidence"], [row[3] for row in expected], rtol=1e-12)
    assert np.all(np.diff(found["confidence"]) <= 0)
    assert found["confidence"].between(0, 1).all()


def test_a_patient_of_many_images_weighs_like_any_other():
    rng = np.random.default_rng(0)
    y, P = rng.integers(0, 2, 60), rng.dirichlet([1, 1], 60)
    groups = np.arange(60)
    alone = likely_label_errors(P, y)
    pd.testing.assert_frame_equal(likely_label_errors(P, y, groups), alone)
    often = np.concatenate([np.arange(60), np.full(500, int(alone["row"][0]))])
    copied = likely_label_errors(P[often], y[often], groups[often])
    pd.testing.assert_frame_equal(copied[copied["row"] < 60].reset_index(drop=True), alone)
    assert len(likely_label_errors(P[often], y[often]).query("row < 60")) != len(alone)


def test_what_is_no_probability_or_label_is_refused():
    P = np.full((3, 2), 0.5)
    for probabilities, labels, groups, words in [
        (P, [0, 1], None, "shape"),
        (P[0], [0, 1, 1], None, "shape"),
        (P, [0, 1, 2], None, "codes from 0 to 1"),
        (P, [0, 1, 0.5], None, "codes"),
        (np.where([[True, False]], np.nan, P), [0, 1, 0], None, "NaN"),
        (P, [0, 1, 0], [1, 2], "groups"),
    ]:
        with pytest.raises(ValueError, match=words):
            likely_label_errors(probabilities, labels, groups)
    assert likely_label_errors(np.zeros((0, 2)), []).empty


def drawn(path: Path, split: str | None = None) -> tuple[FeatureStore, np.ndarray]:
    """Return a store of three classes, a twelfth of whose labels are wrong, and which these are."""
    rng = np.random.default_rng(0)
    n = N_PATIENTS * EACH
    true = rng.integers(0, 3, N_PATIENTS).repeat(EACH)
    X = (4 * np.eye(3, 12)[true] + rng.normal(size=(n, 12))).astype(np.float32)
    wrong = rng.random(n) < 1 / 12
    given = np.where(wrong, (true + rng.integers(1, 3, n)) % 3, true)
    X[7], X[250] = X[30] + 1e-4, X[90]  # near-duplicates, of other patients
    given[[7, 250]], wrong[[7, 250]] = given[[30, 90]], wrong[[30, 90]]
    samples = pd.DataFrame({
        "label": np.array(CLASSES)[given],
        "patient": [f"p{i:03d}" for i in np.arange(N_PATIENTS).repeat(EACH)],
        "benign": (given == 0).astype(float),
        "malignant": np.where(np.arange(n) % 10, given == 1, np.nan).astype(float),
        "split": np.where(np.arange(n) < 180, "train", "test"),
    })  # fmt: skip
    return make_store(path, X, samples, labels=("label",), group="patient", split=split), wrong


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    return drawn(tmp_path_factory.mktemp("stores") / "a.zarr")[0]


def test_planted_errors_are_found(tmp_path):
    store, wrong = drawn(tmp_path / "a.zarr")
    found = medprobe.suspects(store)
    rows = np.array([int(name[1:]) for name in found.labels["id"]])
    assert found.n_images == len(wrong)
    assert wrong[rows].mean() > 0.9  # of those that are named
    assert np.isin(np.flatnonzero(wrong), rows).mean() > 0.5  # of those that there are: thresholds are means
    true = store.manifest["label"].to_numpy()
    assert list(found.labels["given"]) == list(true[rows])
    assert set(found.labels["target"]) == {"label"}
    assert "logreg" in found.how


def test_no_image_is_judged_by_a_probe_that_saw_its_patient(store, monkeypatch):
    from medprobe.probe import suspects as module

    seen = []
    fit = module.fit_part

    def watched(family, views, question, part, *rest):
        groups = question.groups
        assert not set(groups[part.fitted]) & set(groups[part.test])
        seen.extend(part.test.tolist())
        return fit(family, views, question, part, *rest)

    monkeypatch.setattr(module, "fit_part", watched)
    medprobe.suspects(store, probe="ridge")
    assert sorted(seen) == list(range(N_PATIENTS * EACH))


def test_of_several_labels_each_is_doubted_by_itself(store):
    found = medprobe.suspects(store, "benign,malignant", probe="ridge").labels
    assert set(found["target"]) == {"benign", "malignant"}
    given = store.manifest.set_index("id")
    for row in found.itertuples():
        assert row.given == str(int(given.loc[row.id, row.target]))
        assert row.suggested == {"0": "1", "1": "0"}[row.given]


def test_pairs_are_of_two_sides_of_the_split_and_named_once(tmp_path, store):
    pairs = medprobe.suspects(store, probe="prototype").duplicates
    assert {frozenset(pair) for pair in pairs[["tested", "trained"]].to_numpy().tolist()} <= {
        frozenset(("s00007", "s00030")), frozenset(("s00250", "s00090")),
    }  # fmt: skip
    assert len(pairs) == len({frozenset(pair) for pair in pairs[["tested", "trained"]].to_numpy().tolist()})
    given = drawn(tmp_path / "b.zarr", split="split")[0]
    rows = given.plan.block(0)
    arrays = {name: given._array(name, rows).copy() for name in given.array_names}
    found = medprobe.suspects(given, probe="prototype")
    assert found.split == "split"
    assert found.duplicates[["tested", "trained", "same_file"]].to_numpy().tolist() == [["s00250", "s00090", False]]
    for index in (1, 3):  # rows 90 and 250: one file under two names, which a probe would refuse
        rows = given.plan.block(index)
        arrays = {name: given._array(name, rows).copy() for name in given.array_names}
        arrays[DIGEST_ARRAY][(90 if index == 1 else 250) - rows.start] = 9
        write_block(given, index, arrays, (), {})
    found = medprobe.suspects(open_store(given.path), probe="prototype")
    assert found.duplicates["same_file"].tolist() == [True]


def test_the_verb_prints_keeps_and_tells_machines(store, tmp_path):
    command = ["suspects", str(store.path), "-t", "label", "-p", "ridge"]
    done = CliRunner().invoke(app, [*command, "--most", "2", "-o", str(tmp_path / "out")])
    assert done.exit_code == 0, done.stderr
    kept = pd.read_csv(tmp_path / "out" / "label_errors.csv")
    assert f"{len(kept)} of 300 images: labels that are likely wrong" in " ".join(done.stdout.split())
    assert f"... and {len(kept) - 2} more" in done.stdout
    assert (tmp_path / "out" / "near_duplicates.csv").exists()
    told = json.loads(CliRunner().invoke(app, [*command, "--json"]).stdout)
    assert [row["id"] for row in told["labels"]] == list(kept["id"])
    assert CliRunner().invoke(app, [*command[:-1], "attentive"]).exit_code == 2


def test_mistakes_name_what_to_do(store):
    with pytest.raises(UsageError, match="attentive"):
        medprobe.suspects(store, probe="attentive")
    with pytest.raises(UsageError, match="--group nobody"):
        medprobe.suspects(store, group="nobody")
