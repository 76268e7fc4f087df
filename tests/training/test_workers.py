"""Two worker processes: they equal one process, also after one is killed and both resume; signals; join."""

import json
import os
import re
import socket
import subprocess
import sys
import time
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
    """Returns exit codes and standard errors of `count` processes that train together."""
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
    """Returns the losses of the last call's steps, and all weights."""
    losses = json.loads((directory / f"losses_{index}.json").read_text())
    return losses, dict(np.load(directory / f"weights_{index}.npz"))


def checkpoint(directory):
    reader = tf.train.load_checkpoint(str(directory / "joint"))
    names = set(reader.get_variable_to_shape_map()) - {"_CHECKPOINTABLE_OBJECT_GRAPH"}
    return {name: reader.get_tensor(name) for name in names}


@pytest.mark.slow
def test_two_processes_equal_one_also_when_resumed_after_a_sigkill(tmp_path):
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
    assert len(results(killed, 1)[0]) == STEPS - DIES_AT  # it resumed from the checkpoint
    resumed = checkpoint(killed)
    assert resumed.keys() == halves.keys()
    assert [name for name in halves if not np.array_equal(resumed[name], halves[name])] == []  # bitwise
    for index in range(2):
        for name, value in results(two, index)[1].items():
            np.testing.assert_array_equal(results(killed, index)[1][name], value, err_msg=name)


def train(run_dir, data, ports, index, *more):
    """Starts `train --workers=2`; without `more` flags it trains detectors only, which are traced fast."""
    cluster = {
        "cluster": {"worker": [f"127.0.0.1:{p}" for p in ports]},
        "task": {"type": "worker", "index": index},
    }
    flags = [
        f"--run_dir={run_dir}",
        f"--data_dir={data}",
        "--workers=2",
        "--arm=real_only",
        "--crossfit_folds=0",
    ]
    flags += ["--detector=tests.own_detector:tiny", "--detector_batch=4", "--gan_batch=2", "--log_every=1000"]
    flags += ["--final_detector_steps=20000", "--checkpoint_every=5", "--validate_every=20000", *more]
    return subprocess.Popen(
        [sys.executable, "-m", "tf_detectorgan.train", *flags],
        cwd=ROOT,
        env={**os.environ, "TF_CONFIG": json.dumps(cluster)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_signal_to_one_of_two_workers_ends_both_after_the_same_step(tmp_path, tiny_phantom):
    run_dir, data, ports = tmp_path / "run", tiny_phantom("workers"), free_ports(2)
    both = [train(run_dir, data, ports, index) for index in range(2)]
    try:
        deadline = time.monotonic() + 300
        while not list(run_dir.rglob("ckpt-*.index")):
            assert [process.poll() for process in both] == [None, None], [p.communicate() for p in both]
            assert time.monotonic() < deadline
            time.sleep(0.1)
        both[1].terminate()
        ends = [process.communicate(timeout=60)[1].splitlines()[-1] for process in both]
    finally:
        for process in both:
            process.kill()
    assert [process.returncode for process in both] == [EXIT_INTERRUPTED] * 2, ends
    steps = []
    for who, line in zip(("another worker", "SIGTERM"), ends, strict=True):
        found = re.fullmatch(
            rf"interrupted: {who} in real_only/final_detector: (\d+) of 20000 steps are saved", line
        )
        assert found, line
        steps.append(found[1])
    assert steps[0] == steps[1]
    assert list(run_dir.rglob(f"ckpt-{steps[0]}.index"))


@pytest.mark.nightly
@pytest.mark.slow
def test_two_workers_train_from_the_first_phase_to_the_report(tmp_path, tiny_phantom):
    run_dir, data, ports = tmp_path / "run", tiny_phantom("whole"), free_ports(2)
    flags = ["--arm=detectorgan", "--crossfit_folds=2", "--generator_filters=4", "--generator_blocks=1"]
    flags += ["--discriminator_filters=4", "--crop_size=16", "--object_source=crop", "--synthetic_count=2"]
    phases = ("pretrain_gan", "joint", "pretrain_detector", "final_detector")
    flags += [f"--{phase}_steps=2" for phase in phases]
    both = [train(run_dir, data, ports, index, *flags) for index in range(2)]
    try:
        ends = [process.communicate(timeout=300) for process in both]
    finally:
        for process in both:
            process.kill()
    assert [process.returncode for process in both] == [0, 0], ends
    shared = ["shared/pretrain_gan", "shared/pretrain_detector", "shared/held_out_detector_1"]
    for phase in (*shared, "arms/detectorgan/joint", "arms/detectorgan/final_detector"):
        assert (run_dir / phase / "done.json").exists(), phase
    metrics = json.loads((run_dir / "arms/detectorgan/evaluation/metrics.json").read_text())
    assert metrics["counts"]["images"] == 6
    assert (run_dir / "report.html").exists()
    assert f"report: {run_dir}/report.html" in ends[0][0]  # written by the chief only
    assert "report: " not in ends[1][0]


@pytest.mark.slow
def test_sigterm_ends_a_worker_that_waits_for_another(tmp_path):
    alone = train(tmp_path / "run", tmp_path / "absent", ports := free_ports(2), 1)
    try:
        assert alone.stdout.readline() == f"waiting for 127.0.0.1:{ports[0]}\n"
        alone.terminate()
        assert alone.wait(10) == EXIT_INTERRUPTED
    finally:
        alone.kill()
        alone.communicate()


def test_single_process_is_the_chief():
    alone = workers.join(1)
    assert alone.chief
    assert alone.run_on_chief(lambda: 5) == 5
    assert alone.run_on_chief(lambda: None) == 0
    assert alone.total(3) == 3
