"""The decoder, its loss, its sharding and its checkpoints."""
