"""SeqIO tasks over a token store, for T5X users."""
