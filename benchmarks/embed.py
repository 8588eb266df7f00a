"""How much of what a machine can do the embedder gets out of it, and what peers get out of it.

    python benchmarks/embed.py                                   # ViT-S/14, ResNet-50 and EfficientNet-Lite0, on this CPU
    python benchmarks/embed.py --device cuda --images 8192
    python benchmarks/embed.py --model dinov2/vits14 --weights FILE --size 600x450 --format JPEG
    python benchmarks/embed.py --model free --no-peers --images 8192 --size 600x450

Everything is measured in turn, in several rounds of one process, and the ratios are medians over the rounds: a machine that
does something else meanwhile slows both sides of a ratio. ``limit`` is what the machine allows: on a CPU, where reading and
encoding share the cores, 1 / (forward + decode core-seconds an image / cores); elsewhere the slower of bare forward and bare
decode. The pipeline is all of ``medprobe.embed`` once its encoder is loaded and tried: reading, encoding, checking, writing,
syncing, and what is left of the start of its processes. Bare forward passes run one a core on a CPU, as in the pipeline; on
a GPU they take the fastest of the sizes of batch that the pipeline tries. Peers run in a process of their own with the encoder
as it was loaded, on batches that are fastest for them.

``free`` is an encoder that takes no time, with the input of ViT-S/14 and rows as long: a GPU faster than its machine can
read. What its pipeline lacks of the limit is what ``medprobe.embed`` itself takes of the machine.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context, set_start_method
from pathlib import Path

import torch
from decode import picture
from embed_peers import absent, present
from precision import initialised

import medprobe
from medprobe.embed.forward import BatchSize, Forward, cores_for, to_pixels
from medprobe.embed.precision import autocast, choose_device, choose_precision, with_weights_cast
from medprobe.encoders.base import Encoder, LoadOptions
from medprobe.encoders.registry import load_encoder
from medprobe.images.decode import decode, default_workers
from medprobe.images.geometry import Geometry
from medprobe.images.raster import load_rgb, read_source
from medprobe.memory import keep_freed_memory
from medprobe.testing import FakeEncoder

MODELS = ("dinov2/vits14", "imagenet/resnet50", "imagenet/efficientnet-lite0")
_PICTURES = 8  # distinct ones; the rest are links to them
_DECODED = 128  # by each process
_BARE_BATCHES = 4
_GPU_BATCHES = (64, 128, 256, 512, 1024)
_PEERS_CPU_BATCH = 8  # the fastest of 1 to 64 where all cores share a batch


def draw(folder: Path, n: int, size: str, file_format: str) -> list[str]:
    """Make a folder of ``n`` image files and return their paths."""
    width, height = map(int, size.split("x"))
    folder.mkdir(parents=True)
    for i in range(n):
        file = folder / f"{i:06d}.{'jpg' if file_format == 'JPEG' else 'png'}"
        if i < _PICTURES:
            picture(width, height, 3.0, seed=i).save(
                file, file_format, **({"quality": 90} if "J" in file_format else {})
            )
        else:
            os.link(folder / f"{i % _PICTURES:06d}{file.suffix}", file)
    return sorted(map(str, folder.iterdir()))


class Free(FakeEncoder):
    """Takes no time, and says the same of every image: 4,608 numbers."""

    def __init__(self) -> None:
        super().__init__(width=1536, views=("cls", "mean", "patches"), image_size=224, name="fake/free")
        geometry = Geometry(size=(224, 224), resize=256, crop="center", interpolation="bicubic")
        self.preprocess = replace(self.preprocess, geometry=geometry)
        self._same = {view: torch.ones(1, width) for view, width in self.views.items()}

    def normalize(self, images: torch.Tensor) -> torch.Tensor:
        """Return a pixel of each image."""
        return images[:, :1, :1]

    def encode(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return ones."""
        return {view: ones.expand(len(pixels), -1) for view, ones in self._same.items()}


def load(name: str, weights: str | None, image_size: int | None = None) -> Encoder:
    """Return an encoder with its weights, or untrained and of its own input size where there are none here."""
    if name == "free":
        return Free()
    if weights or name == "imagenet/efficientnet-lite0" or name.startswith("baseline/"):
        return load_encoder(name, LoadOptions(weights=weights, image_size=image_size))
    return initialised(name)


