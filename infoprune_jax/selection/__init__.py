"""Rules over the score table, and the keep sets they give. No JAX."""
