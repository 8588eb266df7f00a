"""Known data sets, by the layout in which they are handed out: their labels, patients and splits as they are meant."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from medprobe.errors import DataError, UsageError

if TYPE_CHECKING:
    from medprobe.manifest import Manifest


@dataclass(frozen=True)
class Dataset:
    """A data set and what it looks like on a disk.

    Attributes:
        name: What it is called here.
        title: Its own name.
        images: What it shows and how many there are.
        target: What is predicted, with the metric that its community reports.
        where: Where it is handed out.
        layout: Files and folders below the one that is given to medprobe.
        signs: Patterns of files that are in no other data set; all of them have to be there.
        module: Where its reader lies.
        note: What to know before a number is reported.

    """

    name: str
    title: str
    images: str
    target: str
    where: str
    layout: str
    signs: tuple[str, ...]
    module: str
    note: str

    def is_in(self, root: Path) -> bool:
        """Return whether a folder looks like it."""
        return all(next(root.glob(sign), None) is not None for sign in self.signs)

    def read(self, root: Path) -> Manifest:
        """Return its manifest.

        Raises:
            DataError: A table or a column of it is missing, or none of its images are there.

        """
        manifest: Manifest = import_module(f"medprobe.datasets.{self.module}").read(root)
        return manifest


DATASETS: Mapping[str, Dataset] = {
    d.name: d
    for d in (
        Dataset(
            "aptos2019",
            "APTOS 2019 Blindness Detection",
            "3,662 colour photographs of the retina",
            "label: grade of retinopathy, 0 to 4 (--metric quadratic_kappa)",
            "kaggle.com/c/aptos2019-blindness-detection (registration)",
            "train.csv (id_code, diagnosis) and train_images/<id_code>.png",
            ("train.csv", "train_images"),
            "aptos",
            "It names no patients: two eyes, or two pictures of one eye, may be on both sides of any split.",
        ),
        Dataset(
            "isic2019",
            "ISIC 2019",
            "25,331 dermoscopic photographs",
            "label: eight diagnoses (--metric macro_recall)",
            "challenge.isic-archive.com/data/#2019",
            "ISIC_2019_Training_GroundTruth.csv, ISIC_2019_Training_Metadata.csv and ISIC_2019_Training_Input/<image>.jpg",
            ("ISIC_2019_Training_GroundTruth.csv",),
            "isic",
            "Many pictures show one lesion: they are grouped by lesion. A picture without a lesion is a group of its own.",
        ),
        Dataset(
            "chexpert",
            "CheXpert",
            "224,316 chest X-rays of 65,240 patients",
            "label: 14 findings (--uncertain zeros, ones or ignore)",
            "stanfordmlgroup.github.io/competitions/chexpert (agreement)",
            "train.csv, valid.csv and train/patient00001/study1/view1_frontal.jpg, valid/...; the small one, too",
            ("train.csv", "train/patient*"),
            "chexpert",
            "A finding that a report does not mention counts as absent, as its authors have it; -1 is uncertain.",
        ),
        Dataset(
            "chestxray14",
            "NIH ChestX-ray14",
            "112,120 chest X-rays of 30,805 patients",
            "label: 14 findings",
            "nihcc.app.box.com/v/ChestXray-NIHCC",
            "Data_Entry_2017*.csv, images/ or images_001/images/ ..., train_val_list.txt and test_list.txt",
            ("Data_Entry_2017*.csv",),
            "chestxray14",
            "Labels were mined from reports by text, and are wrong in some ten per cent.",
        ),
        Dataset(
            "mimic-cxr",
            "MIMIC-CXR-JPG",
            "377,110 chest X-rays of 65,379 patients",
            "label: 14 findings (--uncertain zeros, ones or ignore)",
            "physionet.org/content/mimic-cxr-jpg (credentialed)",
            "mimic-cxr-2.0.0-{chexpert,metadata,split}.csv(.gz) and files/p10/p10000032/s50414267/<dicom_id>.jpg",
            ("mimic-cxr-2.0.0-chexpert.csv*", "mimic-cxr-2.0.0-split.csv*"),
            "mimic",
            "A finding that a report does not mention counts as absent; -1 is uncertain.",
        ),
        Dataset(
            "cbis-ddsm",
            "CBIS-DDSM",
            "3,103 mammograms of 1,566 patients",
            "label: malignant, or not",
            "cancerimagingarchive.net/collection/cbis-ddsm",
            "{mass,calc}_case_description_{train,test}_set.csv and CBIS-DDSM/Mass-Training_P_00001_LEFT_CC/.../*.dcm",
            ("*_case_description_train_set.csv",),
            "cbis_ddsm",
            "Whole mammograms, one row an image: malignant if any of its lesions is. benign_without_callback counts as not.",
        ),
    )
}


def recognise(root: Path) -> Manifest | None:
    """Return the manifest of a known data set in a folder, or None where there is none.

    Raises:
        DataError: It looks like one, and a table of it is damaged or none of its images are there.

    """
    found = next((dataset for dataset in DATASETS.values() if dataset.is_in(root)), None)
    if found is None:
        return None
    try:
        return found.read(root)
    except DataError as error:
        raise DataError(f"{error}. The folder looks like {found.title}; if it is not: --dataset none") from error


def read_dataset(name: str, root: Path) -> Manifest:
    """Return the manifest of a data set that is known to be in a folder.

    Raises:
        UsageError: There is no data set of that name.
        DataError: The folder does not look like it.

    """
    if name not in DATASETS:
        raise UsageError(f"--dataset {name}: one of {', '.join(DATASETS)}")
    dataset = DATASETS[name]
    if not dataset.is_in(root):
        raise DataError(f"{root}: not {dataset.title}, which is {dataset.layout}. It is handed out at {dataset.where}.")
    return dataset.read(root)
