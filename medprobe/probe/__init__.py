"""Probes on cached features: splits, sweeps, metrics and their uncertainty. Needs neither torch nor images."""

from medprobe._verbs import make_verb

make_verb(__name__)
