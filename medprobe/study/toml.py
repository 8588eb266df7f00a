"""Reading a study: a TOML file in which nothing is unknown, misspelt or missing."""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import fields, replace
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

from medprobe.errors import DataError, UsageError
from medprobe.study.schema import (
    FINETUNE_KEYS,
    FINETUNE_MODES,
    Data,
    EncoderChoice,
    Head,
    Study,
    defaults,
    folder_name,
)

Table = TypeVar("Table", Data, EncoderChoice, Head, Study)

TABLES: Mapping[str, type[Data] | type[EncoderChoice] | type[Head]] = {
    "data": Data,
    "encoder": EncoderChoice,
    "head": Head,
}
STUDY_KEYS = ("name", "baseline", "seeds", "resamples", "precision")

_SPLITS = ("split_col", "n_folds", "test_size", "leave_out")
_KINDS: Mapping[str, tuple[str, Callable[[Any], bool]]] = {
    "str": ("a text", lambda v: isinstance(v, str) and v != ""),
    "int": ("a whole number", lambda v: isinstance(v, int) and not isinstance(v, bool)),
    "float": ("a number", lambda v: isinstance(v, int | float) and not isinstance(v, bool)),
    "bool": ("true or false", lambda v: isinstance(v, bool)),
}


def read_study(path: str | os.PathLike[str], *, data_root: str | os.PathLike[str] | None = None) -> Study:
    """Return the study of a TOML file.

    Args:
        path: The file, or the name of one that comes with medprobe, such as ``wacv2024``.
        data_root: What relative paths start from; the file's own folder unless given.

    Raises:
        DataError: There is no such file, or it is no TOML.
        UsageError: A table, a key, a name or a value is none that is known; the message names file, table and key.

    """
    file = _file(Path(path))
    try:
        content = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise DataError(f"{file}: could not be read as TOML: {error}") from error
    for name in content:
        if name not in {"study", *TABLES}:
            raise UsageError(f"{file}: no table [{name}]{_meant(name, ['study', *TABLES])}")
    head = content.get("study", {})
    if not isinstance(head, dict):
        raise UsageError(f"{file}: [study] is a table")
    own = _values(f"{file}: [study]", head, Study, STUDY_KEYS)
    study = Study(
        **own,
        data=_rows(file, content, "data", Data),
        encoders=_rows(file, content, "encoder", EncoderChoice),
        heads=_rows(file, content, "head", Head),
        path=file,
        root=Path(data_root) if data_root is not None else file.parent,
    )
    _check(study)
    return study


def with_paths(study: Study, names: Collection[str], optional: Collection[str] = ()) -> Study:
    """Return the study with the paths of weights and of the named data made whole.

    Args:
        study: As it was read.
        names: Data sets that are to be used.
        optional: Those that may be absent, since their stores are there: their path is then empty.

    Raises:
        UsageError: A path needs an environment variable that is not set.
        DataError: Nothing is there.

    """
    data, encoders = [], []
    for each in study.data:
        if each.name in names:
            where = f"{study.path}: [[data]] {each.name}"
            try:
                labels = None if each.labels is None else _whole(where, "labels", each.labels, study.root)
                each = replace(each, path=_whole(where, "path", each.path, study.root), labels=labels)
            except (DataError, UsageError):
                if each.name not in optional:
                    raise
                each = replace(each, path="", labels=None)
        data.append(each)
    for choice in study.encoders:
        if choice.weights is not None:
            where = f"{study.path}: [[encoder]] {choice.name}"
            choice = replace(choice, weights=_whole(where, "weights", choice.weights, study.root))
        encoders.append(choice)
    return replace(study, data=tuple(data), encoders=tuple(encoders))


def shipped() -> dict[str, Path]:
    """Return the studies that come with medprobe, by name."""
    folder = Path(str(files("medprobe.study"))) / "files"
    return {file.stem: file for file in sorted(folder.glob("*.toml"))}


