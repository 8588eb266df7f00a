"""Drills for stores: kills, a failing file system, damage, rival writers, and what is then to be seen.

Each works on a store of drawn images and a projection as encoder, whose features do not depend on the batch, so that
what is left at the end can be compared byte for byte with an undisturbed store. A violation is a row that is wrong, lost or
there twice, damage that is not found, or a store that does not heal when the command is run again.
"""

from __future__ import annotations

import errno
import io
import itertools
import multiprocessing
import os
import random
import resource
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import medprobe
from medprobe.embed.extend import in_store_order
from medprobe.errors import DataError
from medprobe.manifest import Manifest, read_manifest
from medprobe.store import FeatureStore, open_store
from medprobe.store_extension import drafts_of
from medprobe.testing import FakeEncoder

N, BLOCK = 45, 7  # the last block is partly filled
MORE = 11  # that an extension adds
_SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
# Everything that is written goes through these; reads of whole files go through io.open as well.
_CALLS = (
    *((os, name) for name in ("open", "fsync", "rename", "replace", "link", "unlink", "mkdir", "rmdir")),
    (io, "open"),
)
_ERRORS = (errno.EIO, errno.ENOSPC, errno.EACCES)


class Logged(FakeEncoder):
    """Writes down how many images it has encoded, in a file, so that repeated work can be counted after a kill."""

    reentrant = True  # as the encoders that people use are: none of its rows is made not finite, which counts images

    def __init__(self, log: Path, delay: float) -> None:
        super().__init__(width=8, views=("cls", "mean"), image_size=16, delay=delay)
        self.log = log

    def forward_views(self, pixels: Any) -> Any:
        views = super().forward_views(pixels)
        with self.log.open("a") as file:
            file.write(f"{len(pixels)}\n")
        return views


class Killed(BaseException):
    """Is raised where a process would be killed: nothing that comes after it reaches the disk."""


def draw(folder: Path, n: int, start: str = "") -> Path:
    """Draw images, one of them no image; their names begin in the same way."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(n)
    for i in range(n):
        Image.fromarray(rng.integers(0, 256, (16, 20, 3), dtype=np.uint8)).save(folder / f"{start}{i:03d}.png")
    (folder / f"{start}{n // 4:03d}.png").write_bytes(b"no picture")
    return folder


def embed(images: Path | Manifest, out: Path, log: Path, delay: float = 0.0, **options: Any) -> Path:
    """Embed the images, or finish what is left; return the store's path."""
    options = {"workers": 0, "block_rows": BLOCK, "batch_size": 4, "device": "cpu", "precision": "fp32", **options}
    return medprobe.embed(images, [Logged(log, delay)], out, **options)[0].path


