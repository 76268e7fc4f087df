import numpy as np

from tf_detectorgan.training import peak_memory


def test_a_peak_is_counted_and_forgotten_by_reset():
    peak_memory.reset()
    before = peak_memory.read()["peak_memory_mib"]
    np.ones(300 * 2**20, np.uint8).sum()  # held while it is summed
    held = peak_memory.read()["peak_memory_mib"]
    assert 290 <= held - before <= 330
    peak_memory.reset()
    assert peak_memory.read()["peak_memory_mib"] <= before + 30
