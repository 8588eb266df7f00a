"""A pytest plugin: the table of largest differences between encoders and their references.

Tests with the marker ``parity(family, file, reference)`` call ``encoder_helpers.difference``; what they measure is
gathered here, and ``pytest -m parity --parity-table FILE`` writes it as Markdown.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest

# Differences of the test that runs.
measured: list[float] = []

_PACKAGES = ("torch", "timm", "transformers", "open_clip_torch", "segment-anything")
_table: dict[tuple[str, str, str], list[float]] = defaultdict(list)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--parity-table", type=Path, help="Write the differences to the references as Markdown.")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    measured.clear()
    yield
    marker = item.get_closest_marker("parity")
    if marker is not None:
        assert measured, f"{item.name} is marked as a parity test and compares nothing"
        _table[marker.args] += measured


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    path: Path | None = session.config.getoption("--parity-table")
    if path is None or exitstatus:
        return
    lines = [
        "# Parity with the originals",
        "",
        "Largest absolute difference in fp32 between the views of medprobe and of the reference, over every view and",
        "size that is tested, from random checkpoints in the released layout. The test bar is 1e-4.",
        f"Written by `make parity` with {', '.join(f'{name} {version(name)}' for name in _PACKAGES)}.",
        "",
        "| family | checkpoint file | reference | comparisons | largest difference |",
        "|---|---|---|---:|---:|",
    ]
    lines += [
        f"| {family} | {file} | {reference} | {len(found)} | {max(found):.1e} |"
        for (family, file, reference), found in sorted(_table.items())
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
