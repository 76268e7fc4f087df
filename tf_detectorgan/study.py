r"""Asks people which of two methods' synthetic images look more real: a page in the browser (Table 4).

python -m tf_detectorgan.study \
    --run=runs/mine/arms/detectorgan --run=runs/mine/arms/cyclegan_bbox --data_dir=data/mine --out=study/mine
python -m tf_detectorgan.study --out=study/mine            # goes on with a study that was begun
python -m tf_detectorgan.study --out=study/mine --report   # prints the table

Pairs have the same background and the same boxes, of which raters are shown one: images of both methods by
`synthesize --objects=1` have no other. The directory keeps the images shown, the plan and the answers
(answers.sqlite). Needs the extra `study`: pip install 'tf_detectorgan[study]'.
"""

from __future__ import annotations

import importlib.util
import os
import socket
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlencode

from tf_detectorgan.environment import TENSORFLOW

os.environ.update(TENSORFLOW | os.environ)  # before TensorFlow is imported

import numpy as np

from tf_detectorgan import boxes, command
from tf_detectorgan.config import option
from tf_detectorgan.data import records
from tf_detectorgan.errors import InputError
from tf_detectorgan.user_study import plan as plans
from tf_detectorgan.user_study import report
from tf_detectorgan.user_study.answers import Answers

LOOPBACK = ("127.0.0.1", "localhost")
SHORTEST_TOKEN = 16


@dataclass(frozen=True)
class Study:
    """Options of `python -m tf_detectorgan.study`."""

    run: tuple[str, ...] = option(
        (),
        "Give it twice: an arm of a run, or a directory of tf_detectorgan.synthesize. Begins a study; in one "
        "that was begun it may be left out.",
        repeated=True,
    )
    out: str = option("study", "The study's directory.")
    report: bool = option(False, "Print the table instead of serving the page.")
    pairs: int = option(40, "Pairs of synthetic images.", low=1)
    checks: int = option(
        4, "Attention checks: a real image beside itself with the box's pixels shuffled; 0: none.", low=0
    )
    data_dir: str = option("", "Prepared data set whose labelled training images the checks show.")
    seed: int = option(0, "Which pairs, and every rater's order and sides, follow from it.", low=0)
    host: str = option("127.0.0.1", "Address to serve at; others than loopback need --token.")
    port: int = option(8000, "Port to serve at.", low=1, high=65535)
    token: str = option(
        "",
        f"Raters need it, in the address that is printed; at least {SHORTEST_TOKEN} letters. A --flagfile "
        "keeps it out of the list of processes.",
    )


def main(options: Study) -> None:
    """Begins a study, or opens one, and serves it or reports on it."""
    out = Path(options.out).expanduser().absolute()
    if options.report:
        plan, answers = opened(options, out), Answers(out)
        print(report.table(plan, answers.raters(), answers.all()))
        return
    with listen(options) as listener:  # what serving wants is known before anything is written
        if not (out / plans.PLAN).exists():
            begin(options, out)
        serve(options, out, len(opened(options, out).pairs), listener)


def opened(options: Study, out: Path) -> plans.StudyPlan:
    """The study in `out`. The command that began it may be given again.

    Raises:
      InputError: there is none, or --run is given and the study is another one.
    """
    plan = plans.read(out)
    checks = sum(pair.check for pair in plan.pairs)
    asked = (absolute(options.run), options.pairs, options.checks, options.seed)
    if options.run and asked != (plan.runs, len(plan.pairs) - checks, checks, plan.seed):
        raise InputError(
            f"--out={out}: holds a study of other --run, --pairs, --checks or --seed; leave --run out to go "
            "on with it, or choose another directory"
        )
    return plan


def absolute(runs: tuple[str, ...]) -> tuple[str, ...]:
    """--run as the plan keeps it."""
    return tuple(str(Path(run).expanduser().absolute()) for run in runs)


