"""Corpora of audio files, and the loaders that feed the training."""
