"""Bags of rows, pooled as they are read: against numpy by hand, and through probes, saved and applied."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from conftest import make_store
from numpy.testing import assert_allclose, assert_array_equal

import medprobe
from medprobe.errors import DataError, UsageError
from medprobe.probe.attentive import AttentiveProbe
from medprobe.probe.bags import Bags, bags_of
from medprobe.probe.question import Wish, ask
from medprobe.probe.saved import load_probe
from medprobe.store import APPEARANCE_ARRAY, DIGEST_ARRAY, STAMP_ARRAY, FeatureStore
from medprobe.store_records import Failure
from medprobe.store_writer import replace_samples, write_block

WIDTH = 6


def store_of(path, n_volumes=40, *, seed=0, shuffled=False, needle=False, **columns):
    """Return a store of ragged volumes; with ``needle``, the class shows in one marked slice, and little in the mean."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(3, 12, n_volumes)
    volume = np.repeat(np.arange(n_volumes), counts)
    number = np.concatenate([np.arange(c) for c in counts])
    if shuffled:
        order = rng.permutation(len(volume))
        volume, number = volume[order], number[order]
    y = rng.permutation(np.arange(n_volumes) % 2)
    X = {view: rng.normal(size=(len(volume), WIDTH)).astype(np.float32) for view in ("cls", "mean")}
    if needle:
        place = rng.integers(0, counts)
        there = number == place[volume]
        X["cls"][there, 0] += 5
        sign = np.where(y[volume] == 1, 6.0, -6.0)
        X["cls"][:, 1] += np.where(there, sign, -0.7 * sign / (counts[volume] - 1))
    samples = pd.DataFrame(
        {
            "id": [f"v{v:03d}#{k}" for v, k in zip(volume, number, strict=True)],
            "volume": [f"v{v:03d}" for v in volume],
            "slice": number,
            "label": np.array(["no", "yes"])[y[volume]],
            "patient": [f"p{v // 2}" for v in volume],
            "age": 40.0 + volume,
            **{name: values[volume] for name, values in columns.items()},
        }
    )
    looks = rng.uniform(size=(len(volume), 4)).astype(np.float32)
    store = make_store(path, X, samples, labels=("label",), group="patient", appearance=looks)
    replace_samples(store, samples, {**store.roles, "bag": "volume"})
    return FeatureStore(path), X, samples, looks


@pytest.mark.parametrize("shuffled", [False, True])
def test_pooled_features_are_numpys_by_hand(tmp_path, shuffled):
    store, X, samples, looks = store_of(tmp_path / "s.zarr", 80, shuffled=shuffled)
    assert store.plan.n_blocks > 3  # volumes straddle blocks
    names = list(dict.fromkeys(samples["volume"]))
    bags = Bags(store, "volume", ("mean", "max", "mean+max"))
    table = bags.samples.sort_values("id")
    assert list(table["id"]) == sorted(names)
    order = [list(bags.samples["id"]).index(name) for name in names]
    for view in ("cls", "mean"):
        rows = [X[view][(samples["volume"] == name).to_numpy()] for name in names]
        mean, largest = np.stack([r.mean(axis=0) for r in rows]), np.stack([r.max(axis=0) for r in rows])
        assert_allclose(bags.features(f"{view} (mean)")[order], mean, atol=1e-6)
        assert_array_equal(bags.features(f"{view} (max)")[order], largest)
        assert_allclose(bags.features(f"{view} (mean+max)")[order], np.hstack([mean, largest]), atol=1e-6)
        every = bags.features(f"{view} (all)").reshape(len(names), -1, WIDTH)[order]
        for found, wanted in zip(every, rows, strict=True):
            assert_array_equal(found[: len(wanted)], wanted)
            assert np.isnan(found[len(wanted) :]).all()
    looks_by_hand = [looks[(samples["volume"] == name).to_numpy()].mean(axis=0) for name in names]
    assert_allclose(bags.appearance()[order], looks_by_hand, atol=1e-6)
    assert bags.features().dtype == np.float32
    assert bags.views["cls (mean+max)"] == 2 * WIDTH
    with pytest.raises(DataError, match=r"no view 'none \(mean\)'"):
        bags.features("none (mean)")


