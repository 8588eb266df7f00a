"""File-system calls of writing, extending and relabelling a store fail, or are the last of their process."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from medprobe import store as reader
from medprobe import store_place
from medprobe import store_writer as writer
from medprobe.errors import DataError
from medprobe.store import APPEARANCE_ARRAY, DIGEST_ARRAY, STAMP_ARRAY, FeatureStore, Plan, ids_digest, open_store
from medprobe.store_extension import draft_path
from medprobe.store_place import put_in_place, set_aside, settle

if sys.platform != "linux":
    pytest.skip("the drills look into /proc", allow_module_level=True)
sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
from drills import Killed, contents, failing

OLD, ALL, BLOCK = 5, 8, 3  # two blocks, then three; the second is begun by the old rows
NAME = "drilled.zarr"
VALUES = np.random.default_rng(0).random((ALL, 4)).astype(np.float32)
ROLES = {"labels": ["label"], "group": None, "split": None}


def table(rows: int, label: str = "ill") -> pd.DataFrame:
    return pd.DataFrame({"id": [f"s{i}" for i in range(rows)], "label": [label] * rows})


def plan(rows: int) -> Plan:
    encoder = {"name": "fake/features", "weights_sha256": "0" * 64, "preprocess": {}}
    ids = ids_digest(table(rows)["id"])
    return Plan(encoder, "f" * 64, "fp32", {"cls": 4}, {"cls": "float32"}, "cls", rows, BLOCK, ids)


def arrays(rows: slice) -> dict[str, np.ndarray]:
    n = rows.stop - rows.start
    sources = {
        DIGEST_ARRAY: np.zeros((n, 16), np.uint8),
        STAMP_ARRAY: np.zeros((n, 2)),
        APPEARANCE_ARRAY: np.zeros((n, 4)),
    }
    return {"features/cls": VALUES[rows], **sources}


def create(path: Path, rows: int, base: FeatureStore | None = None) -> FeatureStore:
    """Make a store, or what is missing of it."""
    store = writer.create_store(path, plan(rows), table(rows), ROLES, card={}, versions={})
    for index in store.missing_blocks:
        if base is not None and index in base.commits and base.plan.block(index) == store.plan.block(index):
            writer.take_over(store, base, index)
        else:
            writer.write_block(store, index, arrays(store.plan.block(index)), (), {})
    return FeatureStore(path)


def make(folder: Path) -> None:
    create(folder / NAME, OLD)


def extend(folder: Path) -> None:
    path = folder / NAME
    settle(path)
    base = FeatureStore(path, partial=True)
    if base.plan.rows == OLD:
        create(draft_path(path, plan(ALL)), ALL, base)
        put_in_place(draft_path(path, plan(ALL)), path)


def relabel(folder: Path) -> None:
    writer.replace_samples(FeatureStore(folder / NAME), table(OLD, "well"), ROLES)


def without_drafts(folder: Path) -> dict[str, bytes]:
    """Return every file, without skeletons of stores whose making was ended."""
    return {name: data for name, data in contents(folder).items() if ".draft/" not in name}


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(store_place, "_SECONDS", 0)


def nothing(folder: Path) -> None:
    folder.mkdir()


CASES = {"make": (nothing, make), "extend": (make, extend), "relabel": (make, relabel)}


def seen(folder: Path, *, whole: bool) -> list[str]:
    """Return what is wrong for a reader: other values or samples than there should be, or fewer than there were."""
    path = folder / NAME
    try:
        store = FeatureStore(path, partial=not whole)
        ids, values = list(store.samples["id"]), store.features()
    except DataError as error:
        return [str(error)] if whole else []
    if not set(ids) <= set(table(ALL)["id"]):
        return ["other samples"]
    rows = [int(name[1:]) for name in ids]
    return [] if np.array_equal(values, VALUES[rows]) and rows == sorted(rows) else ["other values"]


def calls_of(folder: Path, act: Callable[[Path], None]) -> tuple[int, int]:
    """Return how many calls an act makes, and how many until the skeleton of a store is there, which is made aside."""
    until = [0]
    with pytest.MonkeyPatch.context() as patch, failing(folder, -1, OSError()) as counted:
        create_store = writer.create_store

        def noted(*args: object, **kwargs: object) -> FeatureStore:
            store = create_store(*args, **kwargs)
            until[0] = counted[0]
            return store

        patch.setattr(writer, "create_store", noted)
        act(folder)
    return counted[0], until[0]


# Extending does all that making a store does, and reports errors in the same way; benchmarks/reliability.py leaves none out.
@pytest.mark.parametrize(
    ("case", "kill", "every"), [("make", True, 4), ("extend", True, 5), ("extend", False, 13), ("relabel", True, 3)]
)
def test_file_system_calls(tmp_path, case, kill, every):
    before, act = CASES[case]
    before(tmp_path / "before")
    shutil.copytree(tmp_path / "before", tmp_path / "whole")
    total, skeleton = calls_of(tmp_path / "whole", act)
    whole = without_drafts(tmp_path / "whole")
    assert total > 20
    for n in (*range(1, skeleton, 20), *range(skeleton + 1, total + 1, every)):
        folder = tmp_path / str(n)
        shutil.copytree(tmp_path / "before", folder)
        error = Killed() if kill else OSError(5, "Input/output error", str(folder))
        with failing(folder, n, error), contextlib.suppress(OSError, DataError, Killed):
            act(folder)
        assert seen(folder, whole=case != "make") == [], n
        act(folder)
        assert without_drafts(folder) == whole, n
        shutil.rmtree(folder)


def kill_between_the_renames(folder: Path) -> None:
    """Kill an extension when the store is out of the way and the longer one not in its place."""
    rename, path = Path.rename, folder / NAME

    def once(self: Path, target: Path) -> Path:
        if target == path:
            raise Killed
        return rename(self, target)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "rename", once)
        with pytest.raises(Killed):
            extend(folder)
    assert not path.exists()
    assert set_aside(path).exists()


def exchanged_chunks(folder: Path) -> list[str]:
    """Let a block have the file of another, whose size and checksum are right."""
    store = FeatureStore(folder / NAME)
    file = store.chunk_path("features/cls", 1)
    file.write_bytes(store.chunk_path("features/cls", 0).read_bytes())
    return [] if [*store.verify()] and store.damaged_blocks() == [1] else ["not found"]


def killed_between_the_renames(folder: Path) -> list[str]:
    kill_between_the_renames(folder)
    return seen(folder, whole=True)


def killed_there_and_run_again(folder: Path) -> list[str]:
    kill_between_the_renames(folder)
    try:
        extend(folder)
    except DataError as error:
        return [str(error)]
    return seen(folder, whole=True) or [f"{p.name} is left" for p in folder.iterdir() if p.name != NAME]


def a_table_half_replaced(folder: Path) -> list[str]:
    """Kill a relabelling while the old table is swept away."""

    def dies(path: Path, **_: object) -> None:
        if Path(path).exists():
            (Path(path) / "id" / "c" / "0").unlink()
            raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer.shutil, "rmtree", dies)
        with pytest.raises(Killed):
            relabel(folder)
    return seen(folder, whole=True)


def copied_over_a_link(folder: Path) -> list[str]:
    """Copy a block, where links are not to be had, into a file that is the other store's as well, and not to its end."""
    path = folder / NAME
    base = FeatureStore(path)
    assert set(base.commits) == {0, 1}
    draft = writer.create_store(folder / "draft", plan(ALL), table(ALL), ROLES, card={}, versions={})
    for name in base.array_names:
        draft.chunk_path(name, 0).parent.mkdir(parents=True)
        os.link(base.chunk_path(name, 0), draft.chunk_path(name, 0))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError(18, "Invalid cross-device link")))
        patch.setattr(writer.shutil, "copyfile", lambda source, target: Path(target).write_bytes(b"killed meanw"))
        writer.take_over(draft, base, 0)
    return list(FeatureStore(path).verify())


