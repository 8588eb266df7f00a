"""``doctor``: what is installed, what medprobe can compute on, where weights are kept, and how to mend what is missing."""

from __future__ import annotations

import os
import platform
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from medprobe.encoders.cache import cache_folder

State = Literal["ok", "missing", "warning"]

_REQUIREMENT = re.compile(r"^([A-Za-z0-9._-]+)\s*(?:(?:>=|==)\s*([\d.]+))?")
_EXTRA = re.compile(r"extra\s*==\s*[\"']([^\"']+)")
# Not for users, and the sum of the others.
_OTHER_EXTRAS = {"dev", "all"}


@dataclass(frozen=True)
class Check:
    """One thing that was looked at: what was found, and what to do about it."""

    topic: str
    name: str
    state: State
    found: str
    fix: str = ""


def examine() -> list[Check]:
    """Return everything that is worth knowing when something does not work. Nothing is sent anywhere."""
    topics = {"packages": _packages, "devices": _devices, "caches": _caches, "access": _access}
    return [check for topic, look in topics.items() for check in _guarded(topic, look)]


def _guarded(topic: str, look: Callable[[], Iterator[Check]]) -> Iterator[Check]:
    """Yield a topic's checks; what breaks on the way is one of them, since a broken machine is what this is for."""
    try:
        yield from look()
    except Exception as error:
        yield Check(topic, "examination", "warning", f"stopped here: {_reason(error)}")


def _reason(error: Exception) -> str:
    """Return the kind of an error and its first line, in which the home folder names nobody."""
    said = f"{type(error).__name__}: {error}".splitlines()[0]
    return said.replace(os.path.expanduser("~"), "~")  # noqa: PTH111 (Path.home raises where there is none)


def _packages() -> Iterator[Check]:
    yield Check("packages", "python", "ok", platform.python_version())
    try:
        own, requirements = metadata.version("medprobe"), metadata.requires("medprobe") or []
    except metadata.PackageNotFoundError:
        yield Check("packages", "medprobe", "warning", "run from a folder", "pip install medprobe, so that it can look")
        return
    yield Check("packages", "medprobe", "ok", own)
    for line in requirements:
        match, extra = _REQUIREMENT.match(line), _EXTRA.search(line)
        group = extra[1] if extra else ""
        if match is None or match[1] == "medprobe" or group in _OTHER_EXTRAS:
            continue
        yield _package(match[1], match[2], group)


def _package(name: str, least: str | None, extra: str) -> Check:
    install = f"pip install 'medprobe[{extra}]'" if extra else "pip install medprobe"
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        version = ""
    if not version:  # None, whatever its type says, after an installation that was cut off
        return Check("packages", name, "missing", "not installed", install)
    if least is not None and _numbers(version) < _numbers(least):
        return Check("packages", name, "warning", f"{version}, older than {least}", f"pip install -U '{name}>={least}'")
    return Check("packages", name, "ok", version)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version.partition("+")[0])[:3])


def _devices() -> Iterator[Check]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0
    found = f"{cores} cores, {memory / 2**30:.0f} GiB of memory" if memory else f"{cores} cores"
    try:
        import torch

        from medprobe.embed.precision import choose_precision
    except Exception as error:
        yield Check("devices", "cpu", "ok", found)
        install = "pip install 'medprobe[embed]'"
        if isinstance(error, ModuleNotFoundError):
            yield Check("devices", "accelerator", "missing", f"{error.name} is not installed", install)
        else:  # a shared library that is missing, or does not fit
            install = install.replace("install", "install --force-reinstall", 1)
            yield Check("devices", "accelerator", "warning", f"torch cannot be loaded: {_reason(error)}", install)
        return

    def auto(device: torch.device) -> str:
        return f"--precision auto tries {choose_precision('auto', device)}"

    yield Check("devices", "cpu", "ok", f"{found}; {auto(torch.device('cpu'))}")
    for index in range(torch.cuda.device_count()):
        properties, device = torch.cuda.get_device_properties(index), torch.device("cuda", index)
        size = f"{properties.total_memory / 2**30:.0f} GiB"
        yield Check("devices", f"cuda:{index}", "ok", f"{properties.name}, {size}; {auto(device)}")
    if torch.backends.mps.is_available():
        yield Check("devices", "mps", "ok", f"Apple's; {auto(torch.device('mps'))}")
    if not torch.cuda.is_available() and shutil.which("nvidia-smi"):
        yield Check(
            "devices",
            "cuda",
            "warning",
            f"there is an NVIDIA driver, and torch {torch.__version__} cannot use it",
            "install the CUDA build of torch that fits the driver: https://pytorch.org/get-started/locally",
        )


def _caches() -> Iterator[Check]:
    yield _folder("fetched weights", cache_folder(), "MEDPROBE_CACHE")
    if find_spec("huggingface_hub") is not None:
        from huggingface_hub import constants

        yield _folder("Hugging Face hub", Path(constants.HF_HUB_CACHE), "HF_HOME")


def _folder(name: str, folder: Path, variable: str) -> Check:
    """Look at a cache: what lies in it, and whether something could be added, without adding anything."""
    nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    shown = f"~/{folder.relative_to(Path.home())}" if folder.is_relative_to(Path.home()) else str(folder)
    if not (nearest.is_dir() and os.access(nearest, os.W_OK)):
        return Check("caches", name, "warning", f"{shown} cannot be written", f"set {variable} to a folder that can be")
    sizes = []
    for path in folder.rglob("*"):
        with suppress(OSError):  # a file that another process is fetching may go at any moment
            if path.is_file() and not path.is_symlink():
                sizes.append(path.stat().st_size)
    free = shutil.disk_usage(nearest).free
    return Check(
        "caches",
        name,
        "ok",
        f"{shown}: {len(sizes)} files, {sum(sizes) / 1e9:.1f} GB; {free / 1e9:.0f} GB of the disk are free",
    )


def _access() -> Iterator[Check]:
    if find_spec("huggingface_hub") is None:
        return
    from huggingface_hub import constants, get_token

    if constants.is_offline_mode():
        yield Check(
            "access", "internet", "warning", "switched off by HF_HUB_OFFLINE", "unset HF_HUB_OFFLINE to fetch weights"
        )
    if get_token():
        yield Check("access", "Hugging Face", "ok", "signed in")
    else:
        yield Check(
            "access",
            "Hugging Face",
            "missing",
            "not signed in; needed only for weights that are given out on request",
            "ask on the encoder's page (medprobe models --json), then hf auth login",
        )
