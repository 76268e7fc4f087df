"""Generators, and the composition of their output with their input image."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tf_detectorgan import boxes as boxes_lib
from tf_detectorgan.batch import Insertion, Labelled
from tf_detectorgan.models import generators
from tf_detectorgan.models.convolutions import DoublingConv2D
from tf_detectorgan.models.generators import Composition

SIDE, CLASSES = 32, 2
SHAPE = (SIDE, SIDE, 1)


def noise(seed, n=2, channels=1):
    values = np.random.default_rng(seed).uniform(-1, 1, (n, SIDE, SIDE, channels))
    return tf.constant(values, tf.float32)


INSERTION = Insertion(
    tf.constant([[4.0, 6.0, 12.0, 14.0], [15.0, 8.0, 27.0, 14.0]]),
    tf.constant([0, 1]),
    noise(5),
    boxes_lib.of_sizes([[SIDE, SIDE]] * 2),
)
LABELLED = Labelled(
    noise(6),
    tf.constant([[[2.0, 2, 8, 9], [20, 20, 26, 28]], [[10, 10, 16, 16], [0, 0, 0, 0]]]),
    tf.constant([[0, 1], [1, -1]]),
)


WHOLE = boxes_lib.of_sizes([[SIDE, SIDE]])


def composition(output, generator_input):
    return Composition(output, generator_input, feather=0.25, classes=CLASSES)


def generator(composed, trained=True):
    """Returns G_X; `trained` gives its last layer weights that change every pixel."""
    keras.utils.set_random_seed(0)
    G_X = generators.resnet_generator(
        SHAPE,
        composed.input_channels(1),
        filters=4,
        blocks=1,
        residual=composed.generator_input == "mask_and_object",
    )
    if trained:
        last = G_X.layers[-1]
        last.set_weights([np.random.default_rng(0).normal(0, 0.3, w.shape) for w in last.get_weights()])
    return G_X


def remover():
    keras.utils.set_random_seed(1)
    return generators.resnet_generator(SHAPE, 1 + CLASSES, filters=4, blocks=1)


def far_from(boxes, feather):
    """Returns [H, W] bool: pixels at a distance of at least max(2, feather * side) from all boxes [K, 4]."""
    y, x = np.mgrid[:SIDE, :SIDE] + 0.5
    far = np.ones((SIDE, SIDE), bool)
    for x0, y0, x1, y1 in np.asarray(boxes):
        if x1 > x0:
            distance = np.hypot(np.clip(x, x0, x1) - x, np.clip(y, y0, y1) - y)
            far &= distance >= max(2.0, feather * max(x1 - x0, y1 - y0))
    return far


@pytest.mark.parametrize("side,given,expected", [(16, None, 6), (128, None, 6), (132, None, 9), (16, 2, 2)])
def test_number_of_residual_blocks_by_image_size(side, given, expected):
    G = generators.resnet_generator((side, side, 1), 2, filters=1, blocks=given)
    assert sum(isinstance(layer, keras.layers.Add) for layer in G.layers) == expected


def test_layers_are_those_of_cyclegan():
    """Kernel sizes, strides, filters of c7s1-f, d2f, d4f, R4f, u2f, uf, c7s1-C (u: upsample, convolve)."""
    G = generators.resnet_generator((32, 48, 3), 5, filters=4, blocks=1)
    found = [
        (layer.kernel_size[0], layer.strides[0], layer.filters)
        for layer in G.layers
        if isinstance(layer, keras.layers.Conv2D)
    ]
    assert found == [
        (7, 1, 4),
        (3, 2, 8),
        (3, 2, 16),
        (3, 1, 16),
        (3, 1, 16),
        (3, 1, 8),
        (3, 1, 4),
        (7, 1, 3),
    ]
    assert sum(isinstance(layer, DoublingConv2D) for layer in G.layers) == 2
    out = G(tf.random.normal([2, 32, 48, 5]) * 100)
    assert out.shape == (2, 32, 48, 3)
    assert np.abs(out).max() <= 1


def test_sides_must_be_divisible_by_4():
    with pytest.raises(ValueError, match="divisible by 4, got 30x32"):
        generators.resnet_generator((30, 32, 1), 2)


def test_class_mask_has_one_channel_per_class():
    """Boxes of two classes that overlap in one pixel are in two channels; padded boxes are in none."""
    boxes = tf.constant(
        [[[0.0, 0, 2, 2], [1, 0, 3, 1], [0, 0, 0, 0]], [[0, 0, 4, 4], [0, 0, 0, 0], [0, 0, 0, 0]]]
    )
    labels = tf.constant([[0, 1, -1], [-1, -1, -1]])
    mask = generators.class_mask(boxes, labels, 2, 3, 4).numpy()
    assert mask.shape == (2, 3, 4, 2)
    np.testing.assert_array_equal(mask[0, :, :, 0], [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0]])
    np.testing.assert_array_equal(mask[0, :, :, 1], [[0, 1, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    np.testing.assert_array_equal(mask[1], np.zeros((3, 4, 2)))  # label -1 is padding for any corners


def test_input_channels_by_generator_input():
    for generator_input, expected in (("mask", 3 + 2), ("mask_and_object", 2 * 3 + 2)):
        assert Composition("blend_in_box", generator_input, 0.25, 2).input_channels(3) == expected


def test_blend_by_hand():
    """A box of 16 x 8 has a feather of 4: at a distance d from its right edge, alpha is 1 - d/4."""
    alpha = (
        composition("blend_in_box", "mask")
        .blend(tf.constant([[4.0, 8.0, 20.0, 16.0]]), WHOLE, SIDE, SIDE)[0, :, :, 0]
        .numpy()
    )
    np.testing.assert_allclose(alpha[10, 18:26], [1, 1, 0.875, 0.625, 0.375, 0.125, 0, 0], atol=1e-6)
    np.testing.assert_array_equal(alpha[8:16, 4:20], np.ones((8, 16)))
    np.testing.assert_allclose(alpha[16, 20], 1 - np.hypot(0.5, 0.5) / 4, atol=1e-6)  # round corners
    np.testing.assert_array_equal(alpha[far_from([[4, 8, 20, 16]], 0.25)], 0)
    small = (
        composition("blend_in_box", "mask")
        .blend(tf.constant([[4.0, 8.0, 6.0, 10.0]]), WHOLE, SIDE, SIDE)[0, :, :, 0]
        .numpy()
    )
    np.testing.assert_allclose(small[8, 5:10], [1, 0.75, 0.25, 0, 0], atol=1e-6)  # at least 2 pixels


def test_blend_of_several_boxes_is_their_union_without_padded_boxes():
    composed = composition("blend_in_box", "mask")
    union = composed.blend(LABELLED.boxes, WHOLE, SIDE, SIDE)
    first, second = (composed.blend(LABELLED.boxes[:, k], WHOLE, SIDE, SIDE) for k in (0, 1))
    np.testing.assert_array_equal(union, np.maximum(first, second))
    np.testing.assert_array_equal(second[1], np.zeros(SHAPE))  # not the upper left corner


def test_paste_offset_by_hand():
    """Background 0.2, object 0.9 in surroundings of 0.5: the offset is -0.3, so the object becomes 0.6."""
    boxes = tf.constant([[8.0, 8.0, 16.0, 16.0]])
    alpha = composition("blend_in_box", "mask_and_object").blend(boxes, WHOLE, SIDE, SIDE)
    x = tf.fill([1, SIDE, SIDE, 1], 0.2)
    exemplar = np.full((1, SIDE, SIDE, 1), 0.5, np.float32)
    exemplar[:, 8:16, 8:16] = 0.9
    pasted = generators.paste(x, tf.constant(exemplar), alpha)[0, :, :, 0].numpy()
    np.testing.assert_allclose(pasted[8:16, 8:16], np.full((8, 8), 0.6), atol=1e-6)
    outside = np.ones((SIDE, SIDE), bool)
    outside[8:16, 8:16] = False
    np.testing.assert_allclose(pasted[outside], 0.2, atol=1e-6)  # no step at the seam


def test_paste_is_clipped_and_has_no_offset_without_a_seam():
    """On white it is clipped at 1. If alpha is only 0 or 1, there is no seam, and the offset is 0."""
    x, exemplars = tf.fill([1, SIDE, SIDE, 1], 1.0), noise(3, 1)
    alpha = composition("blend_in_box", "mask_and_object").blend(
        tf.constant([[8.0, 8.0, 16.0, 16.0]]), WHOLE, SIDE, SIDE
    )
    assert np.abs(generators.paste(x, exemplars, alpha)).max() <= 1
    np.testing.assert_allclose(generators.paste(x, exemplars, tf.ones_like(x)), exemplars, atol=1e-6)
    np.testing.assert_array_equal(generators.paste(x, exemplars, tf.zeros_like(x)), x)


def test_bbox_target_equals_the_output_of_an_untrained_generator():
    """With a pasted object, BboxLoss is 0 before training; the paper's target is the matched image."""
    x, boxes = noise(1), np.asarray(INSERTION.boxes, int)
    composed = composition("blend_in_box", "mask_and_object")
    target = generators.bbox_target(x, INSERTION, composed)
    drawn = generators.insert(generator(composed, trained=False), x, INSERTION, composed)
    for i, (x0, y0, x1, y1) in enumerate(boxes):
        np.testing.assert_array_equal(target[i, y0:y1, x0:x1], drawn[i, y0:y1, x0:x1])
        assert np.any(target[i, y0:y1, x0:x1] != INSERTION.exemplars[i, y0:y1, x0:x1])  # an offset was added
    assert generators.bbox_target(x, INSERTION, composition("full_image", "mask")) is INSERTION.exemplars


