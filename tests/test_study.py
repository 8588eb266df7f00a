"""Studies: run, killed and resumed, changed, broken in places, shared out, and shown."""

from __future__ import annotations

import csv
import inspect
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from dataset_helpers import aptos, chexpert, ddsm, isic
from scipy import stats
from sklearn.metrics import cohen_kappa_score, roc_auc_score
from study_helpers import SMALL, small_study
from typer.testing import CliRunner

import medprobe
from medprobe.cli import app
from medprobe.embed.ranks import Share, share_of
from medprobe.errors import DataError, UsageError
from medprobe.finetune.heads import MODES
from medprobe.finetune.run import finetune
from medprobe.results import Results
from medprobe.study import read_study, run_study, show_study
from medprobe.study.cache import Cache
from medprobe.study.formats import FORMATS, tex, to_csv, to_json, to_latex
from medprobe.study.schema import FINETUNE_KEYS, FINETUNE_MODES, Data, EncoderChoice, Head
from medprobe.study.toml import STUDY_KEYS, shipped

ROOT = Path(__file__).resolve().parents[1]
CELLS = 2 * 3 * 2 * (1 + 2)  # data sets, encoders' views, seeds, heads with each number of shots


def command(*arguments: object):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The small study, run: its file and its folder."""
    folder = tmp_path_factory.mktemp("study")
    path = small_study(folder)
    report = run_study(path, out=folder / "out", workers=0)
    assert [r.reason for r in report.cells if r.reason] == []
    assert report.count("computed") == len(report.cells) == CELLS
    return path, folder / "out"


def test_every_cell_is_a_probe_of_the_store_with_the_arguments_of_the_file(finished):
    path, out = finished
    (cell,) = [
        c
        for c in read_study(path).cells(["data=bright*", "encoder=*vit", "head=ridge"])
        if (c.view, c.seed) == ("mean", 1)
    ]
    store = out / "stores" / "bright-ones" / "baseline--random-test_vit.zarr"
    own = medprobe.probe(
        store, "label", probes=["ridge"], view="mean", metric="auroc", n_folds=3, n_resamples=50, seed=1
    )
    kept = Cache(out).read(cell)
    assert kept is not None
    assert [(r.metric, r.value, r.ci_low) for r in kept] == [(r.metric, r.value, r.ci_low) for r in own]


def test_the_table_holds_means_over_seeds_gains_and_ranks(finished):
    path, out = finished
    table = show_study(path, folder=out)
    assert [(c.data, c.metric) for c in table.columns] == [("bright ones", "auroc"), ("grades", "quadratic_kappa")]
    assert (table.columns[0].n_images, table.columns[0].n_groups, table.columns[0].group) == (48, 24, "patient")
    lines = {tuple(line.method): line for line in table.lines}
    assert len(lines) == 3 * 3
    assert [line.gain.value for line in table.lines] == sorted((x.gain.value for x in table.lines), reverse=True)
    study, cache = read_study(path), Cache(out)

    def mean(data, encoder, view, of):
        found = []
        for cell in study.cells([f"data={data}", f"encoder={encoder}", "head=ridge"]):
            if cell.view == view:
                rows = cache.read(cell)
                found.append(of(rows.predictions[rows[0].trial]))
        assert len(found) == 2
        return np.mean(found)

    def auroc(p):
        return roc_auc_score(p.y, p.proba[0, :, 1])

    def kappa(p):
        return cohen_kappa_score(p.y, p.proba[0].argmax(axis=1), weights="quadratic")

    gains = []
    line = lines["baseline/random-test_vit", "mean", "ridge"]
    for data, metric in (("bright ones", auroc), ("grades", kappa)):
        own = mean(data, "baseline/random-test_vit", "mean", metric)
        base = mean(data, "baseline/pixels", "", metric)
        assert line.values[data].value == pytest.approx(own, abs=1e-6)
        gains.append(100 * (own / base - 1))
        assert line.gains[data].value == pytest.approx(gains[-1], abs=1e-3)
    assert line.gain.value == pytest.approx(np.mean(gains), abs=1e-3)
    assert line.gain.low <= line.gain.value <= line.gain.high
    assert (line.verdict == "inside the noise") == (line.gain.low <= 0 <= line.gain.high)
    base = lines["baseline/pixels", "pixels", "ridge"]
    assert (base.gain.value, base.verdict) == (0.0, "baseline")
    # Few labels are another head, and in no rank.
    assert np.isnan(lines["baseline/pixels", "pixels", "means, 3 shots"].rank)
    assert table.ranks is not None
    values = np.array([[-x.values[c.data].value for x in lines.values() if not x.shots] for c in table.columns])
    ranks = stats.rankdata(values, axis=1).mean(axis=0)
    assert [x.rank for x in lines.values() if not x.shots] == pytest.approx(ranks.tolist())
    assert sorted(ranks.tolist()) == sorted(table.ranks.average)


def test_draws_of_few_labels_are_in_one_cell_only(finished):
    path, out = finished
    seeds = [
        Cache(out).read(c)[0].seed
        for c in read_study(path).cells(["data=grades", "encoder=baseline/pixels", "head=means, 1 shot"])
        if c.shots == 1
    ]
    assert seeds == [0, 2]  # two draws each: 0 and 1, 2 and 3


def test_what_is_there_is_not_run_again_and_needs_no_encoder(finished, monkeypatch):
    path, out = finished
    monkeypatch.setattr("medprobe.encoders.registry.load_encoder", lambda *_: pytest.fail("loaded"))
    monkeypatch.setattr("medprobe.probe.run.probe", lambda *_, **__: pytest.fail("probed"))
    assert run_study(path, out=out).count("cached") == CELLS


def test_a_changed_file_recomputes_what_changed(finished, tmp_path, monkeypatch):
    path, out = finished
    changed = path.with_name("changed.toml")
    text = SMALL.replace('probe = "ridge"', 'probe = "ridge"\npca = 4').replace('name = "small"', 'name = "other"')
    changed.write_text(text)
    there = run_study(changed, out=out, dry_run=True)
    assert {r.cell.head.probe for r in there.cells if r.state == "to do"} == {"ridge"}
    assert there.count("cached") == CELLS * 2 // 3
    # A label that changes changes the cells of its data set; the features stay.
    copy = small_study(tmp_path)
    only = ["head=ridge", "encoder=baseline/pixels"]
    assert run_study(copy, out=tmp_path / "out", only=only, workers=0).count("computed") == 4
    table = tmp_path / "a" / "manifest.csv"
    lines = table.read_text().splitlines()
    lines[1] = lines[1].replace(",0,", ",1,", 1) if ",0," in lines[1] else lines[1].replace(",1,", ",0,", 1)
    table.write_text("\n".join(lines))
    monkeypatch.setattr("medprobe.encoders.base.Encoder.encode", lambda *_: pytest.fail("embedded again"))
    again = run_study(copy, out=tmp_path / "out", only=only, workers=0)
    assert [(r.cell.data.name, r.state) for r in again.cells] == [
        *[("bright ones", "computed")] * 2,
        *[("grades", "cached")] * 2,
    ]


KILLED = """
import sys, time
import medprobe.probe.run as run
real = run.probe
def slow(*args, **kwargs):
    with open(sys.argv[3], "a") as log:
        log.write("probed\\n")
    time.sleep(0.2)
    return real(*args, **kwargs)
