"""Known data sets in the layout in which they are handed out: counts, labels, patients, splits, and what leaks."""

from __future__ import annotations

import json
import random
import re
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
import typer
from dataset_helpers import aptos, cbis, chestxray14, chexpert, ddsm, isic, mimic, picture
from typer.testing import CliRunner

import medprobe
from medprobe.cli import app
from medprobe.datasets import DATASETS
from medprobe.datasets._study import drawn_split, sorted_split
from medprobe.errors import DataError, UsageError


def test_aptos(tmp_path):
    aptos(tmp_path / "a")
    manifest = medprobe.read_manifest(tmp_path / "a")
    assert len(manifest) == 40
    assert manifest.roles.labels == ("label",)
    assert (manifest.roles.group, manifest.roles.split) == (None, None)
    assert manifest.samples["label"].tolist() == [i % 5 for i in range(40)]
    assert manifest.samples["split_study"].value_counts().to_dict() == {"train": 28, "val": 6, "test": 6}
    assert any("names no patients" in note for note in manifest.notes)
    (tmp_path / "a" / "train_images" / f"{3:012x}.png").unlink()
    fewer = medprobe.read_manifest(tmp_path / "a")
    assert len(fewer) == 39
    kept = manifest.samples[manifest.samples["id"].isin(fewer.samples["id"])]
    assert fewer.samples["split_study"].tolist() == kept["split_study"].tolist()  # drawn over the table, not the disk
    assert any("1 images of its tables are not on the disk" in note for note in fewer.notes)
    plain = medprobe.read_manifest(tmp_path / "a", dataset="none")
    assert set(plain.samples["label"]) == {"train_images"}


def test_isic(tmp_path):
    isic(tmp_path / "i")
    manifest = medprobe.read_manifest(tmp_path / "i")
    samples = manifest.samples
    assert len(samples) == 48
    assert manifest.roles.group == "lesion"
    assert samples["label"].tolist()[:7] == ["MEL"] * 3 + ["NV"] * 3 + ["BCC"]
    assert samples["lesion"].tolist()[:4] == ["", "HAM_0", "HAM_0", "HAM_1"]  # the tables are in another order
    assert samples["sex"].tolist()[:2] == ["male", "female"]
    assert np.isnan(samples["age"][0])
    (leak,) = [note for note in manifest.notes if note.startswith("LEAK")]
    assert "split_study" in leak
    assert "'lesion'" in leak
    assert re.search(r"first: HAM_\d+", leak)


def test_chexpert(tmp_path):
    chexpert(tmp_path / "CheXpert-v1.0-small")
    manifest = medprobe.read_manifest(tmp_path / "CheXpert-v1.0-small")
    samples = manifest.samples
    assert len(manifest) == 30 + 5
    assert (manifest.roles.group, manifest.roles.split) == ("patient", "split")
    assert len(manifest.roles.labels) == 14
    assert samples["split"].value_counts().to_dict() == {"train": 30, "test": 5}
    assert set(samples["label_Pleural_Effusion"]) == {-1.0, 0.0, 1.0}
    first = samples[samples["id"].str.contains("patient00001/")].iloc[0]
    assert first["label_No_Finding"] == 1
    assert (first["patient"], first["view"], first["projection"]) == ("patient00001", "frontal", "AP")
    order = samples.loc[samples["split"] == "train"].sort_values("id")["split_study"]
    assert order.tolist() == ["val"] * 12 + ["test"] * 9 + ["train"] * 9
    assert (samples.loc[samples["split"] == "test", "split_study"] == "").all()


def test_chestxray14(tmp_path):
    chestxray14(tmp_path / "n")
    manifest = medprobe.read_manifest(tmp_path / "n")
    samples = manifest.samples
    assert (len(samples), samples["patient"].nunique(), len(manifest.roles.labels)) == (20, 10, 14)
    assert samples["split"].value_counts().to_dict() == {"train": 14, "test": 6}
    second = samples[samples["id"].str.endswith("00000001_001.png")].iloc[0]
    assert (second["label_Effusion"], second["label_Mass"], second["label_Hernia"], second["age"]) == (1, 1, 0, 40)
    table = tmp_path / "n" / "Data_Entry_2017_v2020.csv"
    table.write_text(table.read_text().replace("Hernia", "Hernie"))
    with pytest.raises(DataError, match="'Hernie' in 'Finding Labels'"):
        medprobe.read_manifest(tmp_path / "n")


