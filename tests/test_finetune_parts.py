"""The parts of fine-tuning against what defines them: schedule, loss, average, augmentation, data, energy, presets."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from finetune_helpers import TinyEncoder
from sklearn.metrics import log_loss
from torch.nn import functional

from medprobe.errors import UsageError
from medprobe.finetune import outcome
from medprobe.finetune.augment import augmentation_of, augmented
from medprobe.finetune.average import Average
from medprobe.finetune.data import epoch_batches
from medprobe.finetune.energy import Meter
from medprobe.finetune.heads import Mode, Network
from medprobe.finetune.layers import groups_for
from medprobe.finetune.loss import Loss, probabilities
from medprobe.finetune.recipe import Recipe, Schedule, recipe_of


def test_the_preset_is_the_study() -> None:
    """Values of the released params.json: optimiser, batch, clip, epochs, augmentation; no schedule but warm-up."""
    study = recipe_of("huix2024")
    assert study.lrs == (1e-4,)
    assert study.weight_decay == 1e-5
    assert (study.batch_size, study.epochs, study.patience, study.clip) == (64, 100, 0, 1.0)
    assert (study.warmup_epochs, study.warmup_steps, study.schedule) == (5, None, "constant")
    assert study.augment == ("crop", "flips", "jitter")
    assert study.drop_last
    assert not study.balance
    assert study.ema == 0
    rates = recipe_of("huix2024", "auto").lrs
    assert len(rates) == 25
    assert (rates[0], rates[-1], recipe_of("huix2024", "auto").lr_epochs) == (
        pytest.approx(1e-5),
        pytest.approx(1e-2),
        5,
    )
    assert recipe_of("huix2024", epochs=3, warmup_steps=1000).warmup_steps == 1000
    assert len(recipe_of(None, "auto").lrs) == 7
    assert recipe_of(None, [1e-3, 1e-4]).lrs == (1e-3, 1e-4)


def test_schedules() -> None:
    constant = Schedule(Recipe(epochs=10, warmup_epochs=2, schedule="constant"), 5)
    assert [constant.share(step) for step in (0, 4, 9, 10, 49)] == [0.1, 0.5, 1.0, 1.0, 1.0]
    cosine = Schedule(Recipe(epochs=10, warmup_steps=10, schedule="cosine"), 5)
    assert [cosine.share(s) for s in (9, 10, 30, 50)] == pytest.approx([1.0, 1.0, 0.5, 0.0])
    plateau = Schedule(Recipe(epochs=10, warmup_steps=1, schedule="plateau"), 5)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, mode="max", factor=0.1, patience=2, threshold=0)
    best = -math.inf
    for score in (1.0, 2.0, 2.0, 1.0, 1.5, 0.0, 3.0, 1.0, 1.0, 1.0, 1.0):
        plateau.validated(score > best)
        best = max(best, score)
        theirs.step(score)
        assert plateau.share(20) == pytest.approx(optimizer.param_groups[0]["lr"])
    short = Schedule(Recipe(epochs=2, warmup_epochs=5), 4)
    assert short.share(4) == pytest.approx(1.0)  # a warm-up takes no more than half


def test_loss_of_classes_is_cross_entropy() -> None:
    random = np.random.default_rng(0)
    y = np.array([0, 1, 2, 2, 2, 1, 0, 2])
    logits = torch.tensor(random.normal(size=(8, 3)))
    rows = np.arange(8)
    plain = Loss(y, rows, 3)
    assert float(plain(logits, rows)) / plain.weight(rows) == pytest.approx(
        log_loss(y, probabilities(logits, "multiclass"))
    )
    balanced = Loss(y, rows, 3, balance=True)
    weights = torch.tensor(8 / (3 * np.bincount(y)))
    expected = functional.cross_entropy(logits, torch.tensor(y), weight=weights)
    assert float(balanced(logits, rows)) / balanced.weight(rows) == pytest.approx(float(expected))
    parts = np.array_split(rows, 3)
    spread = sum(float(balanced(logits[part], part)) for part in parts) / balanced.weight(rows)
    assert spread == pytest.approx(float(expected))


def test_loss_of_labels_passes_over_missing_ones() -> None:
    random = np.random.default_rng(0)
    y = random.integers(0, 2, (9, 2)).astype(float)
    y[[0, 3], [1, 0]] = np.nan
    logits = torch.tensor(random.normal(size=(9, 2)), requires_grad=True)
    loss = Loss(y, np.arange(9), 2)
    found = loss(logits, np.arange(9)) / loss.weight(np.arange(9))
    known = ~np.isnan(y)
    expected = log_loss(y[known], 1 / (1 + np.exp(-logits.detach().numpy()[known])))
    assert float(found.detach()) == pytest.approx(expected)
    found.backward()
    assert logits.grad is not None
    assert float(logits.grad[0, 1]) == 0 == float(logits.grad[3, 0])
    balanced = Loss(y, np.arange(9), 2, balance=True)
    for label in range(2):
        values = y[known[:, label], label]
        of_value = [balanced._weights[known[:, label], label][values == v].sum() for v in (0, 1)]
        assert of_value[0] == pytest.approx(of_value[1])
    assert balanced.weight(np.array([0])) == balanced._weights[0, 0]


def test_average_is_a_moving_average() -> None:
    average = Average({"w": torch.zeros(1), "n": torch.tensor(0)}, 0.5)
    expected = 0.0
    for step in range(6):
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * (step + 1)
        average.update({"w": torch.tensor([step + 1.0]), "n": torch.tensor(step)}, step)
    assert float(average.state["w"]) == pytest.approx(expected)
    assert int(average.state["n"]) == 5


def test_augmentation_is_a_function_of_its_key() -> None:
    image = torch.randint(0, 256, (3, 40, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    change = augmentation_of(("crop", "flips", "jitter"), (40, 32))
    assert change is not None
    before = torch.random.get_rng_state()
    first = augmented(image, change, 0, 1, 7)
    torch.manual_seed(5)
    assert torch.equal(augmented(image, change, 0, 1, 7), first)
    assert first.shape == image.shape
    assert first.dtype == torch.uint8
    for other in ((0, 1, 8), (0, 2, 7), (1, 1, 7)):
        assert not torch.equal(augmented(image, change, *other), first)
    torch.random.set_rng_state(before)
    augmented(image, change, 3)
    assert torch.equal(torch.random.get_rng_state(), before)
    flips = augmentation_of(("flips",), (40, 32))
    assert flips is not None
    seen = {augmented(image, flips, i).numpy().tobytes() for i in range(40)}
    assert seen == {image.flip(dims).contiguous().numpy().tobytes() for dims in ([], [1], [2], [1, 2])}
    assert augmentation_of((), (40, 32)) is None


def test_every_image_once_an_epoch() -> None:
    rows = np.arange(100, 231)
    batches = epoch_batches(rows, 64, drop_last=False, seed=0)
    assert sorted(map(len, batches)) == [43, 44, 44]
    assert sorted(np.concatenate(batches)) == rows.tolist()
    assert [len(b) for b in epoch_batches(rows, 64, drop_last=True, seed=0)] == [64, 64]
    assert [len(b) for b in epoch_batches(rows[:5], 64, drop_last=True, seed=0)] == [5]
    assert not np.array_equal(batches[0], epoch_batches(rows, 64, drop_last=False, seed=1)[0])


def test_rates_fall_with_the_distance_from_the_last_block() -> None:
    network = Network(TinyEncoder(), 3, Mode("full"))
    groups = groups_for(network.trained, network.depth, network.n_blocks, 0.1, 0.5)
    of = {id(p): group for group in groups for p in group["params"]}
    scale = {name: of[id(p)]["scale"] for name, p in network.trained.items()}
    assert scale["body.stem.0.weight"] == 0.5**4
    assert [scale[f"body.blocks.{i}.mlp.weight"] for i in range(3)] == [0.5**3, 0.5**2, 0.5]
    assert scale["body.norm.weight"] == scale["head.weight"] == 1
    decay = {name: of[id(p)]["weight_decay"] for name, p in network.trained.items()}
    assert all(value == (0.1 if network.trained[name].ndim > 1 else 0) for name, value in decay.items())
    assert "body.unused.weight" not in network.trained


def test_frozen_parts_are_in_evaluation_mode() -> None:
    network = Network(TinyEncoder(), 2, Mode("linear")).train()
    assert network.head.training
    assert not any(module.training for module in network.body.modules())
    network = Network(TinyEncoder(), 2, Mode("partial", unfreeze_from=1)).train()
    training = {name for name, module in network.body.named_modules() if module.training}
    assert "blocks.1" in training
    assert "norm" in training
    assert not training & {"stem.1", "stem.2", "blocks.0", "blocks.0.attn"}
    assert "body.norm.weight" not in Network(TinyEncoder(), 2, Mode("partial", 1, blocks_alone=True)).trained
    assert all(module.training for module in Network(TinyEncoder(), 2, Mode("full")).train().modules())


def test_energy_is_read_where_it_can_be(tmp_path: Path) -> None:
    cpu = torch.device("cpu")
    assert Meter(cpu, tmp_path).used() == {}
    for i, name in enumerate(("intel-rapl:0", "intel-rapl:1", "intel-rapl:0:0")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "max_energy_range_uj").write_text("10000000000\n")
        (tmp_path / name / "energy_uj").write_text(f"{9000000000 + i}\n")
    meter = Meter(cpu, tmp_path)
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("9003600000\n")
    (tmp_path / "intel-rapl:1" / "energy_uj").write_text("6200000001\n")  # after it started again from 0
    assert meter.used()["energy_cpu_wh"] == pytest.approx(0.001 + 2.0)


def test_tensorboard_is_asked_for_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torch.utils.tensorboard", None)
    with pytest.raises(UsageError, match="pip install tensorboard"):
        outcome.tensorboard_writer()
