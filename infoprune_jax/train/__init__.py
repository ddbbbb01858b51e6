"""Training of the reference model and of the arms."""
