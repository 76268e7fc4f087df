"""What every test runs under: a quiet TensorFlow on two CPU devices, a fixed seed, the way to real images."""

import contextlib
import fcntl
import gc
import os
import shutil
import signal
import subprocess
from pathlib import Path

from tf_detectorgan.environment import TENSORFLOW

os.environ.update(TENSORFLOW | os.environ)  # before TensorFlow is imported
os.environ["CUDA_VISIBLE_DEVICES"] = "-1"  # expected numbers below are the CPU's
os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ["MPLBACKEND"] = "agg"

import hypothesis
import keras
import playwright.sync_api
import pytest
import tensorflow as tf

# Before any op runs, as TensorFlow fixes its devices and threads at the first. Two devices: MirroredStrategy
# is tested as an identity. Two threads: sums are cut into the same parts on every machine.
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)
tf.config.threading.set_intra_op_parallelism_threads(2)
tf.config.threading.set_inter_op_parallelism_threads(2)

# The first call of a TensorFlow function traces it, so examples differ in time a thousandfold; and a failure
# seen in one run is to be seen in the next.
hypothesis.settings.register_profile("repeatable", deadline=None, derandomize=True)
hypothesis.settings.load_profile("repeatable")

ROOT = Path(__file__).resolve().parents[1]


def pytest_collection_modifyitems(items):
    """Files with a slow test come first: the last ones are short, and both processes end together."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(autouse=True)
def seed():
    """Seeds Python, NumPy and TensorFlow, resets Keras: no test's numbers depend on the tests before it."""
    keras.config.set_floatx("float32")
    keras.utils.clear_session(free_memory=False)  # else a float64 test's dtype policy outlives it
    keras.utils.set_random_seed(0)
    return 0


@pytest.fixture(scope="module", autouse=True)
def survivors():
    """What outlives a module, as graphs that TensorFlow keeps, is out of the way of later collections."""
    yield
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def real_data():
    """real_data(name): the directory of a real data set, or a skip saying where it was looked for.

    Looked for in $DETECTORGAN_DATA, else in ../shared/data beside the repository (see CONTRIBUTING.md).
    """
    given = os.environ.get("DETECTORGAN_DATA")
    parent = Path(given) if given else ROOT.parent / "shared" / "data"
    if given and not parent.is_dir():
        raise NotADirectoryError(f"DETECTORGAN_DATA={given} is not a directory")

    def find(name: str) -> Path:
        if not (parent / name).is_dir():
            pytest.skip(f"no real images {name!r} in {parent}; set DETECTORGAN_DATA (CONTRIBUTING.md)")
        return parent / name

    return find


@pytest.fixture(scope="session")
def browser():
    """Chromium without a window, driven by Playwright; skips where there is none."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not program:
        pytest.skip("no Chromium in PATH: install it (Debian: apt-get install chromium)")
    # No sandbox, as root has none; nothing may ask the network.
    flags = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking"]
    with playwright.sync_api.sync_playwright() as driver:
        window = driver.chromium.launch(executable_path=program, args=[*flags, "--disable-sync"])
        yield window
        window.close()


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 16 KiB, mounted in memory: nothing else is full or read-only for root, as CI may be."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", place], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"may not mount a disk ({mounted.stderr.decode().strip()})")
    yield place
    subprocess.run(["umount", "--lazy", place], check=True)


@pytest.fixture(scope="session")
def tiny_phantom(tmp_path_factory):
    """tiny_phantom(name, **changes): the directory of a drawn data set of 32 pixels and a few images."""
    from tf_detectorgan.data import phantom, shards  # here: a test of boxes need not wait for TFDS

    few = {
        "train_images": 4,
        "clean_images": 4,
        "unboxed_images": 0,
        "validation_images": 2,
        "test_images": 4,
    }
    parent = tmp_path_factory.mktemp("phantoms")

    def make(name, **changes):
        config = phantom.PhantomConfig(**{"size": 32, "test_clean_images": 2, **few, **changes})
        shards.build(phantom.plan(config), parent / name)
        return parent / name

    return make


@contextlib.contextmanager
def _handlers_kept():
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@pytest.fixture
def handlers():
    """For a test in whose process a command runs: the two signals that it takes over are given back."""
    with _handlers_kept():
        yield


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory, tiny_phantom, worker_id):
    """A run directory in which `cut_paste` is finished, after two steps. Copy it before writing to it.

    Whichever process of the tests wants it first makes it for all.
    """
    own = tmp_path_factory.getbasetemp()
    path = (own if worker_id == "master" else own.parent) / "finished"
    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (path / "report.html").exists():
            _train(path, tiny_phantom("own"))
    return path


def _train(run_dir, data_dir):
    from tf_detectorgan import train
    from tf_detectorgan.training.settings import Train

    # What is made once for all comes before `seed`, after any test.
    keras.config.set_floatx("float32")
    keras.utils.clear_session(free_memory=False)
    with _handlers_kept():
        train.main(
            Train(
                run_dir=str(run_dir),
                data_dir=str(data_dir),
                arm=("cut_paste",),
                object_source="crop",
                detector="tests.own_detector:tiny",
                generator_filters=4,
                generator_blocks=1,
                discriminator_filters=4,
                gan_batch=2,
                detector_batch=2,
                pretrain_detector_steps=2,
                final_detector_steps=2,
                synthetic_count=3,
            )
        )