def test_an_untrained_residual_generator_outputs_the_pasted_object():
    composed, x = composition("blend_in_box", "mask_and_object"), noise(1)
    G_X = generator(composed, trained=False)
    drawn = generators.insert(G_X, x, INSERTION, composed)
    alpha = composed.blend(INSERTION.boxes, WHOLE, SIDE, SIDE)
    np.testing.assert_array_equal(drawn, generators.paste(x, INSERTION.exemplars, alpha))
    assert not np.array_equal(drawn, x)


def test_residual_scale_multiplies_the_difference_to_the_pasted_object():
    """One scale per image; the images are faint, so that nothing is clipped."""
    composed, x = composition("blend_in_box", "mask_and_object"), 0.1 * noise(1)
    faint = INSERTION._replace(exemplars=0.1 * INSERTION.exemplars)
    G_X = generator(composed)
    G_X.layers[-1].set_weights([0.01 * w for w in G_X.layers[-1].get_weights()])
    pasted = generators.paste(x, faint.exemplars, composed.blend(faint.boxes, WHOLE, SIDE, SIDE))
    whole, some = (
        generators.insert(G_X, x, faint, composed, *scale) - pasted
        for scale in ((), (tf.constant([0.0, 0.25]),))
    )
    assert np.abs(whole).max() > 0.01
    np.testing.assert_allclose(some, whole * tf.constant([0.0, 0.25])[:, None, None, None], atol=1e-6)


