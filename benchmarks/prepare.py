"""What `prepare` costs an image, and whether its memory grows with their number.

    python benchmarks/prepare.py --out=runs/prepare.json

Draws grey PNGs with one box each, prepares the first few, then all, in a process of
its own each time. Wanted: peak memory of 10,000 images at most 1.2 times that of 1,000. The default takes
some half an hour on one core, most of it for drawing and decoding 11,000 images of 1024 px; 8 GB of disk.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm


def draw(folder: Path, count: int, size: int, compression: int) -> None:
    """Clouds under noise: no two pictures are alike."""
    random = np.random.default_rng(0)
    noise = random.integers(0, 64, (size, size), np.uint8)
    form = [cv2.IMWRITE_PNG_COMPRESSION, compression]
    for number in tqdm(range(count), desc="drawing", unit="image"):
        clouds = cv2.resize(random.integers(0, 190, (16, 16), np.uint8), (size, size))
        pixels = np.roll(noise, random.integers(0, size, 2), (0, 1)) + clouds
        cv2.imwrite(str(folder / f"{number:06d}.png"), pixels, form)


def annotations(count: int, size: int) -> dict:
    images = [{"id": n, "file_name": f"{n:06d}.png", "height": size, "width": size} for n in range(count)]
    box = [size // 4, size // 4, size // 8, size // 8]
    boxes = [{"id": n, "image_id": n, "category_id": 1, "bbox": box} for n in range(count) if n % 4]
    return {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "object"}]}


def measure(folder: Path, count: int, size: int, image_size: int) -> dict:
    """Seconds and peak memory of one `prepare` process."""
    file = folder / f"annotations_{count}.json"
    file.write_text(json.dumps(annotations(count, size)), encoding="utf-8")
    out = folder / f"prepared_{count}"
    command = [sys.executable, "-m", "tf_detectorgan.prepare", f"--annotations={file}", f"--out={out}"]
    began = time.monotonic()
    process = subprocess.Popen([*command, f"--image_size={image_size}"], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.monotonic() - began
    if status:
        raise SystemExit(f"prepare failed with status {status}")
    shutil.rmtree(out)
    return {
        "images": count,
        "seconds": round(seconds, 1),
        "core_seconds": round(usage.ru_utime + usage.ru_stime, 1),
        "peak_memory_mib": usage.ru_maxrss // 1024,  # Linux counts KiB
    }


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--counts", type=int, nargs=2, default=[1000, 10000])
    parser.add_argument("--size", type=int, default=1024, help="of the drawn files")
    parser.add_argument("--compression", type=int, default=1, help="of the drawn files; 0 draws faster")
    parser.add_argument("--image_size", type=int, default=512, help="as of prepare")
    parser.add_argument("--out", type=Path, help="JSON to write")
    arguments = parser.parse_args()
    few, many = sorted(arguments.counts)
    with tempfile.TemporaryDirectory(prefix="prepare-") as name:
        draw(Path(name), many, arguments.size, arguments.compression)
        rows = [measure(Path(name), count, arguments.size, arguments.image_size) for count in (few, many)]
    print(f"{'images':>8}{'seconds':>10}{'core s':>10}{'images/core s':>16}{'peak MiB':>10}")
    for row in rows:
        rate = row["images"] / row["core_seconds"]
        print(
            f"{row['images']:>8}{row['seconds']:>10}{row['core_seconds']:>10}{rate:>16.1f}{row['peak_memory_mib']:>10}"
        )
    extra = (rows[1]["core_seconds"] - rows[0]["core_seconds"]) / (many - few)
    ratio = rows[1]["peak_memory_mib"] / rows[0]["peak_memory_mib"]
    print(f"an image more: {1000 * extra:.1f} ms of a core ({1 / extra:.1f} images/s)")
    print(f"peak memory, {many} images / {few} images: {ratio:.2f} (wanted: at most 1.2)")
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps({"rows": rows, "memory_ratio": ratio}, indent=1) + "\n", "utf-8")
        print(f"written: {arguments.out}")


if __name__ == "__main__":
    main()
