"""The batch embedder: images once through each encoder, features into one store an encoder."""

from medprobe.embed.run import EmbedReport, embed

__all__ = ["EmbedReport", "embed"]