def test_mimic(tmp_path):
    (tmp_path / "m").mkdir()
    mimic(tmp_path / "m")
    manifest = medprobe.read_manifest(tmp_path / "m")
    assert (len(manifest), manifest.samples["patient"].nunique()) == (16, 8)
    assert manifest.samples["split"].value_counts().to_dict() == {"train": 6, "val": 6, "test": 4}
    assert set(manifest.samples["label_Edema"]) == {-1.0, 0.0, 1.0}
    assert any("2 images are of studies without labels" in note for note in manifest.notes)


@pytest.mark.parametrize("as_named", [True, False])
def test_cbis_ddsm(tmp_path, as_named):
    cbis(tmp_path / "c", as_named=as_named)
    manifest = medprobe.read_manifest(tmp_path / "c")
    samples = manifest.samples
    assert len(samples) == 24
    assert samples["label"].sum() == 8  # one image of two lesions is malignant if one of them is
    assert samples["lesions"].sum() == 32
    assert (manifest.roles.group, manifest.roles.split) == ("patient", None)
    assert "split_official" in samples
    (leak,) = [note for note in manifest.notes if note.startswith("LEAK")]
    assert "1 of 23 of 'patient' on two sides (first: P_00000)" in leak
    found = medprobe.check(tmp_path / "c", workers=0)
    assert not found.unreadable


def test_a_cbis_film_of_two_tables_is_one_row(tmp_path):
    cbis(tmp_path / "c", as_named=True)
    root = tmp_path / "c"
    for side in ("train", "test"):  # benign by its mass, malignant by its calcification
        path = root / f"calc_case_description_{side}_set.csv"
        table = pd.read_csv(path, dtype=str)
        named = f"Calc-{'Training' if side == 'train' else 'Test'}_P_00002_LEFT_CC/1/2/000000.dcm"
        twice = pd.DataFrame([("P_00002", "LEFT", "CC", "MALIGNANT", named)], columns=table.columns)
        pd.concat([table, twice]).to_csv(path, index=False)
    before = pd.read_csv(root / "mass_case_description_train_set.csv", dtype=str).query("patient_id == 'P_00002'")
    assert before["pathology"].tolist() == ["BENIGN"]
    manifest = medprobe.read_manifest(root)
    film = manifest.samples.set_index("id").loc["P_00002_LEFT_CC"]
    assert (film["label"], film["abnormality"], film["lesions"], film["split_official"]) == (1, "calc+mass", 3, "train")
    assert len(manifest) == 24
    assert any("1 films show a mass and a calcification" in note for note in manifest.notes)
    assert any("1 films are in a table to train and in one to test" in note for note in manifest.notes)


def test_ddsm(tmp_path):
    ddsm(tmp_path / "d")
    manifest = medprobe.read_manifest(tmp_path / "d")
    samples = manifest.samples
    assert len(manifest) == 18
    assert manifest.roles.labels == ("label", "pathology")
    assert (manifest.roles.group, manifest.roles.split) == ("patient", "split")
    assert samples["split"].tolist() == ["train"] * 6 + ["val"] * 6 + ["test"] * 6
    assert samples["pathology"].tolist()[:6] == ["normal"] * 2 + ["benign"] * 2 + ["cancer"] * 2
    assert samples["label"].tolist()[:6] == [0, 0, 1, 1, 1, 1]
    assert samples["patient"].tolist()[:3] == ["A_0000", "A_0000", "B_0001"]
    assert (samples["side"][1], samples["view"][1]) == ("right", "CC")
    lists = tmp_path / "d" / "ddsm_raw_image_lists"
    first = (lists / "train.txt").read_text().splitlines()[0]
    (lists / "test.txt").write_text(f"{first.replace('LEFT', 'RIGHT')}\n")
    (lists / "train.txt").write_text(f"{first}\n")
    torn = medprobe.read_manifest(tmp_path / "d")
    assert torn.roles.split is None
    assert any("LEAK: split_official has 1 of 4 of 'patient'" in note for note in torn.notes)
    ddsm(tmp_path / "e", own_names=False)
    other = medprobe.read_manifest(tmp_path / "e")
    assert other.roles.group is None
    assert "patient" not in other.samples
    assert any("which of them are of one patient is unknown" in note for note in other.notes)
    (tmp_path / "e" / "ddsm_raw_image_lists" / "val.txt").write_text("cancer_1.png\nmalignant_2.png\n")
    with pytest.raises(DataError, match=r"val\.txt: the file of line 2 is not called normal_\.\.\. or benign"):
        medprobe.read_manifest(tmp_path / "e")
    (tmp_path / "e" / "ddsm_raw_image_lists" / "val.txt").unlink()
    with pytest.raises(DataError, match=r"val\.txt: could not be read as a list"):
        medprobe.read_manifest(tmp_path / "e")


