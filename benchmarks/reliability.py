"""What becomes of a store when everything around it fails: kills, a failing file system, damage, rival writers.

    python benchmarks/reliability.py            # 200 kills, and every file-system call of a run failed once
    python benchmarks/reliability.py --quick
    python benchmarks/reliability.py --of extensions    # a part of it
    python benchmarks/reliability.py --of memory --model imagenet/efficientnet-lite0    # of an encoder that people use

``drills.py`` says what is done and what counts as a violation. The same is done to stores that are being extended: each
drill then begins with a complete store to which images are added.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import resource
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from drills import BLOCK, MORE, Drills, N, draw, embed

import medprobe

_PARTS = ("stores", "extensions", "memory")
_MEMORY = 2000, 20_000  # images whose peak memory is compared


def spread(blocks: Sequence[float]) -> str:
    """Return in words how the rows that kills have cost are spread, in shares of a block."""
    shares = np.array(blocks)
    edges = (0.0, 0.25, 0.5, 0.75, 1.0)
    parts = [f"{np.mean(shares <= 0):.0%} of the kills none"]
    parts += [
        f"{np.mean((shares > low) & (shares <= high)):.0%} up to {high:.0%}" for low, high in itertools.pairwise(edges)
    ]
    parts += [f"{np.mean(shares > 1):.0%} more", f"{shares.max():.2f} at most"]
    return f"computed again, in shares of a block: {', '.join(parts)}"


def peak(folder: str, n: int, out: str, model: str | None, precision: str) -> None:
    """Embed ``n`` images and write down the peak memory of this process; the target of a process that is started."""
    if model:
        medprobe.embed(folder, model, out, device="cpu", precision=precision, limit=n)
    else:
        embed(Path(folder), Path(out), Path(out + ".log"), limit=n, block_rows=1024, batch_size=32)
    Path(out + ".peak").write_text(str(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss))


def memory(folder: Path, model: str | None, precision: str) -> tuple[int, int]:
    """Return the peak memory of embedding few and many images, in KiB, each in a new process."""
    draw(folder / "images", _MEMORY[1])
    found = []
    for n in _MEMORY:
        out = str(folder / str(n))
        process = multiprocessing.get_context("spawn").Process(
            target=peak, args=(str(folder / "images"), n, out, model, precision)
        )
        process.start()
        process.join()
        found.append(int(Path(out + ".peak").read_text()))
    return found[0], found[1]


def main() -> int:
    """Print a line for each drill; return how many violations there were."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="20 kills, and every tenth file-system call")
    parser.add_argument("--of", choices=_PARTS, action="append", help="all of them unless given")
    parser.add_argument("--model", help="whose memory is measured, instead of that of the drills' small encoder")
    parser.add_argument("--precision", default="auto", help="that such a model computes in")
    options = parser.parse_args()
    parts = options.of or _PARTS
    n, every = (20, 10) if options.quick else (options.kills, 1)
    total = 0

    def say(drill: str, found: list[str], more: str = "") -> None:
        nonlocal total
        total += len(found)
        print(f"{drill}: {len(found)} violations{more}", *found[:5], sep="\n  ", flush=True)

    with tempfile.TemporaryDirectory() as scratch:
        started = time.perf_counter()
        print(f"seed {options.seed}; {N} images in blocks of {BLOCK}; {MORE} more to extend by")
        for of, extend in (("", False), (" of an extension", True)):
            if _PARTS[extend] not in parts:
                continue
            drills = Drills(Path(scratch) / f"drills{extend}", options.seed, extend=extend)
            found, again = drills.kills(n)
            say(f"{n} kills{of}", found + ["more than a block"] * sum(b > 1 for b in again), f"; {spread(again)}")
            found, again = drills.kills(n // 4, (3, 1, 5))
            say(f"{n // 4} kills{of} of 3, then 1, then 5 ranks", found, f"; {spread(again)}")
            found, calls = drills.calls(every)
            say(f"each of {calls} file-system calls{of} failed", found)
            found, calls = drills.calls(every, kill=True)
            say(f"killed at each of {calls} file-system calls{of}", found)
            found, partial = drills.readers()
            say(f"reading meanwhile{of}", found, f"; {partial} reads of a part")
            if extend:
                continue
            found, detected = drills.damage(n)
            say(f"{n} damaged chunks", found, f"; {detected} found by verify, all made again")
            say("full disk", drills.full_disk())
            for writers in (2, 3):
                say(f"{writers} writers at once", [v for _ in range(n // 10) for v in drills.rivals(writers)])
        if "memory" in parts:
            few, many = memory(Path(scratch) / "memory", options.model, options.precision)
            off = [] if abs(many / few - 1) <= 0.05 else ["not the same within 5 %"]
            sizes = f"{few / 1024:.0f} and {many / 1024:.0f} MiB"
            say("peak memory", off, f"; {sizes} of {_MEMORY} images: {many / few:.3f}")
        print(f"{time.perf_counter() - started:.0f} s")
    return total


if __name__ == "__main__":
    sys.exit(min(main(), 1))
