import collections
import dataclasses
import itertools

import numpy as np
import pytest
import tensorflow as tf

from tf_detectorgan.data import augmentation, pipeline, streams
from tf_detectorgan.data.augmentation import IDENTITY, Augmentation
from tf_detectorgan.data.placement import Placement
from tf_detectorgan.errors import InputError

B, STEPS = 4, 12


@pytest.fixture(scope="module")
def dataset(make_dataset):
    return make_dataset(padded=True)  # 7 clean, 5 labelled, 4 unboxed, 5 + 2 for testing


def joint(dataset, start_step=0, steps=STEPS, **changes):
    arguments = {"batch_size": B, "seed": 3, "placement": Placement(), **changes}
    return list(pipeline.joint_batches(dataset, start_step=start_step, steps=steps, **arguments))


def labelled(dataset, start_step=0, steps=STEPS, **changes):
    arguments = {"batch_size": B, "seed": 3, "augment": Augmentation(), **changes}
    return list(pipeline.labelled_batches(dataset, start_step=start_step, steps=steps, **arguments))


def synthesis(dataset, start=0, count=14, **changes):
    arguments = {"batch_size": B, "seed": 3, "placement": Placement(residual_scale=(0.2, 0.6)), **changes}
    return list(pipeline.synthesis_batches(dataset, start=start, count=count, **arguments))


def assert_same(one, other):
    """Compares two nested structures of tensors bit by bit."""
    one, other = tf.nest.flatten(one), tf.nest.flatten(other)
    assert len(one) == len(other) > 0
    for a, b in zip(one, other, strict=True):
        assert a.numpy().tobytes() == b.numpy().tobytes() if a.dtype != tf.string else tf.reduce_all(a == b)


def identify(dataset, images, split):
    """Returns the ids of images without augmentation, found by their pixels."""
    decoded = dataset.serialized(split).map(dataset.decode)
    table = {record.image.numpy().tobytes(): int(record.image_id) for record in decoded}
    return [table[image.numpy().tobytes()] for image in images]


# Made once: a data set of batches costs seconds to trace.
@pytest.fixture(scope="module")
def uninterrupted(dataset):
    return joint(dataset)