def test_a_data_set_that_is_not_there_says_where_it_is(tmp_path):
    with pytest.raises(DataError, match=r"not ISIC 2019, which is ISIC_2019.*there is no ISIC_2019.*isic-archive\.com"):
        medprobe.read_manifest(tmp_path, dataset="isic2019")
    with pytest.raises(UsageError, match="--dataset nothing: one of aptos2019"):
        medprobe.read_manifest(tmp_path, dataset="nothing")
    for name, dataset in DATASETS.items():
        with pytest.raises(
            DataError, match=re.escape(f"there is no such folder). It is handed out at {dataset.where}")
        ):
            medprobe.read_manifest(tmp_path / "nowhere", dataset=name)
    with pytest.raises(DataError, match="nowhere: no such file or folder"):
        medprobe.read_manifest(tmp_path / "nowhere")
    (tmp_path / "train_images").mkdir()
    (tmp_path / "train.csv").write_text("id_code,diagnosis\nabc,1\n")
    with pytest.raises(DataError, match=r"none of its 1 images is there \(first: abc\.png\)"):
        medprobe.read_manifest(tmp_path)
    isic(tmp_path / "i", 6, metadata=False)
    with pytest.raises(DataError, match=r"ISIC_2019_Training_Metadata\.csv: could not be read"):
        medprobe.read_manifest(tmp_path / "i")