def begin(options: Study, out: Path) -> None:
    """Draws the pairs and copies their images.

    Raises:
      InputError: the options or the runs are at fault; nothing is written then.
    """
    if len(options.run) != 2:
        raise InputError(f"--run: give it twice, one a method (it was given {len(options.run)} times)")
    if out.exists() and any(out.iterdir()):
        raise InputError(f"--out={out}: exists and holds no study; choose another directory")
    first, second = (plans.synthetic_images(Path(name).expanduser()) for name in options.run)
    if first[0].file == second[0].file:
        raise InputError(f"--run: {options.run[0]} and {options.run[1]} hold the same images")
    pairs = plans.matched(first, second, options.pairs, options.seed)
    checks = real_images(options) if options.checks else []
    methods = (first[0].method, second[0].method)
    if methods[0] == methods[1]:  # two trainings of one method: told apart by their directories
        methods = (options.run[0], options.run[1])
    plans.write(out, pairs, checks, methods, options.seed, absolute(options.run))


def real_images(options: Study) -> list[plans.RealImage]:
    """Labelled training images for the checks, drawn by the seed.

    Raises:
      InputError: no data set, or too few images.
    """
    if not options.data_dir:
        raise InputError(
            "--data_dir= is missing: a prepared data set for the attention checks; or --checks=0"
        )
    dataset = records.open_dataset(options.data_dir)
    count = dataset.count("train_labelled")
    if count < options.checks:
        raise InputError(
            f"--checks={options.checks}: {options.data_dir} has {count} labelled training images"
        )
    chosen = set(np.random.default_rng([options.seed, 3]).permutation(count)[: options.checks].tolist())
    result = []
    for number, record in enumerate(dataset.serialized("train_labelled").map(dataset.decode)):
        if number in chosen:
            x, y, w, h = (float(v) for v in boxes.to_xywh(record.boxes[0]))
            pixels = records.to_stored(record.image.numpy(), 8)
            result.append(plans.RealImage(pixels, (x, y, w, h), record.file_name.numpy().decode()))
    return result


def listen(options: Study) -> socket.socket:
    """A socket at --host and --port.

    Raises:
      InputError: the page would be open to everybody, the token is too short, the extra is not installed, or
        the address cannot be had.
    """
    if options.token and len(options.token) < SHORTEST_TOKEN:
        raise InputError(f"--token: has {len(options.token)} letters, needs {SHORTEST_TOKEN} or more")
    if options.host == "::1":  # Werkzeug's list of trusted names takes no IPv6 address
        raise InputError("--host=::1: other sites could not be kept out at this address; use 127.0.0.1")
    if options.host not in LOOPBACK and not options.token:
        raise InputError(f"--host={options.host}: others could reach the study; give raters a --token")
    for name in ("flask", "waitress"):
        if importlib.util.find_spec(name) is None:
            raise InputError(f"{name} is missing: install the extra by pip install 'tf_detectorgan[study]'")
    try:
        family = socket.getaddrinfo(options.host, options.port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((options.host, options.port), family=family)
    except OSError as error:
        raise InputError(
            f"--host={options.host} --port={options.port}: {error.strerror}; choose others"
        ) from error


def serve(options: Study, out: Path, pairs: int, listener: socket.socket) -> None:
    """Serves the page until it is interrupted."""
    import waitress

    from tf_detectorgan.user_study.page import create_app

    app = create_app(out, token=options.token, hosts=LOOPBACK if options.host in LOOPBACK else ())
    server = waitress.create_server(app, sockets=[listener], ident=None)
    print(f"{pairs} pairs at {address(options)} (Ctrl-C ends; answers are kept)", flush=True)
    server.run()
    print(f"answers in {out}; --report prints the table")


def address(options: Study) -> str:
    """What raters open."""
    host = f"[{options.host}]" if ":" in options.host else options.host
    query = f"?{urlencode({'token': options.token})}" if options.token else ""
    return f"http://{host}:{options.port}/{query}"


if __name__ == "__main__":
    command.run(Study, main)