run.probe = slow
from medprobe.study import run_study
run_study(sys.argv[1], out=sys.argv[2], only=["encoder=baseline/pixels"], workers=0)
"""


def test_killed_and_run_again_it_computes_what_is_missing_and_shows_the_same_table(finished, tmp_path):
    path, out = finished
    log = tmp_path / "log"
    arguments = [sys.executable, "-c", KILLED, str(path), str(tmp_path / "out"), str(log)]
    process = subprocess.Popen(arguments)
    deadline = time.monotonic() + 300
    while not log.exists() or log.read_text().count("\n") < 4:
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    total = CELLS // 3
    done = run_study(path, out=tmp_path / "out", only=["encoder=baseline/pixels"], dry_run=True).count("cached")
    assert 3 <= done < total
    log.unlink()
    subprocess.run(arguments, check=True)
    assert log.read_text().count("\n") == total - done
    tables = [show_study(path, folder=f, only=["encoder=baseline/pixels"]) for f in (out, tmp_path / "out")]
    assert to_json(tables[0]) == to_json(tables[1])
    assert not list((tmp_path / "out" / "cells").glob(".*"))


def test_a_damaged_cell_is_run_again(finished, tmp_path):
    path, out = finished
    cell = read_study(path).cells(["data=grades", "encoder=baseline/pixels", "head=ridge"])[0]
    predictions = next(Cache(out).folder(cell).glob("predictions/*.npz"))
    predictions.write_bytes(predictions.read_bytes()[:-3])
    assert Cache(out).read(cell) is None
    report = run_study(path, out=out, only=["data=grades", "encoder=baseline/pixels", "head=ridge"])
    assert [r.state for r in report.cells] == ["computed", "cached"]


def test_what_fails_is_reported_and_the_rest_goes_on(tmp_path):
    text = SMALL + '\n[[head]]\nprobe = "attentive"\n\n[[encoder]]\nname = "dinov2/vits14"\nweights = "broken.pth"\n'
    path = small_study(tmp_path, text)
    (tmp_path / "broken.pth").write_bytes(b"no weights")
    (tmp_path / "b" / "manifest.csv").write_text("path,grade\n")
    only = ["--only", "encoder=baseline/pixels", "--only", "encoder=dinov2*"]
    arguments = ["study", "run", path, "-o", tmp_path / "out", "--workers", "0", *only, "--only", "head=[ar]*"]
    done = command("-q", *arguments, "--json")
    assert done.exit_code == 3, done.stderr
    cells = json.loads(done.stdout)["cells"]
    states = {(c["data"]["name"], c["encoder"]["name"], c["head"]["probe"]): (c["state"], c["reason"]) for c in cells}
    assert states["bright ones", "baseline/pixels", "ridge"][0] == "computed"
    assert "no patch tokens" in states["bright ones", "baseline/pixels", "attentive"][1]
    assert "broken.pth" in states["bright ones", "dinov2/vits14", "ridge"][1]
    assert "manifest.csv" in states["grades", "baseline/pixels", "ridge"][1]
    shown = command("study", "show", path, "--folder", tmp_path / "out", "--only", "data=bright*")
    assert shown.exit_code == 0, shown.output
    said = " ".join(shown.stdout.split())
    assert "failed: bright ones, dinov2/vits14, ridge, seed 0 (and 1 more): " in said
    assert "not run yet: bright ones, baseline/random-test_vit" in said
    listed = command(*arguments, "--dry-run")
    assert listed.exit_code == 0
    assert "to do (failed before: " in listed.stdout
    nothing = command("-q", *arguments, "--only", "data=grades")
    assert nothing.exit_code == 1
    with pytest.raises(DataError, match=r"no cell of .* is finished"):
        show_study(path, folder=tmp_path / "nowhere")


def test_an_interrupt_says_that_the_same_command_goes_on(tmp_path, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("medprobe.probe.run.probe", interrupted)
    only = ["--only", "encoder=baseline/pixels", "--only", "data=bright*"]
    done = command("-q", "study", "run", small_study(tmp_path), "-o", tmp_path / "out", "--workers", "0", *only)
    assert done.exit_code == 4
    assert "run the same command again" in done.stderr
    assert not (tmp_path / "out" / "failures").exists()


def test_ranks_share_out_pairs_and_compute_what_one_process_does(finished, tmp_path):
    path, out = finished
    parts = [
        run_study(path, out=tmp_path, only=["head=ridge"], workers=0, rank=rank, world_size=3, device="cpu")
        for rank in range(3)
    ]
    pairs = [{r.cell.pair for r in part.cells} for part in parts]
    assert sorted(map(len, pairs)) == [1, 1, 2]
    assert len(set().union(*pairs)) == 4
    assert all(part.count("computed") == len(part.cells) for part in parts)
    alone, shared = (show_study(path, folder=f, only=["head=ridge"]) for f in (out, tmp_path))
    assert to_json(alone) == to_json(shared)
    with pytest.raises(UsageError, match="--rank and --world-size go together"):
        run_study(path, out=tmp_path, rank=1)


def test_a_launcher_is_hidden_from_what_a_rank_does(tmp_path, monkeypatch):
    path = small_study(tmp_path / "data")
    seen = []
    monkeypatch.setattr("medprobe.study.run.run_cells", lambda *_: seen.append(share_of(None, None)) or ())
    for name, value in {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    run_study(path, out=tmp_path / "out", device="cpu")
    assert seen == [Share()]
    assert os.environ["RANK"] == "1"


def test_stores_go_without_their_images(finished, tmp_path):
    _, out = finished
    elsewhere = tmp_path / "small.toml"
    elsewhere.write_text(SMALL.replace('"ridge"', '"knn"'))
    with pytest.raises(DataError, match=r"\[\[data\]\] bright ones: 'path': .*--data-root"):
        run_study(elsewhere, out=tmp_path / "out")
    found = run_study(elsewhere, out=out, only=["data=grades", "encoder=baseline/pixels", "head=knn"])
    assert found.count("computed") == 2


def test_ray_shares_out_the_same_cells(finished, tmp_path):
    path, out = finished
    pytest.importorskip("ray")
    report = run_study(path, out=tmp_path, only=["head=ridge"], workers=0, engine="ray")
    assert report.count("computed") == len(report.cells) == CELLS // 3
    assert to_json(show_study(path, folder=tmp_path, only=["head=ridge"])) == to_json(
        show_study(path, folder=out, only=["head=ridge"])
    )


def test_engines_are_named_and_ray_is_asked_for(finished, monkeypatch):
    path, out = finished
    with pytest.raises(UsageError, match="--engine spark: one of local, ray"):
        run_study(path, out=out, engine="spark")
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match=r"pip install 'medprobe\[ray\]'"):
        run_study(path, out=out, engine="ray")


def test_fine_tuned_heads_stand_beside_probes(tmp_path, monkeypatch):
    calls = []

    def recorded(*arguments, **named):
        calls.append((arguments, named))
        return finetune(*arguments, **named)

    monkeypatch.setattr("medprobe.finetune.run.finetune", recorded)
    tuned = """
