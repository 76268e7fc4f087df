"""Measures which share of the machine's convolution rate the phases of `train` reach.

    python benchmarks/roofline.py --out=docs/results/roofline.json

The roof is the best rate of several single convolutions, forward or backward, in FLOP per core second. Each
phase's rate is the FLOPs of the convolutions in its graph divided by its time, so all other ops (norms,
padding, losses, optimizers) lower the share. Target: 60 % of the roof in the joint step.

`--paper` estimates the phases at the paper's size without running them: FLOPs of their graphs divided by a
GPU's peak rate times an assumed share of it.
"""

import argparse
from pathlib import Path

import joint_models as stage
import measuring
import tensorflow as tf

from tf_detectorgan.batch import Labelled
from tf_detectorgan.training import build
from tf_detectorgan.training.detector_step import detector_step
from tf_detectorgan.training.joint_step import GAN_ONLY, joint_step
from tf_detectorgan.training.settings import ARMS, Train

WANTED = 0.6  # target share of the joint phase
SIDES, CHANNELS, KERNEL, IMAGES = (16, 32, 64), (32, 64, 128, 256), 3, 4  # of the single convolutions


def convolutions() -> dict:
    """Returns concrete functions of one convolution each, by name: the output or one of the derivatives."""

    def made(side: int, channels: int, kind: str):
        x = tf.Variable(tf.random.stateless_normal([IMAGES, side, side, channels], [0, 0]))
        kernel = tf.Variable(tf.random.stateless_normal([KERNEL, KERNEL, channels, channels], [0, 1]))

        @tf.function(autograph=False)
        def once():
            if kind == "forward":
                return tf.nn.conv2d(x, kernel, 1, "SAME")
            # The upstream gradient has x's shape, so x is used for it.
            with tf.GradientTape() as tape:
                y = tf.nn.conv2d(x, kernel, 1, "SAME")
            return tape.gradient(y, x if kind == "to input" else kernel, output_gradients=x.value())

        return once.get_concrete_function()

    return {
        f"{kind}, {side} px, {channels} channels": made(side, channels, kind)
        for side in SIDES
        for channels in CHANNELS
        for kind in ("forward", "to input", "to kernel")
    }


def roof(rounds: int) -> tuple[str, dict]:
    """Returns the name and the function of the convolution with the best rate."""
    functions = convolutions()
    seconds = measuring.in_turns(functions, rounds, "convolutions")
    rate = {name: measuring.convolution_flops(functions[name]) / min(s) for name, s in seconds.items()}
    best = max(rate, key=rate.get)
    return best, functions[best]


def phases(options: argparse.Namespace) -> dict:
    """Returns a step of each phase of `train` as a concrete function."""
    s = stage.settings(options.detector, options.batch, options.filters)
    p, b = stage.joint_models(s, options.size), stage.batch(options.size, options.batch)
    alone, objective = stage.without_detector(p), build.objective(s, ARMS["detectorgan"])
    seed, double = tf.constant([0, 0]), stage.batch(options.size, 2 * options.batch)
    labelled: Labelled = double.y
    here = tf.distribute.get_strategy()
    optimizer = build.alone_detector_optimizer(s, p.DET, s.final_detector_steps, here)
    made = {
        "pretrain_gan": lambda: joint_step(alone, GAN_ONLY, b, seed),
        "pretrain_detector, final_detector": lambda: detector_step(
            p.DET, optimizer, labelled, build.CLIP_NORM
        ),
        "joint": lambda: joint_step(p, objective, b, seed),
        "synthesize": lambda: p.gan.insert(double.x, double.insertion),
    }
    return {name: tf.function(f, autograph=False).get_concrete_function() for name, f in made.items()}


