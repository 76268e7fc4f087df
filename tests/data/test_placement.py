import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from tf_detectorgan.data import placement
from tf_detectorgan.data.object_residuals import object_residuals, residuals
from tf_detectorgan.data.placement import DRAWS, Placement, insertions, reference_table
from tf_detectorgan.errors import InputError

S, N = 32, 30


def columns(examples, *fields):
    return [np.stack([example[field] for example in examples]) for field in fields]


class Scene:
    """Clean images, references and expected values; `place(options)` makes N insertions."""

    def __init__(self, dataset):
        self.dataset = dataset
        self.table = reference_table(dataset)
        clean, self.labelled = dataset.examples["train_clean"], dataset.examples["train_labelled"]
        decoded = dataset.serialized("train_labelled").map(lambda one: dataset.decode(one).image)
        self.decoded = list(decoded.as_numpy_iterator())
        pick = np.arange(N) % len(clean)
        images, sizes = columns(clean, "image", "valid_size")
        self.images = tf.constant(images[pick] / 127.5 - 1.0, tf.float32)
        self.sizes = tf.constant(sizes[pick], tf.int32)
        self.draws = np.random.default_rng(1).uniform(0, 1, (N, DRAWS)).astype(np.float32)

    def place(self, options, **changes):
        call = {"images": self.images, "valid_sizes": self.sizes, "draws": self.draws, **changes}
        more = options.mode == "context" or options.residual
        table = reference_table(self.dataset, options) if more else self.table
        insertion, chosen, self.moved = insertions(references=table, options=options, **call)
        height, width = np.moveaxis(np.asarray(call["valid_sizes"]), -1, 0)
        np.testing.assert_array_equal(
            insertion.content, np.stack([0 * width, 0 * height, width, height], axis=-1)
        )
        return *(part.numpy() for part in insertion[:3]), chosen.numpy()


@pytest.fixture(scope="module")
def square(make_dataset):
    return Scene(make_dataset(side=S))


@pytest.fixture(scope="module")
def padded(make_dataset):
    return Scene(make_dataset(side=S, clean=20, labelled=9, padded=True))


@pytest.fixture(params=["square", "padded"])
def scene(request):
    return request.getfixturevalue(request.param)


PAPER = Placement(max_shift=0.15, candidates=1, flip_objects=False, keep_edges=False)
UNIFORM = dataclasses.replace(PAPER, mode="uniform")
OPTIONS = {
    "default": Placement(),
    "paper": PAPER,
    "uniform": UNIFORM,
    "far": dataclasses.replace(PAPER, max_shift=1.0),
    "whole_context": dataclasses.replace(PAPER, mode="context"),
    "context": Placement("context"),
    "edges": dataclasses.replace(UNIFORM, keep_edges=True),
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_boxes_lie_inside_the_content(scene, options):
    boxes, labels, _, _ = scene.place(options)
    sizes = scene.sizes.numpy()
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 2:] <= sizes[:, ::-1]).all()
    assert (boxes[:, 2:] - boxes[:, :2] >= 1).all()
    assert set(labels) <= {0, 1}


@pytest.mark.parametrize("name", ["paper", "uniform", "far", "whole_context", "edges"])
def test_the_box_is_a_reference_box_moved_by_whole_pixels(scene, name):
    boxes, labels, _, chosen = scene.place(OPTIONS[name])
    for box, label, index, size in zip(boxes, labels, chosen, scene.sizes.numpy(), strict=True):
        reference = scene.labelled[index]
        shifts = box - reference["boxes"]
        fits = [
            np.allclose(shift, np.tile(np.rint(shift[:2]), 2), atol=1e-5) and kind == label
            for shift, kind in zip(shifts, reference["labels"], strict=True)
        ]
        assert any(fits), (box, reference["boxes"])
        if name == "paper" and scene.dataset.examples["train_clean"][0]["valid_size"] == (S, S):
            reach = np.floor(np.float32(0.15) * size[::-1])
            assert (np.abs(shifts[fits][:, :2]) <= reach + 1e-5).any(axis=0).all()


@pytest.mark.parametrize("name", ["paper", "uniform"])
def test_the_exemplar_shows_the_references_pixels_in_the_box(scene, name):
    boxes, _, exemplars, chosen = scene.place(OPTIONS[name])
    compared = 0
    for box, exemplar, index in zip(boxes, exemplars, chosen, strict=True):
        reference = scene.labelled[index]
        decoded = scene.decoded[index]
        shifts = box - reference["boxes"]
        whole = np.abs(shifts - np.tile(np.rint(shifts[:, :2]), 2)).max(axis=1) < 1e-5
        sides = np.stack([box[2] - box[0], box[3] - box[1]])
        dx, dy = np.rint(shifts[np.flatnonzero(whole)[0], :2]).astype(int)
        x0, y0, x1, y1 = np.rint(np.concatenate([np.ceil(box[:2]), np.floor(box[2:])])).astype(int)
        assert (sides >= 1).all()
        np.testing.assert_array_equal(exemplar[y0:y1, x0:x1], decoded[y0 - dy : y1 - dy, x0 - dx : x1 - dx])
        compared += (x1 - x0) * (y1 - y0)
    assert compared > 10 * N


