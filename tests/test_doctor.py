"""``medprobe doctor``: right about what is there, useful about what is not, and silent towards the network."""

from __future__ import annotations

import builtins
import json
import socket
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from medprobe.cli import app
from medprobe.doctor import Check, examine


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("doctor asked the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setenv("MEDPROBE_CACHE", str(tmp_path / "cache"))


def found(name: str) -> Check:
    return next(check for check in examine() if check.name == name)


def test_everything_that_is_here_is_ok() -> None:
    checks = {check.name: check for check in examine()}
    assert checks["torch"] == Check("packages", "torch", "ok", torch.__version__.partition("+")[0])
    assert {"numpy", "zarr", "timm", "transformers", "pyarrow"} <= checks.keys()
    assert not {"pytest", "ruff", "mypy"} & checks.keys()
    assert {check.state for check in checks.values() if check.topic == "packages"} == {"ok"}
    assert "--precision auto tries" in checks["cpu"].found


def test_a_missing_package_comes_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    version = metadata.version

    def without(name: str) -> str:
        if name in {"transformers", "zarr"}:
            raise metadata.PackageNotFoundError(name)
        return "0.9.2" if name == "timm" else version(name)

    monkeypatch.setattr(metadata, "version", without)
    assert found("transformers") == Check(
        "packages", "transformers", "missing", "not installed", "pip install 'medprobe[hf]'"
    )
    assert found("zarr").fix == "pip install medprobe"
    assert found("timm").state == "warning"
    assert found("timm").found.startswith("0.9.2, older than 1.0.")
    assert found("timm").fix.startswith("pip install -U 'timm>=1.0.")


def test_without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "medprobe.embed.precision", raising=False)
    assert found("accelerator").fix == "pip install 'medprobe[embed]'"
    assert found("cpu").state == "ok"


def test_a_torch_that_cannot_be_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def broken(name: str, *rest: Any) -> Any:
        if name == "torch":
            raise OSError(f"{Path.home()}/lib/libcudart.so: cannot open\nand more")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", broken)
    check = found("accelerator")
    assert check.state == "warning"
    assert check.found == "torch cannot be loaded: OSError: ~/lib/libcudart.so: cannot open"


def test_what_breaks_is_shown_and_ends_its_topic_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: int) -> None:
        raise RuntimeError("CUDA unknown error")

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", broken)
    assert found("examination") == Check(
        "devices", "examination", "warning", "stopped here: RuntimeError: CUDA unknown error"
    )
    assert {check.topic for check in examine()} == {"packages", "devices", "caches", "access"}


def test_an_installation_that_was_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    version = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: None if name == "timm" else version(name))
    assert found("timm").state == "missing"


def test_a_driver_that_torch_cannot_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medprobe.doctor.shutil.which", lambda _: "/usr/bin/nvidia-smi")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    check = found("cuda")
    assert check.state == "warning"
    assert "pytorch.org" in check.fix


def test_caches(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    weights = tmp_path / "cache" / "weights"
    weights.mkdir(parents=True)
    (weights / "a.pth").write_bytes(bytes(200_000_000))
    assert ": 1 files, 0.2 GB; " in found("fetched weights").found
    monkeypatch.setattr("medprobe.doctor.os.access", lambda *_: False)
    check = found("fetched weights")
    assert (check.state, check.fix) == ("warning", "set MEDPROBE_CACHE to a folder that can be")


def test_a_folder_in_the_home_folder_names_nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "jane")
    (tmp_path / "jane").mkdir()
    monkeypatch.setenv("MEDPROBE_CACHE", str(tmp_path / "jane" / "cache"))
    assert found("fetched weights").found.startswith("~/cache: 0 files")


@pytest.mark.parametrize("arguments", [["doctor"], ["doctor", "--json"]])
def test_the_token_is_never_shown(monkeypatch: pytest.MonkeyPatch, arguments: list[str]) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_verysecretmarker")
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0
    assert "verysecret" not in done.output
    assert "signed in" in done.output


def test_json_and_access(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    monkeypatch.setattr("huggingface_hub.constants.is_offline_mode", lambda: True)
    checks = json.loads(CliRunner().invoke(app, ["doctor", "--json"]).stdout)
    access = {check["name"]: check for check in checks if check["topic"] == "access"}
    assert "hf auth login" in access["Hugging Face"]["fix"]
    assert "HF_HUB_OFFLINE" in access["internet"]["fix"]
