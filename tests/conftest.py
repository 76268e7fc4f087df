"""What every test runs under: a quiet TensorFlow on two CPU devices, a fixed seed, the way to real images."""

import os
from pathlib import Path

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"
os.environ["CUDA_VISIBLE_DEVICES"] = "-1"  # expected numbers below are the CPU's
os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ["MPLBACKEND"] = "agg"

import hypothesis
import keras
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


@pytest.fixture(autouse=True)
def seed():
    """Seeds Python, NumPy and TensorFlow, resets Keras: no test's numbers depend on the tests before it."""
    keras.config.set_floatx("float32")
    keras.utils.clear_session(free_memory=False)  # else a float64 test's dtype policy outlives it
    keras.utils.set_random_seed(0)
    return 0


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
