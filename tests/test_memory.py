"""What is asked of the C library's memory: that a process keeps what it has freed."""

import ctypes
import platform
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from medprobe.images.decode import Decoder
from medprobe.images.geometry import Geometry
from medprobe.memory import keep_freed_memory

_FAULTS = """
import resource, sys, threading, torch
from medprobe.memory import keep_freed_memory
_, how, where, n, megabytes = sys.argv
assert how == "default" or keep_freed_memory()
def compute():
    for i in range(30):
        if i == 20:  # the first ones find their places
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        held = [torch.ones(int(megabytes) << 18) for _ in range(int(n))]
        del held
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
if where == "here":
    compute()
else:
    thread = threading.Thread(target=compute)
    thread.start()
    thread.join()
"""


_HEAPS = """
import threading, torch
from medprobe.memory import keep_freed_memory
assert keep_freed_memory()
found = []
thread = threading.Thread(target=lambda: found.append(torch.ones(1 << 20)))
thread.start()
thread.join()
found.append(torch.ones(1 << 20))
of_first, = [line.split()[0] for line in open("/proc/self/maps") if line.endswith("[heap]\\n")]
start, end = (int(edge, 16) for edge in of_first.split("-"))
print([start <= values.data_ptr() < end for values in found])
"""


def _page_faults(how: str, *what: str) -> int:
    run = subprocess.run([sys.executable, "-c", _FAULTS, how, *what], capture_output=True, text=True, check=True)
    return int(run.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc alone")
@pytest.mark.parametrize(
    ("where", "n", "megabytes"),
    [
        ("here", "1", "64"),
        ("in a thread", "1", "40"),  # longer than the longest that is kept by itself
        ("in a thread", "30", "3"),  # in more than one heap of a thread
    ],
)
def test_memory_that_was_freed_is_used_again_without_the_system_clearing_its_pages(
    where: str, n: str, megabytes: str
) -> None:
    assert _page_faults("keep", where, n, megabytes) <= _page_faults("default", where, n, megabytes) / 10


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc alone")
def test_what_threads_compute_lies_apart_from_what_lives_longer() -> None:
    run = subprocess.run([sys.executable, "-c", _HEAPS], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[False, True]"


@pytest.mark.parametrize("problem", [AttributeError("no mallopt"), OSError("no such library"), TypeError("a name")])
def test_other_c_libraries_are_left_alone(problem: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(_: object) -> None:
        raise problem

    monkeypatch.setattr(ctypes, "CDLL", absent)
    assert not keep_freed_memory()


def _faults_of_children() -> int:
    """Return the page faults, so far, of the processes that this one has started."""
    children = [pid for task in Path("/proc/self/task").iterdir() for pid in (task / "children").read_text().split()]
    return sum(int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[7]) for pid in children)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc alone")
def test_processes_that_read_images_use_their_memory_again(tmp_path: Path) -> None:
    n = 24
    Image.new("RGB", (600, 450)).save(tmp_path / "a.png")
    with Decoder(1) as decoder:
        chunks = [[str(tmp_path / "a.png")] * n] * 12
        faults = [_faults_of_children() for _ in decoder.run(chunks, [Geometry(size=(224, 224), resize=256)])]
    assert faults[-1] - faults[5] < 6 * n * 10  # the pages of one image are 264
