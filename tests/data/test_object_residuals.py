"""Object residuals against known ones: objects are added to backgrounds, and their residuals recovered."""

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
    """Planes of random slope, waves and some grain, [count, S, S, 1] around 0."""
    v, u = np.meshgrid(*[np.linspace(-1, 1, S)] * 2, indexing="ij")
    slopes, phase = rng.uniform(-0.3, 0.3, (count, 2, 1, 1)), rng.uniform(0, 6, (count, 1, 1))
    smooth = slopes[:, 0] * u + slopes[:, 1] * v + 0.05 * np.sin(8 * v + phase)
    return (smooth + GRAIN * rng.standard_normal((count, S, S)))[..., None]


def blob(rng, box):
    """The same shape in every box, more or less strong."""
    v, u = np.meshgrid(*[np.arange(S) + 0.5] * 2, indexing="ij")
    x0, y0, x1, y1 = box
    distance = np.hypot((u - (x0 + x1) / 2) / (x1 - x0), (v - (y0 + y1) / 2) / (y1 - y0))
    return rng.uniform(0.3, 0.6) * np.exp(-((distance / 0.3) ** 2))[..., None]


def texture(rng, box):
    """Another shape in every box, up to its border."""
    layer = np.zeros((S, S, 1))
    x0, y0, x1, y1 = box.astype(int)
    layer[y0:y1, x0:x1] = rng.choice([-0.4, 0.4], (y1 - y0, x1 - x0, 1))
    return layer


def line(rng, box):
    """A dark line along the box, of its width."""
    layer = np.zeros((S, S, 1))
    x0, y0, x1, y1 = box.astype(int)
    layer[y0:y1, x0:x1] = -rng.uniform(0.3, 0.6)
    return layer


def anywhere(rng):
    corner = rng.integers(2, S - 16, 2)
    return np.concatenate([corner, corner + rng.integers(8, 14, 2)]).astype(np.float32)


def thin_at(edge):
    """A box of 2 pixels by 12 to 19 that begins at an edge."""

    def box(rng):
        along, length = rng.integers(8, S - 8), rng.integers(12, 20)
        across = (0, length) if edge in ("left", "upper") else (S - length, S)
        y, x = (across, (along, along + 2)) if edge in ("upper", "lower") else ((along, along + 2), across)
        return np.array([x[0], y[0], x[1], y[1]], np.float32)

    return box


@pytest.fixture
def scene(make_dataset):
    """scene(draw, box): a data set of 40 labelled images, and what was drawn into them [40, S, S, 1]."""

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


def images_of(dataset, kept):
    """Residuals of all labelled objects [M, S, S, C], from what is kept of them."""
    examples = dataset.examples["train_labelled"]
    images = np.stack([e["image"] / np.float32(127.5) - 1 for e in examples for _ in e["labels"]])
    boxes = np.concatenate([e["boxes"] for e in examples])
    return residuals(tf.constant(images, tf.float32), boxes, kept.cells, kept.weights).numpy()


def errors(layers, drawn):
    """Relative error of each layer [40]."""
    return np.sqrt(((layers - drawn) ** 2).sum((1, 2, 3)) / (drawn**2).sum((1, 2, 3)))


@pytest.mark.parametrize("draw, allowed", [(blob, 0.2), (texture, 0.25)])
def test_layers_are_what_was_drawn(scene, draw, allowed):
    """Objects of one shape come back cleaner than their grain; objects of their own shapes with it."""
    dataset, drawn = scene(draw)
    kept = object_residuals.object_residuals(dataset)
    layers, signal = images_of(dataset, kept), kept.signal_share
    assert signal[0] > 0.8
    assert np.isnan(signal[1])  # no object of the other class
    assert layers.shape == (40, S, S, 1)
    assert np.median(errors(layers, drawn)) < allowed
    for layer, example in zip(layers, dataset.examples["train_labelled"], strict=True):
        x0, y0, x1, y1 = example["boxes"][0]
        reach = 0.1 * max(x1 - x0, y1 - y0) + 1
        rows, columns = np.nonzero(layer[..., 0])
        assert rows.min() >= y0 - reach
        assert rows.max() < y1 + reach
        assert columns.min() >= x0 - reach
        assert columns.max() < x1 + reach


@pytest.mark.parametrize("edge", ["upper", "left", "lower", "right"])
def test_an_object_cut_off_by_the_edge_keeps_its_strength(scene, edge):
    """What is repeated beyond the edge would show the line to the predictor: it would be background."""
    dataset, drawn = scene(line, thin_at(edge))
    layers = images_of(dataset, object_residuals.object_residuals(dataset))
    strength = (layers * drawn).sum((1, 2, 3)) / (drawn**2).sum((1, 2, 3))
    assert np.abs(np.median(strength) - 1) < 0.05
    assert strength.min() > 0.7