def test_a_bag_has_the_columns_that_its_rows_agree_on(tmp_path):
    store, _, samples, _ = store_of(tmp_path / "s.zarr", 10)
    bags = Bags(store, "volume")
    assert list(bags.samples.columns) == ["id", "volume", "label", "patient", "age"]
    by_hand = samples.groupby("volume", sort=False).first().reset_index()
    for column in ("label", "patient", "age"):
        assert_array_equal(bags.samples[column], by_hand[column])
    assert bags.samples["age"].dtype == np.float64
    patients = Bags(store, "patient")
    assert len(patients.samples) == 5
    assert "age" not in patients.samples
    assert bags_of(store, None, "none") is store
    assert isinstance(bags_of(store, None, None), Bags)
    for pool, by, words in (
        ("mean", "none", "no volumes"),
        ("median", None, "--pool median"),
        (None, "site", "--pool-by site"),
    ):
        with pytest.raises(UsageError, match=words):
            bags_of(store, pool, by)


def test_labels_have_to_agree_within_a_bag_and_missing_ones_do(tmp_path):
    store, _, samples, _ = store_of(tmp_path / "s.zarr", 12)
    changed = samples.assign(
        label=samples["label"].where(samples["id"] != "v003#1", "maybe"),
        split=np.where(samples["slice"] > 1, "train", "test"),
    )
    changed["age"] = samples["age"].where(samples["slice"] > 0, np.nan)
    replace_samples(store, changed, store.roles)
    store = FeatureStore(store.path)
    with pytest.raises(DataError, match="--target label: the images of volume 'v003' do not agree"):
        medprobe.probe(store, "label", probes=["ridge"])
    with pytest.raises(DataError, match="--split-col split: the images of volume 'v000'"):
        medprobe.probe(store, "age", probes=["ridge"], split_col="split")
    assert list(Bags(store, "volume").samples["age"]) == [40.0 + v for v in range(12)]


def test_numbers_count_volumes(tmp_path):
    store, _, samples, _ = store_of(tmp_path / "s.zarr", 40, needle=True)
    (row, *_) = medprobe.probe(store, "label", probes=["logreg"], n_resamples=50)
    assert (row.n_images, row.n_groups, row.group, row.view) == (40, 20, "patient", "cls (mean)")
    assert f"a sample is a 'volume': 40 of them pool {len(samples)} images" in row.notes
    (by_patient, *_) = medprobe.probe(
        store_of(tmp_path / "p.zarr", 40, needle=True, sex=np.repeat([0, 1], 20))[0], "sex", probes=["ridge"],
        pool_by="patient", pool="max", n_resamples=50,
    )  # fmt: skip
    assert (by_patient.n_images, by_patient.n_groups, by_patient.view) == (20, 20, "cls (max)")
    results = medprobe.probe(store, "label", probes=["ridge"], controls=True, n_resamples=20)
    assert {r.n_images for r in results if not r.subgroup} == {40}
    assert {r.encoder for r in results} >= {"control: size and brightness", "control: columns alone"}
    assert all(len(p.ids) == 40 for p in results.predictions.values())
    assert medprobe.compare(results, n_resamples=20).differences


def test_slices_by_themselves_keep_volumes_together(tmp_path):
    store, _, samples, _ = store_of(tmp_path / "s.zarr", 30, needle=True)
    results = medprobe.probe(store, "label", probes=["ridge"], pool_by="none", group="none", n_folds=3, n_resamples=20)
    assert results[0].n_images == len(samples)
    for wish in (Wish("label", group="none"), Wish("label")):
        for part in ask(store, wish).split.parts:
            volumes = samples["volume"].to_numpy()
            assert not set(volumes[part.train]) & set(volumes[part.test])
    replace_samples(store, samples.drop(columns="patient"), {**store.roles, "group": None})
    (row, *_) = medprobe.probe(FeatureStore(store.path), "label", probes=["ridge"], pool_by="none", n_resamples=20)
    assert (row.group, row.n_groups) == ("volume", 30)


