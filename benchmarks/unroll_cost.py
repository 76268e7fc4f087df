"""Measures the cost of Eqn 3, relative to ordinary detector steps, and of the joint step with it.

    python benchmarks/unroll_cost.py --out=docs/results/unroll_cost.json

`ordinary` is one step of DET alone on real and synthetic images together. `detector part` is the part of
the joint step with DET: W', its assignment, and the derivatives of L_syn and L~_real with respect to x_syn.
`joint step` is the whole step. Targets of the exact mode: a detector part of at most 2.2 ordinary steps, a
joint step of at most 1.25 times the sum of a CycleGAN step and the detector part.

The lower bound, in forward passes of one stream of images: a layer's forward pass is one convolution and its
backward pass two, to its weights and to its input, so an ordinary step on two streams is 2 x 3 = 6. `exact`:

    dL_real/dW and dL_syn/dW, with dL_syn/dx_syn    2 x 3   as in the ordinary step
    dL~_real/dW' on y2                                  3
    d<u, dL_syn/dW>/dx_syn with u = dL~_real/dg         4   each layer's dW = delta * a depends on delta and
                                                            a (2); both go on to the previous layers (2)

in total 13 / 6 = 2.17. Without Eqn 3 (`none`) it is 1. Recomputation repeats the synthetic pass without its
weights' derivatives, 2 more: 2.5. Each of K steps after the first adds 18 / 6 = 3: both gradients, and the
derivatives of both with respect to W as well, 6 each. The column `arithmetic` counts the convolutions in the
graphs, so it equals this bound except for the first layer, whose input derivative an ordinary step omits.
"""

import argparse
from pathlib import Path

import joint_models as stage
import measuring
import tensorflow as tf

from tf_detectorgan.batch import Labelled
from tf_detectorgan.training import build, unroll, update_rules
from tf_detectorgan.training.detector_step import detector_step
from tf_detectorgan.training.joint_step import GAN_ONLY, joint_step
from tf_detectorgan.training.settings import ARMS, Train

# Flags of `train`.
MODES = {
    "none": {"unroll_steps": 0},
    "exact": {},
    "exact, recomputed": {"unroll_recompute": True},
    "two steps": {"unroll_steps": 2},
}
WANTED = {"detector part": 2.2, "joint step": 1.25}


def graphs(detector: str, size: int, modes: list[str], options: argparse.Namespace) -> dict:
    """Returns concrete functions without arguments, by name, each with its start-up in core seconds."""

    def settings(mode: str) -> Train:
        return stage.settings(detector, options.batch, options.filters, **MODES[mode])

    p = stage.joint_models(settings("none"), size)
    batch = stage.batch(size, options.batch, later=1)
    where = batch.insertion
    synthetic = Labelled(batch.x, where.boxes[:, None], where.labels[:, None])
    both = Labelled(*(tf.concat(pair, 0) for pair in zip(batch.y, synthetic, strict=True)))
    seed = tf.constant([0, 0])

    def of_detector(o, later):
        unrolled = unroll.unrolled_step(
            p.DET,
            p.detector_optimizer,
            batch.y,
            synthetic,
            batch.y2 if o.lambda_real else None,
            later=later,
            recompute=o.recompute,
        )
        update_rules.commit(p.detector_optimizer, unrolled.update)
        return [v for v in unrolled[:-1] if v is not None]

    def of_mode(mode: str) -> dict:
        o = build.objective(settings(mode), ARMS["detectorgan"])
        later = batch.y_later if mode == "two steps" else ()
        whole = batch._replace(y_later=later)
        return {
            f"detector part, {mode}": measuring.started(lambda: of_detector(o, later)),
            f"joint step, {mode}": measuring.started(lambda: joint_step(p, o, whole, seed)),
        }

    alone = stage.without_detector(p)
    made = {
        "ordinary": measuring.started(
            lambda: detector_step(p.DET, p.detector_optimizer, both, build.CLIP_NORM)
        ),
        "CycleGAN": measuring.started(lambda: joint_step(alone, GAN_ONLY, batch, seed)),
    }
    for mode in modes:
        made |= of_mode(mode)
    return made