def equal_digests(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(FeatureStore, "_chunk_problem", lambda self, commit, name, index: None)


def no_second_name(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(reader, "whereabouts", lambda path: path)


def never_put_back(patch: pytest.MonkeyPatch) -> None:
    no_second_name(patch)
    patch.setattr(store_place, "_settle", lambda store: None)


def table_deleted_first(patch: pytest.MonkeyPatch) -> None:
    rename = Path.rename
    patch.setattr(
        Path, "rename", lambda self, to: writer.shutil.rmtree(self) if to.suffix == ".old" else rename(self, to)
    )


def written_in_place(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Path, "replace", lambda self, to: to.write_bytes(self.read_bytes()))


GUARDS = {
    "digests of whole chunks": (exchanged_chunks, equal_digests),
    "readers look where a store is put aside": (killed_between_the_renames, no_second_name),
    "the next run puts it back": (killed_there_and_run_again, never_put_back),
    "the old table goes at once": (a_table_half_replaced, table_deleted_first),
    "what may be another store's file is never written to": (copied_over_a_link, written_in_place),
}


@pytest.mark.parametrize("guard", GUARDS)
def test_without_a_guard_its_fault_is_seen(tmp_path, monkeypatch, guard):
    fault, remove = GUARDS[guard]
    make(tmp_path / "with")
    assert fault(tmp_path / "with") == []
    make(tmp_path / "without")
    remove(monkeypatch)
    assert fault(tmp_path / "without") != []


def test_a_store_in_place_is_opened_once_more(tmp_path):
    """What was opened before a longer store took its place gives its own rows, or says that it was exchanged."""
    make(tmp_path)
    path = tmp_path / NAME
    early, late = FeatureStore(path), FeatureStore(path)
    assert early.mask.all()
    extend(tmp_path)
    np.testing.assert_array_equal(early.features(), VALUES[:OLD])
    np.testing.assert_array_equal(np.concatenate(list(early.feature_blocks().blocks())), VALUES[:OLD])
    for read in (lambda: early.samples, lambda: late.features()):
        with pytest.raises(DataError, match="while it was open; open it once more"):
            read()
    assert open_store(path).plan == replace(early.plan, rows=ALL, manifest_sha256=plan(ALL).manifest_sha256)