def bare_forward(encoder: Encoder, files: Sequence[str], precision: str, batch: int) -> float:
    """Return seconds an image of the forward pass alone, on a batch that lies on the device, or one for each core."""
    images = decode(files[:_PICTURES], [encoder.preprocess.geometry]).pixels[0]
    pixels = to_pixels(encoder, torch.from_numpy(images)).repeat(-(-batch // len(images)), 1, 1, 1)[:batch]
    pixels = pixels.contiguous(memory_format=torch.channels_last)
    encoder = with_weights_cast(encoder, precision)  # as the pipeline does

    def run() -> None:
        with autocast(precision, encoder.device):
            encoder.encode(pixels)

    def wait() -> None:
        if encoder.device.type == "cuda":
            torch.cuda.synchronize(encoder.device)

    with cores_for([Forward(encoder, precision)]) as cores:

        def pass_over(batches: int) -> None:
            if cores is not None:
                for done in [cores.begin(run) for _ in range(batches)]:
                    done()
                return
            for _ in range(batches):
                run()
            wait()

        batches = cores.n * _BARE_BATCHES if cores else _BARE_BATCHES
        pass_over(cores.n if cores else 1)  # finds its kernels
        started = time.perf_counter()
        pass_over(batches)
        return (time.perf_counter() - started) / batches / batch


def fastest_batch(encoder: Encoder, files: Sequence[str], precision: str) -> int:
    """Return how many images a bare forward pass had best take."""
    if encoder.device.type != "cuda":
        return BatchSize.of(None, encoder.device, encoder.preprocess.geometry.image_bytes).size
    return min(_GPU_BATCHES, key=lambda batch: bare_forward(encoder, files, precision, batch))


def _read_all(files: Sequence[str], geometry: Geometry) -> float:
    started = time.perf_counter()
    for file in files:
        load_rgb(read_source(file), [geometry])
    return time.perf_counter() - started


def bare_decode(pool: ProcessPoolExecutor, files: Sequence[str], geometry: Geometry) -> float:
    """Return seconds an image of reading alone, by a process on every core at once: core-seconds divided by cores."""
    parts = [files] * default_workers()
    return statistics.mean(pool.map(_read_all, parts, [geometry] * len(parts))) / len(files) / len(parts)


def pipeline(encoder: Encoder, folder: Path, precision: str, device: str, batch: int | None) -> float:
    """Return seconds an image of the whole of ``medprobe.embed``."""
    with tempfile.TemporaryDirectory() as out:
        (report,) = medprobe.embed(folder, [encoder], out, device=device, precision=precision, batch_size=batch)
    return report.seconds / report.embedded


_peers_encoder: Encoder  # in the peers' process


def begin_peers(name: str, options: argparse.Namespace) -> None:
    """Load the encoder for the peers, in their process, which nothing that medprobe sets has touched."""
    global _peers_encoder
    set_start_method("fork", force=True)  # of their DataLoaders, as where people run them
    _peers_encoder = load(name, options.weights)
    _peers_encoder.to(choose_device(options.device))


def run_peer(peer: str, files: Sequence[str], batch: int) -> float:
    """Return seconds an image of a peer, in the peers' process."""
    return present()[peer](_peers_encoder, files, _peers_encoder.device, batch)


def measure(
    name: str,
    encoder: Encoder,
    folder: Path,
    files: Sequence[str],
    options: argparse.Namespace,
    pool: ProcessPoolExecutor,
) -> None:
    """Print a line of the table for each precision, and one for each peer."""
    device = choose_device(options.device)
    fast = choose_precision("auto", device) if options.precision == "auto" else options.precision
    precisions = list(dict.fromkeys([fast, "fp32"]))
    encoder.to(device)
    encoder.module.to(memory_format=torch.channels_last)
    if device.type == "cpu":
        keep_freed_memory()  # as the pipeline does
    batches = {p: options.batch_size or fastest_batch(encoder, files, p) for p in precisions}
    peers = present() if options.peers else {}
    peers_batch = options.batch_size or (_PEERS_CPU_BATCH if device.type == "cpu" else batches["fp32"])
    spent: dict[str, list[float]] = {}

    def note(case: str, measured: Callable[[], float]) -> None:
        spent.setdefault(case, []).append(measured())

    def note_decode() -> None:
        note("decode", lambda: bare_decode(pool, files[:_DECODED], encoder.preprocess.geometry))

    with ProcessPoolExecutor(1, get_context("spawn"), begin_peers, (name, options)) as apart:
        for _ in range(options.rounds):
            note_decode()
            for precision in precisions:
                note(f"forward {precision}", lambda p=precision: bare_forward(encoder, files, p, batches[p]))
                note(
                    f"pipeline {precision}",
                    lambda p=precision: pipeline(encoder, folder, p, options.device, options.batch_size),
                )
                note(f"forward {precision}", lambda p=precision: bare_forward(encoder, files, p, batches[p]))
                note_decode()
            for peer in peers:
                note(peer, lambda peer=peer: apart.submit(run_peer, peer, files, peers_batch).result())
    a_round = {case: [statistics.mean(x) for x in _by(options.rounds, seconds)] for case, seconds in spent.items()}

    def ratio(top: Sequence[float], bottom: Sequence[float]) -> float:
        return statistics.median(t / b for t, b in zip(top, bottom, strict=True))

    on_cpu = device.type == "cpu"
    for precision in precisions:
        forward, whole = a_round[f"forward {precision}"], a_round[f"pipeline {precision}"]
        limit = [f + d if on_cpu else max(f, d) for f, d in zip(forward, a_round["decode"], strict=True)]
        rates = [f"{1 / statistics.median(x):.1f}" for x in (a_round["decode"], forward, whole)]
        print(
            f"| {name} | {precision} | {' | '.join(rates)} | {ratio(limit, whole):.3f} | {ratio(forward, whole):.3f} | "
            f"{ratio(a_round['forward fp32'], forward):.2f} | {ratio(a_round['pipeline fp32'], whole):.2f} |",
            flush=True,
        )
    for peer in peers:
        print(
            f"| {name} | {peer} | | | {1 / statistics.median(a_round[peer]):.1f} | | | | "
            f"{ratio(a_round['pipeline fp32'], a_round[peer]):.2f} |",
            flush=True,
        )


def _by(rounds: int, values: Sequence[float]) -> list[Sequence[float]]:
    each = len(values) // rounds
    return [values[i * each : (i + 1) * each] for i in range(rounds)]


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="auto", help="compared with fp32")
    parser.add_argument("--model", action="append", help="a name, or free; may be repeated")
    parser.add_argument("--weights", help="a file for dinov2/vits14")
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--size", action="append", help="such as 600x450; may be repeated")
    parser.add_argument("--format", action="append", choices=("JPEG", "PNG"), help="may be repeated")
    parser.add_argument("--batch-size", type=int, help="of the pipeline and of the bare forward pass")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no-peers", dest="peers", action="store_false")
    parser.add_argument("--quick", action="store_true", help="one round of 64 images")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.images = 1, 64
    found = choose_device(options.device)
    where = torch.cuda.get_device_name(found) if found.type == "cuda" else platform.processor() or platform.machine()
    print(
        f"torch {torch.__version__}, {where}, {default_workers()} cores, bf16 by itself: {choose_precision('auto', found)}"
    )
    print(f"{options.images} images, {options.rounds} rounds; images/s and medians of ratios")
    if options.peers:
        print("not compared here:", "; ".join(absent()))
    with (
        tempfile.TemporaryDirectory() as scratch,
        ProcessPoolExecutor(default_workers(), mp_context=get_context("spawn")) as pool,
    ):
        for size in options.size or ["600x450", "2048x2048"]:
            for file_format in options.format or ["JPEG", "PNG"]:
                folder = Path(scratch) / f"{size}.{file_format}"
                files = draw(folder, options.images, size, file_format)
                print(f"\n{file_format}, {size}, {sum(map(os.path.getsize, files[:8])) / 8000:.0f} kB a file\n")
                print(
                    "| encoder | precision, or peer | decode | forward | pipeline | of limit | of forward | "
                    "forward over fp32 | pipeline over fp32 |"
                )
                print("|---|---|---|---|---|---|---|---|---|")
                for name in options.model or MODELS:
                    measure(name, load(name, options.weights), folder, files, options, pool)


if __name__ == "__main__":
    main()
