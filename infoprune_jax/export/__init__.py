"""The pruned corpus and its decisions, in formats of other programs."""
