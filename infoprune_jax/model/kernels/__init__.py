"""Kernels for one kind of accelerator each."""
