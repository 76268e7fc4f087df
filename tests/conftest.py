"""Configures TensorFlow (two CPU devices) and the random seed of all tests, and defines shared fixtures."""

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
os.environ["CUDA_VISIBLE_DEVICES"] = "-1"  # the tests' expected numbers were computed on a CPU
os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ["MPLBACKEND"] = "agg"

import hypothesis
import keras
import playwright.sync_api
import pytest
import tensorflow as tf

# Before any op runs, because TensorFlow then fixes its devices and threads. Two devices: MirroredStrategy is
# tested as an identity. Two threads: sums are divided into the same parts on every machine.
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)
tf.config.threading.set_intra_op_parallelism_threads(2)
tf.config.threading.set_inter_op_parallelism_threads(2)

# No deadline: the first call of a TensorFlow function traces it, and takes up to a thousand times longer.
# Derandomized: a failure occurs again in the next run.
hypothesis.settings.register_profile("repeatable", deadline=None, derandomize=True)
hypothesis.settings.load_profile("repeatable")

ROOT = Path(__file__).resolve().parents[1]


def pytest_collection_modifyitems(items):
    """Runs files with a slow test first: the last files are then short, and both processes end together."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(autouse=True)
def seed():
    """Seeds Python, NumPy and TensorFlow and resets Keras: results do not depend on earlier tests."""
    keras.config.set_floatx("float32")
    keras.utils.clear_session(free_memory=False)  # else the dtype policy of a float64 test remains
    keras.utils.set_random_seed(0)
    return 0


@pytest.fixture(scope="module", autouse=True)
def freeze_garbage_collector():
    """Excludes objects that remain after a module, such as TensorFlow's graphs, from later collections."""
    yield
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def real_data():
    """real_data(name): returns the directory of a real data set; skips the test if it is missing.

    Its parent is $DETECTORGAN_DATA, else ../shared/data next to the repository (see CONTRIBUTING.md).
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
    """Headless Chromium, controlled by Playwright; skips the test if it is not installed."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not program:
        pytest.skip("no Chromium in PATH: install it (Debian: apt-get install chromium)")
    # No sandbox: it does not work as root. No network access.
    flags = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking"]
    with playwright.sync_api.sync_playwright() as driver:
        window = driver.chromium.launch(executable_path=program, args=[*flags, "--disable-sync"])
        yield window
        window.close()


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 16 KiB in memory; for root, other directories cannot be made full or read-only."""
    path = tmp_path / "disk"
    path.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", path], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"cannot mount a file system ({mounted.stderr.decode().strip()})")
    yield path
    subprocess.run(["umount", "--lazy", path], check=True)


@pytest.fixture(scope="session")
def tiny_phantom(tmp_path_factory):
    """tiny_phantom(name, **changes): returns the directory of a phantom of a few images of 32 pixels."""
    from tf_detectorgan.data import phantom, shards  # here: tests that do not use it need not import TFDS

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
def _restore_handlers():
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@pytest.fixture
def handlers():
    """Restores the signal handlers after a test that runs a command in its own process."""
    with _restore_handlers():
        yield


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory, tiny_phantom, worker_id):
    """A run directory in which `cut_paste` is finished, after two steps. Copy it before writing to it.

    The first test process that uses it creates it for all.
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

    # A session fixture runs before `seed`, possibly after other tests.
    keras.config.set_floatx("float32")
    keras.utils.clear_session(free_memory=False)
    with _restore_handlers():
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
