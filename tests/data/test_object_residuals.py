"""Known objects are added to known backgrounds; the object residuals must recover them."""

import numpy as np
import pytest
import tensorflow as tf
from scipy import ndimage

from tf_detectorgan.data import object_residuals
from tf_detectorgan.data.object_residuals import _error_variance, _split, residuals
from tf_detectorgan.errors import InputError

S = 48
GRAIN = 0.03


def backgrounds(rng, count):
    """Returns planes of random slope with waves and grain, [count, S, S, 1], around 0."""
    v, u = np.meshgrid(*[np.linspace(-1, 1, S)] * 2, indexing="ij")
    slopes, phase = rng.uniform(-0.3, 0.3, (count, 2, 1, 1)), rng.uniform(0, 6, (count, 1, 1))
    smooth = slopes[:, 0] * u + slopes[:, 1] * v + 0.05 * np.sin(8 * v + phase)
    return (smooth + GRAIN * rng.standard_normal((count, S, S)))[..., None]


def blob(rng, box):
    """Returns a shape that is the same in every box except for its amplitude, [S, S, 1]."""
    v, u = np.meshgrid(*[np.arange(S) + 0.5] * 2, indexing="ij")
    x0, y0, x1, y1 = box
    distance = np.hypot((u - (x0 + x1) / 2) / (x1 - x0), (v - (y0 + y1) / 2) / (y1 - y0))
    return rng.uniform(0.3, 0.6) * np.exp(-((distance / 0.3) ** 2))[..., None]


def texture(rng, box):
    """Returns a random texture that fills the box, [S, S, 1]."""
    image = np.zeros((S, S, 1))
    x0, y0, x1, y1 = box.astype(int)
    image[y0:y1, x0:x1] = rng.choice([-0.4, 0.4], (y1 - y0, x1 - x0, 1))
    return image


def line(rng, box):
    """Returns a dark line that fills the box, [S, S, 1]."""
    image = np.zeros((S, S, 1))
    x0, y0, x1, y1 = box.astype(int)
    image[y0:y1, x0:x1] = -rng.uniform(0.3, 0.6)
    return image


def anywhere(rng):
    corner = rng.integers(2, S - 16, 2)
    return np.concatenate([corner, corner + rng.integers(8, 14, 2)]).astype(np.float32)


def thin_at(edge):
    """Returns a function that draws boxes of 2 by 12 to 19 pixels with one end at an edge."""

    def box(rng):
        along, length = rng.integers(8, S - 8), rng.integers(12, 20)
        across = (0, length) if edge in ("left", "upper") else (S - length, S)
        y, x = (across, (along, along + 2)) if edge in ("upper", "lower") else ((along, along + 2), across)
        return np.array([x[0], y[0], x[1], y[1]], np.float32)

    return box


@pytest.fixture
def scene(make_dataset):
    """scene(draw, box_of) returns a data set of 40 labelled images and their objects [40, S, S, 1]."""

    def make(draw, box_of=anywhere):
        rng = np.random.default_rng(3)
        dataset = make_dataset(side=S, clean=60, labelled=40)
        drawn = []
        for stream in ("train_clean", "train_labelled"):
            images = backgrounds(rng, len(dataset.examples[stream]))
            for image, example in zip(images, dataset.examples[stream], strict=True):
                if stream == "train_labelled":
                    box = box_of(rng)
                    drawn.append(draw(rng, box))
                    image = image + drawn[-1]
                    example |= {"boxes": box[None], "labels": np.zeros(1, np.int64)}
                example["image"] = np.clip(np.rint((image + 1) * 127.5), 0, 255).astype(np.uint8)
        splits = dataset.examples
        return type(dataset)(S, splits), np.stack(drawn)

    return make


def full_residuals(dataset, stored):
    """Returns the residuals of all labelled objects [M, S, S, C] from their stored part."""
    examples = dataset.examples["train_labelled"]
    images = np.stack([e["image"] / np.float32(127.5) - 1 for e in examples for _ in e["labels"]])
    boxes = np.concatenate([e["boxes"] for e in examples])
    return residuals(tf.constant(images, tf.float32), boxes, stored.cells, stored.weights).numpy()


def relative_errors(found, drawn):
    """Returns the relative error of each residual [40]."""
    return np.sqrt(((found - drawn) ** 2).sum((1, 2, 3)) / (drawn**2).sum((1, 2, 3)))


@pytest.mark.parametrize("draw, allowed", [(blob, 0.2), (texture, 0.25)])
def test_residuals_recover_the_drawn_objects_and_are_0_outside_of_the_hole(scene, draw, allowed):
    """With one common shape the grain is averaged out; with a random texture it stays in the residual."""
    dataset, drawn = scene(draw)
    stored = object_residuals.object_residuals(dataset)
    found, signal = full_residuals(dataset, stored), stored.signal_share
    assert signal[0] > 0.8
    assert np.isnan(signal[1])  # no object of the other class
    assert found.shape == (40, S, S, 1)
    assert np.median(relative_errors(found, drawn)) < allowed
    for residual, example in zip(found, dataset.examples["train_labelled"], strict=True):
        x0, y0, x1, y1 = example["boxes"][0]
        reach = 0.1 * max(x1 - x0, y1 - y0) + 1
        rows, columns = np.nonzero(residual[..., 0])
        assert rows.min() >= y0 - reach
        assert rows.max() < y1 + reach
        assert columns.min() >= x0 - reach
        assert columns.max() < x1 + reach


