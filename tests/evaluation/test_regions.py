"""Boxes of regions by hand."""

import numpy as np
import tensorflow as tf

from tf_detectorgan.data import records
from tf_detectorgan.evaluation.regions import localize_split, regions

HEAT = np.array(
    [
        [0.9, 0.5, 0.0, 0.0],
        [0.0, 0.5, 0.0, 0.0],
        [0.0, 0.0, 0.8, 0.0],
        [0.0, 0.0, 0.6, 0.4],
    ]
)


def test_boxes_cover_what_hangs_together_by_sides():
    boxes, means = regions(HEAT, [0.5])
    np.testing.assert_array_equal(boxes, [[0, 0, 2, 2], [2, 2, 1, 2]])
    np.testing.assert_allclose(means, [(0.9 + 0.5 + 0.5) / 3, 0.7])


def test_each_threshold_has_its_own_regions():
    boxes, means = regions(HEAT, [0.5, 0.85])
    np.testing.assert_array_equal(boxes, [[0, 0, 2, 2], [2, 2, 1, 2], [0, 0, 1, 1]])
    assert means[2] == 0.9


def test_a_map_below_all_thresholds_has_no_region():
    boxes, means = regions(np.zeros([4, 4]), [0.2, 0.5])
    assert boxes.shape == (0, 4)
    assert means.shape == (0,)


def test_every_image_of_a_split_in_stored_pixels(tiny_phantom):
    """A map of 4 x 4 cells on 32 pixels: a cell is 8 pixels wide; the score is mean heat times confidence."""
    dataset = records.open_dataset(tiny_phantom("regions"))

    def heat_of(images):
        cells = np.tile(HEAT[..., None], [len(images), 1, 1, 1])
        return tf.constant(cells), tf.fill([len(images), 1], 0.5)

    found = localize_split(heat_of, [0.5], dataset, "test", batch_size=4)
    assert len(found) == dataset.count("test_labelled") + dataset.count("test_clean")
    for item in found:
        np.testing.assert_array_equal(item.boxes, [[0, 0, 16, 16], [16, 16, 24, 32]])
        np.testing.assert_allclose(item.scores, [0.5 * 1.9 / 3, 0.35])
        assert item.labels.tolist() == [0, 0]
