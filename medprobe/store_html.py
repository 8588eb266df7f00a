"""A store in a notebook: what it holds, in a few lines of HTML in which every name is text."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from medprobe.store import FeatureStore

_MOST = 60  # characters of a name
_LISTED = 12  # columns, and reasons of failures


def store_html(store: FeatureStore) -> str:
    """Return a small table of encoder, images, views, columns and failures; it needs no complete store and no features."""
    plan, failures = store.plan, store.failures
    done = plan.n_blocks - len(store.missing_blocks)
    views = [f"{_short(view)} ({width})" + " *" * (view == plan.default_view) for view, width in store.views.items()]
    roles = {
        str(store.roles.get(role)): name for role, name in (("group", "groups"), ("split", "split"), ("bag", "volumes"))
    }
    roles |= {str(name): "label" for name in store.roles["labels"]}
    columns = [
        _short(name) + (f" ({roles[name]})" if name in roles else "") for name in store.manifest.columns.drop("id")
    ]
    reasons = failures["reason"].value_counts()
    facts = {
        "encoder": f"{_short(store.encoder)}, {plan.precision}",
        "images": f"{plan.rows:,}" + ("" if done == plan.n_blocks else f"; {done} of {plan.n_blocks} blocks are there"),
        "views": ", ".join(views) + " (* default)",
        "columns": _listed(columns),
        "without features": _listed([f"{n:,} {_short(reason)}" for reason, n in reasons.items()]) or "none",
    }
    if store.thumbnail_bytes:
        facts["thumbnails"] = "kept: small images of every sample"
    cell = 'style="text-align: left; vertical-align: top"'
    lines = "".join(f"<tr><th {cell}>{name}</th><td {cell}>{escape(text)}</td></tr>" for name, text in facts.items())
    return f"<table><caption>FeatureStore {escape(_short(store.path.name))}</caption><tbody>{lines}</tbody></table>"


def _short(name: object) -> str:
    text = str(name)
    return text if len(text) <= _MOST else f"{text[: _MOST - 1]}…"


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more