def _file(path: Path) -> Path:
    if path.is_file():
        return path
    known = shipped()
    # Of `studies/mini.toml` as the documentation writes it, wherever one stands.
    if path.stem in known and str(path) in {path.stem, f"{path.stem}.toml", f"studies/{path.stem}.toml"}:
        return known[path.stem]
    raise DataError(f"{path}: no such study; medprobe brings {', '.join(known)}")


def _rows(file: Path, content: Mapping[str, Any], name: str, kind: type[Table]) -> tuple[Table, ...]:
    rows = content.get(name, [])
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise UsageError(f"{file}: needs at least one [[{name}]] (with two brackets)")
    found = []
    for number, row in enumerate(rows, 1):
        said = row.get("name") if isinstance(row.get("name"), str) else str(number)
        values = _values(f"{file}: [[{name}]] {said}", row, kind, [f.name for f in fields(kind)])
        found.append(kind(**values))
    return tuple(found)


def _values(where: str, row: Mapping[str, Any], kind: type, keys: Sequence[str]) -> dict[str, Any]:
    """Return the values of a table, lists as tuples."""
    types = {f.name: str(f.type) for f in fields(kind)}
    for key in row:
        if key not in keys:
            raise UsageError(f"{where}: no key '{key}'{_meant(key, keys)}")
    for key in keys:
        if key not in row and key not in defaults(kind):
            raise UsageError(f"{where}: the key '{key}' is missing")
    found: dict[str, Any] = {}
    for key, value in row.items():
        of = types[key].removesuffix(" | None")
        several = of.startswith("tuple[")
        what, fits = _KINDS[of.removeprefix("tuple[").removesuffix(", ...]")]
        if several:
            if not isinstance(value, list) or not all(map(fits, value)):
                raise UsageError(f"{where}: '{key}' is a list, each entry {what}, not {value!r}")
            if len(set(value)) != len(value):
                raise UsageError(f"{where}: '{key}' names something twice: {value!r}")
            found[key] = tuple(value)
        elif fits(value):
            found[key] = float(value) if of == "float" else value
        else:
            raise UsageError(f"{where}: '{key}' is {what}, not {value!r}")
    return found


def _check(study: Study) -> None:
    """Look at what one key says about others, and at every name."""
    at = f"{study.path}: [study]"
    names = [encoder.name for encoder in study.encoders]
    _different(f"{study.path}: [[data]]", [folder_name(data.name) for data in study.data])
    _different(f"{study.path}: [[encoder]]", names)
    labels = [label for head in study.heads for label in _labels(study, head)]
    _different(f"{study.path}: [[head]]", labels)
    _one_of(at, "baseline", study.baseline, names)
    _one_of(at, "precision", study.precision, ("auto", "fp32", "bf16", "fp16"))
    if study.resamples < 1 or not study.seeds or min(study.seeds) < 0:
        raise UsageError(f"{at}: 'resamples' is at least 1, 'seeds' has at least one, none below 0")
    for data in study.data:
        _check_data(f"{study.path}: [[data]] {data.name}", data)
    for encoder in study.encoders:
        _check_encoder(f"{study.path}: [[encoder]] {encoder.name}", encoder)
    for head in study.heads:
        where = f"{study.path}: [[head]] {head.name or head.finetune or head.probe or head.preset}"
        _check_head(where, head)
        for name in head.encoders:
            _one_of(where, "encoders", name, names)
        if head.against is not None:
            _one_of(where, "against", head.against, labels)


def _check_data(where: str, data: Data) -> None:
    from medprobe.datasets import DATASETS
    from medprobe.probe.metrics import METRICS
    from medprobe.probe.task import UNCERTAIN

    if data.metric is not None:
        _one_of(where, "metric", data.metric, METRICS)
    if data.uncertain is not None:
        _one_of(where, "uncertain", data.uncertain, UNCERTAIN)
    if data.dataset is not None:
        _one_of(where, "dataset", data.dataset, (*DATASETS, "none"))
    _one_of(where, "duplicates", data.duplicates, ("error", "drop", "keep"))
    given = [key for key in _SPLITS if getattr(data, key) is not None]
    if len(given) > 1:
        raise UsageError(f"{where}: {' and '.join(map(repr, given))}: give one of them")
    if data.box_cols and len(data.box_cols) != 4:
        raise UsageError(f"{where}: 'box_cols' names four columns: left, top, width, height")


