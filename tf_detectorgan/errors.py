"""What goes wrong through the user's input or the outside world, and the exit code for a scheduler."""

EXIT_INTERRUPTED = 75  # sysexits.h EX_TEMPFAIL: a checkpoint is saved, run the same command again
EXIT_CANNOT_WRITE = 74  # sysexits.h EX_IOERR: the disk is full or read-only; what was finished is kept
EXIT_BAD_INPUT = 78  # sysexits.h EX_CONFIG: running the same command again cannot help


class InputError(ValueError):
    """Bad data, flags or files. The message names file, row or id, field and value, and what to do."""


class Interrupted(Exception):
    """SIGTERM or SIGINT arrived; everything up to the message's step is saved."""