def test_what_shows_in_one_slice_is_found_by_the_maximum_and_by_attention(tmp_path):
    store, *_ = store_of(tmp_path / "s.zarr", 300, needle=True, seed=2)
    options = {"test_size": 0.4, "n_resamples": 20, "group": "none"}
    value = {}
    for pool in ("mean", "max", "mean+max"):
        (value[pool], *_) = (r.value for r in medprobe.probe(store, "label", probes=["ridge"], pool=pool, **options))
    attentive = medprobe.probe(store, "label", probes=["attentive"], **options)
    assert attentive[0].view == "cls (all)"
    assert attentive[0].n_images == 120
    assert attentive[0].value > 0.92 > value["mean"]
    assert value["max"] > 0.97
    assert value["mean+max"] > 0.97
    chosen = medprobe.probe(store, "label", probes=["ridge"], pool="auto", view="auto", test_size=0.4, group="none")
    assert chosen[0].view == "auto"
    assert chosen[0].settings["view"] in {"cls (max)", "cls (mean+max)"}


def test_attention_gives_nothing_to_what_is_not_there():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 60)
    tokens = rng.normal(size=(60, 5, 4)).astype(np.float32)
    tokens[:, 0, 0] += np.where(y == 1, 3, -3)
    counts = rng.integers(1, 6, 60)
    ragged = np.where(np.arange(5)[None, :, None] < counts[:, None, None], tokens, np.nan)
    probe = AttentiveProbe(n_tokens=5, ragged=True, epochs=5).fit(ragged.reshape(60, -1), y)
    looked = probe.attention(ragged.reshape(60, -1))
    assert (looked[np.broadcast_to(np.isnan(ragged[:, None, :, 0]), looked.shape)] == 0).all()
    assert_allclose(looked.sum(axis=2), 1, atol=1e-5)
    together = probe.predict_proba(ragged.reshape(60, -1))
    for i in range(0, 60, 7):  # each as if it were the only one, without padding
        alone = ragged[i : i + 1, : counts[i]].reshape(1, -1)
        assert_allclose(probe.predict_proba(alone)[0], together[i], atol=1e-6)
    longer = np.full((60, 8, 4), np.nan, np.float32)
    longer[:, :5] = ragged
    assert_allclose(probe.predict_proba(longer.reshape(60, -1)), together, atol=1e-6)
    whole = AttentiveProbe(n_tokens=5, epochs=5).fit(tokens.reshape(60, -1), y)
    same = AttentiveProbe(n_tokens=5, ragged=True, epochs=5).fit(tokens.reshape(60, -1), y)
    assert_array_equal(whole.predict_proba(tokens.reshape(60, -1)), same.predict_proba(tokens.reshape(60, -1)))
    with pytest.raises(ValueError, match="no token"):
        probe.predict_proba(np.full((1, 20), np.nan))
    with pytest.raises(ValueError, match="not those of tokens"):
        probe.predict_proba(np.zeros((1, 21)))


@pytest.mark.parametrize("probe", ["logreg", "attentive"])
def test_a_saved_probe_pools_as_it_was_taught(tmp_path, probe):
    store, *_ = store_of(tmp_path / "a.zarr", 60, needle=True)
    medprobe.probe(store, "label", probes=[probe], pool="max", n_resamples=20, test_size=0.3, save_model=tmp_path / "m")
    (path,) = [p for p in (tmp_path / "m").iterdir() if ("attentive" in p.name) == (probe == "attentive")]
    others, _, samples, _ = store_of(tmp_path / "b.zarr", 25, needle=True, seed=9, shuffled=True)
    table = medprobe.predict(path, others)
    assert list(table["id"]) == list(dict.fromkeys(samples["volume"]))
    X = Bags(others, "volume", ("max",)).features("cls (all)" if probe == "attentive" else "cls (max)")
    assert_array_equal(table["p(yes)"], load_probe(path).estimator.predict_proba(X)[:, 1])
    flat = make_store(tmp_path / "c.zarr", {"cls": np.zeros((3, WIDTH))}, pd.DataFrame({"label": ["a", "b", "a"]}))
    with pytest.raises(UsageError, match="--pool-by volume"):
        medprobe.predict(path, flat)


