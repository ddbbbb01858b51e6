"""What the experiment found, as one HTML page and one JSON file."""
