import numpy as np

from tf_detectorgan.training import peak_memory


def test_peak_is_measured_and_reset():
    peak_memory.reset()
    before = peak_memory.read()["peak_memory_mib"]
    np.ones(300 * 2**20, np.uint8).sum()  # allocated until it is summed
    peak = peak_memory.read()["peak_memory_mib"]
    assert 290 <= peak - before <= 330
    peak_memory.reset()
    assert peak_memory.read()["peak_memory_mib"] <= before + 30
