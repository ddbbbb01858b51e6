"""From raw text to token ids, and from token ids to packed rows."""
