"""Fitted probes in one file of arrays and JSON: nothing in it can run.

The file is a zip of ``.npy`` members, as ``numpy.load`` reads it, and one member ``probe.json``. Objects are built from a
fixed list of classes alone; their parameters and fitted attributes are plain values, arrays, or objects of that list.
"""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from medprobe.errors import DataError, UsageError

FORMAT = 1
_META = "probe.json"
_TIME = (1980, 1, 1, 0, 0, 0)  # a clock would make two equal probes differ
_CLASSES: Mapping[str, str] = {
    "AttentiveProbe": "medprobe.probe.attentive",
    "KNNProbe": "medprobe.probe.knn",
    "LinearProbe": "medprobe.probe.linear",
    "LogisticProbe": "medprobe.probe.logistic",
    "MLPProbe": "medprobe.probe.mlp",
    "PrototypeProbe": "medprobe.probe.prototype",
    "RidgeProbe": "medprobe.probe.ridge",
    "Trained": "medprobe.probe.mlp_stack",
    "_Layer": "medprobe.probe.attentive",
    "PCA": "sklearn.decomposition",
    "Pipeline": "sklearn.pipeline",
    "StandardScaler": "sklearn.preprocessing",
}


@dataclass(frozen=True)
class SavedProbe:
    """A fitted probe with what has to be known to apply it.

    Attributes:
        estimator: With ``predict_proba``.
        family: Kind of probe, as in results.
        encoders: Names of the encoders whose vectors it takes side by side; mostly one.
        views: The view of each.
        fingerprints: Of each encoder: the probe takes no other's vectors.
        target: What it predicts.
        task: ``binary``, ``multiclass``, ``ordinal`` or ``multilabel``.
        classes: Names of the classes, or of the labels.
        settings: That were chosen.
        notes: What it was fitted to and how it did; JSON types.
        n_features: Width of its input.
        bag: The column whose rows are one sample, empty where each is one by itself; the views' names say how they are pooled.

    """

    estimator: Any
    family: str
    encoders: tuple[str, ...]
    views: tuple[str, ...]
    fingerprints: tuple[str, ...]
    target: str
    task: str
    classes: tuple[str, ...]
    settings: dict[str, Any]
    notes: dict[str, Any]
    n_features: int
    bag: str = ""


def save_probe(probe: SavedProbe, path: str | os.PathLike[str]) -> Path:
    """Write a probe to a file, whole or not at all, and return its path; equal probes give equal bytes.

    Raises:
        UsageError: The estimator holds something that is no plain value, array or known object.

    """
    path = Path(path)
    arrays: list[np.ndarray] = []
    fields = {name: value for name, value in vars(probe).items() if name != "estimator"}
    meta = {"format": FORMAT, "estimator": _encode(probe.estimator, arrays, ""), "probe": _encode(fields, arrays, "")}
    draft = path.with_name(f".{path.name}.draft")
    try:
        with draft.open("wb") as file:
            with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
                archive.writestr(zipfile.ZipInfo(_META, _TIME), json.dumps(meta))
                for i, array in enumerate(arrays):
                    with archive.open(zipfile.ZipInfo(f"{i}.npy", _TIME), "w", force_zip64=True) as member:
                        np.lib.format.write_array(member, np.asarray(array, order="C"), allow_pickle=False)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    return path


def load_probe(path: str | os.PathLike[str]) -> SavedProbe:
    """Return the probe of a file.

    Raises:
        DataError: There is no such file, or it is damaged, foreign or of a newer format.

    """
    path = Path(path)
    try:
        with zipfile.ZipFile(path) as archive:
            meta = json.loads(archive.read(_META))
            if meta["format"] != FORMAT:
                raise DataError(f"{path}: a probe of format {meta['format']}; this medprobe reads {FORMAT}: upgrade it")
            names = sorted((n for n in archive.namelist() if n != _META), key=lambda n: int(n.removesuffix(".npy")))
            arrays = [
                np.lib.format.read_array(io.BytesIO(archive.read(name)), allow_pickle=False)  # reading checks the CRC
                for name in names
            ]
        estimator, fields = _decode(meta["estimator"], arrays), _decode(meta["probe"], arrays)
        probe = SavedProbe(estimator=estimator, **fields)
        estimator.predict_proba(np.zeros((1, probe.n_features), dtype=np.float32))  # the shapes fit each other
    except DataError:
        raise
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such probe (medprobe probe --save-model writes them)") from error
    except Exception as error:  # a hostile file may fail in any of these steps
        raise DataError(f"{path}: damaged, or no saved probe") from error
    return probe


def _encode(value: Any, arrays: list[np.ndarray], where: str) -> Any:
    """Return JSON for a value, and put its arrays into a list."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return {"float": value.hex()}
    if isinstance(value, np.ndarray | np.generic):
        array = np.asarray(value)
        if array.dtype.kind == "O" and all(isinstance(item, str) for item in array.ravel()):
            array = array.astype(str)
        if array.dtype.kind not in "biufU":
            raise UsageError(f"{where}: values of type {array.dtype} cannot be saved")
        arrays.append(array)
        return {"array": len(arrays) - 1, "scalar": isinstance(value, np.generic)}
    if isinstance(value, list | tuple):
        kind = "tuple" if isinstance(value, tuple) else "list"
        return {kind: [_encode(item, arrays, where) for item in value]}
    if isinstance(value, dict):
        pairs = [[_encode(k, arrays, where), _encode(v, arrays, where)] for k, v in value.items()]
        return {"dict": pairs}
    name = type(value).__name__
    if _CLASSES.get(name) is None or not type(value).__module__.startswith(_CLASSES[name]):
        raise UsageError(f"{where}: a {name} cannot be saved")
    state = {key: _encode(item, arrays, f"{name}.{key}") for key, item in vars(value).items()}
    return {"object": name, "state": state}


def _decode(value: Any, arrays: list[np.ndarray]) -> Any:
    if not isinstance(value, dict):
        if value is None or isinstance(value, bool | int | str):
            return value
        raise ValueError(f"unexpected {type(value).__name__}")
    if "float" in value:
        return float.fromhex(value["float"])
    if "array" in value:
        array = arrays[value["array"]]
        return array[()] if value["scalar"] else array
    if "tuple" in value:
        return tuple(_decode(item, arrays) for item in value["tuple"])
    if "list" in value:
        return [_decode(item, arrays) for item in value["list"]]
    if "dict" in value:
        return {_decode(k, arrays): _decode(v, arrays) for k, v in value["dict"]}
    kind = getattr(import_module(_CLASSES[value["object"]]), value["object"])
    built = kind.__new__(kind)
    built.__dict__.update({key: _decode(item, arrays) for key, item in value["state"].items()})
    return built
