"""Sets and reads TF_CONFIG: the addresses of all workers of a training, and the index of this process.

Format: https://www.tensorflow.org/guide/distributed_training#setting_up_the_tf_config_environment_variable
"""

from __future__ import annotations

import json
from collections.abc import MutableMapping

from tf_detectorgan.errors import InputError

PORT = "2222"  # as in TensorFlow's examples


def announce(environment: MutableMapping[str, str], workers: int) -> None:
    """Sets TF_CONFIG, unless it is set, from the variables of a pod of an Indexed Job.

    Pod i of Job J has the address J-i.S with the headless Service S, whose name here is that of the Job.

    Args:
      environment: JOB_COMPLETION_INDEX (i) and WORKER_SERVICE (S); or TF_CONFIG.
      workers: the number of workers.

    Raises:
      InputError: variables are missing or wrong, or TF_CONFIG has another number of workers.
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
        raise InputError(f"JOB_COMPLETION_INDEX={index}: must be a number from 0 to {workers - 1}")
    service = environment["WORKER_SERVICE"]
    addresses = [f"{service}-{i}.{service}:{PORT}" for i in range(workers)]
    environment["TF_CONFIG"] = json.dumps(
        {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": int(index)}}
    )


def task_index(environment: MutableMapping[str, str], workers: int) -> int:
    """Returns the index of this worker; 0 is the chief. Calls `announce` if there are several workers."""
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
        raise InputError(f"TF_CONFIG={text}: invalid ({error!r}); see TensorFlow's guide") from error
    if not fits:
        raise InputError(
            f"TF_CONFIG={text}: must have {workers} workers (--workers), and the task of one of them"
        )
