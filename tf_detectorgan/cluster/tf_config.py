"""TF_CONFIG: who the workers of one training are, and which of them this process is.

Format: https://www.tensorflow.org/guide/distributed_training#setting_up_the_tf_config_environment_variable
"""

from __future__ import annotations

import json
from collections.abc import MutableMapping

from tf_detectorgan.errors import InputError

PORT = "2222"  # TensorFlow's own choice in its examples


def announce(environment: MutableMapping[str, str], workers: int) -> None:
    """Sets TF_CONFIG where nobody has; in a pod of an Indexed Job it follows from the Job's variables.

    Pod i of Job J is found as J-i.S by the headless Service S, which here bears the Job's name.

    Args:
      environment: JOB_COMPLETION_INDEX (i) and WORKER_SERVICE (S); or TF_CONFIG.
      workers: how many there are.

    Raises:
      InputError: variables are missing or wrong, or a TF_CONFIG names another number of workers.
    """
    if "TF_CONFIG" in environment:
        _check(environment["TF_CONFIG"], workers)
        return
    missing = [name for name in ("JOB_COMPLETION_INDEX", "WORKER_SERVICE") if not environment.get(name)]
    if missing:
        raise InputError(
            f"--workers={workers}: {' and '.join(missing)} not set; run as an Indexed Job "
            "(k8s/train-nih-multiworker.yaml), or set TF_CONFIG yourself"
        )
    index = environment["JOB_COMPLETION_INDEX"]
    if not index.isdecimal() or int(index) >= workers:
        raise InputError(f"JOB_COMPLETION_INDEX={index}: a number from 0 to {workers - 1} wanted")
    service = environment["WORKER_SERVICE"]
    addresses = [f"{service}-{i}.{service}:{PORT}" for i in range(workers)]
    environment["TF_CONFIG"] = json.dumps(
        {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": int(index)}}
    )


def task_index(environment: MutableMapping[str, str], workers: int) -> int:
    """Which of the workers this process is: 0 is the chief. Calls `announce` if there are several."""
    if workers == 1:
        return 0
    announce(environment, workers)
    return json.loads(environment["TF_CONFIG"])["task"]["index"]


def _check(text: str, workers: int) -> None:
    try:
        found = json.loads(text)
        addresses, index = found["cluster"]["worker"], found["task"]["index"]
        fits = set(found["cluster"]) == {"worker"} and len(addresses) == workers and 0 <= index < workers
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"TF_CONFIG={text}: not as TensorFlow describes it ({error!r})") from error
    if not fits:
        raise InputError(
            f"TF_CONFIG={text}: wanted are {workers} workers (--workers), and one of them as task"
        )
