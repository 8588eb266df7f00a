"""``finetune``: from data, an encoder and a target to a trained network and result rows."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Unpack

import torch

from medprobe.embed.normalize import ENCODER, channel_statistics, parse_normalize, with_normalization
from medprobe.embed.precision import choose_devices, choose_precision
from medprobe.embed.ranks import share_of
from medprobe.embed.run import failure_limit
from medprobe.encoders.base import Encoder, LoadOptions, fingerprint
from medprobe.encoders.registry import load_encoder
from medprobe.errors import DataError, UsageError
from medprobe.finetune.augment import augmentation_of
from medprobe.finetune.data import Batches, ReadImages
from medprobe.finetune.heads import Mode
from medprobe.finetune.outcome import LEFT_BEHIND, tensorboard_writer
from medprobe.finetune.recipe import HUIX2024, STUDY_NOTE, recipe_of
from medprobe.finetune.train import Trainer
from medprobe.finetune.trainings import Progress, Trainings
from medprobe.images.decode import Decoder, default_workers
from medprobe.images.window import FILE, parse_window
from medprobe.manifest import Manifest, Reading, manifest_of
from medprobe.probe.answers import Reporting
from medprobe.probe.presets import preset_of
from medprobe.probe.question import Wish, ask, with_shots
from medprobe.probe.whatif import WhatIf
from medprobe.results import Results, write_results
from medprobe.storage import AnyPlace

log = logging.getLogger("medprobe")

_STUDY_SIDE = 256  # pixels to which the study squashes an image before it takes the middle 224


def finetune(
    data: AnyPlace | Manifest,
    model: str | Encoder,
    target: str | None = None,
    *,
    mode: str = "full",
    unfreeze_from: int | None = None,
    freeze: bool = True,
    lora_rank: int = 8,
    head_weights: str | None = None,
    view: str | None = None,
    preset: str | None = None,
    window: str = "file",
    weights: str | None = None,
    image_size: int | None = None,
    exact_decode: bool = False,
    normalize: str | None = None,
    limit: int | None = None,
    metric: str | None = None,
    group: str | None = None,
    n_folds: int | None = None,
    test_size: float | None = None,
    leave_out: str | None = None,
    where: str | None = None,
    train_where: str | None = None,
    test_where: str | None = None,
    relabel: Sequence[str] = (),
    uncertain: str | None = None,
    label_noise: float | None = None,
    shots: Sequence[int] = (),
    repeats: int = 5,
    subgroups: Sequence[str] = (),
    duplicates: str = "error",
    lr: float | str | Sequence[float] | None = None,
    lr_epochs: int | None = None,
    weight_decay: float | None = None,
    epochs: int | None = None,
    patience: int | None = None,
    batch_size: int | None = None,
    accumulate: int | None = None,
    clip: float | None = None,
    warmup_epochs: float | None = None,
    warmup_steps: int | None = None,
    schedule: str | None = None,
    layer_decay: float | None = None,
    balance: bool = False,
    ema: float | None = None,
    augment: Sequence[str] | None = None,
    device: str = "auto",
    precision: str = "auto",
    workers: int | None = None,
    memory: float = 8.0,
    max_failures: str | float | None = None,
    checkpoint_every: int = 1,
    tensorboard: bool = False,
    n_resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
    out: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    progress: Callable[[Progress], None] | None = None,
    **reading: Unpack[Reading],
) -> Results:
    """Train an encoder, or a head on it, for a target and return result rows like those of :func:`medprobe.probe`.

    The tested rows, groups and intervals are those of a probe on a store of the same data with the same arguments. Rate
    and epoch are chosen by the primary metric on validation rows: the split's own, or an inner fold of the training
    rows. The network with these meets the test rows once; it is not trained on validation rows. Images are prepared as
    the encoder wants them; what is tested and validated is not augmented.

    With ``out``, everything is kept there (several trainings in numbered folders): a checkpoint after each epoch, from
    which the same call goes on; the encoder as ``finetuned.safetensors`` for ``medprobe embed --weights``, the head as
    ``head.safetensors``; ``history.csv`` and curves of the loss; rows and predictions, as ``medprobe probe --out`` keeps
    them. Under ``accelerate launch`` or ``torchrun``, processes share each step.

    Args:
        data: A folder, table, MedMNIST ``.npz``, or a :class:`~medprobe.manifest.Manifest`.
        model: Name of an encoder, or an encoder, which is then changed in place.
        target: Column to predict, as for :func:`medprobe.probe`.
        mode: ``full``, ``partial`` (blocks from ``unfreeze_from`` on), ``linear`` (a linear head alone), ``lora``, or
            ``deit-head`` (patch tokens through the blocks of a DeiT-B).
        unfreeze_from: First block that is trained, counted from 0.
        freeze: Whether the encoder is frozen below a ``deit-head``.
        lora_rank: Rank of the adapters.
        head_weights: Checkpoint of the DeiT-B of a ``deit-head``; its published one by default.
        view: Which of the encoder's vectors a linear head is given; its own pooling by default.
        preset: ``huix2024``: the settings of Pales Huix et al. (WACV 2024), unless others are given.
        window: As for :func:`medprobe.embed`, like all further arguments up to ``limit``.
        weights: Checkpoint of the encoder.
        image_size: Another input size than the encoder's own.
        exact_decode: Decode large JPEG files in full.
        normalize: ``encoder`` (the default), ``dataset`` (the preset's), or six numbers.
        limit: Only the first so many images.
        metric: As for :func:`medprobe.probe`, like all further arguments up to ``duplicates``.
        group: Column of patients, in place of the recorded one.
        n_folds: Test every image once, in that many folds: as many trainings.
        test_size: Share of the images to hold out for testing.
        leave_out: Column of sites: each is tested by what the others teach.
        where: SQL condition: only these samples take part.
        train_where: Only these are learned from.
        test_where: Only these are tested on.
        relabel: Rules that merge or drop classes.
        uncertain: What a label of -1 counts as.
        label_noise: Share of the labels to learn from that are made wrong.
        shots: Numbers of labelled images of each class to learn from.
        repeats: Draws of so few labels: as many trainings.
        subgroups: Columns by whose values the tested images are reported, too.
        duplicates: What to do about a picture on two sides of a given split.
        lr: Learning rate (1e-4 by default), several, or ``auto`` for a grid from 1e-5 to 1e-2.
        lr_epochs: As in :class:`~medprobe.finetune.recipe.Recipe`, like all further arguments up to ``augment``.
        weight_decay: Of AdamW.
        epochs: At most so many.
        patience: Epochs without a better validation metric after which training stops; 0 for never.
        batch_size: Images a step, over all processes.
        accumulate: Passes that a step's images are spread over.
        clip: Largest norm of the gradient; 0 for none.
        warmup_epochs: Epochs in which the rate rises.
        warmup_steps: The same in steps.
        schedule: ``cosine``, ``plateau`` or ``constant``.
        layer_decay: Rate of each block relative to the one after it.
        balance: Weigh classes by the inverse of how often they are.
        ema: Decay of an average of the weights.
        augment: Any of ``crop``, ``flips``, ``jitter``; all by default, none of them with an empty sequence.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps``.
        precision: ``auto`` (bf16 on a GPU that has it, else fp32), ``fp32``, ``bf16`` or ``fp16``.
        workers: Processes that decode and, on a GPU, augment; None to choose, 0 for none.
        memory: Gigabytes that decoded images may take; beyond that they are decoded again in each epoch.
        max_failures: Number or share of images that may be unreadable, as for :func:`medprobe.embed`.
        checkpoint_every: Epochs from one checkpoint to the next.
        tensorboard: Write the epochs for TensorBoard, too, into ``out``.
        n_resamples: Bootstrap resamples.
        level: Coverage of the intervals.
        seed: Of splits, head, order, augmentation and resamples.
        out: Folder for everything that is kept.
        overwrite: Delete what an earlier call has left in it.
        progress: Called after each step.
        reading: How the data are read, as for :func:`~medprobe.manifest.read_manifest`.

    Raises:
        UsageError: A name or number cannot work, or a package is missing.
        DataError: The data or the target cannot be used, too many images are unreadable, or the training diverges.

    """
    recipe = recipe_of(
        preset, lr, lr_epochs=lr_epochs, weight_decay=weight_decay, epochs=epochs,
        patience=patience, batch_size=batch_size, accumulate=accumulate, clip=clip, warmup_epochs=warmup_epochs,
        warmup_steps=warmup_steps, schedule=schedule, layer_decay=layer_decay, balance=balance or None, ema=ema,
        augment=None if augment is None else tuple(augment),
    )  # fmt: skip
    what = Mode(mode, unfreeze_from, recipe.blocks_alone, lora_rank, freeze, head_weights)
    if checkpoint_every < 1:
        raise UsageError(f"--checkpoint-every {checkpoint_every}: at least 1")
    if tensorboard:
        if out is None:
            raise UsageError("--tensorboard: goes with a folder to write to (--out)")
        tensorboard_writer()
    manifest = manifest_of(data, **reading)
    if manifest.roles.bag is not None:
        raise UsageError("finetune: trains on images, and these are volumes: embed them and probe their slices")
    manifest = manifest.head(limit)
    for note in manifest.notes:
        log.info("%s", note)
    accelerator, chosen = _accelerator(device, precision, preset)
    options = LoadOptions(weights=weights, image_size=image_size, exact_decode=exact_decode)
    encoder = model if isinstance(model, Encoder) else load_encoder(model, options)
    _prepare(encoder, window, preset)
    n_workers = default_workers() if workers is None else workers
    with Decoder(n_workers) as decoder:
        normalization = parse_normalize(normalize or ("dataset" if preset else ENCODER))
        with_normalization(encoder, normalization, None, partial(channel_statistics, manifest, decoder))
        images = ReadImages(manifest, decoder, encoder.preprocess.geometry, memory * 1e9)
    if len(images.failures) > (allowed := failure_limit(max_failures, len(manifest))):
        raise DataError(f"more images than the {allowed} that --max-failures allows: {'; '.join(images.notes)}")
    what_if = WhatIf(where, train_where, test_where, tuple(relabel), uncertain, label_noise)
    wish = Wish(
        target, metric, group, None, n_folds, test_size, leave_out, what_if, shots, repeats, subgroups, duplicates, seed
    )
    question = ask(images, wish)
    question = replace(question, notes=question.notes + images.notes)
    if preset:
        question = replace(preset_of(HUIX2024).asked(question, metric), notes=(*question.notes, STUDY_NOTE))
    folder = None if out is None else Path(out)
    if folder is not None and overwrite and accelerator.is_main_process:
        _clear(folder)
    accelerator.wait_for_everyone()
    batches = Batches(
        images,
        augmentation_of(recipe.augment, encoder.preprocess.geometry.size),
        seed,
        n_workers if accelerator.device.type == "cuda" else 0,
        pinned=accelerator.device.type == "cuda",
    )
    trainings = Trainings(
        encoder, fingerprint(encoder.provenance(), chosen), what, view, recipe, preset, images, folder,
        Trainer(accelerator, batches, seed, checkpoint_every), tensorboard=tensorboard, progress=progress,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[torch.cuda.current_device()] if accelerator.device.type == "cuda" else []):
        results = trainings.answer(with_shots(question, wish), Reporting(n_resamples, level, seed))
    if folder is not None and accelerator.is_main_process:
        write_results(results, folder)
        if len(images.failures):
            images.failures.to_csv(folder / "failures.csv", index=False)
    return results


def _accelerator(device: str, precision: str, preset: str | None) -> tuple[Any, str]:
    """Return an accelerator of the library accelerate, and the precision that it computes in.

    Raises:
        UsageError: accelerate is not installed, or a device or precision cannot be had.

    """
    try:
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState
    except ModuleNotFoundError as error:
        raise UsageError(
            f"finetune needs {error.name}, which is not installed: pip install 'medprobe[finetune]'"
        ) from None
    chosen = choose_devices(device, share_of(None, None))[0]  # under a launcher, the rank's own
    if precision == "auto" and chosen.type == "cpu":
        precision = "fp32"
    elif precision == "auto" and preset and chosen.type == "cuda":
        precision = "fp16"  # as the study did
    if precision == "tf32":
        raise UsageError("--precision tf32: of embed alone; fine-tuning takes fp32, bf16 or fp16")
    precision = choose_precision(precision, chosen)
    if precision == "fp16" and chosen.type != "cuda":
        raise UsageError(f"--precision fp16: trains on a GPU alone; on {chosen.type}: fp32 or bf16")
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    # The library keeps device and precision for the life of a process; a second call may want others.
    AcceleratorState._reset_state(reset_partial_state=not torch.distributed.is_initialized())
    mixed = "no" if precision == "fp32" else precision
    return Accelerator(mixed_precision=mixed, cpu=chosen.type == "cpu"), precision


def _prepare(encoder: Encoder, window: str, preset: str | None) -> None:
    """Give an encoder the window, and the geometry of the preset."""
    geometry = encoder.preprocess.geometry
    shown = parse_window(window)
    if shown != FILE:
        geometry = replace(geometry, window=shown)
    if preset == HUIX2024:
        height, width = geometry.size
        side = (round(height * _STUDY_SIDE / 224), round(width * _STUDY_SIDE / 224))
        geometry = replace(geometry, resize=side, crop="center", interpolation="bilinear")
    encoder.preprocess = replace(encoder.preprocess, geometry=geometry)


def _clear(folder: Path) -> None:
    """Delete what an earlier call has left in a folder: its checkpoints, and the numbered folders of several trainings."""
    for made in (folder, *(path for path in folder.glob("*") if path.is_dir() and path.name.isdigit())):
        for name in LEFT_BEHIND:
            (made / name).unlink(missing_ok=True)
