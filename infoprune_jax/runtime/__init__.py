"""The base of every stage: files, artifacts, processes, progress."""
