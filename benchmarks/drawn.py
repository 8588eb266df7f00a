"""A feature store that is drawn, for benchmarks of what is asked of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from medprobe.store import APPEARANCE_ARRAY, DIGEST_ARRAY, STAMP_ARRAY
from medprobe.store_records import Plan
from medprobe.store_writer import create_store, write_block
from medprobe.tables import ids_digest


def draw_store(path: Path, n: int, width: int) -> None:
    """Write a store of ``n`` images: features with a power-law spectrum, ten columns, three images a patient, a split."""
    rng = np.random.default_rng(0)
    patient = rng.integers(0, n // 3, n)
    label, site = rng.integers(0, 5, n), rng.integers(0, 10, n)
    table = pd.DataFrame(
        {
            "id": [f"{i:06d}.png" for i in range(n)],
            "grade": [f"g{g}" for g in label],
            "sick": (label > 2).astype(int),
            "patient": [f"p{p:06d}" for p in patient],
            "site": [f"site{s}" for s in site],
            "sex": np.where(patient % 2 == 0, "F", "M"),
            "age": (20 + patient % 70).astype(float),
            "device": [f"d{d}" for d in rng.integers(0, 4, n)],
            "view": np.where(rng.random(n) < 0.5, "PA", "AP"),
            "year": 2015 + patient % 9,
            "split": np.array(["train", "val", "test"])[np.searchsorted([0.7, 0.8], (patient * 7919 % 1000) / 1000)],
        }
    )
    plan = Plan(
        encoder={"name": f"random/{width}", "weights_sha256": "0" * 64, "preprocess": {}}, fingerprint="0" * 64,
        precision="fp32", views={"cls": width}, dtypes={"cls": "float16"}, default_view="cls", rows=n, block_rows=4096,
        manifest_sha256=ids_digest(table["id"]),
    )  # fmt: skip
    roles = {"labels": ["sick"], "group": "patient", "split": "split", "data": "benchmark"}
    store = create_store(path, plan, table, roles, card={}, versions={})
    decay = (np.arange(1, width + 1) ** -0.5).astype(np.float32)
    for index in range(plan.n_blocks):
        rows = plan.block(index)
        m = rows.stop - rows.start
        X = rng.standard_normal((m, width), dtype=np.float32) * decay
        X[:, 10:15] += 0.15 * np.eye(5, dtype=np.float32)[label[rows]]
        arrays = {
            "features/cls": X.astype(np.float16), DIGEST_ARRAY: rng.integers(0, 256, (m, 16), dtype=np.uint8),
            STAMP_ARRAY: np.zeros((m, 2), np.int64), APPEARANCE_ARRAY: np.zeros((m, 4), np.float32),
        }  # fmt: skip
        write_block(store, index, arrays, (), {})