def measure(detector: str, size: int, options: argparse.Namespace) -> dict:
    """Measures one detector at one size; returns a row per mode, and the ordinary and CycleGAN steps."""
    made = graphs(detector, size, options.modes, options)
    steps = {name: step for name, (step, _) in made.items()}
    flops = {name: measuring.convolution_flops(step) for name, step in steps.items()}
    seconds = measuring.in_turns(steps, options.rounds, f"{detector}, {size} px")
    peaks = {name: measuring.peak_mib(step) for name, step in steps.items()}
    rows = []
    for mode in options.modes:
        part, whole = f"detector part, {mode}", f"joint step, {mode}"
        separate = [a + b for a, b in zip(seconds["CycleGAN"], seconds[part], strict=True)]
        rows.append(
            {
                "mode": mode,
                "arithmetic": round(flops[part] / flops["ordinary"], 3),
                "detector part": measuring.ratios(seconds[part], seconds["ordinary"]),
                "memory": round(peaks[part] / peaks["ordinary"], 2),
                "joint step in ordinary steps": measuring.ratios(seconds[whole], seconds["ordinary"]),
                "joint step": measuring.ratios(seconds[whole], separate),
                "joint MiB": peaks[whole],
                "start-up": made[whole][1],
            }
        )
    units = {
        name: {
            "core seconds": measuring.spread(seconds[name]),
            "GFLOP": round(flops[name] / 1e9, 6),
            "MiB": peaks[name],
            "start-up": made[name][1],
        }
        for name in ("ordinary", "CycleGAN")
    }
    if options.profile:
        part = f"detector part, {options.modes[-1]}"
        print(measuring.profile_table({name: measuring.profile(steps[name]) for name in ("ordinary", part)}))
    return {"detector": detector, "size": size, "units": units, "rows": rows}


def table(found: dict) -> str:
    """Returns the results of one detector at one size as text."""
    units = "; ".join(
        f"{name}: {measuring.shown(unit['core seconds'])} core s, {unit['GFLOP']} GFLOP, "
        f"{unit['MiB']:.0f} MiB, start-up {unit['start-up']:.0f} core s"
        for name, unit in found["units"].items()
    )
    lines = [
        f"{found['detector']}, {found['size']} px. {units}",
        f"{'mode':<18} arithmetic  detector / ordinary   memory  joint / ordinary      "
        "joint / (CycleGAN + detector)  MiB     start-up core s",
    ]
    for row in found["rows"]:
        part, inside, whole = (
            measuring.shown(row[key])
            for key in ("detector part", "joint step in ordinary steps", "joint step")
        )
        lines.append(
            f"{row['mode']:<18} {row['arithmetic']:<11.2f} {part:<21} {row['memory']:<7.2f} {inside:<21} "
            f"{whole:<30} {row['joint MiB']:<7.0f} {row['start-up']:.0f}"
        )
    return "\n".join(lines)


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--detectors", nargs="+", default=["retinanet_small", "joint_models:wide"])
    parser.add_argument("--sizes", type=int, nargs="+", default=[128, 256])
    parser.add_argument("--modes", nargs="+", default=list(MODES), choices=list(MODES))
    parser.add_argument("--batch", type=int, default=2, help="images of each stream")
    parser.add_argument("--filters", type=int, default=16, help="filters of generators and discriminators")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--profile", action="store_true", help="also print which ops take the time")
    parser.add_argument("--out", type=Path, help="JSON to write")
    return parser.parse_args(argv)


def run(options: argparse.Namespace) -> list[dict]:
    """Measures every detector at every size, prints and writes the results."""
    results = []
    for detector in options.detectors:
        for size in options.sizes:
            results.append(measure(detector, size, options))
            print(table(results[-1]), flush=True)
            if options.out:
                conditions = {k: v for k, v in vars(options).items() if k != "out"}
                content = {"machine": measuring.machine(), "options": conditions, "wanted": WANTED}
                measuring.write(options.out, {**content, "results": results})
    return results


if __name__ == "__main__":
    chosen = parse()
    stage.prepare(chosen.threads)
    run(chosen)
