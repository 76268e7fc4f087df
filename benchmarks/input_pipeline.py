"""Compares the input pipeline with a PyTorch DataLoader: images per second on one core.

    pip install -e '.[bench]'
    python benchmarks/input_pipeline.py --out=runs/input_pipeline.json

Both sides read the same PNGs from memory and do the same: decode, mirror half of them, zoom and shift with
bilinear interpolation, change brightness and contrast, transform the boxes, batch. Each side is a separate
process on one core with one thread; they run alternately. Target: a ratio of at least 1.

    python benchmarks/input_pipeline.py --wait=configs/demo.flags

trains the last arm of a flagfile for some joint steps and prints how long a step waits for its batch. Target:
less than 2 % of its time.
"""

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

WARM_UP = 20  # batches: tracing, first reads


def ours(folder: Path, batch_size: int, batches: int) -> float:
    """Returns the images per second of `labelled_batches` with its default augmentation."""
    import tensorflow as tf

    from tf_detectorgan.data import pipeline, records
    from tf_detectorgan.data.augmentation import Augmentation

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    source = pipeline.labelled_batches(
        records.open_dataset(folder / "set"),
        batch_size=batch_size,
        seed=0,
        start_step=0,
        steps=WARM_UP + batches,
        augment=Augmentation(),
    )
    return rate(iter(source), batch_size, batches)


def theirs(folder: Path, batch_size: int, batches: int) -> float:
    """Returns the images per second of a DataLoader over the same files."""
    import io

    import torch
    from PIL import Image
    from torch.nn.functional import affine_grid, grid_sample

    torch.set_num_threads(1)
    files = [path.read_bytes() for path in sorted((folder / "png").glob("*.png"))]
    truth = json.loads((folder / "boxes.json").read_text())

    class Images(torch.utils.data.Dataset):
        def __len__(self):
            return batch_size * (WARM_UP + batches)

        def __getitem__(self, number):
            random = torch.rand(7, generator=torch.Generator().manual_seed(number))
            pixels = np.array(Image.open(io.BytesIO(files[number % len(files)])))
            image = torch.from_numpy(pixels).float()[None, None] * (2 / 255) - 1
            boxes = torch.tensor(truth[number % len(files)]).reshape(-1, 4)
            side = image.shape[-1]
            mirror = -1.0 if random[0] < 0.5 else 1.0
            signed = 2 * random[1:4] - 1
            zoom = 1 + 0.1 * torch.sign(signed[0]) * torch.relu(2 * signed[0].abs() - 1)
            move = torch.round(0.1 * signed[1:] * side)  # x, y in pixels
            # grid_sample has the inverse map, in units of half the side
            rows = [
                [mirror / zoom, 0, -2 * move[0] * mirror / zoom / side],
                [0, 1 / zoom, -2 * move[1] / zoom / side],
            ]
            grid = affine_grid(torch.tensor([rows]), image.shape, align_corners=False)
            image = grid_sample(image, grid, padding_mode="border", align_corners=False)[0]
            centre = torch.tensor([side / 2] * 4)
            scale = torch.stack([mirror * zoom, zoom, mirror * zoom, zoom])
            boxes = (boxes - centre) * scale + centre + move.repeat(2)
            x, y = boxes[:, 0::2].sort(1).values, boxes[:, 1::2]
            boxes = torch.stack([x[:, 0], y[:, 0], x[:, 1], y[:, 1]], 1).clamp(0, side)
            mean = image.mean()
            image = mean + (1 + 0.1 * (2 * random[4] - 1)) * (image - mean) + 0.1 * (2 * random[5] - 1)
            padded = torch.zeros(8, 4)
            padded[: len(boxes)] = boxes[:8]
            return image.clamp(-1, 1), padded

    return rate(iter(torch.utils.data.DataLoader(Images(), batch_size)), batch_size, batches)


def rate(source, batch_size: int, batches: int) -> float:
    for _ in range(WARM_UP):
        next(source)
    began = time.perf_counter()
    for _ in range(batches):
        next(source)
    return batches * batch_size / (time.perf_counter() - began)


