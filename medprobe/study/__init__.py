"""A study: a grid of data sets, encoders, heads and seeds from one TOML file, run cell by cell, and its table."""

from __future__ import annotations

from medprobe.study.run import StudyReport, run_study
from medprobe.study.schema import Study
from medprobe.study.show import StudyTable, show_study
from medprobe.study.toml import read_study

__all__ = ["Study", "StudyReport", "StudyTable", "read_study", "run_study", "show_study"]
