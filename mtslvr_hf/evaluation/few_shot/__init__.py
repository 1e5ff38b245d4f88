"""Few-shot episodes and their classifiers."""
