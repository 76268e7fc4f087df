"""A run in short before the run: whether it will end, and what it will take."""
