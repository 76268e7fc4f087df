"""Regions and their boxes by hand."""

from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf
from pycocotools import mask as coco_mask

from tf_detectorgan.data import records
from tf_detectorgan.evaluation import regions as regions_module
from tf_detectorgan.evaluation.regions import localize_split, regions

HEAT = np.array(
    [
        [0.9, 0.5, 0.0, 0.0],
        [0.0, 0.5, 0.0, 0.0],
        [0.0, 0.0, 0.8, 0.0],
        [0.0, 0.0, 0.6, 0.4],
    ]
)


def test_a_region_is_what_hangs_together_by_sides():
    (one, heat_of_one), (other, heat_of_other) = regions(HEAT, [0.5])
    np.testing.assert_array_equal(np.argwhere(one), [[0, 0], [0, 1], [1, 1]])
    np.testing.assert_array_equal(np.argwhere(other), [[2, 2], [3, 2]])
    np.testing.assert_allclose([heat_of_one, heat_of_other], [(0.9 + 0.5 + 0.5) / 3, 0.7])


def test_each_threshold_has_its_own_regions():
    found = regions(HEAT, [0.5, 0.85])
    assert [cells.sum() for cells, _ in found] == [3, 2, 1]
    assert found[2][1] == 0.9


def test_a_map_below_all_thresholds_has_no_region():
    assert regions(np.zeros([4, 4]), [0.2, 0.5]) == []


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
        cells = coco_mask.decode(item.regions[0].code)[::8, ::8]
        np.testing.assert_array_equal(np.argwhere(cells), [[0, 0], [0, 1], [1, 1]])
        assert coco_mask.area(item.regions[0].code) == 3 * 64


def test_regions_end_where_the_padding_begins():
    """A map of 2 x 2 cells on 8 x 8 pixels of which 4 x 6 (height, width) are the image's."""
    images = tf.zeros([1, 8, 8, 1])
    batch = SimpleNamespace(
        images=images, valid_sizes=np.array([[4, 6]]), image_ids=[7], real=np.array([True])
    )
    dataset = SimpleNamespace(image_shape=(8, 8, 1))
    cells = tf.constant([[[[0.0], [0.9]], [[0.9], [0.0]]]])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(regions_module, "batches_of_split", lambda *_: [batch])
        (item,) = localize_split(lambda _: (cells, tf.ones([1, 1])), [0.5], dataset, "test", 1)
    np.testing.assert_array_equal(item.boxes, [[4, 0, 6, 4]])  # the other region lies in the padding