@pytest.mark.parametrize("generator_input", ["mask", "mask_and_object"])
def test_blend_in_box_changes_the_box_and_nothing_outside_of_the_feather(generator_input):
    """Of insert, reinsert and remove, bit by bit."""
    composed, x, G_Y = composition("blend_in_box", generator_input), noise(1), remover()
    G_X = generator(composed)
    cases = [
        (x, INSERTION.boxes[:, None], generators.insert(G_X, x, INSERTION, composed)),
        (x, LABELLED.boxes, generators.reinsert(G_X, x, LABELLED, WHOLE, composed)),
        (x, LABELLED.boxes, generators.remove(G_Y, x, LABELLED.boxes, LABELLED.labels, WHOLE, composed)),
    ]
    for before, boxes, after in cases:
        for i in range(2):
            far = far_from(boxes[i], 0.25)
            assert 0 < far.sum() < SIDE * SIDE
            np.testing.assert_array_equal(after[i].numpy()[far], before[i].numpy()[far])
            for x0, y0, x1, y1 in boxes[i].numpy().astype(int):
                inside = np.s_[y0:y1, x0:x1]
                assert np.all(after[i].numpy()[inside] != before[i].numpy()[inside])


@pytest.mark.parametrize("generator_input", ["mask", "mask_and_object"])
def test_images_with_padded_boxes_only_are_unchanged(generator_input):
    composed, x = composition("blend_in_box", generator_input), noise(1)
    nothing = Labelled(noise(6), tf.zeros([2, 3, 4]), tf.fill([2, 3], -1))
    np.testing.assert_array_equal(generators.reinsert(generator(composed), x, nothing, WHOLE, composed), x)
    np.testing.assert_array_equal(
        generators.remove(remover(), x, nothing.boxes, nothing.labels, WHOLE, composed), x
    )


