r"""Serves a user study, in which raters compare two methods' synthetic images in a browser (Table 4).

python -m tf_detectorgan.study \
    --run=runs/mine/arms/detectorgan --run=runs/mine/arms/cyclegan_bbox --data_dir=data/mine --out=study/mine
python -m tf_detectorgan.study --out=study/mine            # continues a study
python -m tf_detectorgan.study --out=study/mine --report   # prints the table

The two images of a pair have the same background and boxes. Raters are shown only the first box, so make the
images of both methods by `synthesize --objects=1`. The directory contains the images, the plan and the
answers (answers.sqlite). This command needs the extra `study`: pip install 'tf_detectorgan[study]'.
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
        "Give it twice: an arm of a run, or a directory of tf_detectorgan.synthesize. It may be left out to "
        "continue a study.",
        repeated=True,
    )
    out: str = option("study", "The study's directory.")
    report: bool = option(False, "Print the table instead of serving the page.")
    pairs: int = option(40, "Pairs of synthetic images.", low=1)
    checks: int = option(
        4, "Attention checks: pairs of a real image and its copy with the box's pixels shuffled.", low=0
    )
    data_dir: str = option("", "Prepared data set with labelled training images for the attention checks.")
    seed: int = option(0, "Random seed of the choice of pairs, and of each rater's order and sides.", low=0)
    host: str = option("127.0.0.1", "Address to serve at; addresses other than loopback need --token.")
    port: int = option(8000, "Port to serve at.", low=1, high=65535)
    token: str = option(
        "",
        f"Access token, at least {SHORTEST_TOKEN} characters; the printed address contains it. Set it in a "
        "--flagfile to hide it from the process list.",
    )


def main(options: Study) -> None:
    """Creates or opens a study, and serves it or prints the report."""
    out = Path(options.out).expanduser().absolute()
    if options.report:
        plan, answers = opened(options, out), Answers(out)
        print(report.table(plan, answers.raters(), answers.all()))
        return
    with listen(options) as listener:  # errors of serving are raised before files are written
        if not (out / plans.PLAN).exists():
            begin(options, out)
        serve(options, out, len(opened(options, out).pairs), listener)


def opened(options: Study, out: Path) -> plans.StudyPlan:
    """Returns the study in `out`; `options` may be those of the command that created it.

    Raises:
      InputError: there is no study, or --run is given and it is a different study.
    """
    plan = plans.read(out)
    checks = sum(pair.check for pair in plan.pairs)
    given = (absolute(options.run), options.pairs, options.checks, options.seed)
    if options.run and given != (plan.runs, len(plan.pairs) - checks, checks, plan.seed):
        raise InputError(
            f"--out={out}: contains a study with other --run, --pairs, --checks or --seed; leave out --run "
            "to continue it, or choose another directory"
        )
    return plan


def absolute(runs: tuple[str, ...]) -> tuple[str, ...]:
    """Returns the values of --run as absolute paths, as in the plan."""
    return tuple(str(Path(run).expanduser().absolute()) for run in runs)


def begin(options: Study, out: Path) -> None:
    """Creates the study: draws the pairs and copies their images.

    Raises:
      InputError: an option or a run is invalid; nothing is written.
    """
    if len(options.run) != 2:
        raise InputError(f"--run: give it twice, once per method (it was given {len(options.run)} times)")
    if out.exists() and any(out.iterdir()):
        raise InputError(f"--out={out}: is not empty and contains no study; choose another directory")
    first, second = (plans.synthetic_images(Path(name).expanduser()) for name in options.run)
    if first[0].file == second[0].file:
        raise InputError(f"--run: {options.run[0]} and {options.run[1]} contain the same images")
    pairs = plans.matched(first, second, options.pairs, options.seed)
    checks = real_images(options) if options.checks else []
    methods = (first[0].method, second[0].method)
    if methods[0] == methods[1]:  # two trainings of one method, named by their directories
        methods = (options.run[0], options.run[1])
    plans.write(out, pairs, checks, methods, options.seed, absolute(options.run))


def real_images(options: Study) -> list[plans.RealImage]:
    """Returns labelled training images for the attention checks, drawn by the seed.

    Raises:
      InputError: --data_dir is missing, or has too few images.
    """
    if not options.data_dir:
        raise InputError(
            "--data_dir is missing: give a prepared data set for the attention checks, or --checks=0"
        )
    dataset = records.open_dataset(options.data_dir)
    count = dataset.count("train_labelled")
    if count < options.checks:
        raise InputError(
            f"--checks={options.checks}: {options.data_dir} has only {count} labelled training images"
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
    """Returns a socket at --host and --port.

    Raises:
      InputError: the page would be public without a token, the token is too short, the extra is not
        installed, or the address is not available.
    """
    if options.token and len(options.token) < SHORTEST_TOKEN:
        raise InputError(f"--token: has {len(options.token)} characters, needs {SHORTEST_TOKEN} or more")
    if options.host == "::1":  # Werkzeug's list of trusted hosts cannot contain IPv6 addresses
        raise InputError("--host=::1: requests from other sites could not be refused; use 127.0.0.1")
    if options.host not in LOOPBACK and not options.token:
        raise InputError(f"--host={options.host}: other people could open the study; set a --token")
    for name in ("flask", "waitress"):
        if importlib.util.find_spec(name) is None:
            raise InputError(f"{name} is not installed: pip install 'tf_detectorgan[study]'")
    try:
        family = socket.getaddrinfo(options.host, options.port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((options.host, options.port), family=family)
    except OSError as error:
        raise InputError(
            f"--host={options.host} --port={options.port}: {error.strerror}; choose another host or port"
        ) from error


def serve(options: Study, out: Path, pairs: int, listener: socket.socket) -> None:
    """Serves the page until it is interrupted."""
    import waitress

    from tf_detectorgan.user_study.page import create_app

    app = create_app(out, token=options.token, hosts=LOOPBACK if options.host in LOOPBACK else ())
    server = waitress.create_server(app, sockets=[listener], ident=None)
    print(f"{pairs} pairs at {address(options)} (Ctrl-C stops the server; answers are kept)", flush=True)
    server.run()
    print(f"answers in {out}; --report prints the table")


def address(options: Study) -> str:
    """Returns the address that raters open."""
    host = f"[{options.host}]" if ":" in options.host else options.host
    query = f"?{urlencode({'token': options.token})}" if options.token else ""
    return f"http://{host}:{options.port}/{query}"


if __name__ == "__main__":
    command.run(Study, main)
