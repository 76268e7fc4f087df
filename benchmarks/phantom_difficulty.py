"""How hard the phantom is: AP of the same detector with few and with many labelled images.

    python benchmarks/phantom_difficulty.py --out=runs/difficulty

Wanted: AP@0.1 of 0.2 to 0.4 with 57 labelled images, and at least twice that with 1,000. Runs resume; with
8,000 steps both together take about 40 minutes on 2 cores. With fewer steps both learn nearly the same: 57
images are learnt by heart after 2,000, from 1,000 there is more to learn for longer.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/difficulty"))
    parser.add_argument("--images", type=int, nargs="+", default=[57, 1000])
    parser.add_argument("--steps", type=int, default=8000)
    parser.add_argument("--size", type=int, default=64)
    arguments = parser.parse_args()
    rows = []
    for count in arguments.images:
        run_dir = arguments.out / f"{arguments.size}px_{count}"
        command = [sys.executable, "-m", "tf_detectorgan.train", f"--run_dir={run_dir}", "--arm=real_only"]
        command += [
            f"--phantom_size={arguments.size}",
            f"--phantom_train_images={count}",
            "--anchor_sizes=5,9,18",
        ]
        subprocess.run([*command, f"--final_steps={arguments.steps}"], check=True)
        metrics = json.loads((run_dir / "arms" / "real_only" / "evaluation" / "metrics.json").read_text())
        rows.append((count, metrics["ap"]["0.1"], metrics["ap"]["0.5"]))
    print("labelled images  AP@0.1              AP@0.5")
    for count, *values in rows:
        cells = [f"{v['value']:.2f} [{v['low']:.2f}, {v['high']:.2f}]" for v in values]
        print(f"{count:>15}  {cells[0]:<18}  {cells[1]}")
    print(f"ratio of AP@0.1: {rows[-1][1]['value'] / rows[0][1]['value']:.2f}")


if __name__ == "__main__":
    main()
