from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from multiprocessing import resource_tracker
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import Result
from conftest import make_store
from PIL import Image
from typer.testing import CliRunner

import medprobe
from medprobe.cli import app
from medprobe.images.processes import interrupts_blocked
from medprobe.store import open_store

PIXELS = ["-m", "baseline/pixels", "--workers", "0"]


def run(*arguments: object) -> Result:
    """Run a command in this process; anything but an orderly exit fails the test."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty small images of two classes, one of them damaged, and a table of them with patients."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    lines = ["path,label,patient"]
    for i in range(40):
        label = "bright" if i % 2 else "dark"
        path = folder / label / f"{i:02d}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(90 * (i % 2), 160 + 90 * (i % 2), (20, 24, 3)).astype(np.uint8)).save(path)
        lines.append(f"{label}/{i:02d}.png,{label},p{i // 4:02d}")
    (folder / "dark" / "00.png").write_bytes(b"no image")
    (folder / "manifest.csv").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="module")
def stores(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("stores")
    done = run("embed", images / "manifest.csv", *PIXELS, "-o", out)
    assert done.exit_code == 3, done.stderr
    return out


def test_from_images_to_leaderboard(images, stores, tmp_path):
    store = stores / "baseline--pixels.zarr"
    again = run("embed", images / "manifest.csv", *PIXELS, "-o", stores, "--json")
    assert again.exit_code == 3
    assert json.loads(again.stdout)[0]["embedded"] == 0
    done = run("probe", store, "--target", "label", "--folds", 4, "--json", "-o", tmp_path, "-p", "logreg", "-p", "knn")
    assert done.exit_code == 0, done.stderr
    rows = json.loads(done.stdout)
    best = next(row for row in rows if row["primary"] and row["probe"] == "logreg")
    assert (best["metric"], best["n_images"], best["n_groups"], best["group"]) == ("auroc", 39, 10, "patient")
    assert best["value"] > 0.95
    assert 0 < best["ci_low"] <= best["value"] <= best["ci_high"] <= 1
    board = run("compare", tmp_path)
    assert board.exit_code == 0
    assert "AUROC" in board.stdout
    assert "39" in board.stdout
    assert "1 images without features" in board.stdout


def test_a_folder_with_one_sub_folder_a_class_is_enough(images, tmp_path):
    done = run("-q", "embed", images, *PIXELS, "-o", tmp_path)
    assert done.exit_code == 3, done.stderr
    assert set(open_store(tmp_path / "baseline--pixels.zarr").samples["label"]) == {"bright", "dark"}


def test_info_names_what_failed_and_why(stores):
    store = stores / "baseline--pixels.zarr"
    shown = run("info", store)
    assert shown.exit_code == 0
    assert "dark/00.png" in shown.stdout
    assert "not an image" in shown.stdout
    facts = json.loads(run("info", store, "--json").stdout)
    assert facts["failures"] == [{"id": "dark/00.png", "row": 0, "stage": "read", "reason": "not an image"}]
    assert run("info", store, "--missing").stdout == ""


def test_verify_and_export(stores, tmp_path):
    store = stores / "baseline--pixels.zarr"
    assert run("verify", store).exit_code == 0
    for file_format in ("npz", "parquet", "safetensors"):
        done = run("export", store, "-o", tmp_path / f"x.{file_format}", "--format", file_format)
        assert done.exit_code == 0, done.stderr
    arrays = np.load(tmp_path / "x.npz", allow_pickle=False)
    np.testing.assert_array_equal(arrays["view:pixels"], open_store(store).features("pixels"))


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["embed", "{images}", "-m", "resnet50", "-o", "{out}"], 2, "expected family/name"),
        (["embed", "{images}", "-m", "nobody/resnet50", "-o", "{out}"], 2, "no family 'nobody'"),
        (["embed", "{images}/nothing", *PIXELS, "-o", "{out}"], 1, "no such file or folder"),
        (["embed", "{images}/manifest.csv", *PIXELS, "-o", "{out}", "--group-col", "mrn"], 2, "--group-col mrn"),
        (["embed", "{images}/manifest.csv", *PIXELS, "-o", "{out}", "--path-col", "where"], 2, "--path-col where"),
        (["embed", "{images}", *PIXELS, "-o", "{out}", "--batch-size", "many"], 2, "--batch-size many"),
        (["embed", "{images}", *PIXELS, "-o", "{out}", "--precision", "fp8"], 2, "--precision fp8"),
        (["embed", "{images}", *PIXELS, "-o", "{out}", "--device", "cuda:9"], 2, "--device cuda:9"),
        (["embed", "{images}", *PIXELS, "-o", "{out}", "--max-failures", "0"], 1, "--max-failures"),
        (["probe", "{images}"], 1, "no feature store there"),
        (["probe", "{stores}/baseline--pixels.zarr", "-t", "grade"], 2, "there are: label, patient"),
        (["compare", "{images}"], 1, "no such results"),
        (["export", "{stores}/baseline--pixels.zarr", "-o", "{out}/x", "-f", "mat"], 2, "--format mat"),
        (["demo", "-o", "{out}", "--data", "nomnist"], 2, "--data nomnist"),
    ],
)
def test_mistakes_get_one_line_that_says_what_to_do(images, stores, tmp_path, arguments, status, words):
    places = {"images": images, "stores": stores, "out": tmp_path}
    done = run(*[argument.format(**places) for argument in arguments])
    assert done.exit_code == status
    assert words in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_embedding_says_so_and_is_finished_by_the_same_command(images, tmp_path, number):
    command = ["embed", images / "manifest.csv", *PIXELS, "--block-rows", 4, "-o", tmp_path]
    script = (
        "import time, medprobe.embed.forward as forward, medprobe.cli as cli\n"
        "launch = forward.Forward.launch\n"
        "def slow(*given): time.sleep(0.3); return launch(*given)\n"
        "forward.Forward.launch = slow\n"
        f"cli.app({[str(part) for part in command]!r})\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE, text=True)
    commits = tmp_path / "baseline--pixels.zarr" / "commits"
    deadline = time.monotonic() + 120
    while len(list(commits.glob("[0-9]*.json"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 4, stderr
    assert "run the same command again" in stderr
    missing = open_store(commits.parent, partial=True).missing_blocks
    assert 0 < len(missing) < 10
    assert run(*command).exit_code == 3
    assert list(open_store(commits.parent).verify()) == []


def test_help_imports_nothing_heavy():
    heavy = "{'torch', 'numpy', 'pandas', 'zarr', 'sklearn', 'timm', 'PIL', 'rich.table'}"
    code = f"import sys, medprobe.cli; print(sorted({heavy} & set(sys.modules)))"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )
    for command in ("embed", "probe", "compare", "info", "verify", "export", "models", "demo"):
        assert run(command, "--help").exit_code == 0


@pytest.mark.parametrize("probe", ["logreg", "knn", "ridge", "prototype"])
def test_a_probe_does_without_scipys_statistics(probe, tmp_path):
    rng = np.random.default_rng(0)
    samples = pd.DataFrame({"label": rng.integers(0, 2, 60), "split": np.repeat(["train", "val", "test"], 20)})
    store = make_store(tmp_path / "drawn.zarr", rng.standard_normal((60, 8)), samples, split="split")
    arguments = ["-q", "probe", str(store.path), "--target", "label", "--probe", probe]
    code = (
        f"import sys; from medprobe.cli import main; sys.argv[1:] = {arguments}\n"
        "try: main()\n"
        "finally: print([name for name in sys.modules if name.startswith('scipy.stats.')], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.strip().endswith("[]"), done.stderr


def test_what_is_loaded_later_is_there_when_it_is_used():
    code = (
        "import sys; from medprobe._later import load_later; load_later('scipy.stats')\n"
        "import sklearn.utils.fixes; before = 'scipy.stats._stats_py' in sys.modules\n"
        "from scipy.stats import rankdata; print(before, rankdata([3, 1, 2]).tolist())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False [3.0, 1.0, 2.0]"


def test_probing_imports_neither_torch_nor_an_image_library():
    banned = "{'torch', 'timm', 'transformers', 'open_clip', 'ray', 'pydicom', 'torchvision', 'PIL', 'joblib.externals.loky'}"
    code = (
        "import sys, medprobe.store, medprobe.probe.run, medprobe.probe.logistic, medprobe.probe.knn, medprobe.probe.mlp\n"
        f"print(sorted({banned} & set(sys.modules) - {{'joblib.externals.loky'}}))"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )


def test_the_demo_on_a_medmnist_set_checks_what_it_gets(tmp_path, monkeypatch):
    medmnist = pytest.importorskip("medmnist")
    url = (tmp_path / "served.npz").as_uri()
    served = {"images": np.zeros((6, 8, 8), np.uint8)}
    np.savez(tmp_path / "served.npz", **{f"{s}_{k}": v for s in ("train", "val", "test") for k, v in served.items()})
    monkeypatch.setitem(medmnist.INFO, "breastmnist", {"url": url, "MD5": "0" * 32})
    done = run("demo", "-o", tmp_path / "demo", "--data", "breastmnist")
    assert done.exit_code == 1
    assert "its MD5 is" in done.stderr
    monkeypatch.setitem(medmnist.INFO, "breastmnist", {"url": "http://127.0.0.1:9/no.npz", "MD5": "0" * 32})
    done = run("demo", "-o", tmp_path / "offline", "--data", "breastmnist")
    assert done.exit_code == 2
    assert f"put it at {tmp_path / 'offline' / 'breastmnist.npz'}" in " ".join(done.stderr.split())


def test_the_demo_for_real(tmp_path):
    done = run("demo", "-o", tmp_path / "demo")
    assert done.exit_code == 0, done.stderr
    assert "balanced accuracy" in done.stdout
    assert "476 of 480 images; 4 files could not be read" in done.stdout
    table = tmp_path / "demo" / "results" / "results.csv"
    assert table.exists()
    shown = run("compare", table)
    assert shown.exit_code == 0, shown.output
    assert "differences on the same images" in shown.stdout
    found = json.loads(run("compare", table, "--json").stdout)
    best = {(row["encoder"], row["probe"]): row["value"] for row in found["rows"]}
    assert {probe for _, probe in best} == {"logreg", "knn", "mlp"}
    assert len(found["differences"]) == len(best) - 1
    assert best["imagenet/efficientnet-lite0", "logreg"] > 0.9
    assert best["imagenet/efficientnet-lite0", "logreg"] > best["baseline/pixels", "logreg"]


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="no process groups")
def test_an_interrupt_of_workers_and_all_leaves_one_sentence(tmp_path):
    """Ctrl-C in a terminal goes to every process: no worker, and no thread of their pool, may answer with a traceback."""
    images = tmp_path / "images"
    images.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (700, 700, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(images / "0.png")
    for i in range(1, 2000):  # half a minute of decoding
        os.link(images / "0.png", images / f"{i}.png")
    command = [sys.executable, "-m", "medprobe.cli", "embed", images, "-m", "baseline/pixels", "-o", tmp_path / "out"]
    process = subprocess.Popen(
        [*map(str, command), "--workers", "2", "--block-rows", "64"],
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    commits = tmp_path / "out" / "baseline--pixels.zarr" / "commits"
    while process.poll() is None and not (commits.is_dir() and any(commits.iterdir())):
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 4, said
    assert "run the same command again" in said
    assert "Traceback" not in said


def test_a_second_interrupt_while_python_ends_changes_nothing():
    program = (
        "import atexit, os, signal, sys; from medprobe import cli; cli.app = lambda: sys.exit(4); "
        "atexit.register(os.kill, os.getpid(), signal.SIGINT); cli.main()"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (4, "")


def test_an_interrupt_inside_a_string_that_is_run_ends_with_the_status(tmp_path):
    (tmp_path / "program.py").write_text(
        "from medprobe import cli\n"
        "def app():\n"
        "    try:\n"
        "        exec('raise KeyboardInterrupt')\n"
        "    except KeyboardInterrupt:\n"
        "        raise SystemExit(4)\n"
        "cli.app = app\n"
        "cli.main()\n"
    )
    ended = subprocess.run([sys.executable, "-m", "program"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (4, "")


@pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="no masks of signals")
def test_an_interrupt_that_comes_first_leaves_no_signal_blocked(monkeypatch):
    resource_tracker.ensure_running()
    mask = signal.pthread_sigmask

    def interrupted(how: int, signals: object) -> object:
        before = mask(how, signals)
        if how == signal.SIG_BLOCK and signals:
            raise KeyboardInterrupt
        return before

    monkeypatch.setattr(signal, "pthread_sigmask", interrupted)
    with pytest.raises(KeyboardInterrupt), interrupts_blocked():
        pass
    assert signal.SIGINT not in mask(signal.SIG_BLOCK, ())


def test_python_m_medprobe_is_the_command():
    said = subprocess.run([sys.executable, "-m", "medprobe", "--version"], check=True, capture_output=True, text=True)
    assert said.stdout.strip() == medprobe.__version__
