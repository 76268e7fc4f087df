import json

import pytest

from tf_detectorgan.cluster import tf_config
from tf_detectorgan.errors import InputError

POD = {"JOB_COMPLETION_INDEX": "1", "WORKER_SERVICE": "nih"}


def test_tf_config_of_pod_1_of_2():
    """Addresses of Job `nih` with the headless Service `nih` are nih-0.nih and nih-1.nih."""
    environment = {**POD, "WORKER_PORT": "3000"}  # as Kubernetes sets it for a Service named "worker"
    tf_config.announce(environment, 2)
    assert json.loads(environment["TF_CONFIG"]) == {
        "cluster": {"worker": ["nih-0.nih:2222", "nih-1.nih:2222"]},
        "task": {"type": "worker", "index": 1},
    }


def test_existing_tf_config_is_kept():
    environment = dict(POD)
    tf_config.announce(environment, 2)
    given = environment["TF_CONFIG"]
    environment["JOB_COMPLETION_INDEX"] = "0"
    tf_config.announce(environment, 2)
    assert environment["TF_CONFIG"] == given


@pytest.mark.parametrize(
    "environment, words",
    [
        ({}, "JOB_COMPLETION_INDEX and WORKER_SERVICE not set"),
        ({"JOB_COMPLETION_INDEX": "0"}, "WORKER_SERVICE not set"),
        ({**POD, "JOB_COMPLETION_INDEX": "2"}, "JOB_COMPLETION_INDEX=2: must be a number from 0 to 1"),
        ({**POD, "JOB_COMPLETION_INDEX": "$(I)"}, r"JOB_COMPLETION_INDEX=\$\(I\): must be a number"),
        ({"TF_CONFIG": "{"}, "TF_CONFIG={: invalid"),
        ({"TF_CONFIG": '{"cluster": {"worker": ["a:1", "b:1"]}}'}, ": invalid .'task'|: invalid .KeyError"),
        (
            {"TF_CONFIG": '{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 0}}'},
            "must have 2 workers",
        ),
    ],
)
def test_missing_or_invalid_variables_are_an_error(environment, words):
    before = dict(environment)
    with pytest.raises(InputError, match=words):
        tf_config.announce(environment, 2)
    assert environment == before


def test_task_index_is_that_of_the_pod_or_0_for_a_single_worker():
    assert tf_config.task_index(dict(POD), 2) == 1
    assert tf_config.task_index(dict(POD), 1) == 0
    with pytest.raises(InputError, match="JOB_COMPLETION_INDEX and WORKER_SERVICE not set"):
        tf_config.task_index({}, 2)
