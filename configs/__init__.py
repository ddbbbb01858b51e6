"""Experiments: one file each, over `base`."""
