"""What is known of examples without a model."""
