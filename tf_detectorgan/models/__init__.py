"""Networks. They see tensors only: never a file, a flag or a data set."""