def _check_encoder(where: str, encoder: EncoderChoice) -> None:
    from medprobe.encoders.catalogue import read_catalogue
    from medprobe.encoders.registry import parse_spec

    try:
        parse_spec(encoder.name)
    except UsageError as error:
        raise UsageError(f"{where}: {str(error).removeprefix('--model ')}") from None
    entries = {entry.name: entry for entry in read_catalogue()}
    # Families such as timm/<any> take names that no list holds.
    open_ended = [name.partition("<")[0] for name in entries if "<" in name]
    if encoder.name not in entries:
        if not any(encoder.name.startswith(start) for start in open_ended):
            raise UsageError(f"{where}: no such encoder{_meant(encoder.name, entries)}")
        return
    for view in encoder.views:
        _one_of(where, "views", view, (*entries[encoder.name].views, "auto"))


def _check_head(where: str, head: Head) -> None:
    from medprobe.probe.families import ATTENTIVE, FAMILIES
    from medprobe.probe.presets import PRESETS

    if head.probe is not None:
        _one_of(where, "probe", head.probe, (*FAMILIES, ATTENTIVE))
    if head.finetune is not None:
        _one_of(where, "finetune", head.finetune, FINETUNE_MODES)
    if head.preset is not None:
        _one_of(where, "preset", head.preset, PRESETS)
    kinds = [key for key in ("probe", "finetune", "preset") if getattr(head, key) is not None]
    if kinds not in (["probe"], ["finetune"], ["preset"], ["finetune", "preset"]):
        raise UsageError(
            f"{where}: a 'probe', a 'preset' (which brings its probes), or a 'finetune', with a preset or none"
        )
    given = [key for key in FINETUNE_KEYS if getattr(head, key) is not None]
    if given and head.finetune is None:
        raise UsageError(f"{where}: '{given[0]}' goes with 'finetune'")
    if head.finetune is not None and head.pca is not None:
        raise UsageError(f"{where}: 'pca' goes with a probe of stored features")
    if kinds == ["preset"] and head.name is not None:
        raise UsageError(f"{where}: a preset's probes have names of their own: leave out 'name'")
    if head.repeats < 1 or any(shots < 1 for shots in head.shots) or any(seed < 0 for seed in head.seeds):
        raise UsageError(f"{where}: 'shots' and 'repeats' are at least 1, 'seeds' at least 0")


def _labels(study: Study, head: Head) -> tuple[str, ...]:
    try:
        return head.labels
    except UsageError as error:  # a preset that is none
        raise UsageError(f"{study.path}: [[head]] {str(error).removeprefix('--')}") from None


def _whole(where: str, key: str, text: str, root: Path) -> str:
    unset = [name for name in re.findall(r"\$\{(\w+)\}", text) if name not in os.environ]
    if unset:
        raise UsageError(f"{where}: '{key}' needs the environment variable {unset[0]}")
    path = root / Path(re.sub(r"\$\{(\w+)\}", lambda match: os.environ[match[1]], text)).expanduser()
    if not path.exists():
        raise DataError(f"{where}: '{key}': {path} is not there; --data-root says what '{text}' starts from")
    return str(path)


def _different(where: str, names: Sequence[str]) -> None:
    double = next((name for i, name in enumerate(names) if name in names[:i]), None)
    if double is not None:
        raise UsageError(f"{where}: two are called '{double}'; give each a name of its own")


def _one_of(where: str, key: str, value: str, known: Iterable[str]) -> None:
    if value not in set(known):
        raise UsageError(f"{where}: '{key}': no '{value}'{_meant(value, known)}")


def _meant(word: str, known: Iterable[str]) -> str:
    names = list(known)
    close = difflib.get_close_matches(word, names, 1)
    return (f"; did you mean '{close[0]}'?" if close else "") + f"; there are: {', '.join(names)}"
