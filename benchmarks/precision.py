"""What a joint step costs in bfloat16 and float16, in float32's joint steps; what its parts cost.

    python benchmarks/precision.py --size=64 --filters=32 --rounds=9 --out=precision.json

Steps are taken in turns in one process on one thread. Core seconds are counted, which other processes on the
machine hardly change.
"""

import argparse
import json
import os
import statistics
import time
import types
from pathlib import Path

from tf_detectorgan.environment import TENSORFLOW

os.environ.update(TENSORFLOW | os.environ)  # before TensorFlow is imported

import numpy as np
import tensorflow as tf

from tf_detectorgan.batch import Batch, Insertion, Labelled
from tf_detectorgan.training import build
from tf_detectorgan.training.detector_step import detector_step
from tf_detectorgan.training.joint_step import ALONE, Players, joint_step
from tf_detectorgan.training.settings import ARMS, Train

POLICIES = ("float32", "mixed_bfloat16", "mixed_float16")
STEPS = ("CycleGAN", "detector", "joint")


def noise(size, count):
    """Images of noise, one box each."""
    rng = np.random.default_rng(0)

    def labelled():
        images = tf.constant(rng.uniform(-1, 1, (count, size, size, 1)), tf.float32)
        corner = rng.integers(2, size // 2, (count, 1, 2))
        boxes = np.concatenate([corner, corner + rng.integers(size // 8, size // 4, (count, 1, 2))], -1)
        return Labelled(images, tf.constant(boxes, tf.float32), tf.zeros([count, 1], tf.int32))

    x, u, y, y2, where = (labelled() for _ in range(5))
    whole = tf.constant([[0.0, 0.0, size, size]] * count)
    insertion = Insertion(where.boxes[:, 0], where.labels[:, 0], where.images, whole)
    return Batch(x.images, insertion, y, whole, y.boxes[:, 0], u.images, y2)


def steps(precision, arguments):
    """Name -> a graph without arguments that takes a step of some players."""
    shape, here = (arguments.size, arguments.size, 1), tf.distribute.get_strategy()
    data = types.SimpleNamespace(image_shape=shape, class_names=("object",))
    # Rates so low that weights stay where numbers are ordinary.
    s = Train(
        precision=precision,
        detector=arguments.detector,
        generator_filters=arguments.filters,
        discriminator_filters=arguments.filters,
        gan_batch=arguments.batch,
        gan_learning_rate=1e-6,
        joint_detector_learning_rate=1e-6,
    )
    scale = build.loss_scale(s, here)
    DET = build.detector(s, data, here)
    optimizer = build.joint_detector_optimizer(s, DET, here)
    alone = Players(build.cyclegan(s, data, here), loss_scale=scale)
    both = Players(alone.gan, DET, optimizer, scale)
    batch, seed, o = noise(arguments.size, arguments.batch), tf.constant([0, 0]), ARMS["detectorgan"]
    graphs = {
        "CycleGAN": tf.function(lambda: joint_step(alone, ALONE, batch, seed), autograph=False),
        "detector": tf.function(lambda: detector_step(DET, optimizer, batch.y, 10.0, scale), autograph=False),
        "joint": tf.function(lambda: joint_step(both, build.objective(s, o), batch, seed), autograph=False),
    }
    return {name: graphs[name] for name in arguments.steps}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--filters", type=int, default=32)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--detector", default="retinanet_small")
    parser.add_argument("--precision", nargs="+", default=POLICIES, choices=POLICIES)
    parser.add_argument("--steps", nargs="+", default=STEPS, choices=STEPS)
    parser.add_argument("--out", type=Path, default=Path("precision.json"))
    arguments = parser.parse_args()
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    tf.config.experimental.enable_op_determinism()
    graphs = {p: steps(p, arguments) for p in dict.fromkeys(("float32", *arguments.precision))}
    seconds = {(p, name): [] for p in graphs for name in graphs[p]}
    for number in range(1 + arguments.rounds):  # the first traces
        for (p, name), taken in seconds.items():
            began = time.process_time()
            tf.nest.map_structure(lambda value: value.numpy(), graphs[p][name]())
            if number:
                taken.append(time.process_time() - began)
    rows = {}
    print(f"{'core seconds':<18}" + "".join(f"{name:>14}" for name in graphs["float32"]) + "   of float32's")
    for p, parts in graphs.items():
        rows[p] = {name: statistics.median(seconds[p, name]) for name in parts}
        rows[p] |= {
            f"{name}_ratio": statistics.median(
                a / b for a, b in zip(seconds[p, name], seconds["float32", name], strict=True)
            )
            for name in parts
        }
        cells = "".join(f"{rows[p][name]:>14.3f}" for name in parts)
        print(f"{p:<18}{cells}   " + ", ".join(f"{rows[p][f'{name}_ratio']:.2f}" for name in parts))
    settings = vars(arguments) | {"out": str(arguments.out)}
    text = json.dumps({"settings": settings, "rows": rows}, indent=1)
    partial = arguments.out.with_name(arguments.out.name + ".tmp")
    partial.write_text(text + "\n", encoding="utf-8")
    os.replace(partial, arguments.out)


if __name__ == "__main__":
    main()
