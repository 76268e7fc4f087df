"""How the joint step's time and memory grow with the images' side, the batch and the steps of Eqn 3.

    python benchmarks/scaling.py --out=docs/results/scaling.json

One of the three is changed at a time, from 64 px, a batch of 2 and one step. All settings of a sweep take
turns. The exponent b of a sweep is that of the line through log(cost) over log(value), by least squares: the
cost goes as value^b. Fixed costs keep b below what it tends to (2 for the side, 1 for the batch), and where
the line misses a point, `off` says by how much at most.

`--paper` counts the phases at the paper's size without running them: FLOPs of their graphs over a GPU's peak
times the share of it that is assumed. An estimate, nothing measured.
"""

import argparse
import functools
from pathlib import Path

import measuring
import numpy as np
import players as stage
import roofline
import tensorflow as tf

from tf_detectorgan.training import build
from tf_detectorgan.training.joint_step import joint_step
from tf_detectorgan.training.settings import ARMS, Train

SWEPT = ("size", "batch", "steps")


@functools.cache  # sweeps share their smallest setting
def graph(detector: str, filters: int, size: int, batch: int, steps: int):
    """The joint step of `detectorgan` through `steps` detector steps, as a concrete function."""
    unroll = {"unroll": "k_steps", "unroll_steps": steps} if steps > 1 else {}
    s = stage.settings(detector, batch, filters, **unroll)
    p, b = stage.players(s, size), stage.batch(size, batch, later=steps - 1)
    objective, seed = build.objective(s, ARMS["detectorgan"]), tf.constant([0, 0])
    step = tf.function(lambda: joint_step(p, objective, b, seed), autograph=False)
    return step.get_concrete_function()


def sweep(name: str, options: argparse.Namespace) -> dict:
    """Cost over the values of one of SWEPT, the others at their smallest."""
    fixed = {"size": min(options.sizes), "batch": options.base_batch, "steps": 1}
    values = {"size": options.sizes, "batch": options.batches, "steps": options.steps}[name]
    steps = {
        str(value): graph(options.detector, options.filters, **(fixed | {name: value})) for value in values
    }
    seconds = measuring.in_turns(steps, options.rounds, name)
    rows = [
        {
            name: value,
            "GFLOP": round(measuring.convolution_flops(steps[str(value)]) / 1e9, 6),
            "core seconds": measuring.spread(seconds[str(value)]),
            "MiB": measuring.peak_mib(steps[str(value)]),
        }
        for value in values
    ]
    costs = {
        "GFLOP": [row["GFLOP"] for row in rows],
        "core seconds": [row["core seconds"]["median"] for row in rows],
        "MiB": [row["MiB"] for row in rows],
    }
    return {
        "swept": name,
        "fixed": {key: value for key, value in fixed.items() if key != name},
        "exponents": {cost: fit(values, column) for cost, column in costs.items()},
        "rows": rows,
    }


def fit(values, costs) -> dict[str, float]:
    """Exponent b of cost = a value^b, and the largest factor by which a cost is off the line."""
    x, y = np.log(np.asarray(values, float)), np.log(np.asarray(costs, float))
    b, a = np.polyfit(x, y, 1)
    return {"exponent": round(float(b), 3), "off": round(float(np.exp(np.max(np.abs(y - a - b * x)))), 3)}


def paper(options: argparse.Namespace) -> dict:
    """Hours of phases of `train` by default, at the paper's size, by FLOPs alone."""
    setting = {"detector": "retinanet_resnet50", "size": 512, "batch": 4, "filters": 64}
    s, rate = Train(), options.gpu_tflops * 1e12 * options.gpu_share
    alone = s.pretrain_detector_steps
    steps = {
        "pretrain_gan": {"pretrain_gan": s.gan_steps},
        "pretrain_detector, final_detector": {
            "pretrain_detector": alone,
            "audit_detectors": s.audit_folds * alone,
            "final_detector": s.final_steps,
        },
        "joint": {"joint": s.joint_steps},
    }
    rows = []
    for name, step in roofline.phases(argparse.Namespace(**setting)).items():
        flops = measuring.convolution_flops(step) if name in steps else 0
        for phase, count in steps.get(name, {}).items():
            row = {"phase": phase, "TFLOP a step": round(flops / 1e12, 2), "steps": count}
            rows.append(row | {"hours, estimated": round(flops * count / rate / 3600, 1)})
    assumed = {"TFLOP/s": options.gpu_tflops, "share reached": options.gpu_share}
    return {"setting": setting, "assumed": assumed, "rows": rows}


def run(options: argparse.Namespace) -> dict:
    """Measures, prints and writes, one sweep after the other."""
    conditions = {k: v for k, v in vars(options).items() if k != "out"}
    content: dict = {"machine": measuring.machine(), "options": conditions, "sweeps": []}
    for name in options.sweeps:
        found = sweep(name, options)
        content["sweeps"].append(found)
        print(f"{name:<8}{'GFLOP':<12}{'core s':<21}peak MiB   (fixed: {found['fixed']})")
        for row in found["rows"]:
            cells = f"{row['GFLOP']:<12}{measuring.shown(row['core seconds']):<21}{row['MiB']:.0f}"
            print(f"{row[name]:<8}{cells}")
        for cost, line in found["exponents"].items():
            print(f"{cost} goes as {name}^{line['exponent']:.2f} (off by {line['off']:.2f} times at most)")
        if options.out:
            measuring.write(options.out, content)
    if options.paper:
        content["paper"] = paper(options)
        print(f"estimated by FLOPs, not measured, {content['paper']['setting']}:")
        for row in content["paper"]["rows"]:
            print(row)
        if options.out:
            measuring.write(options.out, content)
    return content


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sweeps", nargs="*", default=list(SWEPT), choices=SWEPT)
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 128, 256, 512])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 2, 3, 4], help="of Eqn 3")
    parser.add_argument("--base_batch", type=int, default=2, help="where the batch is not swept")
    parser.add_argument("--detector", default="retinanet_small")
    parser.add_argument("--filters", type=int, default=16, help="of generators and discriminators")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--paper", action="store_true", help="also estimate the paper's setting")
    parser.add_argument("--gpu_tflops", type=float, default=15.7, help="peak; 15.7: float32 of a Tesla V100")
    parser.add_argument("--gpu_share", type=float, default=0.4, help="of the peak, assumed")
    parser.add_argument("--out", type=Path, help="JSON to write")
    return parser.parse_args(argv)


if __name__ == "__main__":
    chosen = parse()
    stage.prepare(chosen.threads)
    run(chosen)
