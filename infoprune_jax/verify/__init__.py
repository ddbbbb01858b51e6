"""Whether what is in a workdir is whole, and agrees with the rest of it."""