def test_full_image_is_the_output_of_the_generator():
    """As in the paper: G_X(x, m) and G_Y(y, m), without blending."""
    composed, x = composition("full_image", "mask"), noise(1)
    G_X, G_Y = generator(composed), remover()
    m = generators.class_mask(INSERTION.boxes[:, None], INSERTION.labels[:, None], CLASSES, SIDE, SIDE)
    np.testing.assert_array_equal(generators.insert(G_X, x, INSERTION, composed), G_X(tf.concat([x, m], -1)))
    m = generators.class_mask(LABELLED.boxes, LABELLED.labels, CLASSES, SIDE, SIDE)
    removed = generators.remove(G_Y, x, LABELLED.boxes, LABELLED.labels, WHOLE, composed)
    np.testing.assert_array_equal(removed, G_Y(tf.concat([x, m], -1)))


def test_full_image_with_object_input_adds_the_difference_everywhere():
    composed, x = composition("full_image", "mask_and_object"), noise(1)
    G_X = generator(composed)
    boxes = INSERTION.boxes
    m = generators.class_mask(boxes[:, None], INSERTION.labels[:, None], CLASSES, SIDE, SIDE)
    pasted = generators.paste(x, INSERTION.exemplars, composed.blend(boxes, WHOLE, SIDE, SIDE))
    expected = tf.clip_by_value(pasted + G_X(tf.concat([x, pasted, m], -1)), -1, 1)
    drawn = generators.insert(G_X, x, INSERTION, composed)
    np.testing.assert_array_equal(drawn, expected)
    assert np.abs(drawn).max() <= 1
    assert np.mean(drawn.numpy() != x.numpy()) > 0.95


def test_the_output_for_an_image_does_not_depend_on_the_batch():
    composed, x = composition("blend_in_box", "mask_and_object"), noise(1)
    G_X = generator(composed)
    both = generators.insert(G_X, x, INSERTION, composed)
    alone = generators.insert(G_X, x[1:], Insertion(*(v[1:] for v in INSERTION)), composed)
    np.testing.assert_allclose(both[1:], alone, atol=1e-4)


@pytest.mark.parametrize("output", ["blend_in_box", "full_image"])
@pytest.mark.parametrize("generator_input", ["mask", "mask_and_object"])
def test_padding_is_unchanged(output, generator_input):
    """The content has 14 rows and ends at the lower edge of both boxes, so the feather lies on padding."""
    composed, x = composition(output, generator_input), noise(1)
    content = boxes_lib.of_sizes([[14, SIDE]] * 2)
    y = Labelled(LABELLED.images, INSERTION.boxes[:, None], INSERTION.labels[:, None])
    G_X, labels = generator(composed), INSERTION.labels[:, None]
    for drawn in (
        generators.insert(G_X, x, INSERTION._replace(content=content), composed),
        generators.reinsert(G_X, x, y, content, composed),
        generators.remove(remover(), x, y.boxes, labels, content, composed),
    ):
        np.testing.assert_array_equal(drawn[:, 14:], x[:, 14:])
        assert np.all(drawn[0, 6:14, 4:12] != x[0, 6:14, 4:12])


def test_padding_is_not_part_of_the_seam():
    """The offset is that of `test_paste_offset_by_hand`, although there is black padding below the box."""
    boxes, content = tf.constant([[8.0, 8.0, 16.0, 16.0]]), boxes_lib.of_sizes([[16, SIDE]])
    alpha = composition("blend_in_box", "mask_and_object").blend(boxes, content, SIDE, SIDE)
    x = np.full((1, SIDE, SIDE, 1), 0.2, np.float32)
    x[:, 16:] = -1
    exemplar = np.full((1, SIDE, SIDE, 1), 0.5, np.float32)
    exemplar[:, 8:16, 8:16] = 0.9
    pasted = generators.paste(x, exemplar, alpha)
    np.testing.assert_allclose(pasted[0, 8:16, 8:16], np.full((8, 8, 1), 0.6), atol=1e-6)
