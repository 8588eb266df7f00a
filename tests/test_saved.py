"""Probes in files: what comes back is what went in, and nothing in a file can run."""

from __future__ import annotations

import io
import json
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.pipeline import make_pipeline
from sklearn.utils.validation import check_is_fitted

from medprobe.errors import DataError, UsageError
from medprobe.probe.knn import KNNProbe
from medprobe.probe.logistic import LogisticProbe
from medprobe.probe.prototype import PrototypeProbe
from medprobe.probe.ridge import RidgeProbe
from medprobe.probe.saved import SavedProbe, _decode, _encode, load_probe, save_probe
from medprobe.probe.selection import _projection

RNG = np.random.default_rng(0)
X = RNG.normal(size=(120, 7)).astype(np.float32)
CODES = RNG.integers(0, 3, 120)
TARGETS = {
    "binary": CODES % 2,
    "words": np.array(["benign", "malignant", "normal"])[CODES],
    "labels": np.where(RNG.random((120, 2)) < 0.1, np.nan, RNG.integers(0, 2, (120, 2))),
}
PROBES: dict[str, Any] = {
    "logreg": LogisticProbe(C=0.1),
    "knn": KNNProbe(k=5),
    "ridge": RidgeProbe(alpha=0.3),
    "prototype": PrototypeProbe(),
    "pca": _projection(3, (120, 7), 0, RidgeProbe()),
    "mlp": None,
    "linear": None,
    "attentive": None,
}


def fitted(name: str, target: str) -> Any:
    if name == "mlp":
        pytest.importorskip("torch")
        from medprobe.probe.mlp import MLPProbe

        return MLPProbe(hidden=(4,), max_epochs=2, n_seeds=2).fit(X, TARGETS[target])
    if name == "attentive":
        pytest.importorskip("torch")
        from medprobe.probe.attentive import AttentiveProbe

        return AttentiveProbe(n_tokens=7, epochs=2).fit(X, TARGETS[target])
    if name == "linear":
        pytest.importorskip("torch")
        from medprobe.probe.linear import LinearProbe

        return LinearProbe(epochs=2).fit(X, TARGETS[target])
    return PROBES[name].fit(X, TARGETS[target])


def saved(estimator: Any) -> SavedProbe:
    return SavedProbe(
        estimator, "f", ("a/b",), ("cls",), ("0" * 64,), "label", "binary", ("0", "1"),
        {"C": 0.1, "hidden": (4,)}, {"n": 3, "x": [1.5, None]}, 7,
    )  # fmt: skip


