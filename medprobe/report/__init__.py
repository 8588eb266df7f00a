"""Results as a report: figures for a paper, and one file that says what was compared, who is ahead and how surely."""

from medprobe._verbs import make_verb

make_verb(__name__)
