"""Runs a short training for gpu_check, and analyses its graphs: python -m tf_detectorgan.preflight.trial.

Takes the flags of `train`. Determinism and peak memory belong to a process, so each setting to be compared
runs in a process of its own.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
from pathlib import Path
from typing import Any

from tf_detectorgan.environment import TENSORFLOW

os.environ.update(TENSORFLOW | os.environ)  # before TensorFlow is imported

import keras
import tensorflow as tf

import tf_detectorgan
from tf_detectorgan import checkpoints, command, run_layout
from tf_detectorgan.data import phantom, records, shards
from tf_detectorgan.preflight import child, plan
from tf_detectorgan.training import gpu_ops
from tf_detectorgan.training.host_transfers import host_transfers
from tf_detectorgan.training.run import Run
from tf_detectorgan.training.settings import Train

NAMED = 3  # number of ops listed in a record
FEW = {
    "clean_images": 8,
    "unboxed_images": 4,
    "validation_images": 4,
    "test_images": 4,
    "test_clean_images": 4,
}


def main(settings: Train) -> None:
    """Runs all phases and writes trial.json; draws a data set in --data_dir unless there is one."""
    draw(settings)
    run = child.train_in_short(settings)
    phases = {phase.folder.name: record(run, phase) for phase in plan.phases(settings, 1)}
    content = json.dumps({"machine": machine(), "phases": phases})
    checkpoints.write_text(run.layout.trial, content)


def draw(settings: Train) -> None:
    """Writes a small phantom data set to --data_dir, unless a data set exists there."""
    directory = Path(settings.data_dir)
    if not records.is_dataset(directory):
        few = phantom.PhantomConfig(
            size=settings.phantom_size, train_images=settings.phantom_train_images, **FEW
        )
        shards.build(phantom.plan(few), directory)


def record(run: Run, phase: plan.PhasePlan) -> dict[str, Any]:
    """Returns the hash of a finished phase's result, its seconds and memory, and ops that a GPU cannot run.

    The ops without a deterministic GPU kernel, and the copies to the host, are those of the newest trace of
    the phase's function.
    """
    folder = run.layout.path / phase.folder
    done = checkpoints.finished(folder) or {}
    files = {"images": folder / run_layout.SYNTHETIC, "evaluation": run_layout.detections(folder)}
    if phase.kind in files:
        result = hashlib.sha256(files[phase.kind].read_bytes()).hexdigest()
    else:
        result = checkpoints.fingerprint(folder)
    function: Any = run.functions.get(folder.name, run.detect)
    graph = function._list_all_concrete_functions()[-1].graph  # no public name
    faults = gpu_ops.faults(graph, largest=math.prod(run.dataset.image_shape) - 1)
    return {
        "result": result,
        "seconds": done.get("step_seconds", done.get("image_seconds")),
        "memory": done.get("gpu_peak_memory_mib", done["peak_memory_mib"]),
        "faults": len(faults),
        "first_faults": [f"{fault.op} ({fault.kind}) {fault.why}" for fault in faults[:NAMED]],
        "transfers": len(host_transfers(graph)),
    }


def machine() -> dict[str, Any]:
    """Returns the versions of packages, and the devices that TensorFlow finds."""
    built = tf.sysconfig.get_build_info()
    gpus = tf.config.list_physical_devices("GPU")
    return {
        "tf_detectorgan": tf_detectorgan.__version__,
        "Python": platform.python_version(),
        "TensorFlow": tf.__version__,
        "CUDA of TensorFlow": str(built.get("cuda_version", "none")),
        "cuDNN of TensorFlow": str(built.get("cudnn_version", "none")),
        "Keras": keras.__version__,
        "system": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs",
        "GPUs": [tf.config.experimental.get_device_details(gpu).get("device_name", "") for gpu in gpus],
    }


if __name__ == "__main__":
    command.run(Train, main)
