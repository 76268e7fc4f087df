"""Two processes on loopback equal one with the joined batch; one is killed, both resume, nothing changes."""

import json
import os
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from tf_detectorgan.errors import EXIT_INTERRUPTED
from tf_detectorgan.training import workers

ROOT = Path(__file__).resolve().parents[2]
STEPS, DIES_AT = 2, 1


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def run(directory, count, *more):
    """Exit codes and standard errors of `count` processes that train together."""
    directory.mkdir(exist_ok=True)
    addresses = [f"127.0.0.1:{port}" for port in free_ports(count)]
    processes = []
    for index in range(count):
        cluster = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
        processes.append(
            subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "tests.training.worker_program",
                    directory,
                    str(count),
                    str(STEPS),
                    *more,
                ],
                cwd=ROOT,
                env={**os.environ, "TF_CONFIG": json.dumps(cluster)},
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    try:
        errors = [process.communicate(timeout=600)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [process.returncode for process in processes], errors


def results(directory, index):
    """Losses of the steps that were done in the last call, and all weights."""
    losses = json.loads((directory / f"losses_{index}.json").read_text())
    return losses, dict(np.load(directory / f"weights_{index}.npz"))


def checkpoint(directory):
    reader = tf.train.load_checkpoint(str(directory / "joint"))
    names = set(reader.get_variable_to_shape_map()) - {"_CHECKPOINTABLE_OBJECT_GRAPH"}
    return {name: reader.get_tensor(name) for name in names}


@pytest.mark.slow
def test_two_processes_equal_one_and_outlive_a_killed_one(tmp_path):
    one, two, killed = (tmp_path / name for name in ("one", "two", "killed"))
    with ThreadPoolExecutor() as pool:
        calls = [pool.submit(run, *call) for call in ((one, 1), (two, 2), (killed, 2, str(DIES_AT)))]
        (codes_one, errors_one), (codes_two, errors_two), (codes, errors) = (call.result() for call in calls)
    assert codes_one == [0], errors_one
    assert codes_two == [0, 0], errors_two
    assert codes == [EXIT_INTERRUPTED, -9], errors
    losses, weights = results(one, 0)
    for index in range(2):
        found_losses, found_weights = results(two, index)
        assert len(found_losses) == len(losses) == STEPS
        for found, expected in zip(found_losses, losses, strict=True):
            for name, value in expected.items():
                np.testing.assert_allclose(found[name], value, rtol=1e-4, err_msg=name)
        for name, value in weights.items():
            np.testing.assert_allclose(
                found_weights[name], value, atol=1e-4 * np.abs(value).max() + 1e-7, err_msg=name
            )
    # Worker 1's pool is in the chief's checkpoint: its images are the second halves of the batches.
    whole, halves = checkpoint(one), checkpoint(two)
    for step in range(STEPS):
        for replica in range(2):
            expected = whole["pools_X/0/images/.ATTRIBUTES/VARIABLE_VALUE"][step * 4 + replica * 2 :][:2]
            found = halves[f"pools_X/{replica}/images/.ATTRIBUTES/VARIABLE_VALUE"][step * 2 :][:2]
            np.testing.assert_allclose(found, expected, atol=1e-4)
            assert expected.any()

    assert "interrupted: lost a worker; the last checkpoint is kept" in errors[0]
    assert "Traceback" not in errors[0]
    assert [file.stem for file in sorted((killed / "joint").glob("*.index"))] == ["ckpt-1"]
    codes, errors = run(killed, 2)
    assert codes == [0, 0], errors
    assert len(results(killed, 1)[0]) == STEPS - DIES_AT  # it went on where the checkpoint was
    again = checkpoint(killed)
    assert again.keys() == halves.keys()
    assert [name for name in halves if not np.array_equal(again[name], halves[name])] == []  # bitwise
    for index in range(2):
        for name, value in results(two, index)[1].items():
            np.testing.assert_array_equal(results(killed, index)[1][name], value, err_msg=name)


def test_one_process_is_its_own_chief():
    alone = workers.join(1)
    assert alone.chief
    assert alone.of_chief(lambda: 5) == 5
    assert alone.of_chief(lambda: None) == 0
    assert alone.total(3) == 3
