"""Measure the information in each example, prune the least, pretrain."""

__version__ = '0.1.0'
