from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from medprobe.store import APPEARANCE_ARRAY, DIGEST_ARRAY, STAMP_ARRAY, FeatureStore
from medprobe.store_records import Plan
from medprobe.store_writer import create_store, write_block
from medprobe.tables import ids_digest

pytest_plugins = ["parity"]

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(autouse=True, scope="session")
def id_key() -> Iterator[None]:
    """Keep the identifiers' key of whoever runs the tests out of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEDPROBE_ID_KEY", "a secret of the tests")
        yield


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real images that stand beside a checkout on some machines; see the README of that folder for their licences."""
    if not SHARED.is_dir():
        pytest.skip(f"needs the real images in {SHARED}")
    return SHARED


def make_store(
    path: Path,
    X: np.ndarray | dict[str, np.ndarray],
    samples: pd.DataFrame,
    *,
    labels: tuple[str, ...] = (),
    group: str | None = None,
    split: str | None = None,
    encoder: str = "fake/features",
    fingerprint: str = "f" * 64,
    appearance: np.ndarray | None = None,
    data: str = "",
) -> FeatureStore:
    """Return a complete store of given features (a view, or several by name), as embedding would have made it."""
    views = X if isinstance(X, dict) else {"cls": X}
    samples = samples.copy()
    if "id" not in samples:
        samples.insert(0, "id", [f"s{i:05d}" for i in range(len(samples))])
    plan = Plan(
        encoder={"name": encoder, "weights_sha256": "0" * 64, "preprocess": {}},
        fingerprint=fingerprint,
        precision="fp32",
        views={view: values.shape[1] for view, values in views.items()},
        dtypes=dict.fromkeys(views, "float32"),
        default_view=next(iter(views)),
        rows=len(samples),
        block_rows=64 if len(samples) < 5000 else 1024,
        manifest_sha256=ids_digest(samples["id"]),
    )
    roles = {"labels": list(labels), "group": group, "split": split, "data": data}
    store = create_store(path, plan, samples, roles, card={}, versions={})
    for index in range(plan.n_blocks):
        rows = plan.block(index)
        n = rows.stop - rows.start
        arrays = {f"features/{view}": values[rows] for view, values in views.items()}
        arrays |= {DIGEST_ARRAY: np.zeros((n, 16), np.uint8), STAMP_ARRAY: np.zeros((n, 2))}
        arrays[APPEARANCE_ARRAY] = np.zeros((n, 4)) if appearance is None else appearance[rows]
        write_block(store, index, arrays, (), {})
    return FeatureStore(path)