def wait(flagfile: Path, steps: int) -> None:
    """Measures the time between two joint steps, and the part of it that is waiting for the next batch."""
    from absl import flags

    from tf_detectorgan import config, train
    from tf_detectorgan.training import phases
    from tf_detectorgan.training.settings import Train

    waits, totals = list[float](), list[float]()
    run_phase = phases.run_phase

    def timed(name, *, batches, **given):
        def watched(start):
            source = batches(start)
            while True:
                began = time.perf_counter()
                batch = next(source)
                waits.append(time.perf_counter() - began)
                yield batch
                totals.append(time.perf_counter() - began)

        run_phase(name, batches=watched if name.endswith("joint") else batches, **given)

    phases.run_phase = timed
    config.define_flags(Train)
    flags.FLAGS(["wait", f"--flagfile={flagfile}"])
    settings = config.read_flags(Train)
    few = {
        "pretrain_gan_steps": 1,
        "pretrain_detector_steps": 1,
        "final_detector_steps": 1,
        "synthetic_count": 8,
        "crossfit_folds": 0,
    }
    with tempfile.TemporaryDirectory(prefix="wait-") as name:
        changes = few | {"joint_steps": WARM_UP + steps, "run_dir": name, "arm": settings.arm[-1:]}
        train.main(dataclasses.replace(settings, **changes))
    waited, spent = sum(waits[WARM_UP:-1]), sum(totals[WARM_UP:])  # the last step is not measured
    count = len(totals) - WARM_UP
    print(f"{count} joint steps of {1000 * spent / count:.0f} ms")
    print(f"waiting for input: {1000 * waited / count:.2f} ms, {waited / spent:.2%} (target: less than 2 %)")


def export(folder: Path, size: int) -> None:
    """A drawn data set, and its training images as PNGs with their boxes for the other side."""
    import tensorflow as tf

    from tf_detectorgan.data import phantom, records, shards

    config = phantom.PhantomConfig(size=size, clean_images=1, unboxed_images=0, test_images=1)
    shards.build(phantom.plan(config), folder / "set")
    (folder / "png").mkdir()
    boxes = []
    for number, one in enumerate(records.open_dataset(folder / "set").serialized("train_labelled")):
        feature = tf.train.Example.FromString(one.numpy()).features.feature
        (folder / "png" / f"{number:04d}.png").write_bytes(feature["image"].bytes_list.value[0])
        boxes.append(np.reshape(feature["boxes"].float_list.value, [-1, 4]).tolist())
    (folder / "boxes.json").write_text(json.dumps(boxes))


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--batches", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="JSON to write")
    parser.add_argument("--wait", type=Path, help="a flagfile of train: measure only the waiting time")
    parser.add_argument(
        "--side", choices=("ours", "theirs"), help=argparse.SUPPRESS
    )  # the process of one side
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.wait:
        return wait(arguments.wait, arguments.batches)
    if arguments.side:
        side = {"ours": ours, "theirs": theirs}[arguments.side]
        print(side(arguments.folder, arguments.batch_size, arguments.batches))
        return None
    core = min(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory(prefix="input-") as name:
        export(Path(name), arguments.size)
        rates = {"ours": list[float](), "theirs": list[float]()}
        for side in list(rates) * arguments.rounds:
            command = ["taskset", "--cpu-list", str(core), sys.executable, __file__, f"--side={side}"]
            command += [f"--folder={name}", f"--batch_size={arguments.batch_size}"]
            done = subprocess.run(
                [*command, f"--batches={arguments.batches}"], check=True, stdout=subprocess.PIPE, text=True
            )
            rates[side].append(float(done.stdout.split()[-1]))
    middle = {side: statistics.median(values) for side, values in rates.items()}
    for side, values in rates.items():
        print(f"{side:<8}{middle[side]:8.0f} images/s  ({', '.join(f'{v:.0f}' for v in values)})")
    print(f"ours / theirs: {middle['ours'] / middle['theirs']:.2f} (target: at least 1)")
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(rates, indent=1) + "\n", "utf-8")
        print(f"written: {arguments.out}")


if __name__ == "__main__":
    main()
