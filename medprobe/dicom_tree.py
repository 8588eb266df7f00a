"""What the headers of a tree of DICOM files say of each image, with patients, studies and series under pseudonyms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from medprobe.errors import UsageError
from medprobe.images.decode import default_workers
from medprobe.images.raster import ImageError
from medprobe.pseudonyms import own_pseudonyms
from medprobe.tables import typed

ACCESSION, KIND = "AccessionNumber", "SOPClassUID"
IDENTIFIERS = ("patient_id", "study_uid", "series_uid", "sop_instance_uid")
_PSEUDONYMS = {"patient": "patient_id", "study": "study_uid", "series": "series_uid"}
_DESCRIBING = ("modality", "manufacturer", "view_position", "laterality")
_CHUNK = 64  # files that a process reads at a time
_FEW = 256  # files that are read sooner than processes start


@dataclass(frozen=True)
class DicomTree:
    """Headers of files, in their order.

    Attributes:
        headers: Every attribute that was asked for, as text; a file whose header cannot be read has empty cells.
        is_image: Whether a file has pixels, or is too damaged to say what it is and has to be accounted for later.

    """

    headers: pd.DataFrame
    is_image: np.ndarray

    def images(self) -> DicomTree:
        """Return the headers of images alone."""
        return DicomTree(self.headers[self.is_image].reset_index(drop=True), self.is_image[self.is_image])

    @property
    def identifiers(self) -> pd.DataFrame:
        """What a table of labels may call an image by."""
        return self.headers[[*IDENTIFIERS]].assign(accession_number=self.headers[ACCESSION])

    def columns(self, tags: Sequence[str], *, keep_ids: bool) -> pd.DataFrame:
        """Return the columns of a manifest: ``patient``, ``study``, ``series``, what describes the image, and the tags."""
        names = None if keep_ids else own_pseudonyms()
        columns = {}
        for column, name in _PSEUDONYMS.items():
            values = self.headers[name]
            columns[column] = values if names is None else values.map(lambda value, c=column: names.of(c, value))
        columns |= {name: self.headers[name] for name in _DESCRIBING}
        columns |= {tag: typed(self.headers[tag].replace("", None)) for tag in tags}
        return pd.DataFrame({name: values for name, values in columns.items() if name in tags or values.any()})

    def has_folder_of_one_patient(self, folders: np.ndarray) -> bool:
        """Return whether a folder, by its name for each file, may be called by its patient: it holds a single one's images.

        Files without a patient count as those of different ones.
        """
        patient = self.headers["patient_id"]
        patients = patient.mask(patient == "", patient.index.astype(str)).groupby(folders).nunique()
        return bool((patients[patients.index != ""] < 2).any())


def read_tree(paths: Sequence[str], tags: Sequence[str] = ()) -> DicomTree:
    """Return what the headers of some files say; pixels are not read.

    Args:
        paths: DICOM files.
        tags: More attributes, by keyword (``StudyDate``) or number (``0008,0020``).

    Raises:
        UsageError: There is no such attribute, or a package for DICOM is not installed.

    """
    wanted = [*dict.fromkeys([*tags, ACCESSION, KIND])]
    chunks = [paths[start : start + _CHUNK] for start in range(0, len(paths), _CHUNK)]
    if len(paths) <= _FEW:
        read = [_headers(chunk, wanted) for chunk in chunks]
    else:
        from joblib import Parallel, delayed

        read = Parallel(n_jobs=default_workers())(delayed(_headers)(chunk, wanted) for chunk in chunks)
    rows = [row for chunk in read for row in chunk]
    headers = pd.DataFrame([row or {} for row in rows], dtype=object)
    for column in (*IDENTIFIERS, *_DESCRIBING, *wanted, "rows"):
        headers[column] = headers[column].fillna("") if column in headers else ""
    return DicomTree(
        headers, np.array([row is None or row["rows"] != "" or row[KIND] == "" for row in rows], dtype=bool)
    )


def _headers(paths: Sequence[str], tags: Sequence[str]) -> list[dict[str, str] | None]:
    try:
        from medprobe.images.dicom import dicom_columns
    except ModuleNotFoundError as error:
        raise UsageError(f"DICOM files need {error.name}: pip install 'medprobe[dicom]'") from None
    found: list[dict[str, str] | None] = []
    for path in paths:
        try:
            found.append(dicom_columns(path, tags))
        except ImageError:
            found.append(None)
    return found