@pytest.mark.parametrize("edge", ["upper", "left", "lower", "right"])
def test_an_object_at_an_image_edge_keeps_its_amplitude(scene, edge):
    """If the edge were repeated with the line on it, the line would be predicted as background."""
    dataset, drawn = scene(line, thin_at(edge))
    found = full_residuals(dataset, object_residuals.object_residuals(dataset))
    amplitude = (found * drawn).sum((1, 2, 3)) / (drawn**2).sum((1, 2, 3))
    assert np.abs(np.median(amplitude) - 1) < 0.05
    assert amplitude.min() > 0.7


def test_residuals_of_boxes_without_objects_are_nearly_0(scene):
    dataset, _ = scene(lambda rng, box: np.zeros((S, S, 1)))
    stored = object_residuals.object_residuals(dataset)
    assert np.abs(full_residuals(dataset, stored)).mean() < GRAIN / 20
    assert stored.signal_share[0] < 0.2


@pytest.mark.parametrize("channels", [1, 3])
def test_residual_equals_the_formula_on_whole_images(channels):
    """The oracle interpolates background and class part separately with SciPy, in float64."""
    rng = np.random.default_rng(0)
    side = 12  # of the hole, in cells; a cell is a tenth of the box
    boxes = np.array([[5, 7, 25.5, 18.25], [0, 30, 11, 48], [40.3, 0, 47.9, 3], [-2, -1, 50, 49]], np.float32)
    images = rng.uniform(-1, 1, (4, S, S, channels)).astype(np.float32)
    background, class_part = rng.uniform(-1, 1, (2, 4, channels, side, side))
    weights = np.array([0, 0.3, 0.7, 1.0])
    expected = []
    for image, box, b, c, w in zip(
        images, boxes.astype(np.float64), background, class_part, weights, strict=True
    ):
        across, down = (
            (np.arange(S) + 0.5 - (box[k] + box[k + 2]) / 2) / (box[k + 2] - box[k]) for k in (0, 1)
        )
        where = np.meshgrid(down * 10 + 5.5, across * 10 + 5.5, indexing="ij")
        b, c = (
            np.stack([ndimage.map_coordinates(part, where, order=1, mode="nearest") for part in cells], -1)
            for cells in (b, c)
        )
        distance = np.maximum(2 * np.abs(down)[:, None], 2 * np.abs(across)[None, :])
        window = np.clip((1.2 - distance) / 0.2, 0, 1)[..., None]
        expected.append(window * (c + w * (image - b - c)))
    weight = weights[:, None, None, None]
    cells = ((1 - weight) * class_part - weight * background).reshape(4, channels, side * side)
    found = residuals(images, boxes, cells.astype(np.float32), weights.astype(np.float32))
    assert found.dtype == tf.float32
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


def test_the_stored_size_depends_on_the_objects_not_on_the_image_size(make_dataset, monkeypatch):
    """12 x 12 cells and a weight of 4 bytes for each object, at two image sides."""
    monkeypatch.setattr(object_residuals, "CROPS", 200)  # for speed
    for side in (32, 64):
        dataset = make_dataset(side=side)
        stored = object_residuals.object_residuals(dataset)
        counts = [len(e["labels"]) for e in dataset.examples["train_labelled"]]
        assert stored.first.numpy().tolist() == (np.cumsum(counts) - counts).tolist()
        assert stored.cells.shape == (sum(counts), 1, 144)
        assert stored.weights.shape == (sum(counts),)
        assert stored.cells.dtype == stored.weights.dtype == tf.float32


def test_class_part_and_wiener_weight_by_hand():
    """Prediction errors have variance 1 in every cell; deviations from the class mean have 1.5."""
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((4000, 4))
    noise -= noise.mean(0)
    mean = np.array([3.0, 0.0, 0.0, 4.0])
    amplitude = np.tile([0.5, 1.5], 50)
    class_part, weights = _split(amplitude[:, None] * mean, np.zeros(100, int), noise, np.ones(1))
    np.testing.assert_allclose(class_part, amplitude[:, None] * mean, atol=1e-6)
    assert weights.max() == 0
    deviation = rng.standard_normal((20000, 4)) * np.sqrt(1.5)
    _, weights = _split(mean + deviation, np.zeros(20000, int), noise, np.ones(1))
    # Fitting the amplitude removes the deviation in one of four dimensions.
    assert weights == pytest.approx(1 - 1 / (1.5 * 3 / 4), abs=0.03)
    few, weights = _split(amplitude[:4, None] * mean, np.zeros(4, int), noise, np.ones(1))
    assert (few == 0).all()  # a class with fewer than MIN_OBJECTS objects has no class part
    assert weights == pytest.approx(1 - 1 / np.mean((amplitude[:4, None] * mean) ** 2), abs=0.01)


def test_each_class_is_weighted_by_the_errors_at_its_boxes():
    """Class 2 has only two errors and class 3 none: both get the variance of all errors."""
    rng = np.random.default_rng(0)
    classes = np.repeat([0, 1, 2], [2000, 2000, 2])
    errors = rng.standard_normal((4002, 50)) * np.where(classes == 0, 1.0, 2.0)[:, None]
    noise = _error_variance(errors, classes, 4)
    np.testing.assert_allclose(noise, [1, 4, 2.5, 2.5], rtol=0.03)
    values = rng.standard_normal((6000, 50)) * 3
    _, weights = _split(values, np.repeat([0, 1, 2], 2000), errors, noise)
    np.testing.assert_allclose(weights[[0, 2000, 4000]], 1 - np.array([1, 4, 2.5]) / 9, atol=0.03)


def test_missing_clean_images_are_an_error(make_dataset):
    with pytest.raises(InputError, match="need clean and labelled"):
        object_residuals.object_residuals(make_dataset(clean=0))
