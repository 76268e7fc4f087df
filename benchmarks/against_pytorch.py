"""Compares time and memory of the training steps with the same steps in PyTorch (`torch_step.py`).

    pip install -c constraints.txt -e '.[bench]'    # after PyTorch's CPU build, see pytorch.org
    python benchmarks/against_pytorch.py --out=docs/results/against_pytorch.json

Both have the same networks, weights, batch and losses: (a) a CycleGAN step of generators and discriminators,
(b) the joint step with Eqn 3. Before the measurement, all losses, Eqn 3's derivative and every optimizer's
moments after a step (hence every gradient) must be equal. Both run alternately in one process. Targets: our
time at most 0.9 of PyTorch's in (a) and 0.7 in (b), our peak memory at most 0.8.

Settings: configs/paper.flags with the least-squares loss and without image pools. DET's targets are an input
of PyTorch's step, while ours computes them. PyTorch runs eagerly, because torch.compile has no double
backward.
"""

import argparse
from importlib.util import find_spec
from pathlib import Path

if find_spec("triton"):  # part of PyTorch's CUDA build; it crashes a process that has imported TensorFlow
    raise SystemExit(
        "error: triton, of PyTorch's CUDA build, crashes in a process with TensorFlow: pip uninstall triton "
        "torch, then install PyTorch's CPU build, see pytorch.org"
    )

import joint_models as stage
import measuring
import numpy as np
import tensorflow as tf
import torch
import torch_networks
from torch_step import Boxed, Scene, Trainer, Weights

from tf_detectorgan import boxes as boxes_lib
from tf_detectorgan.batch import Batch, Labelled
from tf_detectorgan.models.detectors import retinanet
from tf_detectorgan.training import build, unroll
from tf_detectorgan.training.build import LOCAL_LAYERS
from tf_detectorgan.training.joint_step import GAN_ONLY, JointModels, joint_step
from tf_detectorgan.training.settings import ARMS, Train

WANTED = {"CycleGAN step": 0.9, "joint step": 0.7, "memory": 0.8}
# Relative errors in float32. At kinks of ReLU and L1, rounding errors can change gradients.
TOLERANCE = {"loss": 1e-4, "gradient": 1e-2}


