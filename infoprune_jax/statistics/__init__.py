"""Statistics of examples that need no model."""
