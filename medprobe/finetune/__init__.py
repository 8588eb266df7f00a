"""Fine-tuning: encoders trained end to end, in part, or under a larger head, with the splits and rows of the probes."""

from medprobe._verbs import make_verb

make_verb(__name__)
