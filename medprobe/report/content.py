"""What a report says, before it becomes HTML, Markdown or LaTeX: plain text, tables, figures; none of it is markup."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import altair as alt


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str


@dataclass(frozen=True)
class Items:
    """Sentences that stand one below the other."""

    items: tuple[str, ...]


@dataclass(frozen=True)
class Table:
    """A table: every cell is text as it is shown.

    Attributes:
        caption: What it shows.
        header: Names of the columns.
        rows: Cells.
        numeric: Places of the columns that hold numbers.
        main: Whether it is a leaderboard, which a LaTeX document takes.

    """

    caption: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numeric: frozenset[int] = frozenset()
    main: bool = False


@dataclass(frozen=True)
class Figure:
    """A figure, or why it is missing.

    Attributes:
        name: What kind it is, in a word or two.
        caption: What it shows and how it was made.
        chart: The chart; None where it cannot be drawn.
        missing: Why it cannot.

    """

    name: str
    caption: str
    chart: alt.Chart | None = None
    missing: str = ""


Block = Text | Items | Table | Figure


@dataclass(frozen=True)
class Section:
    """A heading and what stands below it."""

    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Report:
    """All that a report says.

    Attributes:
        title: Of the report.
        summary: The answer in sentences, one list a question.
        sections: In their order.
        numbers: Rows, differences and ranks as JSON types.

    """

    title: str
    summary: tuple[Section, ...]
    sections: tuple[Section, ...]
    numbers: dict[str, Any] = field(default_factory=dict)