def paper(options: argparse.Namespace) -> dict:
    """Estimates the hours of `train`'s phases with default steps at the paper's size from their FLOPs."""
    setting = {"detector": "retinanet_resnet50", "size": 512, "batch": 4, "filters": 64}
    s, rate = Train(), options.gpu_tflops * 1e12 * options.gpu_share
    alone = s.pretrain_detector_steps
    steps = {
        "pretrain_gan": {"pretrain_gan": s.pretrain_gan_steps},
        "pretrain_detector, final_detector": {
            "pretrain_detector": alone,
            "held_out_detectors": s.crossfit_folds * alone,
            "final_detector": s.final_detector_steps,
        },
        "joint": {"joint": s.joint_steps},
    }
    rows = []
    for name, step in phases(argparse.Namespace(**setting)).items():
        flops = measuring.convolution_flops(step) if name in steps else 0
        for phase, count in steps.get(name, {}).items():
            row = {"phase": phase, "TFLOP a step": round(flops / 1e12, 2), "steps": count}
            rows.append(row | {"hours, estimated": round(flops * count / rate / 3600, 1)})
    assumed = {"TFLOP/s": options.gpu_tflops, "share reached": options.gpu_share}
    return {"setting": setting, "assumed": assumed, "rows": rows}


def estimate(options: argparse.Namespace) -> dict:
    """Prints and writes the result of `paper`."""
    content = paper(options)
    print(f"estimated by FLOPs, not measured, {content['setting']}:")
    for row in content["rows"]:
        print(row)
    if options.out:
        measuring.write(options.out, content)
    return content


def run(options: argparse.Namespace) -> dict:
    """Measures all phases, prints and writes the result."""
    name, best = roof(rounds=3)
    steps = {"roof": best, **phases(options)}
    flops = {key: measuring.convolution_flops(step) for key, step in steps.items()}
    seconds = measuring.in_turns(steps, options.rounds, "phases")
    peaks = {key: measuring.peak_mib(step) for key, step in steps.items()}
    rates = {key: [flops[key] / 1e9 / taken for taken in seconds[key]] for key in steps}
    print(f"roof: {name}, {measuring.shown(measuring.spread(rates['roof']))} GFLOP per core second")
    print(f"{'phase':<36}{'GFLOP':<12}{'core s':<21}{'GFLOP / core s':<24}{'share of the roof':<20}peak MiB")
    rows = []
    for key in list(steps)[1:]:
        row = {
            "phase": key,
            "GFLOP": round(flops[key] / 1e9, 6),
            "core seconds": measuring.spread(seconds[key]),
            "rate": measuring.spread(rates[key]),
            "share": measuring.ratios(rates[key], rates["roof"]),
            "MiB": peaks[key],
        }
        rows.append(row)
        cells = [measuring.shown(row[k]) for k in ("core seconds", "rate", "share")]
        print(f"{key:<36}{row['GFLOP']:<12}{cells[0]:<21}{cells[1]:<24}{cells[2]:<20}{row['MiB']:.0f}")
        if options.profile:
            print(measuring.profile_table({key: measuring.profile(steps[key])}))
    conditions = {k: v for k, v in vars(options).items() if k != "out"}
    content = {"machine": measuring.machine(), "options": conditions, "wanted of joint": WANTED}
    content |= {"roof": {"convolution": name, "rate": measuring.spread(rates["roof"])}, "rows": rows}
    if options.out:
        measuring.write(options.out, content)
    return content


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--detector", default="retinanet_small")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--batch", type=int, default=2, help="images of each stream")
    parser.add_argument("--filters", type=int, default=32, help="filters of generators and discriminators")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--profile", action="store_true", help="also print which ops take the time")
    parser.add_argument("--paper", action="store_true", help="only estimate the paper's setting")
    parser.add_argument("--gpu_tflops", type=float, default=15.7, help="peak; 15.7: float32 of a Tesla V100")
    parser.add_argument("--gpu_share", type=float, default=0.4, help="assumed share of the peak")
    parser.add_argument("--out", type=Path, help="JSON to write")
    return parser.parse_args(argv)


if __name__ == "__main__":
    chosen = parse()
    stage.prepare(chosen.threads)
    estimate(chosen) if chosen.paper else run(chosen)
