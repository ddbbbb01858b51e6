"""From a token store to batches: packing, mixing, loading."""