[[head]]
name = "tuned"
finetune = "full"
epochs = 1
batch_size = 16
lr = 1e-3
seeds = [1]
encoders = ["baseline/random-test_vit"]
against = "ridge"
"""
    path = small_study(tmp_path, SMALL.split("[[head]]")[0] + '[[head]]\nprobe = "ridge"\n' + tuned)
    only = ["data=grades"]
    report = run_study(path, out=tmp_path / "out", only=only, workers=0)
    assert [r.reason for r in report.cells if r.reason] == []
    (((data, model, target), given),) = calls
    assert (len(data), model, target) == (80, "baseline/random-test_vit", "grade")
    expected = {"mode": "full", "epochs": 1, "lr": 1e-3, "seed": 1, "split_col": "split", "metric": "quadratic_kappa"}
    assert {key: given[key] for key in expected} == expected
    assert given["image_size"] == 32
    assert list(Path(given["out"]).glob("finetuned.safetensors"))
    assert "patience" not in given
    (line,) = [
        line
        for line in show_study(path, folder=tmp_path / "out", only=only).lines
        if line.against == "baseline/pixels, ridge" and line.method.head == "tuned"
    ]
    cell = next(r.cell for r in report.cells if r.cell.head.finetune)
    assert line.values["grades"].value == pytest.approx(Cache(tmp_path / "out").read(cell)[0].value, abs=1e-6)
    assert np.isfinite(line.gain.value)  # over the seed that both have
    assert run_study(path, out=tmp_path / "out", only=only).count("cached") == len(report.cells)
    assert len(calls) == 1


def test_the_keys_of_fine_tuning_are_arguments_of_finetune():
    known = inspect.signature(finetune).parameters
    assert set(FINETUNE_KEYS) | {"mode", "warmup_steps", "weights", "image_size", "window", "out"} <= set(known)
    assert set(MODES) == set(FINETUNE_MODES)


MISTAKES = {
    "[[encoders]]\nname = 'x'": r"no table \[encoders\]; did you mean 'encoder'\?",
    "[study]\nname = 'again'": "could not be read as TOML",
    "[[data]]\nname='x'\npath='a'\ntarget='y'\nmetrc='auroc'": r"\[\[data\]\] x: no key 'metrc'; did you mean 'metric'\?",
    "[[data]]\nname='x'\npath='a'\ntarget='y'\nmetric='acuracy'": "no 'acuracy'; did you mean 'accuracy'",
    "[[data]]\nname='x'\npath='a'": r"\[\[data\]\] x: the key 'target' is missing",
    "[[data]]\nname='x'\npath='a'\ntarget='y'\nn_folds='five'": "'n_folds' is a whole number, not 'five'",
    "[[data]]\nname='x'\npath='a'\ntarget='y'\nn_folds=5\nsplit_col='s'": "'split_col' and 'n_folds': give one of them",
    "[[data]]\nname='grades'\npath='a'\ntarget='y'": "two are called 'grades'",
    "[[encoder]]\nname='dinov2/vitb41'": "no such encoder; did you mean 'dinov2/vitb14'",
    "[[encoder]]\nname='dinov9/x'": "no family 'dinov9'",
    "[[encoder]]\nname='dinov2/vitb14'\nviews=['clss']": "'views': no 'clss'; did you mean 'cls'",
    "[[head]]\nprobe='logerg'": "'probe': no 'logerg'; did you mean 'logreg'",
    "[[head]]\nprobe='knn'\nlr=0.1": "'lr' goes with 'finetune'",
    "[[head]]\nprobe='knn'\nfinetune='full'": "a 'probe', a 'preset'",
    "[[head]]\npreset='huix2023'": "huix2023",
    "[[head]]\nprobe='knn'\nencoders=['blip/base']": "'encoders': no 'blip/base'",
    "[[head]]\nprobe='knn'\nagainst='logreg'": "'against': no 'logreg'",
    "[[head]]\nprobe='knn'\nshots=[5, 5]": "names something twice",
}


@pytest.mark.parametrize("more", MISTAKES)
def test_a_mistake_is_named_with_file_table_and_key(tmp_path, more):
    path = tmp_path / "small.toml"
    path.write_text(f"{SMALL}\n{more}\n")
    with pytest.raises((UsageError, DataError), match=MISTAKES[more]) as caught:
        read_study(path)
    assert str(caught.value).startswith(str(path))


def test_paths_start_from_a_root_and_hold_variables(tmp_path, monkeypatch):
    path = small_study(tmp_path / "data", SMALL.replace('"a/manifest.csv"', '"${PLACE}/manifest.csv"'))
    alone = tmp_path / "small.toml"
    alone.write_text(path.read_text())
    with pytest.raises(UsageError, match="'path' needs the environment variable PLACE"):
        run_study(alone, out=tmp_path / "out", data_root=tmp_path / "data")
    monkeypatch.setenv("PLACE", "a")
    only = ["data=bright*", "encoder=baseline/pixels", "head=ridge"]
    found = run_study(alone, out=tmp_path / "out", data_root=tmp_path / "data", only=only, workers=0)
    assert found.count("computed") == 2
    with pytest.raises(UsageError, match="--only probe=knn: data=NAME"):
        run_study(alone, only=["probe=knn"])
    with pytest.raises(UsageError, match="no cell of"):
        run_study(alone, only=["head=none"])
    with pytest.raises(DataError, match=r"no such study; medprobe brings .*wacv2024"):
        read_study("wacv2023")


def test_the_table_is_written_in_every_format(finished, tmp_path):
    path, out = finished
    rows = list(csv.DictReader(io.StringIO(to_csv(show_study(path, folder=out)))))
    table = show_study(path, folder=out)
    assert [row["encoder"] for row in rows] == [line.method.encoder for line in table.lines]
    assert float(rows[0]["bright ones auroc"]) == table.lines[0].values["bright ones"].value
    content = json.loads(to_json(table))
    assert content["lines"][0]["gain"]["value"] == table.lines[0].gain.value
    latex = to_latex(table)
    assert latex.count("\\textbf{") >= 2
    assert r"baseline/random-test\_vit (cls)" in latex
    body = latex.split("\\begin{tabular}{")[1]
    n = len(body.split("}")[0])
    assert all(line.count("&") - line.count(r"\&") == n - 1 for line in body.splitlines() if line.endswith("\\\\"))
    assert re.search(r"(?<!\\)[_#]", latex) is None
    for name in FORMATS:
        said = command("study", "show", path, "--folder", out, "--format", name, "-o", tmp_path / name)
        assert said.exit_code == 0, said.output
        assert (tmp_path / name).read_text().strip()
    text = (tmp_path / "text").read_text()
    assert "critical difference" in text
    assert "Inside the noise" in text
    assert command("study", "show", path, "--folder", out, "--format", "xml").exit_code == 2


def test_names_mean_nothing_to_latex():
    assert tex(r"a_b & 50 % \x {y} #1 ~ ^ $") == (
        r"a\_b \& 50 \% \textbackslash{}x \{y\} \#1 \textasciitilde{} \textasciicircum{} \$"
    )
    assert tex("-1.5 to 2, ViT-B-16") == "$-$1.5 to 2, ViT-B-16"


def test_the_figure_shows_a_bar_a_method(finished, tmp_path):
    pytest.importorskip("altair")
    pytest.importorskip("vl_convert")
    from medprobe.study.figure import gain_figure

    path, out = finished
    table = show_study(path, folder=out)
    chart = gain_figure(table).to_dict()
    records = chart["datasets"][chart["data"]["name"]]
    assert [r["gain"] for r in records] == [line.gain.value for line in table.lines]
    assert {r["head"] for r in records} == {"ridge", "means, 1 shot", "means, 3 shots"}
    figure = tmp_path / "gain.svg"
    said = command("study", "show", path, "--folder", out, "--figure", figure)
    assert said.exit_code == 0, said.output
    assert "Mean relative gain" in figure.read_text()


@pytest.mark.parametrize("name", shipped())
def test_shipped_studies_are_valid(name):
    study = read_study(name)
    assert study.name == name
    assert (ROOT / "studies" / f"{name}.toml").read_bytes() == shipped()[name].read_bytes()
    assert study.cells()


def test_the_documentation_names_every_key():
    text = (ROOT / "docs" / "study.md").read_text()
    for table in (Data, EncoderChoice, Head):
        for key in fields(table):
            assert f"`{key.name}`" in text, key.name
    assert all(f"`{key}`" in text for key in STUDY_KEYS)


def test_the_four_data_sets_of_the_study_go_from_their_layouts_to_a_table(tmp_path):
    """wacv2024.toml on small folders in the official layouts, with an encoder that needs no download."""
    aptos(tmp_path / "aptos2019", 60)
    ddsm(tmp_path / "ddsm")
    isic(tmp_path / "isic2019", 120)
    chexpert(tmp_path / "chexpert", 60)
    text = shipped()["wacv2024"].read_text()
    text = re.sub(r"\[\[encoder\]\]\n(.+\n)+", "", text).replace('"imagenet/deit-b"', '"baseline/pixels"')
    text = text.split("[[head]]")[0].replace("seeds = [0, 1, 2]", "seeds = [0]\nresamples = 20")
    text += '[[encoder]]\nname = "baseline/pixels"\nviews = ["pixels", "colour"]\nimage_size = 16\n'
    text += '[[head]]\npreset = "huix2024"\n[[head]]\nprobe = "ridge"\n'
    path = tmp_path / "wacv.toml"
    path.write_text(text)
    report = run_study(path, out=tmp_path / "out", workers=0)
    assert [r.reason for r in report.cells if r.reason] == []
    table = show_study(path, folder=tmp_path / "out")
    assert [(c.data, c.metric) for c in table.columns] == [
        ("APTOS 2019", "quadratic_kappa"), ("DDSM", "auroc"), ("ISIC 2019", "macro_recall"), ("CheXpert", "auroc"),
    ]  # fmt: skip
    assert {line.method.head for line in table.lines} == {"linear@huix2024", "knn@huix2024", "ridge"}
    assert all(not line.missing for line in table.lines)


def test_reading_a_study_and_showing_it_imports_no_torch(finished):
    path, out = finished
    code = (
        "import sys; from medprobe.study import show_study; show_study(sys.argv[1], folder=sys.argv[2]); "
        "print({'torch', 'timm', 'PIL', 'altair'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path), str(out)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_results_of_cells_are_results(finished):
    """A cell's folder is what ``probe --out`` writes: compare and report take it."""
    path, out = finished
    folders = [Cache(out).folder(cell) for cell in read_study(path).cells(["head=ridge", "data=grades"])]
    assert isinstance(medprobe.compare(folders, n_resamples=20).rows, Results)
