"""Two reports, each one HTML page and one JSON file."""
