"""What every stage stands on: files, artifacts, processes, progress."""
