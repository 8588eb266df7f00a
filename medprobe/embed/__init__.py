"""The batch embedder: images once through each encoder, features into one store an encoder."""

from medprobe._verbs import make_verb

make_verb(__name__)
