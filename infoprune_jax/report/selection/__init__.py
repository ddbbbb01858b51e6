"""The selection report: what each arm keeps, before training."""