def test_the_exemplar_is_the_clean_image_plus_the_moved_residual(scene):
    """The residual is that of the chosen object. Box, class and moved image are as without residuals."""
    image = scene.place(UNIFORM)
    moved = scene.moved.numpy()
    np.testing.assert_array_equal(moved, image[2])
    boxes, labels, exemplars, chosen = scene.place(dataclasses.replace(UNIFORM, residual=True))
    np.testing.assert_array_equal(scene.moved, moved)
    for before, after in zip((image[0], image[1], image[3]), (boxes, labels, chosen), strict=True):
        np.testing.assert_array_equal(before, after)
    stored = object_residuals(scene.dataset)
    for box, label, x, exemplar, index in zip(boxes, labels, scene.images, exemplars, chosen, strict=True):
        shifts = box - scene.labelled[index]["boxes"]
        same = np.isclose(shifts, np.tile(np.rint(shifts[:, :2]), 2), atol=1e-5).all(1)
        k = np.flatnonzero(same & (scene.labelled[index]["labels"] == label))[0]
        dx, dy = np.rint(shifts[k, :2]).astype(int)
        x0, y0, x1, y1 = np.concatenate([np.ceil(box[:2]), np.floor(box[2:])]).astype(int)
        m = sum(len(one["labels"]) for one in scene.labelled[:index]) + k
        box_of_m = scene.labelled[index]["boxes"][k : k + 1]
        residual = residuals(
            scene.decoded[index][None], box_of_m, stored.cells[m : m + 1], stored.weights[m : m + 1]
        ).numpy()[0]
        moved_residual = residual[y0 - dy : y1 - dy, x0 - dx : x1 - dx]
        expected = np.clip(x.numpy()[y0:y1, x0:x1] + moved_residual, -1, 1)
        np.testing.assert_allclose(exemplar[y0:y1, x0:x1], expected, atol=1e-6)


def test_outside_of_the_reference_its_edge_is_repeated(padded):
    boxes, _, exemplars, chosen = padded.place(OPTIONS["far"])
    for exemplar, index in zip(exemplars, chosen, strict=True):
        h, w = padded.labelled[index]["valid_size"]
        decoded = padded.decoded[index]
        assert np.isin(exemplar, decoded[:h, :w]).all(), "padding was copied"


def test_a_mirrored_exemplar_mirrors_image_and_box(square):
    draws = square.draws.copy()
    draws[:, 1] = 0.0  # all are mirrored
    boxes, _, exemplars, chosen = square.place(Placement(max_shift=0.0, keep_edges=False), draws=draws)
    for box, exemplar, index in zip(boxes, exemplars, chosen, strict=True):
        decoded = square.decoded[index]
        np.testing.assert_array_equal(exemplar, decoded[:, ::-1])
        given = square.labelled[index]["boxes"]
        mirrored = np.stack([S - given[:, 2], given[:, 1], S - given[:, 0], given[:, 3]], axis=1)
        assert (np.abs(mirrored - box).max(axis=1) < 1e-5).any()


def test_the_most_similar_reference_is_chosen(square):
    """The clean images are the references with a little noise and another brightness."""
    picks = np.arange(len(square.labelled))
    images = columns(square.labelled, "image")[0] / 127.5 - 1.0
    images = 0.5 * images + 0.2 + np.random.default_rng(0).normal(0, 0.02, images.shape)
    sizes = columns(square.labelled, "valid_size")[0]
    changes = {"images": tf.constant(images, tf.float32), "valid_sizes": tf.constant(sizes, tf.int32)}
    *_, chosen = square.place(PAPER, draws=square.draws[picks], **changes)
    assert chosen.tolist() == picks.tolist()
    *_, chosen = square.place(UNIFORM, draws=square.draws[picks], **changes)
    assert chosen.tolist() != picks.tolist()


def test_references_are_drawn_from_the_k_most_similar(square):
    ranks = square.draws.copy()
    images = tf.repeat(square.images[:1], N, axis=0)
    similarity = tf.matmul(
        placement.descriptors(images, square.sizes), square.table.descriptors, transpose_b=True
    )
    best = tf.argsort(similarity[0], direction="DESCENDING").numpy()
    for k in (1, 2, 3):
        *_, chosen = square.place(Placement(candidates=k), images=images, draws=ranks)
        assert set(chosen) == set(best[:k])


