"""The sections of a config, as frozen dataclasses, and their checks."""
