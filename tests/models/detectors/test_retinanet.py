"""DET: order of outputs, decoding as in KerasCV, and no normalisation with a wrong second derivative."""

import sys

import keras
import keras_cv
import numpy as np
import pytest
import tensorflow as tf

from tf_detectorgan import boxes as boxes_lib
from tf_detectorgan import losses
from tf_detectorgan.batch import Labelled
from tf_detectorgan.errors import InputError
from tf_detectorgan.models import detectors
from tf_detectorgan.models.detectors import anchors as anchors_lib
from tf_detectorgan.models.detectors import detector, retinanet
from tf_detectorgan.models.layers import ExactGroupNormalization

HEIGHT, WIDTH, STRIDES = 32, 48, (4, 8, 16)


def coordinate_detector(classes=2):
    """Returns a RetinaNet whose features are the means of an image [32, 48, 2] over cells."""
    image = keras.Input((HEIGHT, WIDTH, 2))
    levels = {
        level: keras.layers.AveragePooling2D(stride, name=level)(image)
        for level, stride in zip(("P3", "P4", "P5"), STRIDES, strict=True)
    }
    backbone = keras.Model(image, list(levels.values()))
    backbone.pyramid_level_inputs = {level: level for level in levels}
    features = {level: keras.Input(tensor.shape[1:], name=level) for level, tensor in levels.items()}
    pyramid = keras.Model(features, [keras.layers.Activation("linear")(f) for f in features.values()])
    return retinanet.from_keras_cv(
        (HEIGHT, WIDTH, 2),
        classes,
        backbone=backbone,
        pyramid=pyramid,
        head=(2, 0),
        layout=anchors_lib.Layout(STRIDES, (1.0, 2.0, 4.0), (0.5, 1.0, 2.0), (1.0, 1.5)),
    )


