"""The information of each example, as a table."""
