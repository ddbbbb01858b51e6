"""Checks that the artifacts of a workdir are whole and fit each other."""
