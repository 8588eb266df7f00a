"""A state as what reproduces it: a ``medprobe probe`` command, and Python."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any

from medprobe.explore.state import State

# Options whose names differ from those of the arguments.
_FLAGS = {"probes": "--probe", "n_folds": "--folds", "subgroups": "--subgroup"}


def command_line(state: State, stores: Sequence[str]) -> str:
    """Return the command that computes what a state shows, quoted for a POSIX shell.

    Args:
        state: Of the explorer.
        stores: Paths of the stores that it compares.

    """
    words = ["medprobe", "probe", *(path if not path.startswith("-") else f"./{path}" for path in stores)]
    for name, value in state.arguments().items():
        flag = _FLAGS.get(name, f"--{name.replace('_', '-')}")
        for each in value if isinstance(value, list) else [value]:
            # A value that begins with a dash would be taken for an option.
            words += [f"{flag}={each}"] if str(each).startswith("-") else [flag, str(each)]
    return shlex.join(words)


def python_code(state: State, stores: Sequence[str], chosen: tuple[str, str, str] | None = None) -> str:
    """Return Python that computes the same.

    Args:
        state: Of the explorer.
        stores: Paths of the stores that it compares.
        chosen: Encoder, probe and class of the operating point that is shown, if there is one.

    """
    arguments: dict[str, Any] = state.arguments()
    target = arguments.pop("target", None)
    lines = ["import medprobe", "", "results = medprobe.probe(", f"    {list(stores)!r},"]
    lines += [] if target is None else [f"    {target!r},"]
    lines += [f"    {name}={value!r}," for name, value in arguments.items()]
    lines += [")", "best = [row for row in results if row.primary and not row.subgroup]"]
    if chosen is not None:
        encoder, probe, positive = chosen
        lines += [
            "",
            "from medprobe.probe.operating import operating_point, outcome",
            "",
            f"row = next(row for row in best if (row.encoder, row.probe) == {(encoder, probe)!r})",
            "point = operating_point(",
            f"    *outcome(results.predictions[row.trial], {positive!r}),",
            f"    threshold={state.threshold!r},",
            f"    prevalence={state.prevalence!r},",
            f"    seed={state.seed!r},",
            ")",
        ]
    return "\n".join(lines) + "\n"
