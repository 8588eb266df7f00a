"""The documentation says what the code does: its pages are built, its flags exist, its commands run."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import make_store
from docs_helpers import DOCS, PAGES, commands, page, programs
from PIL import Image
from typer.testing import CliRunner

from medprobe.cli import app

FLAG = re.compile(r"(?<![\w-])--[a-z][a-z-]+")
# Of other programs: torchrun, Slurm, and this project's benchmarks.
FOREIGN = {"--nproc-per-node", "--ntasks", "--gpus-per-task", "--cpus-per-task", "--array", "--gpus"}
FOREIGN |= {"--coverage", "--store"}
OF_ALL = {"--help", "--version", "--quiet"}


@pytest.fixture(scope="module")
def reference() -> dict[str, object]:
    return runpy.run_path(str(DOCS / "reference.py"))


@pytest.fixture
def cli(tmp_path, monkeypatch):
    """Return what runs a command in an empty folder as a shell would, and fails where it fails."""
    monkeypatch.chdir(tmp_path)

    def run(arguments: list[str]) -> str:
        expanded = [found for a in arguments for found in (sorted(map(str, Path().glob(a))) if "*" in a else [a])]
        result = CliRunner().invoke(app, expanded)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == 0, (arguments, result.stderr)
        return result.stdout

    return run


@pytest.mark.filterwarnings("ignore:.*Sphinx")  # of its extensions among themselves
def test_the_site_is_built_without_a_warning_and_asks_for_nothing(tmp_path):
    sphinx = pytest.importorskip("sphinx.cmd.build", reason="needs Sphinx: pip install 'medprobe[docs]'")
    site = tmp_path / "site"
    options = ["-q", "-E", "-W", "--keep-going", "-b", "html", "-d", str(tmp_path / "trees")]
    assert sphinx.main([*options, str(DOCS), str(site)]) == 0
    assert {path.relative_to(DOCS).with_suffix(".html") for path in DOCS.rglob("*.md")} <= {
        path.relative_to(site) for path in site.rglob("*.html")
    }
    loaded = re.compile(
        r"<(?:script|link|img|iframe|source|object)\b[^>]*?\b(?:src|href|data)=[\"'](?:https?:)?//[^>]*>", re.I
    )
    for path in site.rglob("*.html"):
        assert not loaded.findall(path.read_text(encoding="utf-8")), path
    for path in site.rglob("*.css"):
        assert not re.findall(r"(?:url\(|@import)\s*[\"']?(?:https?:)?//", path.read_text(encoding="utf-8")), path
    assert "<math" in (site / "statistics.html").read_text(encoding="utf-8")


def test_what_is_written_from_the_code_is_current(reference):
    written = reference["pages"]()
    assert {f"commands/{path.name}" for path in (DOCS / "commands").glob("*.md")} <= written.keys()
    stale = [name for name, text in written.items() if not (DOCS / name).exists() or page(name) != text]
    assert not stale, f"python docs/reference.py writes {', '.join(stale)} anew"


def test_every_command_has_a_page_that_names_all_of_its_flags(reference):
    for name, command in reference["commands"]():
        text = page(f"commands/{name.replace(' ', '-')}.md")
        assert f"({name.replace(' ', '-')}.md)" in page("commands/index.md")
        missing = [
            flag
            for p in command.params
            if p.name != "help"
            for flag in p.opts
            if f"`{flag}`" not in text and flag[0] == "-"
        ]
        assert not missing


def test_every_flag_that_a_page_names_exists(reference):
    known = {
        flag for _, command in reference["commands"]() for p in command.params for flag in (*p.opts, *p.secondary_opts)
    }
    known |= FOREIGN | OF_ALL
    for path in PAGES:
        named = set(FLAG.findall(path.read_text(encoding="utf-8")))
        assert named <= known, (path.name, named - known)


def test_every_command_that_a_page_shows_can_be_given(reference):
    known = dict(reference["commands"]())
    seen = 0
    for path in PAGES:
        if path.parent.name == "commands":
            continue
        for arguments in commands(path.read_text(encoding="utf-8")):
            words = 2 if arguments[0] == "study" else 1
            command = known[" ".join(arguments[:words])]
            if "..." in arguments:
                continue
            arguments = [re.sub(r"\$\w+", "1", argument) for argument in arguments]
            try:
                command.make_context(arguments[0], arguments[words:])
            except Exception as error:
                pytest.fail(f"{path.name}: {' '.join(arguments)}: {error}")
            seen += 1
    assert seen > 50


def test_the_commands_of_the_quick_start_run(cli, capsys):
    rng = np.random.default_rng(0)
    lines = ["path,label,patient,sex"]
    for i in range(48):
        label = ("benign", "malignant")[i % 2]
        path = Path("my_images", label, f"{i:04d}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((rng.integers(0, 150, (32, 32, 3)) + 100 * (i % 2)).astype(np.uint8)).save(path)
        lines.append(f"{path},{label},p{i // 4},{'FM'[i // 4 % 2]}")
    Path("images.csv").write_text("\n".join(lines))
    _dicom_tree(Path("archive"), rng)
    # One small network in the place of a pretrained one and of pixels, whose vectors are long.
    text = page("quickstart.md").replace(" -m baseline/pixels", "")
    text = re.sub(r"imagenet(/|--)efficientnet-lite0", r"baseline\1random-test_vit", text)
    for arguments in commands(text):
        shown = cli(quickly(arguments))
        assert arguments[0] != "probe" or "AUROC" in shown
    assert Path("report.html").stat().st_size > 10_000
    (program,) = programs(text)
    exec(program, {})
    assert capsys.readouterr().out.startswith("auroc ")


def quickly(arguments: list[str]) -> list[str]:
    """Return a command without further processes, with a fast probe where none is named, few draws and resamples."""
    if arguments[0] in {"check", "embed"}:
        return [*arguments, "--workers", "0"]
    if arguments[0] != "probe":
        return arguments
    named = {"-p", "--preset", "--save-model"} & {*arguments}
    draws = ["--repeats", "2"] if "--shots" in arguments else []
    return [*arguments, *draws, "--bootstrap", "50", *([] if named else ["-p", "ridge"])]


def _dicom_tree(root: Path, rng: np.random.Generator) -> None:
    """Draw 24 DICOM files of 12 patients, and a table that names a finding for each study."""
    from dicom_helpers import dataset, encoded

    rows = ["AccessionNumber,finding"]
    for i in range(24):
        sick = i // 2 % 2
        ds = dataset(rng.integers(0, 2000, (24, 24)).astype(np.uint16) + np.uint16(1500 * sick), bits=12)
        ds.PatientID, ds.AccessionNumber = f"patient {i // 2}", f"A{i:03d}"
        ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.SOPInstanceUID = f"1.2.{i}", f"1.2.{i}.1", f"1.2.{i}.1.1"
        path = root / f"{i // 2}" / f"{i}.dcm"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(ds))
        rows.append(f"A{i:03d},{('none', 'opacity')[sick]}")
    Path("reports.csv").write_text("\n".join(rows))


@pytest.mark.parametrize("name", ["external-validation.md", "few-labels.md", "probing.md", "shortcuts.md", "sites.md"])
def test_the_questions_of_the_recipes_are_answered(name, cli, capsys):
    """On stores of drawn features."""
    for folder in ("stores", "a", "b"):
        _drawn_store(Path(folder, "dinov2--vitb14.zarr"), "dinov2/vitb14", 1 + len(folder))
    _drawn_store(Path("stores", "baseline--pixels.zarr"), "baseline/pixels", 0)
    text = page(name)
    asked = 0
    for arguments in commands(text):
        if arguments[0] == "embed" or "new_images/" in arguments:
            continue
        cli([argument.replace("stores/new.zarr", "b/dinov2--vitb14.zarr") for argument in quickly(arguments)])
        asked += arguments[0] == "probe"
    assert asked
    for program in programs(text):
        exec(program, {})
        assert "Interval(" in capsys.readouterr().out


def _drawn_store(path: Path, encoder: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    patient = np.repeat(np.arange(120), 2)
    label = patient % 2
    samples = pd.DataFrame(
        {
            "label": label,
            "icu": label,
            "patient": [f"p{p}" for p in patient],
            "site": np.where(patient % 4 < 2, "A", "B"),
            "split": np.where(patient % 8 < 4, "train", "test"),
            "sex": np.where(patient % 3 == 0, "F", "M"),
            "view": np.where(patient % 5 == 0, "pa", "ap"),
        }
    )
    path.parent.mkdir(exist_ok=True)
    X = rng.normal(size=(240, 6)) + label[:, None] * 0.7
    make_store(path, X.astype(np.float32), samples, labels=("label",), group="patient", split="split", encoder=encoder)