@pytest.mark.parametrize("target", list(TARGETS))
@pytest.mark.parametrize("name", list(PROBES))
def test_a_probe_predicts_the_same_after_it_was_written(name, target, tmp_path):
    estimator = fitted(name, target)
    probe = saved(estimator)
    path = save_probe(probe, tmp_path / "p.probe")
    again = load_probe(path)
    np.testing.assert_array_equal(again.estimator.predict_proba(X[:20]), estimator.predict_proba(X[:20]))
    np.testing.assert_array_equal(again.estimator.predict(X[:20]), estimator.predict(X[:20]))
    check_is_fitted(again.estimator)
    assert again.estimator.get_params().keys() == estimator.get_params().keys()
    assert {k: v for k, v in vars(again).items() if k != "estimator"} == {
        k: v for k, v in vars(probe).items() if k != "estimator"
    }
    assert save_probe(again, tmp_path / "q.probe").read_bytes() == path.read_bytes()


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(st.text() | st.integers(), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(values)
def test_nested_values_come_back_as_they_were(value):
    arrays: list[np.ndarray] = []
    text = json.dumps(_encode(value, arrays, ""))
    again = _decode(json.loads(text), arrays)
    assert again == value
    assert repr(again) == repr(value)  # tuples are tuples, 1 is not True


def test_what_cannot_be_written_is_named(tmp_path):
    probe = RidgeProbe().fit(X, CODES)
    probe.extra_ = np.random.RandomState(0)
    with pytest.raises(UsageError, match=r"RidgeProbe\.extra_: a RandomState cannot be saved"):
        save_probe(saved(probe), tmp_path / "p.probe")
    probe.extra_ = np.array([object()])
    with pytest.raises(UsageError, match=r"RidgeProbe\.extra_: values of type object"):
        save_probe(saved(probe), tmp_path / "p.probe")
    assert list(tmp_path.iterdir()) == []


def outcome(path: Path) -> tuple[Any, str]:
    try:
        return load_probe(path), ""
    except DataError as error:
        return None, str(error)


def test_any_damage_is_an_error_that_names_the_file(tmp_path):
    path = save_probe(saved(RidgeProbe().fit(X, CODES)), tmp_path / "p.probe")
    whole = path.read_bytes()
    reference = load_probe(path).estimator.predict_proba(X[:5])
    rng = np.random.default_rng(0)
    cuts = [whole[:n] for n in rng.integers(0, len(whole) - 1, 40)]
    flips = []
    for place in rng.integers(0, len(whole), 150):
        data = bytearray(whole)
        data[place] ^= 1 << int(rng.integers(8))
        flips.append(bytes(data))
    refused = 0
    for data in cuts + flips:
        path.write_bytes(data)
        found, error = outcome(path)
        if error:
            assert "p.probe" in error
            refused += 1
        else:  # a byte of the zip's own that nothing rests on
            np.testing.assert_array_equal(found.estimator.predict_proba(X[:5]), reference)
    assert refused > 150
    with pytest.raises(DataError, match=r"none\.probe: no such probe"):
        load_probe(tmp_path / "none.probe")


def changed(path: Path, change: Any, extra: dict[str, bytes] | None = None) -> Path:
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    meta = json.loads(members["probe.json"])
    change(meta)
    members |= {"probe.json": json.dumps(meta).encode(), **(extra or {})}
    out = path.with_name("changed.probe")
    with zipfile.ZipFile(out, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return out


def test_nothing_but_known_classes_is_built_and_no_pickle_is_read(tmp_path):
    path = save_probe(saved(RidgeProbe().fit(X, CODES)), tmp_path / "p.probe")
    with pytest.raises(DataError, match="upgrade it"):
        load_probe(changed(path, lambda meta: meta.update(format=99)))
    for name in ("Popen", "os.system", "__class__", "FeatureStore"):
        with pytest.raises(DataError, match="damaged, or no saved probe"):
            load_probe(changed(path, lambda meta, name=name: meta["estimator"].update(object=name)))
    with pytest.raises(DataError):
        load_probe(changed(path, lambda meta: meta.pop("probe")))

    class Payload:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    buffer = io.BytesIO()
    np.save(buffer, np.array([Payload()], dtype=object), allow_pickle=True)
    with pytest.raises(DataError):
        load_probe(changed(path, lambda meta: None, {"0.npy": buffer.getvalue()}))
    path.write_bytes(pickle.dumps({"estimator": 1}))
    with pytest.raises(DataError):
        load_probe(path)
    assert not (tmp_path / "ran").exists()


def test_arrays_that_do_not_fit_each_other_are_refused(tmp_path):
    probe = make_pipeline(RidgeProbe()).fit(X, CODES)
    probe.steps[0][1].coef_ = np.zeros((4, 3))
    with pytest.raises(DataError, match="damaged"):
        load_probe(save_probe(saved(probe), tmp_path / "p.probe"))


def test_reading_a_network_needs_no_torch(tmp_path):
    path = save_probe(saved(fitted("mlp", "words")), tmp_path / "p.probe")
    code = (
        "import sys\nfrom medprobe.probe.saved import load_probe\nimport numpy as np\n"
        "print(load_probe(sys.argv[1]).estimator.predict(np.zeros((1, 7), np.float32))[0], 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False)
    word, imported = done.stdout.split()
    assert word in set(TARGETS["words"])
    assert imported == "False"
