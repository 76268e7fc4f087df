"""Defines the errors that users can fix, and exit codes for schedulers."""

EXIT_INTERRUPTED = 75  # sysexits.h EX_TEMPFAIL: a checkpoint is saved; run the same command again
EXIT_CANNOT_WRITE = 74  # sysexits.h EX_IOERR: the disk is full or read-only; finished phases are kept
EXIT_BAD_INPUT = 78  # sysexits.h EX_CONFIG: the same command would fail again


class InputError(ValueError):
    """Bad data, flags or files. The message names file, row or id, field and value, and a remedy."""


class Interrupted(Exception):
    """SIGTERM or SIGINT was received; everything up to the step in the message is saved."""
