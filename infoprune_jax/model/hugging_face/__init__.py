"""Models of Hugging Face: config.json, tensors, and files that hold them."""