def test_a_table_of_that_name_alone_is_no_data_set(tmp_path):
    for name in ("train_images/cat/1.png", "train_images/dog/2.png", "train/patient_1/3.png"):
        picture(tmp_path / name)
    (tmp_path / "train.csv").write_text("id,diagnosis\nabc,1\n")
    plain = medprobe.read_manifest(tmp_path)
    assert plain.samples["id"].tolist() == ["train/patient_1/3.png", "train_images/cat/1.png", "train_images/dog/2.png"]
    for dataset, column in (("aptos2019", "id_code"), ("chexpert", "Path")):
        with pytest.raises(DataError, match=rf"train\.csv has no column '{column}'"):
            medprobe.read_manifest(tmp_path, dataset=dataset)
    (tmp_path / "train.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match=r"could not be read as a table.*--dataset none"):
        medprobe.read_manifest(tmp_path)


@pytest.mark.parametrize(("n", "held_out", "sizes"), [(3662, 0.3, (2564, 549, 549)), (25331, 0.2, (20265, 2533, 2533))])
def test_the_drawn_split_is_the_studys(n, held_out, sizes):
    rows = list(range(n))
    random.Random(42).shuffle(rows)
    held, learned = rows[: int(n * held_out)], rows[int(n * held_out) :]
    sides = drawn_split(n, held_out)
    assert tuple((sides == side).sum() for side in ("train", "val", "test")) == sizes
    assert (sides[learned] == "train").all()
    assert (sides[held[: int(len(held) / 2)]] == "val").all()
    assert (sides[held[int(len(held) / 2) :]] == "test").all()


def by_labels(paths: list[str]) -> dict[str, set[int]]:
    """The rows of each side as pandas cuts a sorted table by the numbers that its rows had: ends included."""
    table = pd.DataFrame({"Path": paths}).sort_values("Path")
    cut = int(len(table) * 0.2) + 15
    held = table.loc[:cut]
    middle = int(len(held) / 2)
    return {name: set(part.index) for name, part in
            (("train", table.loc[cut:]), ("val", held.loc[:middle]), ("test", held.loc[middle:]))}  # fmt: skip


@pytest.mark.parametrize("mixed", [0, 1, 5, 40])
def test_the_sorted_split_is_the_studys(mixed):
    rng = np.random.default_rng(mixed)
    order = np.argsort(np.arange(900) + rng.uniform(0, mixed + 1e-9, 900))  # nearly sorted, as the official table is
    paths = [f"CheXpert-v1.0/train/patient{i // 3:05d}/study1/view{i % 3}.jpg" for i in order]
    expected = by_labels(paths)
    sides = sorted_split(paths)
    found = {side: set(np.flatnonzero(sides == side)) for side in expected}
    assert found["train"] == expected["train"]
    assert found["val"] == expected["val"] - expected["train"]
    assert found["test"] == expected["test"] - expected["val"] - expected["train"]
    assert len(expected["train"] & expected["test"]) == len(expected["val"] & expected["test"]) == 1


def test_the_sorted_split_of_the_official_size_and_of_tables_that_it_cannot_cut():
    sides = sorted_split([f"{i:06d}" for i in range(223_414)])
    # 22,349 of the study's test rows, less the two that are on another side, too
    assert [int((sides == side).sum()) for side in ("train", "val", "test")] == [178_717, 22_350, 22_347]
    assert sorted_split([f"{i:02d}" for i in range(18)]) is None
    assert sorted_split([f"{i:03d}" for i in range(100)][::-1]) is None


def test_from_the_layout_to_a_result_with_the_studys_split_and_a_grouped_one(tmp_path):
    isic(tmp_path / "i", 96)
    (report,) = medprobe.embed(tmp_path / "i", "baseline/pixels", tmp_path / "s", workers=0, image_size=8)
    grouped = medprobe.probe(report.path, probes=["ridge"], metric="macro_recall", n_folds=2, n_resamples=20)
    # 32 lesions, and eight pictures without one
    assert (grouped[0].group, grouped[0].n_groups) == ("lesion", 40)
    with pytest.raises(DataError, match="both sides"):
        medprobe.probe(report.path, probes=["ridge"], split_col="split_study")
    leaky = medprobe.probe(report.path, probes=["ridge"], split_col="split_study", group="none", n_resamples=20)
    assert leaky[0].n_images == 10


def test_several_labels_with_uncertain_ones(tmp_path):
    chexpert(tmp_path / "c", 60)
    (report,) = medprobe.embed(tmp_path / "c", "baseline/pixels", tmp_path / "s", workers=0, image_size=8)
    with pytest.raises(DataError, match="--uncertain"):
        medprobe.probe(report.path, "label", probes=["ridge"])
    for rule in ("zeros", "ones", "ignore"):
        rows = medprobe.probe(report.path, "label", probes=["ridge"], uncertain=rule, n_folds=3, n_resamples=20)
        assert rows[0].task == "multilabel"


def test_the_list_of_data_sets():
    said = CliRunner().invoke(app, ["data"])
    assert said.exit_code == 0
    for d in DATASETS.values():
        assert all(text in said.stdout for text in (d.title, d.where, d.layout, d.target, d.metric, d.groups, d.splits))
        assert d.study in said.stdout
    (one,) = json.loads(CliRunner().invoke(app, ["data", "chexpert", "--json"]).stdout)
    assert one["title"] == "CheXpert"
    assert CliRunner().invoke(app, ["data", "nothing"]).exit_code == 2


def test_what_the_list_says_to_ask_can_be_asked(tmp_path):
    """Options of the study's protocol are options of the program, and name columns that a reader gives."""
    aptos(tmp_path / "aptos2019")
    isic(tmp_path / "isic2019")
    chexpert(tmp_path / "chexpert")
    ddsm(tmp_path / "ddsm")
    known = {flag for command in typer.main.get_command(app).commands["probe"].params for flag in command.opts}
    in_study = [d for d in DATASETS.values() if d.study]
    assert len(in_study) == 4
    for d in in_study:
        words = d.study.split(" (")[0].split()
        assert {word for word in words if word.startswith("-")} <= known
        manifest = medprobe.read_manifest(tmp_path / d.name)
        assert dict(pairwise(words)).get("--split-col", "split") in manifest.samples
