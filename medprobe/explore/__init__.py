"""Stores as a page in the browser of the same machine: what-if questions answered as they are asked."""

from medprobe._verbs import make_verb

make_verb(__name__)
