"""Training: one function per kind of step, a plain loop around them, and the phases in order."""
