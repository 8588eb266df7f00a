"""Options of what is asked: the same for a probe and for a fine-tuning, so that both answer one question."""

from __future__ import annotations

from typing import Annotated

import typer

WHO = "Who is trained on, and who is tested on"
WHAT = "What if"
SURE = "How sure"

Target = Annotated[str | None, typer.Option("--target", "-t", help="Column to predict, a list a,b,c or a pattern.")]
MetricName = Annotated[str | None, typer.Option(help="Primary metric; quadratic_kappa for ordered grades.")]
Folds = Annotated[int | None, typer.Option(help="Test every image once, in so many folds.", rich_help_panel=WHO)]
TestSize = Annotated[float | None, typer.Option(help="Share of the images to test on.", rich_help_panel=WHO)]
LeaveOut = Annotated[
    str | None,
    typer.Option(help="Column of sites or the like: each is tested by what the others teach.", rich_help_panel=WHO),
]
Duplicates = Annotated[
    str,
    typer.Option(
        help="Equal pictures on two sides of a given split: error, drop (from training) or keep.",
        rich_help_panel=WHO,
    ),
]
Where = Annotated[
    str | None, typer.Option(help='SQL condition: only these samples, e.g. "age > 60".', rich_help_panel=WHAT)
]
TrainWhere = Annotated[str | None, typer.Option(help="Learn from these samples alone.", rich_help_panel=WHAT)]
TestWhere = Annotated[str | None, typer.Option(help="Test on these samples alone.", rich_help_panel=WHAT)]
Relabel = Annotated[
    list[str] | None,
    typer.Option(help="Merge classes (2,3,4=refer) or drop one (U=); may be repeated.", rich_help_panel=WHAT),
]
Uncertain = Annotated[
    str | None,
    typer.Option(
        help="What a label of -1 counts as, of several labels: zeros, ones, ignore, or as in huix2024.",
        rich_help_panel=WHAT,
    ),
]
Shots = Annotated[
    str | None,
    typer.Option(help="Learn from so few images of each class, e.g. 1,5,10.", rich_help_panel=WHAT),
]
Repeats = Annotated[int, typer.Option(help="Draws of so few images.", rich_help_panel=WHAT)]
LabelNoise = Annotated[
    float | None, typer.Option(help="Share of the learned labels to make wrong.", rich_help_panel=WHAT)
]
Subgroups = Annotated[
    list[str] | None,
    typer.Option(help="Report each value of this column by itself; may be repeated.", rich_help_panel=SURE),
]
Bootstrap = Annotated[int, typer.Option(help="Resamples of the intervals; 0 for none.", rich_help_panel=SURE)]