def theirs(p: JointModels, s: Train, size: int) -> Trainer:
    """Returns the same networks in PyTorch, with the weights of p."""
    gan, f, blocks = p.gan, s.generator_filters, s.generator_blocks or (6 if size <= 128 else 9)
    cells = sum((size // stride) ** 2 for stride in (4, 8, 16))
    nets = {
        "G_X": torch_networks.generator(2, 1, f, blocks),
        "G_Y": torch_networks.generator(2, 1, f, blocks),
        "DIS_globalX": torch_networks.patch_gan(1, f, 3),
        "DIS_localX": torch_networks.patch_gan(1, f, LOCAL_LAYERS),
        "DIS_globalY": torch_networks.patch_gan(1, f, 3),
        "DET": torch_networks.RetinaNet(1, 32, len(p.DET.anchors) // cells),
    }
    for name, net in nets.items():
        source = p.DET.network if name == "DET" else getattr(gan, name)
        torch_networks.copy(source.trainable_variables, net)
    weights = Weights(
        s.lambda_bbox,
        s.lambda_cycle,
        s.lambda_identity,
        s.lambda_real,
        s.lambda_syn,
        build.objective(s, ARMS["detectorgan"]).syn_cap,
        build.CLIP_NORM,
        retinanet.BOX_WEIGHT,
        s.crop_size,
        build.JOINT_RATE[s.joint_detector_optimizer],
    )
    return Trainer(nets, weights, s.gan_learning_rate)


def tensor(value) -> torch.Tensor:
    """Converts a tensor to PyTorch; images [N, H, W, C] become [N, C, H, W]."""
    value = torch.from_numpy(np.array(value))
    return value.permute(0, 3, 1, 2).contiguous() if value.ndim == 4 else value


def scene(DET, b: Batch) -> Scene:
    """Converts a batch to PyTorch."""

    def boxed(labelled: Labelled) -> Boxed:
        boxes, targets = labelled.boxes[:, 0], DET.targets(labelled)
        mask = boxes_lib.mask(boxes, *labelled.images.shape[1:3])[..., None]
        values = (labelled.images, mask, boxes, targets.classes, targets.offsets)
        return Boxed(*(tensor(v) for v in values))

    where = b.insertion
    inserted = Labelled(where.exemplars, where.boxes[:, None], where.labels[:, None])
    return Scene(tensor(b.x), boxed(inserted), boxed(b.y), tensor(b.u), boxed(b.y2))


def check(p: JointModels, t: Trainer, b: Batch, s: Scene, joint) -> dict[str, float]:
    """Takes one step with both implementations; returns the relative differences.

    Raises:
      SystemExit: a difference is greater than its TOLERANCE.
    """
    where = b.insertion
    synthetic = Labelled(where.exemplars, where.boxes[:, None], where.labels[:, None])
    ours = unroll.unrolled_step(p.DET, p.detector_optimizer, b.y, synthetic, b.y2).d_L_real_unrolled
    x_syn = s.insertion.images.clone().requires_grad_()
    L_unrolled = t.unrolled_step(s, x_syn)[2]
    errors = {"Eqn 3 to x_syn": error([ours], torch.autograd.grad(L_unrolled, [x_syn]), (0, 2, 3, 1))}
    values, other = joint(), t.step(s, with_detector=True)
    errors |= {name: abs(float(values[name]) - v) / abs(v) for name, v in other.items()}
    for name, optimizer, known in (
        ("generators' gradient", p.gan.generator_optimizer, t.theta_optimizer),
        ("discriminators' gradient", p.gan.discriminator_optimizer, t.phi_optimizer),
    ):
        moments = [state["exp_avg"] for state in known.state.values()]
        errors[name] = error([v.value for v in optimizer._momentums], moments)
    errors["DET's step"] = error([v.value for v in p.detector_optimizer.momentums], list(t.momenta.values()))
    for name, value in errors.items():
        allowed = TOLERANCE["loss" if name in other else "gradient"]
        if not value <= allowed:
            raise SystemExit(f"the steps differ: {name} by {value:.2g}, more than {allowed}: {errors}")
    return errors


def error(ours, others, order=(2, 3, 1, 0)) -> float:
    """Returns the norm of the difference of two lists of tensors, relative to PyTorch's.

    `order` permutes PyTorch's axes of tensors with four dimensions, by default those of kernels.
    """
    others = [v.detach().permute(order) if v.ndim == 4 else v.detach() for v in others]
    pairs = [(np.asarray(a), b.numpy()) for a, b in zip(ours, others, strict=True)]
    squares = [[np.sum((a - b) ** 2), np.sum(b**2)] for a, b in pairs]
    difference, reference = np.sum(squares, 0)
    return float(np.sqrt(difference / reference))


def compare(steps: dict, others: dict, rounds: int) -> list[dict]:
    """Measures our steps and PyTorch's, which have the same names, alternately; returns one row per name."""
    measured = {f"{name}, ours": step for name, step in steps.items()}
    measured |= {f"{name}, PyTorch": step for name, step in others.items()}
    seconds = measuring.in_turns(measured, rounds)
    peaks = {
        name: measuring.peak_mib(step, of_tensorflow=name.endswith("ours")) for name, step in measured.items()
    }
    rows = []
    for name in steps:
        own, other = f"{name}, ours", f"{name}, PyTorch"
        rows.append(
            {
                "step": name,
                "ours": measuring.spread(seconds[own]),
                "PyTorch": measuring.spread(seconds[other]),
                "time": measuring.ratios(seconds[own], seconds[other]),
                "MiB": {"ours": peaks[own], "PyTorch": peaks[other]},
                "memory": round(peaks[own] / peaks[other], 3),
            }
        )
    return rows


def table(rows: list[dict]) -> str:
    lines = [
        f"{'':<15}{'ours, core s':<22}{'PyTorch, core s':<22}{'ours / PyTorch':<20}(target)  "
        f"memory (target {WANTED['memory']})"
    ]
    for row in rows:
        ours, theirs, time = (measuring.shown(row[key]) for key in ("ours", "PyTorch", "time"))
        mib = f"{row['MiB']['ours']:.0f} / {row['MiB']['PyTorch']:.0f} MiB"
        lines.append(
            f"{row['step']:<15}{ours:<22}{theirs:<22}{time:<20}({WANTED[row['step']]})     "
            f"{row['memory']:.2f} ({mib})"
        )
    return "\n".join(lines)


def run(options: argparse.Namespace) -> dict:
    """Checks that both steps are equal, measures them, prints and writes the result."""
    build.POOL_SIZE = 0
    s = stage.settings(
        "retinanet_small",
        options.batch,
        options.filters,
        output="full_image",
        generator_input="mask",
        gan_loss="lsgan",
        generator_blocks=options.blocks,
        gan_learning_rate=1e-5,
    )
    p, b = stage.joint_models(s, options.size), stage.batch(options.size, options.batch)
    t, given, objective = theirs(p, s, options.size), scene(p.DET, b), build.objective(s, ARMS["detectorgan"])
    alone, seed = stage.without_detector(p), tf.constant([0, 0])
    steps = {
        "CycleGAN step": tf.function(lambda: joint_step(alone, GAN_ONLY, b, seed), autograph=False),
        "joint step": tf.function(lambda: joint_step(p, objective, b, seed), autograph=False),
    }
    errors = check(p, t, b, given, steps["joint step"])
    print(f"both steps are equal; relative errors: {errors}", flush=True)
    if options.channels_last:
        for net in t.nets.values():
            net.to(memory_format=torch.channels_last)
    others = {name: lambda name=name: t.step(given, name == "joint step") for name in steps}
    rows = compare(steps, others, options.rounds)
    print(table(rows))
    versions = {"tensorflow": tf.__version__, "torch": torch.__version__}
    content = {
        "machine": measuring.machine() | versions,
        "options": {k: v for k, v in vars(options).items() if k != "out"},
        "wanted": WANTED,
        "parameters": {name: sum(v.numel() for v in net.parameters()) for name, net in t.nets.items()},
        "relative errors": {name: float(f"{value:.2g}") for name, value in errors.items()},
        "rows": rows,
    }
    if options.out:
        measuring.write(options.out, content)
    return content


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--batch", type=int, default=2, help="images of each stream")
    parser.add_argument("--filters", type=int, default=32, help="filters of generators and discriminators")
    parser.add_argument("--blocks", type=int, default=0, help="blocks of the generators; 0: the default")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--channels_last", action="store_true", help="use PyTorch's channels_last format")
    parser.add_argument("--out", type=Path, help="JSON to write")
    return parser.parse_args(argv)


if __name__ == "__main__":
    chosen = parse()
    stage.prepare(chosen.threads)
    torch.set_num_threads(chosen.threads)
    run(chosen)