def test_no_object_no_layer(scene):
    dataset, _ = scene(lambda rng, box: np.zeros((S, S, 1)))
    kept = object_residuals.object_residuals(dataset)
    assert np.abs(images_of(dataset, kept)).mean() < GRAIN / 20
    assert kept.signal_share[0] < 0.2


@pytest.mark.parametrize("channels", [1, 3])
def test_residual_equals_the_formula_on_whole_images(channels):
    """SciPy interpolates background and shared part apart, in float64, for boxes inside and at the edges."""
    rng = np.random.default_rng(0)
    side = 12  # of the hole, in cells; a cell is a tenth of the box
    boxes = np.array([[5, 7, 25.5, 18.25], [0, 30, 11, 48], [40.3, 0, 47.9, 3], [-2, -1, 50, 49]], np.float32)
    images = rng.uniform(-1, 1, (4, S, S, channels)).astype(np.float32)
    behind, shared = rng.uniform(-1, 1, (2, 4, channels, side, side))
    own = np.array([0, 0.3, 0.7, 1.0])
    wanted = []
    for image, box, b, s, weight in zip(images, boxes.astype(np.float64), behind, shared, own, strict=True):
        across, down = (
            (np.arange(S) + 0.5 - (box[k] + box[k + 2]) / 2) / (box[k + 2] - box[k]) for k in (0, 1)
        )
        where = np.meshgrid(down * 10 + 5.5, across * 10 + 5.5, indexing="ij")
        b, s = (
            np.stack([ndimage.map_coordinates(c, where, order=1, mode="nearest") for c in cells], -1)
            for cells in (b, s)
        )
        distance = np.maximum(2 * np.abs(down)[:, None], 2 * np.abs(across)[None, :])
        window = np.clip((1.2 - distance) / 0.2, 0, 1)[..., None]
        wanted.append(window * (s + weight * (image - b - s)))
    weight = own[:, None, None, None]
    cells = ((1 - weight) * shared - weight * behind).reshape(4, channels, side * side)
    found = residuals(images, boxes, cells.astype(np.float32), own.astype(np.float32))
    assert found.dtype == tf.float32
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-6)


def test_what_is_kept_grows_with_objects_not_with_images(make_dataset, monkeypatch):
    """Twice the images' side, as many bytes: 12 x 12 cells and a weight of 4 bytes for each object."""
    monkeypatch.setattr(object_residuals, "CROPS", 200)  # for speed
    for side in (32, 64):
        dataset = make_dataset(side=side)
        kept = object_residuals.object_residuals(dataset)
        counts = [len(e["labels"]) for e in dataset.examples["train_labelled"]]
        assert kept.first.numpy().tolist() == (np.cumsum(counts) - counts).tolist()
        assert kept.cells.shape == (sum(counts), 1, 144)
        assert kept.weights.shape == (sum(counts),)
        assert kept.cells.dtype == kept.weights.dtype == tf.float32


def test_shared_and_own_part_by_hand():
    """Errors of variance 1 in every cell; a third of what deviates from the shared part is no error."""
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((4000, 4))
    noise -= noise.mean(0)
    mean = np.array([3.0, 0.0, 0.0, 4.0])
    strength = np.tile([0.5, 1.5], 50)
    shared, own = _split(strength[:, None] * mean, np.zeros(100, int), noise, np.ones(1))
    np.testing.assert_allclose(shared, strength[:, None] * mean, atol=1e-6)
    assert own.max() == 0
    own_part = rng.standard_normal((20000, 4)) * np.sqrt(1.5)
    _, own = _split(mean + own_part, np.zeros(20000, int), noise, np.ones(1))
    assert own == pytest.approx(1 - 1 / (1.5 * 3 / 4), abs=0.03)  # the strength takes one of four dimensions
    few, own = _split(strength[:4, None] * mean, np.zeros(4, int), noise, np.ones(1))
    assert (few == 0).all()  # fewer than MIN_OBJECTS objects share nothing
    assert own == pytest.approx(1 - 1 / np.mean((strength[:4, None] * mean) ** 2), abs=0.01)


def test_each_class_is_weighted_by_the_errors_of_its_own_boxes():
    """Two errors of class 2 are too few to tell: all of them count, as where there is none, in class 3."""
    rng = np.random.default_rng(0)
    of_errors = np.repeat([0, 1, 2], [2000, 2000, 2])
    errors = rng.standard_normal((4002, 50)) * np.where(of_errors == 0, 1.0, 2.0)[:, None]
    noise = _error_variance(errors, of_errors, 4)
    np.testing.assert_allclose(noise, [1, 4, 2.5, 2.5], rtol=0.03)
    found = rng.standard_normal((6000, 50)) * 3
    _, own = _split(found, np.repeat([0, 1, 2], 2000), errors, noise)
    np.testing.assert_allclose(own[[0, 2000, 4000]], 1 - np.array([1, 4, 2.5]) / 9, atol=0.03)


def test_missing_clean_images_are_an_error(make_dataset):
    with pytest.raises(InputError, match="need clean and labelled"):
        object_residuals.object_residuals(make_dataset(clean=0))
