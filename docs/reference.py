"""Writes the pages that only repeat what the code says: python docs/reference.py [FOLDER].

A page for each command from the help of its options, and the tables of known data sets and of encoders.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from medprobe.cli import app
from medprobe.datasets import DATASETS
from medprobe.encoders.catalogue import read_catalogue

DOCS = Path(__file__).parent
_BLOCK = re.compile("<!-- generated -->.*<!-- /generated -->", re.DOTALL)
_SEE = {
    "embed": ("data.md", "encoders.md", "volumes.md", "dicom.md", "clusters.md"),
    "check": ("data.md", "dicom.md"),
    "probe": ("probing.md", "statistics.md", "shortcuts.md", "few-labels.md", "sites.md"),
    "finetune": ("finetune.md",),
    "compare": ("statistics.md",),
    "predict": ("external-validation.md",),
    "report": ("statistics.md",),
    "info": ("store-format.md",),
    "verify": ("store-format.md",),
    "export": ("store-format.md",),
    "cka": ("finetune.md",),
    "data": ("datasets.md",),
    "models": ("encoders.md",),
    "study run": ("study.md",),
    "study show": ("study.md",),
}
_FACTS = {
    "images": "what it holds",
    "where": "handed out at",
    "layout": "a folder of it",
    "target": "target",
    "metric": "ask with",
    "groups": "grouped by",
    "splits": "splits",
    "study": "as in Palés Huix et al.",
    "note": "know before you report",
}


def pages(folder: Path = DOCS) -> dict[str, str]:
    """Return the text of every page that is written here, wholly or between two marks, by its path in the folder."""
    found = {f"commands/{_slug(name)}.md": _command(name, command) for name, command in commands()}
    blocks = {"datasets.md": _datasets(), "encoders.md": _encoders()}
    for name, block in blocks.items():
        text = (folder / name).read_text(encoding="utf-8")
        found[name] = _BLOCK.sub(lambda _, block=block: f"<!-- generated -->\n\n{block}\n<!-- /generated -->", text)
    return {"commands/index.md": _commands(), **found}


def commands() -> Iterator[tuple[str, Any]]:
    """Yield name and click command of each verb, those of groups as two words."""
    for name, command in typer.main.get_command(app).commands.items():  # type: ignore[attr-defined]
        if hasattr(command, "commands"):
            yield from ((f"{name} {verb}", below) for verb, below in command.commands.items())
        else:
            yield name, command


def _commands() -> str:
    rows = "\n".join(f"| [`{name}`]({_slug(name)}.md) | {_cell(_help(command))} |" for name, command in commands())
    listed = "\n".join(_slug(name) for name, _ in commands())
    return (
        "# Commands\n\n![What medprobe --help shows](../images/help.svg)\n\n"
        "What `--help` of each says, written by `python docs/reference.py`:\n\n| | |\n|---|---|\n"
        f"{rows}\n\n{app.info.epilog}\n\n```{{toctree}}\n:hidden:\n\n{listed}\n```\n"
    )


def _command(name: str, command: Any) -> str:
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    options = [p for p in command.params if p.param_type_name == "option" and p.name != "help"]
    usage = [_metavar(p) if p.required else f"[{_metavar(p)}]" for p in arguments]
    usage += [f"{p.opts[-1]} {p.name.upper()}" for p in options if p.required]
    parts = [f"# medprobe {name}\n\n{_help(command)}\n\n    medprobe {name} {' '.join(usage)} [OPTIONS]\n"]
    panels: dict[str, list[str]] = {}
    for parameter in (*arguments, *options):
        if not parameter.help:
            raise ValueError(f"medprobe {name}: {parameter.name} has no help")
        argument = parameter in arguments
        panel = parameter.rich_help_panel or ("Arguments" if argument else "Options")
        named = f"`{_metavar(parameter)}`" if argument else _flags(parameter)
        panels.setdefault(panel, []).append(f"| {named} | {_cell(parameter.help)}{_default(parameter)} |")
    for panel, rows in panels.items():
        parts.append(f"## {panel}\n\n| | |\n|---|---|\n" + "\n".join(rows) + "\n")
    if name in _SEE:
        parts.append(f"More: {', '.join(f'[{_title(page)}](../{page})' for page in _SEE[name])}.\n")
    return "\n".join(parts)


def _metavar(argument: Any) -> str:
    return str(argument.metavar or argument.name.upper())


def _flags(option: Any) -> str:
    flags = ", ".join(f"`{flag}`" for flag in (*option.opts, *option.secondary_opts))
    return f"{flags} (required)" if option.required else flags


def _default(parameter: Any) -> str:
    """Return what is taken unless something is given, where the help itself does not say it."""
    value, said = parameter.default, "(default:" in parameter.help
    if value in (None, "", False) or parameter.required or said or getattr(parameter, "is_flag", False):
        return ""
    return f" (default: `{value}`)"


def _help(command: Any) -> str:
    return " ".join(command.help.split())


def _slug(name: str) -> str:
    return name.replace(" ", "-")


def _title(page: str) -> str:
    return (DOCS / page).read_text(encoding="utf-8").split("\n", 1)[0].removeprefix("# ")


def _datasets() -> str:
    parts = []
    for dataset in DATASETS.values():
        facts = [
            ("name here", f"`{dataset.name}`"),
            *((words, _cell(getattr(dataset, fact))) for fact, words in _FACTS.items()),
        ]
        rows = "\n".join(f"| {words} | {text} |" for words, text in facts if text)
        parts.append(f"## {dataset.title}\n\n| | |\n|---|---|\n{rows}\n")
    return "\n".join(parts)


def _encoders() -> str:
    rows = []
    for entry in read_catalogue():
        if entry.parameters is None:  # a pattern, or a plug-in of whoever writes the page
            continue
        views = ", ".join(f"{view}{'*' * (view == entry.default_view)} {width}" for view, width in entry.views.items())
        size = "×".join(map(str, entry.input or ()))
        facts = entry.line, f"{entry.parameters / 1e6:.1f}", f"{entry.gmacs:.1f}", size, views, entry.licence
        rows.append(f"| `{entry.name}` | {' | '.join(map(_cell, facts))} |")
    head = "| model | what | M parameters | GMACs | input | views and widths (* default) | licence of the weights |"
    return f"{head}\n|---|---|---:|---:|---|---|---|\n" + "\n".join(rows) + "\n"


def _cell(text: str) -> str:
    """Return text for a cell of a table, in which neither bars nor angle brackets mean anything."""
    return re.sub(r"[|<>*_]", r"\\\g<0>", text)


def main(folder: Path) -> None:
    """Write all pages."""
    for name, text in pages(folder).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else DOCS)
