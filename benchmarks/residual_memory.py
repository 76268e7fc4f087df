"""Measures the memory that the object residuals of a data set of Cityscapes' size need.

    python benchmarks/residual_memory.py --out=runs/residual_memory.json

Draws colour street scenes with one to eight people each, and computes their residuals in a separate process.
Target: with 2,000 labelled images of 256 px, a peak of less than 1 GB above the process without residuals. It
takes about three minutes on two cores, and 0.4 GB of disk space.
"""

import argparse
import dataclasses
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from measuring import status_kib

from tf_detectorgan.data import records, shards

GROUND = 12  # side of the coarse grid from which a background is interpolated
CLEAN = 0.2  # clean images for each labelled one


@dataclasses.dataclass(frozen=True)
class Street:
    """Draws an image by its number."""

    images: int  # labelled; those of higher numbers are clean
    size: int  # pixels
    people: int  # at most in an image

    def __call__(self, index: int) -> dict:
        rng = np.random.default_rng(index)
        at = np.linspace(0, GROUND - 1.001, self.size)
        low, part = at.astype(int), (at % 1)[:, None]
        image = rng.uniform(40, 200, (GROUND, GROUND, 3))
        for _ in range(2):  # rows, then columns
            rows = image.reshape(GROUND, -1)
            image = ((1 - part) * rows[low] + part * rows[low + 1]).reshape(self.size, -1, 3).swapaxes(0, 1)
        image = image + rng.integers(-8, 8, image.shape)
        count = int(rng.integers(1, self.people + 1)) if index < self.images else 0
        boxes = np.array([self.add_person(rng, image) for _ in range(count)], np.float32)
        return {
            "image": np.clip(image, 0, 255).astype(np.uint8),
            "image_id": index,
            "file_name": f"street_{index:05d}.png",
            "groups": [f"street_{index:05d}"],
            "boxes": boxes.reshape(-1, 4),
            "labels": [0] * count,
            "valid_size": (self.size, self.size),
            "source_size": (self.size, self.size),
            "provenance": "",
        }

    def add_person(self, rng: np.random.Generator, image: np.ndarray) -> tuple[float, float, float, float]:
        """Draws an ellipse of some colour into image [S, S, 3]; returns its box."""
        height = rng.uniform(0.27, 0.9) * self.size
        width = 0.41 * height
        x, y = rng.uniform(0, self.size - width), rng.uniform(0, self.size - height)
        rows, columns = np.ogrid[: self.size, : self.size]
        across, down = (columns + 0.5 - x) / width - 0.5, (rows + 0.5 - y) / height - 0.5
        image[across**2 + down**2 < 0.25] += rng.uniform(-80, 80, 3)
        return x, y, x + width, y + height


def write(folder: Path, street: Street) -> None:
    """Writes the drawn data set to `folder`."""
    clean = round(CLEAN * street.images)
    plan = shards.Plan(
        shards.About("streets", "1.0.0", "drawn streets"),
        schema=records.features((street.size, street.size, 3), 8, ("person",)),
        max_boxes=street.people,
        splits={
            "train_labelled": range(street.images),
            "train_clean": range(street.images, street.images + clean),
        },
        example=street,
    )
    shards.build(plan, folder)


def measure(folder: Path) -> dict[str, float]:
    """Returns this process's peak resident memory before and after computing a data set's residuals."""
    from tf_detectorgan.data.object_residuals import object_residuals

    dataset = records.open_dataset(folder)
    next(iter(dataset.serialized("train_labelled").map(dataset.decode)))  # starts TensorFlow
    before = status_kib("VmHWM")
    residuals = object_residuals(dataset)
    after = status_kib("VmHWM")
    kept = sum(np.asarray(part).nbytes for part in residuals)
    objects = len(residuals.weights)
    return {
        "images": dataset.count("train_labelled"),
        "objects": objects,
        "peak_before_mib": before / 1024,
        "peak_after_mib": after / 1024,
        "peak_growth_mib": (after - before) / 1024,
        "kept_bytes_per_object": kept / objects,
    }


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=2000, help="labelled images")
    parser.add_argument("--size", type=int, default=256, help="side of an image in pixels")
    parser.add_argument("--people", type=int, default=8, help="maximum number per image")
    parser.add_argument("--out", type=Path, help="JSON to write")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)  # a process with this data set
    return parser.parse_args(arguments)


def run(options: argparse.Namespace) -> None:
    if options.measure:
        print(json.dumps(measure(options.measure)))
        return
    with tempfile.TemporaryDirectory(prefix="residuals-") as name:
        folder = Path(name) / "set"
        write(folder, Street(options.images, options.size, options.people))
        command = [sys.executable, __file__, f"--measure={folder}"]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    row = json.loads(done.stdout.splitlines()[-1])
    print(f"{row['images']} images of {options.size} px, {row['objects']} objects")
    print(f"peak memory before: {row['peak_before_mib']:.0f} MiB, after: {row['peak_after_mib']:.0f} MiB")
    print(f"growth: {row['peak_growth_mib']:.0f} MiB (target: less than 954 MiB, which is 1 GB)")
    print(f"kept: {row['kept_bytes_per_object']:.0f} bytes per object")
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(row, indent=1) + "\n", "utf-8")
        print(f"written: {options.out}")


if __name__ == "__main__":
    run(parse())
