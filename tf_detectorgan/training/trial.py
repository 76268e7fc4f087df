"""A few steps of every phase of one arm with a generator, in a process of its own, recorded as JSON.

    python -m tf_detectorgan.training.trial RECORD.json --run_dir=... --data_dir=... [flags of train]

Determinism and peaks of memory belong to a process, so what is to be compared by them runs in several.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tf_detectorgan.environment import TENSORFLOW

os.environ.update(TENSORFLOW | os.environ)  # before TensorFlow is imported

import keras
import tensorflow as tf

import tf_detectorgan
from tf_detectorgan import checkpoints, config
from tf_detectorgan import evaluation as ev
from tf_detectorgan.data import phantom, pipeline, records, shards
from tf_detectorgan.evaluation.detect import detect_split
from tf_detectorgan.training import build, gpu_ops, peak_memory, phases, run_directory
from tf_detectorgan.training.host_transfers import host_transfers
from tf_detectorgan.training.run import Run
from tf_detectorgan.training.settings import ARMS, Train
from tf_detectorgan.training.workers import Workers

NAMED = 3  # ops in a record
FEW = {
    "clean_images": 8,
    "unboxed_images": 4,
    "validation_images": 4,
    "test_images": 4,
    "test_clean_images": 4,
}


class TimedRun(Run):
    """A run that notes when each batch of the newest phase is handed to the step."""

    def distributed(self, batches: tf.data.Dataset) -> Iterator:
        self.times: list[float] = []
        for batch in super().distributed(batches):
            self.times.append(time.monotonic())
            yield batch


def trial(settings: Train) -> dict[str, Any]:
    """The record of all phases of the first of --arm; draws --data_dir if nothing is there."""
    draw(settings)
    begun = run_directory.begin(settings, Workers())
    run = TimedRun(begun.settings, begun.dataset, begun.stop, begun.workers)
    name = settings.arm[0]
    shared, arm = run.path / "shared", run.arm_path(name)
    kind, joint = ARMS[name].gan, arm / "joint"
    found = {
        "pretrain_gan": _trained(run, phases.pretrained(run, kind), lambda: phases.pretrain_gan(run, kind)),
        "pretrain_detector": _trained(
            run, shared / "pretrain_detector", lambda: phases.pretrain_detector(run)
        ),
        "joint": _trained(run, joint, lambda: phases.joint(run, name)),
        "synthesize": _synthesized(run, name),
        "detect": _detected(run, shared / "pretrain_detector"),
    }
    return {"machine": _machine(), "phases": found, "memory": peak_memory.read()}


def draw(settings: Train) -> None:
    """Writes a phantom of a few images to --data_dir unless a data set is there."""
    directory = Path(settings.data_dir)
    if not records.is_dataset(directory):
        few = phantom.PhantomConfig(
            name="trial", size=settings.phantom_size, train_images=settings.phantom_train_images, **FEW
        )
        shards.build(lambda data_dir: phantom.Phantom(data_dir=data_dir, config=few), directory)


def _trained(run: TimedRun, directory: Path, phase: Callable[[], None]) -> dict[str, Any]:
    """A training phase. The time of its step is the median, logging included, without the first two."""
    phase()
    taken = [b - a for a, b in zip(run.times, run.times[1:], strict=False)][1:]
    return {
        "result": checkpoints.fingerprint(directory),
        "seconds": statistics.median(taken),
        **_graph(run, run.functions[directory.name]),
    }


def _synthesized(run: Run, name: str) -> dict[str, Any]:
    phases.make_images(run, name, None)
    file = run.arm_path(name) / "synthetic" / "synthetic.tfrecord"
    insert, few = run.functions["synthetic"], run.settings.synthetic_count
    batches = pipeline.synthesis_batches(
        run.dataset,
        count=few,
        batch_size=few,
        seed=run.settings.seed,
        start=0,
        placement=build.placement(run.settings, ARMS[name]),
    )
    (batch,) = batches
    result = hashlib.sha256(file.read_bytes()).hexdigest()
    return {"result": result, "seconds": _seconds(lambda: insert(batch).numpy()), **_graph(run, insert)}


def _detected(run: Run, weights: Path) -> dict[str, Any]:
    run.load(weights, {"DET": run.detector.network})

    def detected():
        return detect_split(run.detect, run.dataset, "test", run.settings.detector_batch)

    _, found = detected()
    result = hashlib.sha256(json.dumps(ev.to_coco_results(found)).encode()).hexdigest()
    batches = len(found) / run.settings.detector_batch
    return {"result": result, "seconds": _seconds(detected) / batches, **_graph(run, run.detect)}


def _seconds(call: Callable[[], Any], repeats: int = 3) -> float:
    """Median over `repeats` of a call that waits for its results; it has run before."""
    taken = []
    for _ in range(repeats):
        began = time.monotonic()
        call()
        taken.append(time.monotonic() - began)
    return statistics.median(taken)


def _graph(run: Run, function: Callable) -> dict[str, Any]:
    """What deterministic GPUs would refuse, lack or send to the host in the newest trace of `function`."""
    traced = function._list_all_concrete_functions()  # type: ignore[attr-defined] # no public name
    graph = traced[-1].graph
    height, width, channels = run.dataset.image_shape
    faults = gpu_ops.faults(graph, largest=height * width * channels - 1)
    transfers = host_transfers(graph)
    return {
        "faults": len(faults),
        "first_faults": [f"{fault.op} ({fault.kind}) {fault.why}" for fault in faults[:NAMED]],
        "transfers": len(transfers),
    }


def _machine() -> dict[str, Any]:
    """Versions and devices, as TensorFlow sees them."""
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
        "GPUs": [
            {key: str(value) for key, value in tf.config.experimental.get_device_details(gpu).items()}
            for gpu in gpus
        ],
    }


def last_line(error: BaseException) -> str:
    """An error in one line; of TensorFlow's many lines the last that says something, not the places."""
    lines = [line.strip() for line in str(error).splitlines()]
    said = [line for line in lines if line and not line.startswith(("[[", "File ", "Detected at", "Stack"))]
    return f"{type(error).__name__}: {said[-1] if said else ''}".removesuffix(": ")


def main(argv: list[str]) -> None:
    """Writes the record; if it fails, the error's line is the last of stderr and the exit code 1."""
    file, *words = argv
    try:
        record = trial(config.parse(Train, words))
    except Exception as error:
        traceback.print_exc()
        print(last_line(error), file=sys.stderr)
        sys.exit(1)
    Path(file).write_text(json.dumps(record), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
