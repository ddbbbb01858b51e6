"""Vocabularies, tokenizing, and the token store."""
