"""The stores of a study: made where they are missing, looked at where they are there, with no encoder loaded for that."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medprobe.errors import DataError, MedprobeError, UsageError
from medprobe.manifest import Manifest, read_manifest
from medprobe.store import FeatureStore, open_store
from medprobe.study.cache import STORES, digest
from medprobe.study.schema import READING_KEYS, Data, EncoderChoice, defaults, folder_name
from medprobe.tables import ids_digest, table_digest

if TYPE_CHECKING:
    from medprobe.embed.pipeline import Progress

log = logging.getLogger("medprobe")

_Outcome = tuple[EncoderChoice, Exception | None]
_PIXEL_KEYS = ("normalize", "window", "box_cols", "mask_col", "frames")
_DEFAULTS = defaults(Data)


@dataclass(frozen=True)
class Machine:
    """What a study is run on; none of it decides a number.

    Attributes:
        device: As for ``embed``.
        workers: Decoding processes, None for one a processor.
        batch_size: Images a forward pass of an encoder, None to choose.

    """

    device: str = "auto"
    workers: int | None = None
    batch_size: int | None = None


def read_data(data: Data) -> Manifest:
    """Return the manifest of a data set of a study; errors are those of :func:`~medprobe.manifest.read_manifest`."""
    reading: dict[str, Any] = {key: getattr(data, key) for key in READING_KEYS}
    return read_manifest(data.path, group_col=data.group, split_col=data.split_col, **reading)


def folder(out: Path, data: Data, precision: str) -> Path:
    """Return the folder of the stores of a data set: its name, with a mark where its images are read in another way."""
    changed = {key: getattr(data, key) for key in _PIXEL_KEYS if getattr(data, key) != _DEFAULTS[key]}
    changed |= {} if precision == "auto" else {"precision": precision}
    mark = f"-{digest(changed)[:6]}" if changed else ""
    return out / STORES / f"{folder_name(data.name)}{mark}"


def store_of(out: Path, data: Data, encoder: str, precision: str) -> Path:
    """Return where the store of a data set and an encoder lies."""
    # As medprobe.embed names it, whose module imports torch.
    return folder(out, data, precision) / (encoder.replace("/", "--").replace(":", "-") + ".zarr")


def make_stores(
    out: Path,
    data: Data,
    manifest: Manifest | None,
    choices: Sequence[EncoderChoice],
    precision: str,
    machine: Machine,
    progress: Callable[[Progress], None] | None = None,
) -> tuple[dict[str, FeatureStore], dict[str, str]]:
    """Return the stores of a data set by encoder, and for the encoders that have none the reason.

    All encoders share one reading of the images. An encoder that cannot be loaded, or whose store cannot be gone on
    with, does not keep the others from theirs.

    Args:
        out: The study's folder.
        data: The data set.
        manifest: Its samples; None where the images are elsewhere, and the stores are used as they are.
        choices: The encoders.
        precision: What they compute in.
        machine: What it is run on.
        progress: Called after every batch.

    """
    stores: dict[str, FeatureStore] = {}
    failed: dict[str, str] = {}
    missing = []
    for choice in choices:
        path = store_of(out, data, choice.name, precision)
        try:
            ready = path.exists() if manifest is None else _is_ready(path, manifest, _arguments(choice))
            if ready:
                stores[choice.name] = open_store(path)
            else:
                missing.append(choice)
        except MedprobeError as error:
            failed[choice.name] = str(error)
    if missing and manifest is not None:
        for choice, problem in _embed(out, data, manifest, missing, precision, machine, progress):
            if problem is None:
                path = store_of(out, data, choice.name, precision)
                stores[choice.name] = open_store(path)
                note = {"arguments": _arguments(choice), "plan": stores[choice.name].plan.digest}
                _note(path).write_text(json.dumps(note, indent=1), encoding="utf-8")
            else:
                failed[choice.name] = one_line(problem)
    return stores, failed


def source_of(store: FeatureStore) -> dict[str, Any]:
    """Return what a result on a store rests on: features, table of samples, and which of them have no features."""
    from medprobe import __version__

    return {
        "plan": store.plan.digest,
        "samples": str(store.samples_group.attrs["sha256"]),
        "failures": digest(store.failures["row"].tolist()),
        "medprobe": __version__,
    }


def source_of_images(manifest: Manifest, choice: EncoderChoice) -> dict[str, Any]:
    """Return what a fine-tuning rests on: table of samples, size and time of each image, checkpoint."""
    from medprobe import __version__

    return {
        "images": digest([list(map(int, manifest.images.stamp(row))) for row in range(len(manifest))]),
        "samples": table_digest(manifest.samples),
        "weights": _stamp(choice.weights),
        "medprobe": __version__,
    }


def one_line(error: BaseException) -> str:
    """Return what an error says in one line; what no user has caused begins with its kind."""
    said = " ".join(str(error).split()) or "no message"
    return said if isinstance(error, MedprobeError) else f"{type(error).__name__}: {said}"


def _embed(
    out: Path,
    data: Data,
    manifest: Manifest,
    choices: Sequence[EncoderChoice],
    precision: str,
    machine: Machine,
    progress: Callable[[Progress], None] | None,
) -> list[_Outcome]:
    """Embed with every encoder; return each with the error that kept it from its store."""
    try:
        from medprobe.embed.run import embed
        from medprobe.encoders.base import LoadOptions
        from medprobe.encoders.registry import load_encoder
    except ModuleNotFoundError as error:
        lacking = UsageError(f"embedding needs {error.name}, which is not installed: pip install 'medprobe[embed]'")
        return [(choice, lacking) for choice in choices]

    def run(some: Sequence[EncoderChoice]) -> list[_Outcome]:
        encoders, loaded = [], []
        found: list[_Outcome] = []
        for choice in some:
            try:
                options = LoadOptions(weights=choice.weights, image_size=choice.image_size)
                encoder = load_encoder(choice.name, options)
                encoders.append(encoder.with_tokens() if choice.tokens else encoder)
                loaded.append(choice)
            except Exception as error:
                log.debug("%s", choice.name, exc_info=True)
                found.append((choice, error))
        if not loaded:
            return found
        try:
            embed(
                manifest, encoders, folder(out, data, precision),
                window=data.window, normalize=data.normalize, precision=precision, device=machine.device,
                workers=machine.workers, batch_size=machine.batch_size, rank=0, world_size=1, progress=progress,
            )  # fmt: skip
        except Exception as error:
            log.debug("%s", data.name, exc_info=True)
            if len(loaded) > 1:  # whose fault it is shows when each is alone; finished blocks are not made again
                return found + [each for choice in loaded for each in run([choice])]
            return [*found, (loaded[0], error)]
        return found + [(choice, None) for choice in loaded]

    return run(choices)


def _arguments(choice: EncoderChoice) -> dict[str, Any]:
    """Return what decides an encoder's features beside what names the folder of its store."""
    return {"weights": _stamp(choice.weights), "image_size": choice.image_size, "tokens": choice.tokens}


def _is_ready(path: Path, manifest: Manifest, arguments: Mapping[str, Any]) -> bool:
    """Return whether a store is complete and made from these images, with these arguments, as its note says."""
    from medprobe.embed.resume import blocks_to_do

    try:
        note = json.loads(_note(path).read_bytes())
        store = FeatureStore(path, partial=True)
    except (OSError, ValueError, DataError):
        return False
    return (
        note == {"arguments": arguments, "plan": store.plan.digest}
        and store.plan.manifest_sha256 == ids_digest(manifest.samples["id"])
        and store.samples_group.attrs["sha256"] == table_digest(manifest.samples)
        and not blocks_to_do(store, manifest.images)
    )


def _note(store: Path) -> Path:
    return store.with_suffix(".json")


def _stamp(weights: str | None) -> list[int] | None:
    if weights is None:
        return None
    found = Path(weights).stat()
    return [found.st_size, found.st_mtime_ns]
