"""Ends a child process when its parent ends; needs no TensorFlow, whose import takes seconds."""

from __future__ import annotations

import ctypes
import os
import signal

from tf_detectorgan.errors import EXIT_INTERRUPTED

_PR_SET_PDEATHSIG = 1  # prctl(2)
_NAME = "PREFLIGHT_PARENT"


def variable() -> dict[str, str]:
    """Returns the environment variable that names this process as the parent of one to be started."""
    return {_NAME: str(os.getpid())}


def end_with_parent() -> None:
    """Has the kernel kill this process when its parent ends; ends it now if the parent has ended already."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # Not compared with 1, the usual parent of orphans: a pod's `train` is process 1.
    if os.getppid() != int(os.environ.get(_NAME, os.getppid())):
        os._exit(EXIT_INTERRUPTED)