def test_outputs_are_in_the_order_of_the_anchors():
    """Pixels are their coordinates (x, y). The heads output them, and the index of the anchor in its cell."""
    DET = coordinate_detector()
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    box_head, class_head = DET.network.box_head.layers[-1], DET.network.classification_head.layers[-1]
    kernel, bias = np.zeros((3, 3, 2, 6 * 4)), np.zeros(6 * 4)
    kernel[1, 1, 0, 0::4] = kernel[1, 1, 1, 1::4] = 1
    bias[2::4] = range(6)
    box_head.set_weights([kernel, bias])
    class_head.set_weights([np.zeros((3, 3, 2, 6 * 2)), np.arange(12.0)])
    logits, offsets = DET.outputs(DET.weights, tf.constant(np.stack([x, y], -1)[None], tf.float32))

    anchors = DET.anchors.numpy()
    assert offsets.shape[1] == logits.shape[1] == len(anchors) == 6 * (8 * 12 + 4 * 6 + 2 * 3)
    np.testing.assert_allclose(offsets[0, :, :2], (anchors[:, :2] + anchors[:, 2:]) / 2, atol=1e-4)
    kinds = offsets[0, :, 2].numpy().astype(int)
    width, height = anchors[:, 2] - anchors[:, 0], anchors[:, 3] - anchors[:, 1]
    np.testing.assert_allclose(width / height, np.array([0.5, 1, 2])[kinds % 3], rtol=1e-4)
    level = np.repeat([1.0, 2.0, 4.0], [6 * 96, 6 * 24, 6 * 6])
    np.testing.assert_allclose(np.sqrt(width * height), level * np.array([1, 1.5])[kinds // 3], rtol=1e-4)
    np.testing.assert_array_equal(logits[0], kinds[:, None] * 2 + [[0, 1]])


def test_detect_equals_keras_cv(monkeypatch):
    """KerasCV's classes decode and suppress the same raw outputs, with the same result."""
    DET, rng = coordinate_detector(), np.random.default_rng(0)
    count = len(DET.anchors)
    images = tf.zeros([2, HEIGHT, WIDTH, 2])
    logits = tf.constant(rng.normal(-3, 2, (2, count, 2)), tf.float32)
    # All boxes are inside the image (anchors are a quarter of a cell wide), because only ours are clipped.
    offsets = tf.constant(rng.uniform(-1, 1, (2, count, 4)), tf.float32)
    monkeypatch.setattr(DET, "outputs", lambda W, images: (logits, offsets))
    ours = DET.detect(images)

    DET.network.prediction_decoder = keras_cv.layers.MultiClassNonMaxSuppression(
        "xyxy",
        from_logits=True,
        iou_threshold=detector.NMS_IOU,
        confidence_threshold=detector.MIN_SCORE,
        max_detections=detector.MAX_DETECTIONS,
        max_detections_per_class=detector.MAX_DETECTIONS,
    )
    theirs = DET.network.decode_predictions({"box": offsets, "classification": logits}, images)
    assert ours.boxes.shape == (2, detector.MAX_DETECTIONS, 4)
    np.testing.assert_array_equal(theirs["num_detections"], np.sum(ours.labels >= 0, 1))
    np.testing.assert_array_equal(ours.labels, theirs["classes"])
    np.testing.assert_allclose(ours.scores, theirs["confidence"], rtol=1e-5)
    np.testing.assert_allclose(ours.boxes, theirs["boxes"], atol=1e-3)


def test_detect_by_hand(monkeypatch):
    """Three anchors predict one place: the best of each class is kept; other anchors have low scores."""
    DET = coordinate_detector()
    logits = np.full((1, len(DET.anchors), 2), -20.0, np.float32)
    chosen = 6 * (3 * 12 + 5)  # row 3, column 5 of the first level: centre (22, 14)
    logits[0, chosen + 1], logits[0, chosen + 2] = [2, -20], [1, 3]
    logits[0, chosen + 4] = [-1, -20]
    offsets = np.zeros((1, len(DET.anchors), 4), np.float32)
    # For each anchor: 20 px wide and 40 px high.
    for k in (1, 2, 4):
        size = DET.anchors[chosen + k].numpy()
        offsets[0, chosen + k, 2:] = np.log([40 / (size[3] - size[1]), 20 / (size[2] - size[0])]) / 0.2
    monkeypatch.setattr(DET, "outputs", lambda W, images: (tf.constant(logits), tf.constant(offsets)))
    found = DET.detect(tf.zeros([1, HEIGHT, WIDTH, 2]))
    np.testing.assert_array_equal(found.labels[0, :3], [1, 0, -1])
    np.testing.assert_allclose(found.scores[0, :3], [tf.sigmoid(3.0), tf.sigmoid(2.0), 0], rtol=1e-5)
    # 40 px high around 14 is -6 to 34, which is clipped to the image.
    np.testing.assert_allclose(found.boxes[0, :2], [[12, 0, 32, 32]] * 2, atol=1e-3)


def test_loss_is_focal_plus_smooth_l1_over_the_positives():
    """All logits and offsets are 0; the loss follows from the targets."""
    DET = coordinate_detector()
    W = [tf.zeros_like(w) for w in DET.weights]
    boxes = tf.constant([[[2.0, 3, 7, 9], [10, 10, 30, 30]], [[40, 20, 47, 30], [0, 0, 0, 0]]])
    labelled = Labelled(tf.zeros([2, HEIGHT, WIDTH, 2]), boxes, tf.constant([[1, 0], [1, -1]]))
    targets = DET.targets(labelled)
    classes, offsets = targets.classes.numpy(), np.abs(targets.offsets.numpy())
    positive, background = (classes >= 0).sum(), (classes == losses.BACKGROUND).sum()
    assert positive == DET.positives(targets) >= 3
    focal = np.log(2) / 4 * (positive * (0.25 + 0.75) + background * 2 * 0.75)
    smooth = 0.2 * np.where(offsets < 1, offsets**2 / 2, offsets - 0.5).sum()
    np.testing.assert_allclose(
        DET.loss(W, labelled.images, targets, DET.positives(targets)),
        (focal + smooth) / positive,
        rtol=1e-5,
    )


@pytest.fixture(scope="module")
def small():
    keras.utils.set_random_seed(0)
    return retinanet.small((32, 48, 1), 2, sizes=(4.0, 8.0, 16.0), width=16)


def test_outputs_depend_on_the_weights_given(small):
    """The outputs are those of the network with these weights; its own weights do not change."""
    images = tf.random.normal([2, 32, 48, 1])
    before = [w.numpy() for w in small.weights]
    other = [w + 0.01 * tf.random.normal(w.shape) for w in small.weights]
    logits, offsets = small.outputs(other, images)
    assert all(np.array_equal(a, w) for a, w in zip(before, small.weights, strict=True))
    clone = keras.models.clone_model(small.network)
    clone.set_weights(other)
    expected = clone({"images": images})
    np.testing.assert_allclose(logits, expected["classification"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(offsets, expected["box"], rtol=1e-5, atol=1e-6)
    assert len(logits[0]) == len(small.anchors)


def test_every_weight_takes_part(small):
    """The gradient of the loss is nonzero for all weights."""
    labelled = Labelled(
        tf.random.normal([1, 32, 48, 1]), tf.constant([[[8.0, 8, 16, 16]]]), tf.constant([[1]])
    )
    W = [tf.convert_to_tensor(w) for w in small.weights]
    with tf.GradientTape() as tape:
        tape.watch(W)
        loss = small.loss(W, labelled.images, small.targets(labelled), 1.0)
    gradients = tape.gradient(loss, W)
    assert all(g is not None and np.abs(g).max() > 0 for g in gradients)


def test_small_uses_lower_match_thresholds(small):
    """Objects of a few pixels rarely have IoU 0.5 with an anchor, so anchors are positive from 0.3."""
    boxes, labels = tf.constant([[[9.0, 10, 15, 15], [20, 3, 29, 14]]]), tf.constant([[1, 0]])
    mine = small.targets(Labelled(tf.zeros([1, 32, 48, 1]), boxes, labels)).classes.numpy()
    strict = anchors_lib.match(small.anchors, boxes, labels).classes.numpy()
    best = np.max(boxes_lib.iou(small.anchors, boxes[0]), -1)
    np.testing.assert_array_equal(mine[0] >= 0, best >= 0.3)
    np.testing.assert_array_equal(mine[0] == losses.BACKGROUND, best < 0.2)
    assert np.sum(mine >= 0) > np.sum(strict >= 0) > 0


def layers_of(layer):
    """Yields the layer and all of its sublayers, each once."""
    return {id(part): part for part in layer._flatten_layers(include_self=True, recursive=True)}.values()


# Keras's normalisations stop the gradient at the mean (layers.py); detectors must not contain them.
KERAS_NORMS = tuple(
    vars(keras.layers)[name]
    for name in ("BatchNormalization", "GroupNormalization", "LayerNormalization", "RMSNormalization",
                 "SpectralNormalization", "UnitNormalization", "Normalization")
)  # fmt: skip


@pytest.mark.parametrize(
    "name",
    [
        "retinanet_small",
        "fcos_small",
        pytest.param("retinanet_resnet50", marks=pytest.mark.slow),
        pytest.param("retinanet_kerashub", marks=pytest.mark.slow),
    ],
)
def test_registered_detectors_have_no_keras_normalization(name):
    if name == "retinanet_kerashub":
        pytest.importorskip("keras_hub", reason="pip install -c constraints.txt '.[kerashub]'")
    side = 64
    DET = detectors.build(name, (side, side, 1), 2)
    parts = list(layers_of(DET.network))
    assert not [part.name for part in parts if isinstance(part, KERAS_NORMS)]
    convolutions = sum(isinstance(part, keras.layers.Conv2D) for part in parts)
    norms = sum(isinstance(part, ExactGroupNormalization) for part in parts)
    assert convolutions > norms >= (11 if name.endswith("small") else 53)
    assert not DET.network.non_trainable_variables  # there are no moving averages
    # As many outputs as anchors, also if the image is smaller than a stride (64 px at stride 128).
    places = len(DET.points.centers) if name == "fcos_small" else len(DET.anchors)
    outputs = DET.call(DET.weights, tf.random.normal([1, side, side, 1]))
    logits = outputs.pop("classification")
    assert logits.shape[1:] == (places, 2)
    # Initial probabilities are near 0.01 (Lin et al. 2017), the other outputs near 0.
    assert 0.005 < float(tf.reduce_mean(tf.sigmoid(logits))) < 0.02
    assert all(abs(float(tf.reduce_mean(output))) < 0.1 for output in outputs.values())


def test_layer_walk_covers_every_registered_detector():
    # The parameters of the test above.
    assert set(detectors.DETECTORS) == {"retinanet_" + one for one in ("small", "resnet50", "kerashub")} | {
        "fcos_small"
    }


def test_missing_kerashub_raises_with_install_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "keras_hub", None)  # as if it were not installed
    with pytest.raises(InputError, match=r"--detector=retinanet_kerashub: .*pip install .*'\.\[kerashub\]'"):
        detectors.build("retinanet_kerashub", (32, 32, 1), 1)


def test_build_passes_anchor_options():
    DET = detectors.build("retinanet_small", (32, 32, 1), 1, sizes=(4.0, 6.0, 10.0), ratios=(1.0,))
    expected = anchors_lib.make_anchors(32, 32, anchors_lib.Layout((4, 8, 16), (4.0, 6.0, 10.0), (1.0,)))
    np.testing.assert_array_equal(DET.anchors, expected)


@pytest.mark.parametrize(
    "make,message",
    [
        (lambda: retinanet.small((40, 32, 1), 1), "divisible by 16, got 40x32"),
        (lambda: retinanet.resnet50((48, 64, 1), 1), "divisible by 32, got 48x64"),
        (lambda: retinanet.small((32, 32, 1), 1, sizes=(8.0,)), "must be 3 numbers"),
    ],
)
def test_invalid_arguments_raise(make, message):
    with pytest.raises(ValueError, match=message):
        make()