def in_process(images: Path, out: Path, log: Path, delay: float, options: dict[str, Any], file_bytes: int = 0) -> None:
    """Embed as the command line does it, to the exit status; the target of a process that is started."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if file_bytes:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))
    try:
        embed(images, out, log, delay, **options)
    except KeyboardInterrupt:
        sys.exit(4)
    except DataError as error:
        log.with_suffix(".error").write_text(str(error))
        sys.exit(1)


def contents(path: Path) -> dict[str, bytes]:
    """Return every file of a store, drafts that a kill has left aside."""
    files = sorted(file for file in path.rglob("*") if file.is_file())
    found = {str(file.relative_to(path)): file.read_bytes() for file in files}
    return {name: data for name, data in found.items() if not name.endswith((".draft", ".partial"))}


def violations(path: Path, reference: FeatureStore) -> list[str]:
    """Return what a reader of a store, complete or not, would see that is not so."""
    if not path.exists():
        return []
    found: list[str] = []
    store = FeatureStore(path, partial=True)
    rows = store.manifest.index[store.mask]
    expected = reference.manifest.index[reference.mask]
    for view in store.views:
        values, whole = store.features(view), reference.features(view)
        wanted = whole[np.searchsorted(expected, rows)]
        if values.shape != wanted.shape or not np.array_equal(values, wanted):
            found.append(f"{view}: other values than in the undisturbed store")
    committed = [row for index in store.commits for row in range(store.plan.rows)[store.plan.block(index)]]
    if sorted({*rows, *store.failures["row"]}) != sorted(committed):
        found.append("a committed row is neither there nor listed as failed")
    return found


def _encoded(log: Path) -> int:
    """Return how many images were encoded in batches; the encoder is tried on images one by one."""
    batches = log.read_text().splitlines() if log.exists() else []
    return sum(int(n) for n in batches if n not in ("", "1"))


class Drills:
    """One folder of images, one undisturbed store, and what is done to copies of it.

    Args:
        folder: An empty folder.
        seed: Of moments, places and kinds of damage.
        extend: Begin each drill with a store of some of the images, to which the others are to be added.
        sizes: Number of images, and of those that are added.

    """

    def __init__(
        self, folder: Path, seed: int = 0, *, extend: bool = False, sizes: tuple[int, int] = (N, MORE)
    ) -> None:
        self.folder, self.random = folder, random.Random(seed)
        self.images = draw(folder / "images", sizes[0])
        reference = embed(self.images, folder / "whole", folder / "log")
        self.begun = reference if extend else None
        self.n_begun = sizes[0] if extend else 0
        self.options = {"extend": True} if extend else {}
        if extend:
            draw(self.images, sizes[1], "-")  # sorted before those that are there
            manifest = in_store_order(read_manifest(self.images), [reference])
            reference = embed(manifest, folder / "longer", folder / "log")
        self.reference = open_store(reference)
        self.whole = contents(self.reference.path)
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(["medprobe.embed.run", "medprobe.testing", "PIL.PngImagePlugin"])
        self._count = 0

    def fresh(self) -> tuple[Path, Path]:
        """Return a folder for a store, and a file for its log."""
        self._count += 1
        out = self.folder / str(self._count)
        if self.begun is not None:
            shutil.copytree(self.begun, self.path(out))
        return out, out.with_suffix(".log")

    def path(self, out: Path) -> Path:
        """Return where the store of a folder is."""
        return out / "fake--tiny.zarr"

    def start(self, out: Path, log: Path, delay: float = 0.0, file_bytes: int = 0, **options: Any) -> Any:
        """Start an embedding in a process of its own."""
        options = self.options | options
        process = self.context.Process(target=in_process, args=(self.images, out, log, delay, options, file_bytes))
        process.start()
        return process

    def seen(self, out: Path) -> list[str]:
        """Return what a reader sees that is not so; a store that is extended is complete all the time."""
        path = self.path(out)
        try:
            found = violations(path, self.reference)
            if self.begun is not None and FeatureStore(path, partial=True).missing_blocks:
                found.append("the store that was complete is so no more")
        except DataError as error:
            return self.seen(out) if "once more" in str(error) else [str(error)]
        return found

    def healed(self, out: Path, log: Path) -> list[str]:
        """Run the same command again; return what is then not as it should be."""
        embed(self.images, out, log, **self.options)
        if contents(self.path(out)) != self.whole:
            return ["not byte for byte the undisturbed store after another run"]
        left = [path.name for path in out.iterdir() if path != self.path(out) and path.suffix != ".draft"]
        return [*(f"{name} is left" for name in left), *open_store(self.path(out)).verify()]

    def lost(self, out: Path, log: Path) -> int:
        """Return how many rows were encoded for nothing so far: they are in no store, and in no draft of one."""
        stores = [path for path in (self.path(out), *drafts_of(self.path(out))) if path.exists()]
        kept = (int(FeatureStore(path, partial=True).mask[self.n_begun :].sum()) for path in stores)
        return _encoded(log) - max(kept, default=0)

    def kills(self, n: int, world_sizes: tuple[int, ...] = (1,)) -> tuple[list[str], list[float]]:
        """Kill processes at random moments, start others, until a store is whole; then begin another.

        Args:
            n: How many.
            world_sizes: Numbers of ranks, one after the other; each process is a rank of its own.

        Returns:
            Violations, and for each kill how many blocks' worth of rows it has cost; of ranks at once the mean.

        """
        found: list[str] = []
        again: list[float] = []
        killed = 0
        while killed < n:
            out, log = self.fresh()
            for turn in itertools.count():
                size = world_sizes[turn % len(world_sizes)]
                before = self.lost(out, log)
                ranks = [{"rank": r, "world_size": size} if size > 1 else {} for r in range(size)]
                processes = [self.start(out, log, 0.05, **options) for options in ranks]
                dead = 0
                for process in processes:
                    self._moment(process, log)
                    if process.exitcode is None:
                        os.kill(process.pid, self.random.choice(_SIGNALS))
                        dead += 1
                for process in processes:
                    process.join(60)
                    if process.exitcode not in (0, 1, 4, -signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT):
                        found.append(f"a process ended with {process.exitcode}")
                found += self.seen(out)
                if dead:
                    again.append((self.lost(out, log) - before) / BLOCK / dead)
                killed += dead
                left = FeatureStore(self.path(out), partial=True) if self.path(out).exists() else None
                done = left is not None and left.plan == self.reference.plan and not left.missing_blocks
                if done or killed >= n:
                    break
            found += self.healed(out, log)
        return found, again

    def _moment(self, process: Any, log: Path) -> None:
        """Wait for a random time, in most cases from the first batch on that is encoded."""
        before = _encoded(log)
        if self.random.random() < 0.8:
            while process.exitcode is None and _encoded(log) == before:
                process.join(0.002)
        process.join(self.random.uniform(0, 0.4))

    def calls(self, every: int = 1, first: int = 1, *, kill: bool = False) -> tuple[list[str], int]:
        """Fail the n-th file-system call of a run, or kill it there, for every n; return violations and how many there are."""
        found: list[str] = []
        n = first
        while True:
            out, log = self.fresh()
            number = _ERRORS[n % len(_ERRORS)]
            with failing(out, n, Killed() if kill else OSError(number, os.strerror(number), str(out))) as counted:
                try:
                    embed(self.images, out, log, **self.options)
                except (DataError, Killed):
                    pass
                except Exception as error:
                    found.append(f"call {n}: {type(error).__name__} instead of an error that says what to do")
            lost = self.lost(out, log)
            found += [f"call {n}: {v}" for v in self.seen(out) + self.healed(out, log)]
            if lost > BLOCK:
                found.append(f"call {n}: {lost} rows are embedded again, more than a block")
            shutil.rmtree(out)
            if counted[0] < n:
                return found, counted[0]
            n += every

    def damage(self, n: int) -> tuple[list[str], int]:
        """Damage a random chunk file in a random way; return violations and how often ``verify`` found it."""
        found: list[str] = []
        detected = 0
        out, log = self.fresh()
        embed(self.images, out, log)
        for _ in range(n):
            store = open_store(self.path(out))
            index = self.random.randrange(store.plan.n_blocks)
            file = store.chunk_path(self.random.choice(store.array_names), index)
            data = bytearray(file.read_bytes())
            kind = self.random.choice(("torn", "emptied", "missing", "zeroed", "a bit"))
            if kind == "missing":
                file.unlink()
            elif kind == "a bit":
                data[self.random.randrange(len(data))] ^= 1 << self.random.randrange(8)
                file.write_bytes(data)
            else:
                kept = {"torn": self.random.randrange(1, len(data)), "emptied": 0, "zeroed": 0}[kind]
                file.write_bytes(bytes(data[:kept]) + (bytes(len(data)) if kind == "zeroed" else b""))
            if any(problem.startswith(f"block {index}:") for problem in open_store(self.path(out)).verify()):
                detected += 1
            else:
                found.append(f"{kind}: not found")
            found += self.healed(out, log)
        return found, detected

    def rivals(self, writers: int) -> list[str]:
        """Let several processes make the same blocks of the same store at once."""
        out, log = self.fresh()
        processes = [self.start(out, log, 0.001) for _ in range(writers)]
        for process in processes:
            process.join(120)
        found = [f"a writer ended with {p.exitcode}" for p in processes if p.exitcode != 0]
        if contents(self.path(out)) != self.whole:
            found.append("not byte for byte the undisturbed store")
        return found

    def readers(self) -> tuple[list[str], int]:
        """Read a store again and again while it is written; return violations and how many reads saw a part of it."""
        out, log = self.fresh()
        process = self.start(out, log, 0.01)
        found: list[str] = []
        partial = 0
        while process.is_alive():
            found += self.seen(out)
            with suppress(DataError):  # not there yet, or just exchanged for a longer one
                partial += 0 < len(FeatureStore(self.path(out), partial=True).missing_blocks) < 7
        process.join()
        return found, partial

    def full_disk(self) -> list[str]:
        """Let no file grow beyond less than a chunk; the error names the store, and nothing is lost."""
        out, log = self.fresh()
        embed(self.images, out, log)
        store = open_store(self.path(out))
        file = store.chunk_path(f"features/{store.plan.default_view}", 2)
        size = file.stat().st_size
        file.unlink()
        process = self.start(out, log, file_bytes=size - 1)
        process.join(60)
        said = log.with_suffix(".error").read_text() if log.with_suffix(".error").exists() else ""
        found = [] if process.exitcode == 1 and str(self.path(out)) in said and "block 2" in said else [f"said: {said}"]
        return found + self.seen(out) + self.healed(out, log)


@contextmanager
def failing(folder: Path, n: int, error: BaseException) -> Iterator[list[int]]:
    """Have the ``n``-th call that concerns a folder fail, and after a kill all that come later; yield the count of calls."""
    count, lock = [0], threading.Lock()
    dies = isinstance(error, Killed)

    def concerns(target: Any, options: dict[str, Any]) -> bool:
        if options.get("dir_fd") is not None:
            return False
        if isinstance(target, int):
            target = Path(f"/proc/self/fd/{target}").readlink()
        return str(target).startswith(f"{folder}{os.sep}") or str(target) == str(folder)

    def wrapped(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(target: Any, *args: Any, **kwargs: Any) -> Any:
            if concerns(target, kwargs):
                with lock:
                    count[0] += 1
                    fails = count[0] == n or (dies and count[0] > n)
                if fails:
                    raise error
            elif dies and kwargs.get("dir_fd") is not None and count[0] >= n:
                raise error
            return real(target, *args, **kwargs)

        return call

    real = [(module, name, getattr(module, name)) for module, name in _CALLS]
    try:
        for module, name, function in real:
            setattr(module, name, wrapped(function))
        yield count
    finally:
        for module, name, function in real:
            setattr(module, name, function)
