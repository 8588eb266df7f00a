from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from medprobe.store import DIGEST_ARRAY, STAMP_ARRAY, FeatureStore, Plan, ids_digest
from medprobe.store_writer import create_store, write_block

pytest_plugins = ["parity"]

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real images that stand beside a checkout on some machines; see the README of that folder for their licences."""
    if not SHARED.is_dir():
        pytest.skip(f"needs the real images in {SHARED}")
    return SHARED


def make_store(
    path: Path,
    X: np.ndarray,
    samples: pd.DataFrame,
    *,
    labels: tuple[str, ...] = (),
    group: str | None = None,
    split: str | None = None,
    encoder: str = "fake/features",
) -> FeatureStore:
    """Return a complete store of given features, as embedding would have made it."""
    samples = samples.copy()
    samples.insert(0, "id", [f"s{i:05d}" for i in range(len(samples))])
    plan = Plan(
        encoder={"name": encoder, "weights_sha256": "0" * 64, "preprocess": {}},
        fingerprint="f" * 64,
        precision="fp32",
        views={"cls": X.shape[1]},
        dtypes={"cls": "float32"},
        default_view="cls",
        rows=len(X),
        block_rows=64,
        manifest_sha256=ids_digest(samples["id"]),
    )
    roles = {"labels": list(labels), "group": group, "split": split}
    store = create_store(path, plan, samples, roles, card={}, versions={})
    for index in range(plan.n_blocks):
        rows = plan.block(index)
        n = rows.stop - rows.start
        arrays = {"features/cls": X[rows], DIGEST_ARRAY: np.zeros((n, 16), np.uint8), STAMP_ARRAY: np.zeros((n, 2))}
        write_block(store, index, arrays, (), {})
    return FeatureStore(path)
