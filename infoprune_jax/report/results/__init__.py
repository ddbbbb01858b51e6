"""The report of trained arms: losses, differences, uncertainty."""
