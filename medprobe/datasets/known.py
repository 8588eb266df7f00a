"""Which data sets are known: what they hold, where they are handed out, and what a folder of one looks like."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from medprobe.datasets._cells import header
from medprobe.datasets.medmnist import NAMES, SIZES

if TYPE_CHECKING:
    from medprobe.manifest import Manifest


@dataclass(frozen=True)
class Dataset:
    """A data set and what it looks like on a disk.

    Attributes:
        name: What it is called here.
        title: Its own name.
        images: What it shows and how many there are.
        where: Where it is handed out.
        layout: Files and folders below the one that is given to medprobe.
        target: What is predicted.
        metric: What its community ranks by, in words and as options of ``medprobe probe``.
        groups: What keeps images on one side of a split.
        splits: Columns with a split.
        note: What to know before a number is reported.
        module: Where its reader lies.
        signs: Patterns of files that all have to be there, each perhaps one of several, separated by ``|``.
        columns: Columns that a table must have, where its name says little.
        unlike: Patterns of files that must not be there.
        inside: Patterns of sub-folders that may be it, where they are all that there is.
        study: Options of ``medprobe probe`` that repeat Palés Huix et al. (WACV 2024), where it is in that study.

    """

    name: str
    title: str
    images: str
    where: str
    layout: str
    target: str
    metric: str
    groups: str
    splits: str
    note: str
    module: str
    signs: tuple[str, ...]
    columns: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    unlike: tuple[str, ...] = ()
    inside: tuple[str, ...] = ()
    study: str = ""

    def lacks(self, root: Path) -> str:
        """Return in words what keeps a folder from being it, empty if it looks like it."""
        for sign in self.signs:
            if not any(_has(root, pattern) for pattern in sign.split("|")):
                return f"there is no {sign.replace('|', ' or ')}"
        for name, columns in self.columns.items():
            # A table that cannot be read is not taken for another one: its reader says what is wrong with it.
            lacking = [column for column in columns if column not in (header(root / name) or columns)]
            if lacking:
                return f"{name} has no column '{lacking[0]}'"
        extra = next((pattern for pattern in self.unlike if _has(root, pattern)), None)
        return f"there is {extra}, too" if extra else ""

    def root_in(self, folder: Path) -> Path | None:
        """Return the folder itself, or the one below it that is it, or None."""
        below = [path for path in sorted(folder.glob("*/")) if path.is_dir() and not path.name.startswith(".")]
        if not all(any(path.match(pattern) for pattern in self.inside) for path in below):
            below = []
        return next((root for root in (folder, *below) if not self.lacks(root)), None)

    def read(self, root: Path) -> Manifest:
        """Return its manifest.

        Raises:
            DataError: A table or a column of it is missing or damaged, or none of its images are there.

        """
        manifest: Manifest = import_module(f"medprobe.datasets.{self.module}").read(root)
        return manifest


def _has(root: Path, pattern: str) -> bool:
    return any(not path.name.startswith(".") for path in root.glob(pattern))


_UNCERTAIN = "-t label --uncertain zeros (or ones, ignore): mean AUROC"

DATASETS: Mapping[str, Dataset] = {
    d.name: d
    for d in (
        Dataset(
            name="aptos2019",
            title="APTOS 2019 Blindness Detection",
            images="3,662 colour photographs of the retina",
            where="kaggle.com/c/aptos2019-blindness-detection (registration)",
            layout="train.csv (id_code, diagnosis) and train_images/<id_code>.png",
            target="label: grade of retinopathy, 0 to 4",
            metric="-t label --metric quadratic_kappa",
            groups="nothing: it names no patients",
            splits="split_study (70/15/15 at random)",
            note="Two eyes, or two pictures of one eye, may be on both sides of any split.",
            module="aptos",
            signs=("train.csv", "train_images"),
            columns={"train.csv": ("id_code", "diagnosis")},
            study="-t label --metric quadratic_kappa --split-col split_study --preset huix2024",
        ),
        Dataset(
            name="isic2019",
            title="ISIC 2019",
            images="25,331 dermoscopic photographs",
            where="challenge.isic-archive.com/data/#2019",
            layout="ISIC_2019_Training_GroundTruth.csv, ISIC_2019_Training_Metadata.csv and "
            "ISIC_2019_Training_Input/<image>.jpg, or train/<image>.jpg",
            target="label: eight diagnoses",
            metric="-t label --metric macro_recall",
            groups="lesion",
            splits="split_study (80/10/10 at random; lesions are on several sides of it)",
            note="Many pictures show one lesion. A picture without a lesion is a group of its own.",
            module="isic",
            signs=("ISIC_2019_Training_GroundTruth.csv",),
            study="-t label --metric macro_recall --split-col split_study --group none --preset huix2024",
        ),
        Dataset(
            name="chexpert",
            title="CheXpert",
            images="224,316 chest X-rays of 65,240 patients",
            where="stanfordmlgroup.github.io/competitions/chexpert (agreement)",
            layout="train.csv, valid.csv and train/patient00001/study1/view1_frontal.jpg, valid/... (the small one, too), "
            "the folder above it, or the batches of the full-size edition side by side",
            target="label: 14 findings",
            metric=_UNCERTAIN,
            groups="patient",
            splits="split (the official validation images are tested), split_study (80/10/10 of the sorted train.csv)",
            note="A finding that a report does not mention counts as absent, as its authors have it; -1 is uncertain.",
            module="chexpert",
            signs=("train.csv",),
            columns={"train.csv": ("Path", "Sex", "Age", "Frontal/Lateral", "AP/PA")},
            inside=("CheXpert-v1.0*",),
            study="-t label --uncertain huix2024 --split-col split_study --group none --preset huix2024",
        ),
        Dataset(
            name="chestxray14",
            title="NIH ChestX-ray14",
            images="112,120 chest X-rays of 30,805 patients",
            where="nihcc.app.box.com/v/ChestXray-NIHCC",
            layout="Data_Entry_2017*.csv, images/ or images_001/images/ ..., train_val_list.txt and test_list.txt",
            target="label: 14 findings",
            metric="-t label: mean AUROC",
            groups="patient",
            splits="split (its lists)",
            note="Labels were mined from reports by text, and are wrong in some ten per cent.",
            module="chestxray14",
            signs=("Data_Entry_2017*.csv",),
        ),
        Dataset(
            name="mimic-cxr",
            title="MIMIC-CXR-JPG",
            images="377,110 chest X-rays of 65,379 patients",
            where="physionet.org/content/mimic-cxr-jpg (credentialed)",
            layout="mimic-cxr-2.0.0-{chexpert,metadata,split}.csv(.gz) and files/p10/p10000032/s50414267/<dicom_id>.jpg",
            target="label: 14 findings",
            metric=_UNCERTAIN,
            groups="patient",
            splits="split (its table)",
            note="A finding that a report does not mention counts as absent; -1 is uncertain.",
            module="mimic",
            signs=("mimic-cxr-2.0.0-chexpert.csv*", "mimic-cxr-2.0.0-split.csv*"),
        ),
        Dataset(
            name="cbis-ddsm",
            title="CBIS-DDSM",
            images="3,103 mammograms of 1,566 patients",
            where="cancerimagingarchive.net/collection/cbis-ddsm",
            layout="{mass,calc}_case_description_{train,test}_set.csv and Mass-Training_P_00001_LEFT_CC/.../*.dcm, perhaps "
            "below CBIS-DDSM/ or manifest-.../CBIS-DDSM/; or, as JPEG, csv/ (with dicom_info.csv) and jpeg/",
            target="label: malignant (1) or not",
            metric="-t label: AUROC",
            groups="patient",
            splits="split_official (its tables, which share patients)",
            note="Whole mammograms, one row a film: malignant if one of its lesions is. benign_without_callback is not.",
            module="cbis_ddsm",
            signs=(
                "{0}|{1}|csv/{0}|csv/{1}".format(*(f"{kind}_case_description_*_set.csv" for kind in ("mass", "calc"))),
            ),
        ),
        Dataset(
            name="ddsm",
            title="DDSM",
            images="some 10,000 mammograms",
            where="eng.usf.edu/cvprg/mammography/database.html, with the lists of those who made JPEG files of it",
            layout="ddsm_raw_image_lists/{train,val,test}.txt and ddsm_raw/cancer_15-A_1234_1.RIGHT_CC.LJPEG.1.jpg ...",
            target="label: normal (0) or not; pathology: normal, benign or cancer",
            metric="-t label: AUROC",
            groups="patient, where files are called as DDSM's own are",
            splits="split (its lists; split_official if patients are on two sides of it)",
            note="Benign findings count as not normal, as in the study.",
            module="ddsm",
            signs=("ddsm_raw_image_lists",),
            study="-t label --preset huix2024 (with --split-col split_official --group none where the lists share patients)",
        ),
        Dataset(
            name="medmnist",
            title="MedMNIST",
            images="twelve sets of small pictures",
            where="zenodo.org/records/10519652, or: medprobe demo --data breastmnist",
            layout=f"<set>.npz, or <set>{', <set>'.join(SIZES[1:])}.npz: {', '.join(NAMES)}",
            target="label: numbers, whose names embedding says; of chestmnist 14 findings",
            metric="-t label: AUROC, or balanced accuracy; of retinamnist -t label --metric quadratic_kappa",
            groups="nothing: it names no patients",
            splits="split (its own)",
            note="Name the file itself. Some sets hold a picture twice, on two sides of the split: --duplicates drop.",
            module="medmnist",
            signs=("*mnist*.npz",),
            unlike=("*/", "*.png", "*.jp*g", "*.dcm", "*.csv"),
        ),
    )
}
