"""Training: one function per kind of step, one dull loop around them, and the phases in order."""
