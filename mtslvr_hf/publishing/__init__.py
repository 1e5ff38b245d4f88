"""Publishing of models, classifiers, adapters, embeddings and cached audio on the Hub, after checks."""

from .hub import Publication, publish

__all__ = ["Publication", "publish"]