def damaged(path, lost):
    """Return the store with the rows of some ids lost, as if their images could not be read."""
    store, X, samples, _ = store_of(path, 10)
    rows = np.flatnonzero(samples["id"].isin(lost))
    for index in range(store.plan.n_blocks):
        at = store.plan.block(index)
        n = at.stop - at.start
        arrays = {f"features/{view}": values[at] for view, values in X.items()}
        arrays |= {
            DIGEST_ARRAY: np.zeros((n, 16), np.uint8),
            STAMP_ARRAY: np.zeros((n, 2)),
            APPEARANCE_ARRAY: np.zeros((n, 4)),
        }
        here = [int(row) for row in rows if at.start <= row < at.stop]
        for values in (arrays[f"features/{view}"] for view in X):
            values[[row - at.start for row in here]] = np.nan
        write_block(store, index, arrays, [Failure(row, "read", "truncated") for row in here], {})
    return FeatureStore(path), X, samples


def test_a_volume_is_pooled_over_the_slices_that_it_has_and_one_of_none_is_a_failure(tmp_path):
    _, _, samples, _ = store_of(tmp_path / "whole.zarr", 10)
    none = list(samples["id"][samples["volume"] == "v004"])
    store, X, samples = damaged(tmp_path / "s.zarr", ["v001#0", "v001#2", "v006#1", *none])
    bags = Bags(store, "volume")
    assert list(bags.failures["id"]) == ["v004"]
    assert len(bags.samples) == 9
    assert len(bags.manifest) == 10
    kept = ((samples["volume"] == "v001") & ~samples["slice"].isin([0, 2])).to_numpy()
    assert_allclose(bags.features()[1], X["cls"][kept].mean(axis=0), atol=1e-6)
    results = medprobe.probe(
        store, "label", probes=["ridge"], n_folds=2, n_resamples=20, group="none", save_model=tmp_path / "m"
    )
    assert results[0].n_failed == 1
    assert any(note.startswith("INCOMPLETE: 3 images of 2 of 'volume'") for note in results[0].notes)
    (path,) = (tmp_path / "m").iterdir()
    table = medprobe.predict(path, store).set_index("id")
    assert pd.isna(table.loc["v004", "predicted"])
    assert table.drop(index="v004").notna().all(axis=None)


def test_patients_who_share_a_picture_stay_together(tmp_path):
    n = 24
    samples = pd.DataFrame({"patient": [f"p{i // 3}" for i in range(n)], "label": np.repeat([0, 1], n // 2)})
    X = np.random.default_rng(0).normal(size=(n, 4)).astype(np.float32)
    store = make_store(tmp_path / "s.zarr", X, samples, labels=("label",), group="patient")
    digests = np.random.default_rng(1).integers(1, 255, (n, 16)).astype(np.uint8)
    digests[5] = digests[13]  # of patients 1 and 4
    digests[4] = 0
    arrays = {
        "features/cls": X,
        DIGEST_ARRAY: digests,
        STAMP_ARRAY: np.zeros((n, 2)),
        APPEARANCE_ARRAY: np.zeros((n, 4)),
    }
    write_block(store, 0, arrays, (), {})
    found = Bags(FeatureStore(store.path), "patient").image_digests()
    assert len(np.unique(found, axis=0)) == 7
    assert_array_equal(found[1], found[4])
    split = np.where(np.arange(n) // 3 < 4, "train", "test")
    replace_samples(store, store.manifest.assign(split=split), store.roles)
    with pytest.raises(DataError, match="p1 = p4"):
        medprobe.probe(FeatureStore(store.path), "label", probes=["ridge"], split_col="split", pool_by="patient")


def test_stores_side_by_side_are_pooled_alike(tmp_path):
    first, *_ = store_of(tmp_path / "a.zarr", 30, needle=True)
    second, *_ = store_of(tmp_path / "b.zarr", 30, needle=True)
    (row, *_) = medprobe.probe(first, "label", probes=["ridge"], concat=[second], pool="mean+max", n_resamples=20)
    assert row.view == "cls (mean+max) + cls (mean+max)"
    assert row.n_images == 30
    auto = medprobe.probe(first, "label", probes=["ridge"], concat=[second], pool="auto", n_resamples=20)
    assert {s["view"] for s in auto[0].settings} <= {f"cls ({p}) + cls ({p})" for p in ("mean", "max", "mean+max")}
