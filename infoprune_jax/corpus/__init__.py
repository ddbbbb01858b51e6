"""Readers of every kind of corpus, and the index over its documents."""
