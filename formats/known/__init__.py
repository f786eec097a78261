"""One module per format: a new one is found here by its file's name."""
