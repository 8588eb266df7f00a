"""Probes of other tools and medprobe's on the same arrays, threads and rows: seconds, test accuracy and AUROC of each.

python benchmarks/peers.py --drawn 10000             features with a power-law spectrum, labels of a noisy softmax
python benchmarks/peers.py --store STORE --target COLUMN   stored features, by the store's split or whole groups
python benchmarks/peers.py ... --eva-steps 12500     eva's own number of steps (some 20 minutes on two cores)

Every tool runs by its own public call where it can run on a CPU, and by its published recipe where that call needs a GPU
(marked "recipe"). "default" is what the tool does unasked; "tuned" is what one would change to help it: standardised
features, a looser tolerance, no worker processes. The protocols differ (values of C, steps, resamples), so a row is a
whole way of getting a number, not one algorithm against another. Absent tools are named:

    pip install --no-deps clip-benchmark==1.6.2 thunder-bench==0.2.2;  pip install kaiko-eva==0.4.5 lightly wandb matplotlib

CLIP_benchmark insists on a GPU: ``Module.cuda`` and ``Tensor.cuda`` return their object here, and ``DataParallel`` its
module. THUNDER's package pulls in data set tools when imported: its modules are loaded without the package's own start.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.util
import io
import statistics
import sys
import tempfile
import time
import types
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from logistic import make_features
from sklearn.linear_model import LogisticRegression, LogisticRegressionCV
from sklearn.metrics import f1_score, roc_auc_score
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from medprobe.probe.bootstrap import intervals
from medprobe.probe.knn import KNNProbe, sweep_knn
from medprobe.probe.logistic import LogisticProbeCV
from medprobe.probe.metrics import Scorer
from medprobe.probe.mlp import MLPProbe
from medprobe.store import open_store

DINO_CS = np.logspace(-6, 5, 45)


@dataclass(frozen=True)
class Arrays:
    """Features (n, D) float32 and class codes of training, validation and test rows."""

    X: np.ndarray
    y: np.ndarray
    X_val: np.ndarray
    y_val: np.ndarray
    X_test: np.ndarray
    y_test: np.ndarray

    @property
    def n_classes(self) -> int:
        return int(self.y.max()) + 1

    @property
    def learned(self) -> tuple[np.ndarray, np.ndarray]:
        """Training and validation rows together."""
        return np.vstack([self.X, self.X_val]), np.concatenate([self.y, self.y_val])

    @property
    def folds(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """The one split of ``learned`` into training and validation rows."""
        n = len(self.y)
        return [(np.arange(n), np.arange(n, n + len(self.y_val)))]

    def standardised(self) -> Arrays:
        scaler = StandardScaler().fit(self.X)
        X, X_val, X_test = (scaler.transform(part) for part in (self.X, self.X_val, self.X_test))
        return Arrays(X, self.y, X_val, self.y_val, X_test, self.y_test)


Contender = Callable[[Arrays], np.ndarray]  # to probabilities (m, K) or classes (m,) of the test rows


def medprobe_logreg(data: Arrays) -> np.ndarray:
    return LogisticProbeCV(cv=5).fit(*data.learned).predict_proba(data.X_test)


def medprobe_logreg_45(data: Arrays) -> np.ndarray:
    return LogisticProbeCV(Cs=list(DINO_CS), cv=data.folds).fit(*data.learned).predict_proba(data.X_test)


def medprobe_knn(data: Arrays) -> np.ndarray:
    X, y = data.learned
    scaled = StandardScaler().fit(data.X).transform(X)
    tried = sweep_knn(scaled, y, data.folds, n_classes=data.n_classes)
    settings, _ = max(tried, key=lambda one: (one[1][0].argmax(axis=1) == data.y_val).mean())
    return KNNProbe(**settings).fit(X, y).predict_proba(data.X_test)


def medprobe_mlp(data: Arrays) -> np.ndarray:
    return MLPProbe().fit(data.X, data.y, data.X_val, data.y_val).predict_proba(data.X_test)


def sklearn_cv(data: Arrays, max_iter: int = 100) -> np.ndarray:
    model = LogisticRegressionCV(
        Cs=np.logspace(-3, 3, 7), cv=5, max_iter=max_iter, l1_ratios=(0,), use_legacy_attributes=False
    )
    return model.fit(*data.learned).predict_proba(data.X_test)


def dinov3(data: Arrays, tol: float = 1e-12, max_iter: int = 1000) -> np.ndarray:
    """Its 45 values of C in float64, each from a cold start, chosen on a random tenth of all rows; then refitted."""
    X, y = data.learned
    X = X.astype(np.float64)
    held_out = np.random.default_rng(0).permutation(len(y)) < len(y) // 10

    def fit(C: float, rows: np.ndarray) -> LogisticRegression:
        return LogisticRegression(C=C, tol=tol, max_iter=max_iter).fit(X[rows], y[rows])

    best = max(DINO_CS, key=lambda C: fit(C, ~held_out).score(X[held_out], y[held_out]))
    return fit(best, np.ones(len(y), bool)).predict_proba(data.X_test)


def clip_benchmark(data: Arrays, workers: int = 4) -> np.ndarray:
    """20 epochs a fit; 7 coarse weight decays, then 3 finer steps on both sides of the best, then the refit."""
    from clip_benchmark.metrics import linear_probe
    from torch.utils.data import DataLoader

    linear_probe.accuracy = lambda logits, target, topk: [float((logits.argmax(1) == target).float().mean())]
    D, K, epochs = data.X.shape[1], data.n_classes, 20
    X, y = data.learned

    def loader(X: np.ndarray, y: np.ndarray, shuffle: bool) -> Any:
        unit = torch.nn.functional.normalize(torch.from_numpy(X), dim=1)
        rows = linear_probe.FeatureDataset(unit, torch.from_numpy(y))
        return DataLoader(rows, batch_size=512, shuffle=shuffle, num_workers=workers)

    train, val = loader(data.X, data.y, True), loader(data.X_val, data.y_val, False)
    wds = np.logspace(-6, 2, 97).tolist()
    common = {
        "input_shape": D,
        "output_shape": K,
        "lr": 0.1,
        "epochs": epochs,
        "amp": False,
        "device": "cpu",
        "seed": 0,
    }
    with on_cpu():
        peak = linear_probe.find_peak(wds, [0, 16, 32, 48, 64, 80, 96], train, val, verbose=False, **common)
        step = 8
        while step > 0:
            around = [max(peak - step, 0), peak, min(peak + step, 96)]
            peak = linear_probe.find_peak(wds, around, train, val, verbose=False, **common)
            step //= 2
        model = linear_probe.train(loader(X, y, True), weight_decay=wds[peak], **common)
        logits, _ = linear_probe.infer(model, loader(data.X_test, data.y_test, False), False, "cpu")
    return logits.softmax(1).numpy()


def thunder_linear(data: Arrays, epochs: int = 200) -> np.ndarray:
    """Nine linear layers (three rates, three weight decays) under one Adam, the best epoch by validation macro F1."""
    grid = [(lr, wd) for lr in (1e-3, 1e-4, 1e-5) for wd in (0.0, 1e-3, 1e-4)]
    torch.manual_seed(0)
    heads = [torch.nn.Linear(data.X.shape[1], data.n_classes) for _ in grid]
    groups = [{"params": h.parameters(), "lr": lr, "weight_decay": wd} for h, (lr, wd) in zip(heads, grid, strict=True)]
    optimizer = torch.optim.Adam(groups)
    X, y, X_val, X_test = (torch.from_numpy(a) for a in (data.X, data.y, data.X_val, data.X_test))
    best, kept = -1.0, np.zeros(0)
    for _ in range(epochs):
        for rows in torch.randperm(len(y)).split(64):
            loss = sum(torch.nn.functional.cross_entropy(head(X[rows]), y[rows]) for head in heads)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            for head in heads:
                f1 = f1_score(data.y_val, head(X_val).argmax(1).numpy(), average="macro")
                if f1 > best:
                    best, kept = f1, head(X_test).softmax(1).numpy()
    return kept


def thunder_knn(data: Arrays) -> np.ndarray:
    """Eight k by majority vote, chosen on validation."""
    retrieval = thunder_module("tasks.image_retrieval")
    ks = [1, 3, 5, 10, 20, 30, 40, 50]
    options = {"compute_ci": False, "disable_progress_bar": True}
    scores, _, _ = retrieval.topk_retrieval(data.X, data.y, data.X_val, data.y_val, ks, **options)
    k = max(ks, key=lambda k: scores[k]["f1"]["metric_score"])
    _, nearest, _ = retrieval.topk_retrieval(data.X, data.y, data.X_test, data.y_test, [k], **options)
    return np.array([np.bincount(data.y[rows]).argmax() for rows in nearest[k]])


def lightly_knn(data: Arrays, settings: tuple[tuple[int, float], ...] = ((200, 0.1),)) -> np.ndarray:
    from lightly.utils.benchmarking import knn_predict

    X, y = data.learned

    def predict(bank: np.ndarray, labels: np.ndarray, queries: np.ndarray, k: int, t: float) -> np.ndarray:
        unit = [torch.nn.functional.normalize(torch.from_numpy(a), dim=1) for a in (queries, bank)]
        order = knn_predict(unit[0], unit[1].T, torch.from_numpy(labels), num_classes=data.n_classes, knn_k=k, knn_t=t)
        return order[:, 0].numpy()

    k, t = settings[0]
    if len(settings) > 1:
        k, t = max(settings, key=lambda s: (predict(data.X, data.y, data.X_val, *s) == data.y_val).mean())
    return predict(X, y, data.X_test, k, t)


def eva_head(data: Arrays, steps: int, workers: int = 4) -> np.ndarray:
    """Its classification head from one file an image, as its ``predict`` leaves them; best epoch on validation."""
    from eva import core
    from eva.core.data.datasets import EmbeddingsClassificationDataset
    from torch.optim import AdamW

    with tempfile.TemporaryDirectory() as folder:
        write_eva(Path(folder), data)
        names = {"train": "train", "val": "val", "predict": "test"}
        sets = {k: EmbeddingsClassificationDataset(folder, "manifest.csv", split=s) for k, s in names.items()}
        how: dict[str, Any] = {"batch_size": 256, "num_workers": workers}
        if not workers:
            how |= {"prefetch_factor": None, "persistent_workers": False}
        head = torch.nn.Linear(data.X.shape[1], data.n_classes)
        module = core.HeadModule(
            head=head, criterion=torch.nn.CrossEntropyLoss(), optimizer=lambda p: AdamW(p, lr=3e-4)
        )
        loaders = core.DataModule(
            datasets=core.DatasetsSchema(train=sets["train"], val=sets["val"]),
            dataloaders=core.DataloadersSchema(
                train=core.DataLoader(shuffle=True, **how), val=core.DataLoader(shuffle=False, **how)
            ),
        )
        trainer = core.Trainer(
            max_steps=steps, accelerator="cpu", devices=1, n_runs=1, logger=False, default_root_dir=folder,
            enable_progress_bar=False,
        )  # fmt: skip
        core.Interface().fit(trainer, model=module, data=loaders)
        with torch.no_grad():
            return head(torch.from_numpy(data.X_test)).softmax(1).numpy()


def write_eva(folder: Path, data: Arrays) -> None:
    lines = ["origin,embeddings,target,split"]
    parts = {"train": (data.X, data.y), "val": (data.X_val, data.y_val), "test": (data.X_test, data.y_test)}
    for split, (X, y) in parts.items():
        for i, (x, label) in enumerate(zip(X, y, strict=True)):
            torch.save([torch.from_numpy(x.copy())], folder / f"{split}{i}.pt")
            lines.append(f"{split}{i}.png,{split}{i}.pt,{label},{split}")
    (folder / "manifest.csv").write_text("\n".join(lines))


@contextlib.contextmanager
def on_cpu() -> Iterator[None]:
    """Let code that says ``.cuda()`` run on the CPU."""
    kept = torch.nn.Module.cuda, torch.Tensor.cuda, torch.nn.DataParallel
    torch.nn.Module.cuda = torch.Tensor.cuda = lambda self, *_, **__: self
    torch.nn.DataParallel = lambda module, **_: module
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        torch.nn.Module.cuda, torch.Tensor.cuda, torch.nn.DataParallel = kept


def thunder_module(name: str) -> Any:
    """A module of THUNDER, its packages made without running their own code."""
    if "thunder" not in sys.modules:
        spec = importlib.util.find_spec("thunder")
        if spec is None or spec.origin is None:
            raise ModuleNotFoundError("No module named 'thunder'", name="thunder")
        root = Path(spec.origin).parent
        for package in ("thunder", "thunder.tasks", "thunder.utils"):
            sys.modules[package] = types.ModuleType(package)
            sys.modules[package].__path__ = [str(root.joinpath(*package.split(".")[1:]))]
    return importlib.import_module(f"thunder.{name}")


def load(name: str) -> None:
    """Import the tool of a row."""
    modules = {
        "CLIP_benchmark": "clip_benchmark.metrics.linear_probe",
        "lightly": "lightly.utils.benchmarking",
        "eva": "eva.core",
    }
    if name.startswith("THUNDER kNN"):
        thunder_module("tasks.image_retrieval")
    elif name.split()[0] in modules:
        importlib.import_module(modules[name.split()[0]])


def contenders(eva_steps: int) -> dict[str, tuple[Contender, bool]]:
    """Name to its function, and whether it gets standardised features."""
    grid = tuple((k, t) for k in (5, 10, 20, 50, 100, 200) for t in (0.04, 0.07, 0.1))
    return {
        "medprobe logreg, 17 C x 5 folds": (medprobe_logreg, False),
        "medprobe logreg, DINOv3's 45 C": (medprobe_logreg_45, False),
        "medprobe kNN, 7 k x 5 temperatures": (medprobe_knn, False),
        "medprobe MLP, 4 networks": (medprobe_mlp, False),
        "LogisticRegressionCV, 7 C x 5 folds, default": (sklearn_cv, False),
        "LogisticRegressionCV, tuned": (lambda data: sklearn_cv(data, 1000), True),
        "DINOv3's 45 C, default (recipe)": (dinov3, False),
        "DINOv3's 45 C, tuned (recipe)": (lambda data: dinov3(data, 1e-4, 100), True),
        "CLIP_benchmark linear, default": (clip_benchmark, False),
        "CLIP_benchmark linear, tuned": (lambda data: clip_benchmark(data, workers=0), True),
        "THUNDER linear, default (recipe)": (thunder_linear, False),
        "THUNDER linear, tuned (recipe)": (lambda data: thunder_linear(data, 50), True),
        "THUNDER kNN, default": (thunder_knn, False),
        "THUNDER kNN, tuned": (thunder_knn, True),
        "lightly kNN, default": (lightly_knn, False),
        "lightly kNN, tuned": (lambda data: lightly_knn(data, grid), True),
        f"eva head, {eva_steps} steps, default": (lambda data: eva_head(data, eva_steps), False),
        f"eva head, {eva_steps} steps, tuned": (lambda data: eva_head(data, eva_steps, workers=0), True),
    }


def compare(data: Arrays, repeats: int, eva_steps: int, only: str) -> None:
    standard = data.standardised()
    print(
        f"{len(data.y):,} + {len(data.y_val):,} rows to learn from, {len(data.y_test):,} to test on, D={data.X.shape[1]}, "
        f"K={data.n_classes}\n{'':46s} {'seconds':>9s} {'/ ours':>7s}  accuracy  AUROC"
    )
    ours = 0.0
    for name, (run, standardised) in contenders(eva_steps).items():
        if only not in name and not name.startswith("medprobe logreg, 17"):
            continue
        seconds = []
        try:
            load(name)  # importing a tool is not what is measured
            for _ in range(repeats if name.startswith("medprobe") else 1):
                started = time.perf_counter()
                found = run(standard if standardised else data)
                seconds.append(time.perf_counter() - started)
        except ModuleNotFoundError as error:
            print(f"{name:46s} not run: {error.name} is not installed", flush=True)
            continue
        spent = statistics.median(seconds)
        ours = ours or spent
        classes = found if found.ndim == 1 else found.argmax(axis=1)
        accuracy = (classes == data.y_test).mean()
        print(f"{name:46s} {spent:9.2f} {spent / ours:6.1f}x  {accuracy:.4f}  {auroc(data.y_test, found)}", flush=True)


def auroc(y: np.ndarray, found: np.ndarray) -> str:
    if found.ndim == 1:
        return "-"
    return f"{roc_auc_score(y, found[:, 1] if found.shape[1] == 2 else found, multi_class='ovr'):.4f}"


def compare_intervals(n: int) -> None:
    """Five metrics of one set of predictions: THUNDER's 3,000 resamples of images, medprobe's of patients."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 5, n)
    proba = rng.dirichlet(np.ones(5), n) + np.eye(5)[y] * 0.3
    proba /= proba.sum(axis=1, keepdims=True)
    names = ("accuracy", "balanced_accuracy", "macro_f1", "auroc", "log_loss")
    started = time.perf_counter()
    intervals(Scorer("multiclass", y, proba), names, groups=np.arange(n) // 3, n_resamples=3000)
    ours = time.perf_counter() - started
    print(f"\nintervals of 5 metrics, n={n:,}, 3,000 resamples: medprobe {ours:.2f} s", end="")
    try:
        metrics = thunder_module("utils.downstream_metrics")
    except ModuleNotFoundError as error:
        print(f"; THUNDER not run: {error.name} is not installed")
        return
    started = time.perf_counter()
    metrics.compute_metrics(torch.from_numpy(proba), None, torch.from_numpy(y))
    theirs = time.perf_counter() - started
    print(f"; THUNDER {theirs:.1f} s: {theirs / ours:.0f}x")


def stored(path: str, target: str, view: str | None) -> Arrays:
    """A store's rows: its own test side, or a fifth of its groups; a fifth of the other groups for validation."""
    store = open_store(path)
    X, y = store.features(view), np.unique(store.samples[target], return_inverse=True)[1]
    group_column, split_column = store.roles["group"], store.roles["split"]
    named = store.samples[group_column] if group_column else np.arange(len(y))
    group = np.unique(named, return_inverse=True)[1]
    part = np.random.default_rng(0).permutation(group.max() + 1)[group] % 5
    test = part == 0
    if split_column:
        test = (store.samples[split_column] == "test").to_numpy()
    val = ~test & (part == 1)
    train = ~test & ~val
    return Arrays(X[train], y[train], X[val], y[val], X[test], y[test])


def drawn(n: int) -> Arrays:
    X, y = make_features(n + n // 5, 768, 5)
    a, b = n - n // 5, n
    return Arrays(X[:a], y[:a], X[a:b], y[a:b], X[b:], y[b:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--drawn", type=int, metavar="N", help="rows to learn from")
    parser.add_argument("--store")
    parser.add_argument("--target", default="label")
    parser.add_argument("--view")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3, help="of medprobe's own rows; the median is given")
    parser.add_argument("--eva-steps", type=int, default=800)
    parser.add_argument("--only", default="", help="rows whose name contains this")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(arguments.threads)
    with threadpool_limits(arguments.threads):
        if arguments.store:
            compare(
                stored(arguments.store, arguments.target, arguments.view),
                arguments.repeats,
                arguments.eva_steps,
                arguments.only,
            )
        else:
            compare(drawn(arguments.drawn or 10_000), arguments.repeats, arguments.eva_steps, arguments.only)
        compare_intervals(1000)


if __name__ == "__main__":
    main()
