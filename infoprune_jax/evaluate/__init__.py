"""Held-out losses of trained models."""
