"""MedMNIST: what the numbers of its labels mean, by the name of the file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from medprobe.errors import DataError
from medprobe.manifest import Manifest, read_manifest

SIZES = ("", "_64", "_128", "_224")
_ORGANS = (
    "bladder", "femur-left", "femur-right", "heart", "kidney-left", "kidney-right", "liver", "lung-left", "lung-right",
    "pancreas", "spleen",
)  # fmt: skip
# The two-dimensional sets, with the words of Yang et al. (Scientific Data 2023).
NAMES: Mapping[str, tuple[str, ...]] = {
    "pathmnist": (
        "adipose", "background", "debris", "lymphocytes", "mucus", "smooth muscle", "normal colon mucosa",
        "cancer-associated stroma", "colorectal adenocarcinoma epithelium",
    ),
    "chestmnist": (
        "atelectasis", "cardiomegaly", "effusion", "infiltration", "mass", "nodule", "pneumonia", "pneumothorax",
        "consolidation", "edema", "emphysema", "fibrosis", "pleural", "hernia",
    ),
    "dermamnist": (
        "actinic keratoses and intraepithelial carcinoma", "basal cell carcinoma", "benign keratosis-like lesions",
        "dermatofibroma", "melanoma", "melanocytic nevi", "vascular lesions",
    ),
    "octmnist": ("choroidal neovascularization", "diabetic macular edema", "drusen", "normal"),
    "pneumoniamnist": ("normal", "pneumonia"),
    "retinamnist": ("0", "1", "2", "3", "4"),
    "breastmnist": ("malignant", "normal, benign"),
    "bloodmnist": (
        "basophil", "eosinophil", "erythroblast",
        "immature granulocytes(myelocytes, metamyelocytes and promyelocytes)", "lymphocyte", "monocyte", "neutrophil",
        "platelet",
    ),
    "tissuemnist": (
        "Collecting Duct, Connecting Tubule", "Distal Convoluted Tubule", "Glomerular endothelial cells",
        "Interstitial endothelial cells", "Leukocytes", "Podocytes", "Proximal Tubule Segments", "Thick Ascending Limb",
    ),
    "organamnist": _ORGANS,
    "organcmnist": _ORGANS,
    "organsmnist": _ORGANS,
}  # fmt: skip
_ORDINAL = ("retinamnist",)


def set_of(path: Path) -> str | None:
    """Return the set that a file holds by its name, such as ``pathmnist_224.npz``, or None."""
    found = re.fullmatch(rf"({'|'.join(NAMES)})({'|'.join(SIZES)})\.npz", path.name.lower())
    return found[1] if found else None


def meaning(path: Path, width: int) -> tuple[tuple[str, ...], str]:
    """Return the names of a file's label columns, and what its numbers mean in words; nothing where that is unknown.

    Args:
        path: The file, known by its name.
        width: How many label columns it has.

    """
    name = set_of(path)
    if name is None:
        return (), ""
    names = NAMES[name]
    if width == len(names) > 1:
        return tuple(f"label_{finding}" for finding in names), ""
    if name in _ORDINAL:
        return (), f"{name}: its labels are ordered grades (--metric quadratic_kappa)"
    return (), f"{name}: {'; '.join(f'{number} is {word}' for number, word in enumerate(names))}"


def read(root: Path) -> Manifest:
    """Return the manifest of the one file in a folder.

    Raises:
        DataError: There are several.

    """
    files = sorted(root.glob("*.npz"))
    if len(files) > 1:
        raise DataError(f"{root}: name one of its files: {', '.join(file.name for file in files)}")
    return read_manifest(files[0])
