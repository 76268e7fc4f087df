"""Counts host work per training step: copies between GPU and host, and ops that Python calls.

    python benchmarks/host_trips.py --out=docs/results/host_trips.json -- --flagfile=configs/demo.flags

Each phase runs in `train`'s own loop; TensorFlow's profiler traces STEPS steps between two log entries.
On a GPU, the copies between device and host in the trace are counted. On all machines, the ops that Python
calls one by one are counted, and the copies to the host that the graph's kernels would need on a GPU
(training/host_transfers.py). Arguments after `--` are flags of `train`.
"""

import argparse
import collections
import sys
import tempfile
from pathlib import Path

import measuring
import tensorflow as tf
from tensorflow.tsl.profiler.protobuf import xplane_pb2

from tf_detectorgan import config
from tf_detectorgan.preflight import trial
from tf_detectorgan.training import phases, run_directory
from tf_detectorgan.training.host_transfers import host_transfers
from tf_detectorgan.training.run import Run, build_detector_training, build_gan_training
from tf_detectorgan.training.settings import Train
from tf_detectorgan.training.workers import Workers

STEPS, WARM_UP = 20, 3
CALLED = "EagerLocalExecute: "  # the profiler's name for an op or a graph that Python calls
COPIES = {"MemcpyD2H": "copies to the host", "MemcpyH2D": "copies to the device"}


def traced(run: Run, name: str, phase, folder: Path) -> dict:
    """Runs a phase and traces steps WARM_UP to WARM_UP + STEPS - 1; returns its row."""
    place, distributed = folder / name, run.distributed

    def batches(given):
        for number, batch in enumerate(distributed(given)):
            if number == WARM_UP:
                tf.profiler.experimental.start(str(place))
            if number == WARM_UP + STEPS:
                tf.profiler.experimental.stop()
            yield batch

    run.distributed = batches
    phase()
    run.distributed = distributed
    (file,) = place.rglob("*.xplane.pb")
    planes = xplane_pb2.XSpace.FromString(file.read_bytes()).planes
    calls, copies = collections.Counter(), collections.Counter()
    for plane in planes:
        for event in (event for line in plane.lines for event in line.events):
            label = plane.event_metadata[event.metadata_id].name
            if label.startswith(CALLED):
                calls[_kind(label)] += 1
            if "GPU" in plane.name:
                copies.update(column for start, column in COPIES.items() if label.startswith(start))
    graph = run.functions[name]._list_all_concrete_functions()[-1].graph
    row = {
        "phase": name,
        "called by Python": {kind: count / STEPS for kind, count in calls.most_common()},
        "copies to the host by the graph": [transfer._asdict() for transfer in host_transfers(graph)],
    }
    return row | ({column: copies[column] / STEPS for column in COPIES.values()} if _gpus() else {})


def _kind(label: str) -> str:
    """Returns the op's type; the names of graphs have numbers, which are removed."""
    op = label.removeprefix(CALLED)
    return "the step's graph" if op.startswith("__inference") else op


def _gpus() -> list:
    return tf.config.list_physical_devices("GPU")


def run(options: argparse.Namespace, folder: Path) -> dict:
    """Measures all phases, prints and writes the result."""
    steps = WARM_UP + STEPS + 2
    phase_names = ("pretrain_gan", "joint", "pretrain_detector", "final_detector")
    words = [f"--{name}_steps={steps}" for name in phase_names]
    words += [f"--run_dir={folder / 'run'}", f"--data_dir={folder / 'data'}", "--arm=detectorgan"]
    words += [f"--{name}_every={2 * steps}" for name in ("log", "checkpoint", "validate")]
    settings = config.parse(Train, [*options.train, *words])
    trial.draw(settings)
    began = run_directory.begin(settings, Workers())
    layout, gan = began.layout, build_gan_training(began, "cyclegan")
    detector = build_detector_training(began, steps)
    rows = [
        traced(
            began,
            "pretrain_gan",
            lambda: phases.train_gan(began, layout.pretrain_gan("cyclegan"), gan, range(steps)),
            folder,
        ),
        traced(
            began,
            "pretrain_detector",
            lambda: phases.train_detector(began, layout.pretrain_detector, detector),
            folder,
        ),
        traced(began, "joint", lambda: phases.joint(began, "detectorgan", gan), folder),
    ]
    for row in rows:
        print(f"{row['phase']}, per step:")
        for column, value in list(row.items())[1:]:
            print(f"  {column}: {len(value) if isinstance(value, list) else value}")
    content = {"machine": measuring.machine() | {"GPUs": len(_gpus())}, "flags": options.train}
    content |= {"steps": STEPS, "rows": rows}
    if options.out:
        measuring.write(options.out, content)
    return content


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="JSON to write")
    parser.add_argument("train", nargs="*", help="flags of train, after --")
    return parser.parse_args(argv)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="host_trips-") as made:
        run(parse(sys.argv[1:]), Path(made))