@pytest.fixture(scope="module")
def plain(dataset):
    """The same batches without mirroring, with two more unrolled steps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(augmentation, "FLIP", IDENTITY)
        return joint(dataset, unroll_steps=3)


@pytest.fixture(scope="module")
def synthesized(dataset):
    return synthesis(dataset)


def test_joint_batches_resume_bit_by_bit(dataset, uninterrupted):
    tf.random.set_seed(1234)  # must have no effect
    resumed = joint(dataset, start_step=7)
    assert len(resumed) == STEPS - 7
    assert_same(resumed, uninterrupted[7:])


def test_joint_batches_are_the_same_on_one_thread(dataset, uninterrupted):
    options = tf.data.Options()
    options.threading.private_threadpool_size = 1
    options.autotune.enabled = False
    batches = pipeline.joint_batches(
        dataset, batch_size=B, seed=3, start_step=0, steps=STEPS, placement=Placement()
    )
    assert_same(list(batches.with_options(options)), uninterrupted)


def test_records_too_large_for_memory_occur_once_per_epoch(dataset, monkeypatch):
    size = len(dataset._strings["train_clean"][0])
    monkeypatch.setattr(streams.open_source, "__defaults__", (3 * size,))
    monkeypatch.setattr(augmentation, "FLIP", IDENTITY)
    ids = [i for batch in joint(dataset, steps=4) for i in identify(dataset, batch.x, "train_clean")]
    assert sorted(ids[:7]) == sorted(ids[7:14]) == list(range(7))


def test_each_record_occurs_once_per_epoch_in_each_stream(dataset, plain):
    ids = collections.defaultdict(list)
    for batch in plain:
        ids["x"] += identify(dataset, batch.x, "train_clean")
        ids["y"] += identify(dataset, batch.y.images, "train_labelled")
        ids["y2"] += identify(dataset, batch.y2.images, "train_labelled")
        ids["u"] += identify(dataset, batch.u, "train_unboxed")
    for stream, first, count in [("x", 0, 7), ("y", 100, 5), ("y2", 100, 5), ("u", 200, 4)]:
        epochs = [ids[stream][i : i + count] for i in range(0, STEPS * B - count + 1, count)]
        assert all(sorted(epoch) == list(range(first, first + count)) for epoch in epochs), stream
        assert len(set(map(tuple, epochs))) > 1, stream
    assert ids["y"] != ids["y2"]


def test_y_boxes_are_random_boxes_of_y(uninterrupted):
    chosen = set()
    for batch in uninterrupted:
        for boxes, labels, box in zip(batch.y.boxes, batch.y.labels, batch.y_boxes, strict=True):
            match = np.flatnonzero((boxes.numpy() == box.numpy()).all(axis=1) & (labels.numpy() >= 0))
            chosen.add((int(tf.reduce_sum(tf.cast(labels >= 0, tf.int32))), int(match[0])))
    assert chosen == {(1, 0), (2, 0), (2, 1), (3, 0), (3, 1), (3, 2)}


def test_without_unboxed_images_u_is_y(make_dataset):
    batch = joint(make_dataset(unboxed=0), steps=1)[0]
    assert_same(batch.u, batch.y.images)


def test_later_unrolled_steps_have_their_own_labelled_images(dataset, uninterrupted, plain):
    """y_later changes no other stream, resumes bit by bit, and has every image once per epoch."""
    batches = joint(dataset, start_step=7, unroll_steps=3)
    assert_same([batch._replace(y_later=()) for batch in batches], uninterrupted[7:])
    drawn = [one.images for batch in plain for one in batch.y_later]
    assert [len(images) for images in drawn] == [B] * 2 * STEPS
    ids = identify(dataset, tf.concat(drawn, 0), "train_labelled")
    epochs = [ids[i : i + 5] for i in range(0, len(ids) - 4, 5)]
    assert all(sorted(epoch) == list(range(100, 105)) for epoch in epochs)
    mirrored = [image.numpy() for batch in batches for one in batch.y_later for image in one.images]
    originals = [image.numpy() for one in drawn[14:] for image in one]
    share = np.mean([(a != b).any() for a, b in zip(mirrored, originals, strict=True)])
    assert 0.2 < share < 0.8


def test_about_half_of_the_images_of_each_stream_are_mirrored(uninterrupted, plain):
    for part in ("x", "y", "u", "y2"):
        mirrored, originals = (
            tf.concat([tf.nest.flatten(getattr(batch, part))[0] for batch in batches], 0)
            for batches in (uninterrupted, plain)
        )
        share = np.mean((mirrored.numpy() != originals.numpy()).any(axis=(1, 2, 3)))
        assert 0.2 < share < 0.8, part


@pytest.mark.parametrize("split", ["clean", "labelled"])
def test_a_missing_split_is_an_error_naming_it(make_dataset, split):
    with pytest.raises(InputError, match=f"train_{split}"):
        joint(make_dataset(**{split: 0}))


def test_all_batches_have_one_static_shape_so_a_function_is_traced_once(dataset, uninterrupted, synthesized):
    evaluation = pipeline.evaluation_batches(dataset, ["test_labelled", "test_clean"], B)
    assert all(spec.shape.is_fully_defined() for spec in tf.nest.flatten(evaluation.element_spec))
    for batches in (uninterrupted, labelled(dataset, steps=3), synthesized, list(evaluation)):
        function = tf.function(lambda batch: tf.reduce_sum(batch[0]))
        assert len([function(batch) for batch in batches]) > 1
        assert function.experimental_get_tracing_count() == 1


def serialized_synthetic(make_dataset):
    """Returns the labelled images of another data set as synthetic ones: each is uniform grey."""
    other = make_dataset(labelled=6, padded=True)
    for i, example in enumerate(other.examples["train_labelled"]):
        example["image"] = np.full_like(example["image"], 10 * (i + 1))
    changed = type(other)(32, {"synthetic": other.examples["train_labelled"]})
    return changed.serialized("synthetic")


def kinds_of(batch):
    """Returns a letter for each image: s (synthetic, uniform grey), c (clean, no box) or r (real)."""
    grey = [np.ptp(image.numpy()) == 0 for image in batch.images]
    empty = (batch.labels.numpy() < 0).all(axis=1)
    return "".join("s" if g else "c" if e else "r" for g, e in zip(grey, empty, strict=True))


def test_shares_in_a_batch_are_exact_evenly_spread_and_resume_bit_by_bit(dataset, make_dataset):
    mixture = {
        "synthetic": serialized_synthetic(make_dataset),
        "batch_size": 8,
        "clean_fraction": 0.25,
        "augment": dataclasses.replace(Augmentation(), intensity=0.0),
    }
    batches = labelled(dataset, **mixture)
    for batch in batches:
        kinds = kinds_of(batch)
        assert [kinds[:4].count(kind) for kind in "src"] == [2, 1, 1]
        assert [kinds[4:].count(kind) for kind in "src"] == [2, 1, 1]
    assert_same(labelled(dataset, start_step=4, **mixture), batches[4:])


def test_all_images_are_real_without_a_synthetic_set(dataset):
    for batch in labelled(dataset, synthetic_fraction=0.5):
        assert kinds_of(batch) == "rrrr"


def test_labelled_batches_have_each_record_once_per_epoch_with_its_boxes(dataset):
    batches = labelled(dataset, steps=5, augment=IDENTITY)
    ids = [i for batch in batches for i in identify(dataset, batch.images, "train_labelled")]
    assert all(sorted(ids[i : i + 5]) == list(range(100, 105)) for i in range(0, 20, 5))
    rows = itertools.chain.from_iterable(zip(batch.boxes, batch.labels, strict=True) for batch in batches)
    for i, (boxes, labels) in zip(ids, rows, strict=True):
        example = dataset.examples["train_labelled"][i - 100]
        count = len(example["labels"])
        np.testing.assert_array_equal(boxes[:count], example["boxes"])
        assert labels.numpy().tolist() == [*example["labels"], *[-1] * (3 - count)]
        assert not np.any(boxes[count:])


@pytest.mark.parametrize("fractions", [(1.0, 0.0), (0.5, 0.5), (0.9, 0.5), (-0.5, 0.0)])
def test_fractions_that_leave_no_real_image_are_an_error(dataset, fractions):
    synthetic = dataset.serialized("train_labelled")
    with pytest.raises(ValueError, match="synthetic_fraction"):
        labelled(dataset, synthetic=synthetic, synthetic_fraction=fractions[0], clean_fraction=fractions[1])


@pytest.mark.parametrize("batch_size", [4, 7, 10])
def test_evaluation_batches_have_each_image_once_in_order(dataset, batch_size):
    batches = list(pipeline.evaluation_batches(dataset, ["test_labelled", "test_clean"], batch_size))
    real = tf.concat([batch.real for batch in batches], 0)
    ids = tf.boolean_mask(tf.concat([batch.image_ids for batch in batches], 0), real).numpy().tolist()
    assert ids == [300, 301, 302, 303, 304, 400, 401]
    assert len(real) == -(-7 // batch_size) * batch_size
    batch = batches[0]
    assert identify(dataset, batch.images[:4], "test_labelled") == ids[:4]
    np.testing.assert_array_equal(batch.boxes[1, 0], dataset.examples["test_labelled"][1]["boxes"][0])
    assert batch.groups.numpy()[:2].tolist() == [b"group300", b"group301"]


def test_evaluation_batches_without_images_are_an_error(dataset):
    with pytest.raises(InputError, match="validation_labelled"):
        pipeline.evaluation_batches(dataset, ["validation_labelled"], 2)


@pytest.mark.parametrize("split", ["train_clean", "train_labelled"])
def test_evaluation_batches_skip_an_absent_split(dataset, split):
    batches = pipeline.evaluation_batches(dataset, ["validation_labelled", split], 7)
    assert int(tf.reduce_sum(tf.cast(next(iter(batches)).real, tf.int32))) == dataset.count(split)


def images_of(batches, count):
    """Returns {image number: the image's row of the `Synthesis` batch}."""
    rows = {}
    for batch in batches:
        for i, number in enumerate(batch.seeds.numpy().tolist()):
            if number < count:
                rows[number] = tf.nest.map_structure(lambda part: part[i], batch)  # noqa: B023
    return rows


def test_synthetic_image_i_depends_on_seed_and_i_only(dataset, synthesized):
    whole = images_of(synthesized, 14)
    assert sorted(whole) == list(range(14))
    scales = [float(row.residual_scale) for row in whole.values()]
    assert len(set(scales)) == 14
    assert 0.2 <= min(scales) < 0.4 < max(scales) < 0.6
    for start, batch_size in [(3, 4), (0, 3)]:
        part = images_of(synthesis(dataset, start=start, batch_size=batch_size), 14)
        assert sorted(part) == list(range(start, 14))
        for number, image in part.items():
            assert_same(image, whole[number])


def test_rows_of_one_image_are_independent_insertions_into_it(dataset, synthesized):
    """The first row equals the image's row when it is the only one."""
    alone = images_of(synthesized, 14)
    options = {"placement": Placement(residual_scale=(0.2, 0.6), objects=3), "batch_size": 2}
    rows = [
        tf.nest.map_structure(lambda v, k=k: v[k], b) for b in synthesis(dataset, **options) for k in range(6)
    ]
    assert [int(row.seeds) for row in rows] == [number for number in range(14) for _ in range(3)]
    for number in range(14):
        three = rows[3 * number : 3 * number + 3]
        assert_same(three[0], alone[number])
        assert all(tf.reduce_all(row.x == three[0].x) for row in three)
        assert len({float(row.residual_scale) for row in three}) == 3
    places = np.array([row.insertion.boxes[:2] for row in rows]).reshape(14, 3, 2)
    assert (places[:, 0] != places[:, 1]).any(-1).sum() > 7 < (places[:, 1] != places[:, 2]).any(-1).sum()


def test_synthetic_images_may_have_more_boxes_than_real_ones(dataset, make_dataset):
    other = make_dataset(labelled=6)
    for example in other.examples["train_labelled"]:
        example["boxes"] = np.array([[2 * k, 2, 2 * k + 9, 12] for k in range(5)], np.float32)
        example["labels"] = np.zeros(5, np.int64)
    changed = type(other)(32, {"synthetic": other.examples["train_labelled"]})
    options = {"synthetic": changed.serialized("synthetic"), "augment": IDENTITY}
    for batch in labelled(dataset, synthetic_objects=5, **options):
        assert batch.boxes.shape == (B, 5, 4)
        assert sorted((batch.labels >= 0).numpy().sum(1))[B // 2 :] == [5, 5]
    assert labelled(dataset, synthetic_objects=5, steps=1)[0].boxes.shape == (B, 5, 4)


def test_synthesis_batches_name_background_and_matched_image(dataset, synthesized):
    rows = images_of(synthesized, 14)
    backgrounds = [int(row.background_ids) for row in rows.values()]
    assert sorted(backgrounds[:7]) == sorted(backgrounds[7:]) == list(range(7))
    assert identify(dataset, [row.x for row in rows.values()], "train_clean") == backgrounds
    for row in rows.values():
        ids = int(row.background_ids), int(row.matched_ids)
        assert row.groups.numpy().tolist() == [b"group%d" % one for one in ids]
        assert row.valid_sizes.numpy().tolist() == list(dataset.examples["train_clean"][ids[0]]["valid_size"])
        assert int(row.insertion.labels) in dataset.examples["train_labelled"][ids[1] - 100]["labels"]


def test_a_joint_batch_is_split_among_replicas(dataset, uninterrupted):
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    batches = pipeline.joint_batches(
        dataset, batch_size=B, seed=3, start_step=0, steps=2, placement=Placement()
    )
    for batch, whole in zip(strategy.experimental_distribute_dataset(batches), uninterrupted, strict=False):
        parts = [strategy.experimental_local_results(part) for part in tf.nest.flatten(batch)]
        assert [part.shape[0] for part in parts[0]] == [B // 2, B // 2]
        assert_same([tf.concat(part, 0) for part in parts], tf.nest.flatten(whole))


def test_the_rows_of_a_host_equal_those_of_the_whole_batch(dataset, make_dataset):
    """Joint batches: second half, two unrolled steps. Labelled batches: first half, without real images."""
    mixture = {"batch_size": 4, "synthetic": serialized_synthetic(make_dataset), "synthetic_fraction": 0.75}
    for batches, index, options in ((joint, 1, {"unroll_steps": 2}), (labelled, 0, mixture)):
        rows = slice(2 * index, 2 * index + 2)
        whole = batches(dataset, start_step=1, steps=3, **options)
        own = batches(dataset, start_step=1, steps=3, host=streams.Host(index, 2), **options)
        assert_same(own, tf.nest.map_structure(lambda v, rows=rows: v[rows], whole))
    with pytest.raises(ValueError, match="4 rows are not divisible by 3 hosts"):
        joint(dataset, host=streams.Host(0, 3))


def test_a_host_decodes_only_its_own_rows(dataset, monkeypatch):
    whole, decoded = type(dataset).decode, []

    def counted(self, serialized):
        with tf.control_dependencies([tf.numpy_function(lambda: decoded.append(1), [], [])]):
            return whole(self, tf.identity(serialized))

    monkeypatch.setattr(type(dataset), "decode", counted)
    labelled(dataset, steps=20)
    alone = len(decoded)
    decoded.clear()
    labelled(dataset, steps=20, host=streams.Host(1, 2))
    assert len(decoded) < 0.7 * alone  # half, and what is prefetched