def test_descriptors_equal_numpy_and_do_not_depend_on_padding(padded):
    images, sizes = padded.images.numpy()[:8], padded.sizes.numpy()[:8]
    found = placement.descriptors(images, sizes).numpy()
    for image, (h, w), descriptor in zip(images, sizes, found, strict=True):
        centred = np.zeros_like(image)
        centred[:h, :w] = image[:h, :w] - image[:h, :w].mean()
        blocks = centred.reshape(16, S // 16, 16, S // 16).mean(axis=(1, 3)).ravel()
        np.testing.assert_allclose(descriptor, blocks / np.linalg.norm(blocks), atol=1e-5)
    images[0, sizes[0, 0] :] = 0.77
    np.testing.assert_array_equal(placement.descriptors(images, sizes)[0], found[0])


def with_boxes(scene, boxes):
    """Returns the scene with these boxes in all references."""
    table = scene.table
    count = table.labels.shape[0]
    repeated = tf.constant(np.tile(np.float32(boxes), (count, 1, 1)))
    labels = tf.zeros([count, len(boxes)], tf.int32)
    changed = Scene.__new__(Scene)
    changed.__dict__.update(scene.__dict__, table=dataclasses.replace(table, boxes=repeated, labels=labels))
    return changed


EDGES = {  # reference box; expected distances to the upper, left, lower, right edge (None: any)
    "upper": ([9, 0, 15, 6], [0, None, None, None]),
    "lower_right": ([24, 25, 32, 31.5], [None, None, 0.5, 0]),
    "whole_height": ([9, 0, 12, 32], [0, None, None, None]),
    "near_no_edge": ([9, 2, 15, 8], [None] * 4),
}


@pytest.mark.parametrize("name", EDGES)
@pytest.mark.parametrize("mode", ["uniform", "context"])
def test_an_object_cut_off_by_an_edge_stays_at_that_edge(square, mode, name):
    """It moves along that edge; other objects move freely. The content is smaller than the reference."""
    box, distances = EDGES[name]
    scene = with_boxes(square, [box])
    height, width = sizes = (24, 28)
    context = placement.context_placement.fit(
        scene.images[:1], scene.sizes[:1], tf.constant([box], tf.float32), tf.constant([0]), mirrored=False
    )
    table = dataclasses.replace(scene.table, context=context if mode == "context" else None)
    for keep in (True, False):
        options = Placement(mode, flip_objects=False, keep_edges=keep)
        placed = insertions(scene.images, tf.constant([sizes] * N), table, scene.draws, options)
        boxes = placed.insertion.boxes.numpy()
        found = np.stack([boxes[:, 1], boxes[:, 0], height - boxes[:, 3], width - boxes[:, 2]], axis=1)
        assert (found >= 0).all()
        for expected, column in zip(distances, found.T, strict=True):
            if expected is not None:
                assert (np.abs(column - expected) <= 0.5 + 1e-5).all() == keep
        free = found[:, 1] if distances[1] is None else found[:, 0]
        if name != "lower_right":
            assert len(np.unique(free)) > 3


def test_a_mirrored_object_stays_at_the_mirrored_edge(square):
    draws = square.draws.copy()
    draws[:, 1] = 0.0  # all are mirrored
    options = Placement("uniform")
    boxes, *_ = with_boxes(square, [[0, 9, 6, 15]]).place(options, draws=draws)
    np.testing.assert_array_equal(boxes[:, 2], S)


def test_only_boxes_that_fit_are_drawn_if_there_are_any(square):
    scene = with_boxes(square, [[0, 0, 25, 25], [2, 2, 8, 8]])
    sizes = tf.constant([[16, 20]] * N)
    boxes, *_ = scene.place(PAPER, valid_sizes=sizes)
    np.testing.assert_allclose(boxes[:, 2:] - boxes[:, :2], 6.0)
    boxes, *_ = scene.place(PAPER)
    assert set((boxes[:, 2] - boxes[:, 0]).tolist()) == {6.0, 25.0}


def test_a_box_is_shrunk_in_proportion_if_none_fits(square):
    scene = with_boxes(square, [[4, 4, 28, 24]])  # 24 wide, 20 high
    boxes, _, exemplars, chosen = scene.place(PAPER, valid_sizes=tf.constant([[16, 20]] * N))
    # One pixel less than the content, 15 and 19: scale min(15/20, 19/24) = 0.75.
    np.testing.assert_allclose(boxes[:, 2:] - boxes[:, :2], [[18.0, 15.0]] * N, rtol=1e-5)
    assert (boxes[:, 2:] <= [20, 16]).all()
    for box, exemplar, index in zip(boxes, exemplars, chosen, strict=True):
        decoded = scene.decoded[index]
        x0, y0, x1, y1 = np.rint(box).astype(int)
        # Mean grey of the object before and after shrinking.
        assert abs(exemplar[y0:y1, x0:x1].mean() - decoded[4:24, 4:28].mean()) < 0.03


def test_an_empty_split_and_labelled_images_without_boxes_are_errors(make_dataset):
    with pytest.raises(InputError, match="train_labelled"):
        reference_table(make_dataset(labelled=0))
    with pytest.raises(InputError, match=r"\[0, 1, 2"):
        reference_table(make_dataset(), split="train_clean")
