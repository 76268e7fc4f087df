"""Networks. These modules depend on tensors only, not on files, flags or data sets."""
