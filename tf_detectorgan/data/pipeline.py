"""Makes batches from undecoded records. The batch of step t depends on (seed, t) alone (decision 0030).

Records are drawn by number (streams.py). Every random number of an image is a function of that number
(draws.py). All functions below process whole batches of one static shape. So a resumed run gets the same
batches as an uninterrupted one, on any number of threads.
Letters: N images, S stored side, C channels, K = dataset.max_boxes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tf_detectorgan import boxes as box_ops
from tf_detectorgan.batch import Batch, Labelled, Synthesis
from tf_detectorgan.data import augmentation, draws, noise, placement, streams
from tf_detectorgan.data.augmentation import Augmentation
from tf_detectorgan.data.placement import Placement
from tf_detectorgan.data.records import Dataset
from tf_detectorgan.data.streams import SINGLE_HOST, Host
from tf_detectorgan.errors import InputError

# One draw chooses a box of a labelled image (y_boxes).
_DRAWS = augmentation.DRAWS + placement.DRAWS + 1


class EvaluationBatch(NamedTuple):
    """Images to be evaluated, with their boxes. The last batch is filled up with copies: `real` is False."""

    images: tf.Tensor  # [N, S, S, C]
    image_ids: tf.Tensor  # [N] int64
    groups: tf.Tensor  # [N] string
    valid_sizes: tf.Tensor  # [N, 2] int32
    boxes: tf.Tensor  # [N, K, 4]
    labels: tf.Tensor  # [N, K] int32, -1 where padded
    real: tf.Tensor  # [N] bool


class _Drawn(NamedTuple):
    """A batch of decoded records with their numbers in the stream and their random numbers."""

    numbers: tf.Tensor  # [N] int64
    images: tf.Tensor
    image_ids: tf.Tensor
    groups: tf.Tensor
    boxes: tf.Tensor
    labels: tf.Tensor
    valid_sizes: tf.Tensor
    draws: tf.Tensor  # [N, _DRAWS]

    def augmented(self, options: Augmentation) -> _Drawn:
        part = self.draws[:, : augmentation.DRAWS]
        changed = augmentation.augment(self.images, self.boxes, self.labels, self.valid_sizes, part, options)
        return self._replace(images=changed[0], boxes=changed[1], labels=changed[2])

    @property
    def labelled(self) -> Labelled:
        return Labelled(self.images, self.boxes, self.labels)

    @property
    def content(self) -> tf.Tensor:
        return box_ops.of_sizes(self.valid_sizes)


def joint_batches(
    dataset: Dataset,
    *,
    batch_size: int,
    seed: int,
    start_step: int,
    steps: int,
    placement: Placement,
    unroll_steps: int = 1,
    host: Host = SINGLE_HOST,
) -> tf.data.Dataset:
    """Returns the `Batch` of each step from `start_step` to `steps` - 1; half of the images are mirrored.

    Args:
      dataset: has train_clean, train_labelled and optionally train_unboxed; without train_unboxed, u is y.
      batch_size: N, of each stream.
      seed: of all random numbers drawn here.
      start_step, steps: the first step, and the number of steps of the whole run.
      placement: where objects are inserted into x; if they are noise, y gets noise in y_boxes as well.
      unroll_steps: unrolled steps of Eqn 3; each after the first has its own labelled images in y_later.
      host: the process whose rows of the batches are returned.

    Raises:
      InputError: a split is missing.
      ValueError: the batch cannot be divided among the hosts.
    """
    labelled = _open(dataset, "train_labelled")
    sources = {"x": _open(dataset, "train_clean"), "y": labelled, "y2": labelled}
    if dataset.count("train_unboxed"):
        sources["u"] = _open(dataset, "train_unboxed")
    if unroll_steps > 1:
        sources["y_later"] = labelled
    place = _Placer(dataset, placement)

    def assemble(drawn: dict[str, _Drawn]) -> Batch:
        drawn = {name: stream.augmented(augmentation.FLIP) for name, stream in drawn.items()}
        insertion = place(drawn["x"]).insertion
        y, y2 = drawn["y"], drawn["y2"]
        y_boxes = tf.gather(y.boxes, draws.pick_true(y.draws[:, -1], y.labels >= 0), batch_dims=1)
        u = drawn.get("u", y)
        batch = Batch(drawn["x"].images, insertion, y.labelled, y.content, y_boxes, u.images, y2.labelled)
        if unroll_steps > 1:
            columns = (tf.split(column, unroll_steps - 1) for column in drawn["y_later"].labelled)
            batch = batch._replace(y_later=tuple(map(Labelled, *columns)))
        if placement.noise:
            batch = batch._replace(y_noised=noise.fill(y.images, y_boxes, y.draws[:, :2]))
        return batch

    rows = host.rows(batch_size)
    rows_of = dict.fromkeys(sources, rows) | {"y_later": np.tile(rows, unroll_steps - 1)}
    drawn = {
        name: _drawn(dataset, source, seed, name, rows_of[name], start_step * len(rows_of[name]))
        for name, source in sources.items()
    }
    return _finished(_mapped(tf.data.Dataset.zip(drawn), assemble), steps - start_step)


def labelled_batches(
    dataset: Dataset,
    *,
    batch_size: int,
    seed: int,
    start_step: int,
    steps: int,
    augment: Augmentation,
    real: tf.data.Dataset | None = None,
    synthetic: tf.data.Dataset | None = None,
    synthetic_fraction: float = 0.5,
    synthetic_objects: int = 1,
    clean_fraction: float = 0.0,
    host: Host = SINGLE_HOST,
) -> tf.data.Dataset:
    """Returns the `Labelled` batch of each step from `start_step` to `steps` - 1, for training a detector.

    Every batch has exactly round(fraction * batch_size) synthetic and clean images; the others are from
    train_labelled. The three kinds are spread evenly over the batch, so that each replica gets all of them.

    Args:
      dataset: the real images.
      batch_size, seed: N, and the seed of all random numbers drawn here.
      start_step, steps: the first step, and the number of steps of the whole run.
      augment: the augmentation of all images.
      real: serialized Examples of train_labelled; None: all of them.
      synthetic: serialized Examples of the same schema (`records.read_records`); None: no synthetic images.
      synthetic_fraction, clean_fraction: their shares of the batch; clean images have no box.
      synthetic_objects: the largest number of boxes of a synthetic image; K is at least this.
      host: the process whose rows of the batches are returned.

    Raises:
      InputError: a kind of images has a share of the batch, but there are none.
      ValueError: the fractions are negative or leave no real image; the batch cannot be divided among the
        hosts.
    """
    counts = {
        "synthetic": 0 if synthetic is None else round(synthetic_fraction * batch_size),
        "clean": round(clean_fraction * batch_size),
    }
    counts["real"] = batch_size - sum(counts.values())
    if min(counts.values()) < 0 or not counts["real"]:
        raise ValueError(f"{synthetic_fraction=}, {clean_fraction=}: negative, or no real images in a batch")
    counts = {kind: count for kind, count in counts.items() if count}
    sources = {"real": _open(dataset, "train_labelled", real)}
    if "clean" in counts:
        sources["clean"] = _open(dataset, "train_clean")
    if synthetic is not None and "synthetic" in counts:
        sources["synthetic"] = streams.open_source(synthetic, "the synthetic set")
    rows_of, order = _mixed(counts, host.rows(batch_size))
    boxes = max(dataset.max_boxes, synthetic_objects)  # the same K in all arms: no function is traced again

    def assemble(drawn: dict[str, _Drawn]) -> Labelled:
        columns = zip(*(drawn[kind].augmented(augment).labelled for kind in drawn), strict=True)
        return Labelled(*(tf.gather(tf.concat(column, axis=0), order) for column in columns))

    drawn = {
        kind: _drawn(dataset, sources[kind], seed, kind, rows, start_step * len(rows), boxes)
        for kind, rows in rows_of.items()
    }
    return _finished(_mapped(tf.data.Dataset.zip(drawn), assemble), steps - start_step)


def _mixed(counts: Mapping[str, int], rows: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Spreads the kinds evenly over a batch: image j of a kind is placed at (j + 1/2) / count of the batch.

    Returns for each kind a bool [count], True for its images in `rows` (bool [batch size]); kinds without any
    are left out. Also returns the order in which these images, concatenated by kind, fill the rows.
    """
    places = np.concatenate([(np.arange(count) + 0.5) / count for count in counts.values()])
    images = np.argsort(places, kind="stable")[rows]
    masks = np.split(np.isin(np.arange(len(rows)), images), np.cumsum([*counts.values()])[:-1])
    rows_of = {kind: mask for kind, mask in zip(counts, masks, strict=True) if mask.any()}
    return rows_of, np.searchsorted(np.sort(images), images)


def evaluation_batches(dataset: Dataset, splits: Sequence[str], batch_size: int) -> tf.data.Dataset:
    """Returns `EvaluationBatch`es with each image of `splits` ("test_labelled", ...) once, in order.

    Raises:
      InputError: the splits have no images.
    """
    total = sum(dataset.count(split) for split in splits)
    if not total:
        raise InputError(f"no images in {', '.join(splits)} of {dataset.name}: nothing to evaluate")
    strings = dataset.serialized(splits[0])
    for split in splits[1:]:
        strings = strings.concatenate(dataset.serialized(split))
    strings = strings.concatenate(strings.take(1).repeat(-total % batch_size))

    def assemble(numbers, images, image_ids, groups, boxes, labels, valid_sizes) -> EvaluationBatch:
        return EvaluationBatch(images, image_ids, groups, valid_sizes, boxes, labels, numbers < total)

    decoded = _mapped(strings.enumerate(), lambda number, one: (number, *_decode(dataset, one)))
    return _finished(_mapped(decoded.batch(batch_size, drop_remainder=True), assemble))


def synthesis_batches(
    dataset: Dataset, *, count: int, batch_size: int, seed: int, start: int, placement: Placement
) -> tf.data.Dataset:
    """Returns `Synthesis` batches of the images `start` to `count` - 1; `Synthesis.seeds` are these numbers.

    A batch has `batch_size` images. Each has `placement.objects` consecutive rows with one insertion each.
    Row k of image i is a function of (seed, i, k) alone. The last batch is filled up with the next images;
    the caller drops those with a number of `count` or more. The backgrounds are the train_clean images in
    random order, without augmentation. Each is used once per epoch.

    Raises:
      InputError: a split is missing.
    """
    source = _open(dataset, "train_clean")
    place = _Placer(dataset, placement)
    low, high = placement.residual_scale

    def assemble(x: _Drawn) -> Synthesis:
        x, residual_scale = _rows_of_objects(x, seed, placement.objects)
        insertion, chosen, moved = place(x)
        matched_groups = tf.gather(place.references.groups, chosen)
        return Synthesis(
            x.images,
            insertion,
            moved,
            background_ids=x.image_ids,
            matched_ids=tf.gather(place.references.image_ids, chosen),
            groups=tf.stack([x.groups, matched_groups], axis=1),
            valid_sizes=x.valid_sizes,
            seeds=x.numbers,
            residual_scale=low + (high - low) * residual_scale,
        )

    drawn = _drawn(dataset, source, seed, "synthesis", np.ones(batch_size, bool), start)
    return _finished(_mapped(drawn, assemble), -((start - count) // batch_size))


def _rows_of_objects(x: _Drawn, seed: int, objects: int) -> tuple[_Drawn, tf.Tensor]:
    """Repeats each image in `objects` consecutive rows; returns the rows and a number in [0, 1) for each.

    Each row has its own random numbers. Those of the first row do not depend on `objects`.
    """
    first = tf.concat([x.draws, draws.batch_uniforms(seed, "residual_scale", x.numbers, 1)], axis=1)
    others = [draws.batch_uniforms(seed, "objects", x.numbers, _DRAWS + 1, k) for k in range(1, objects)]
    uniform = tf.reshape(tf.stack([first, *others], axis=1), [-1, _DRAWS + 1])
    rows = _Drawn(*(tf.repeat(field, objects, axis=0) for field in x))
    return rows._replace(draws=uniform[:, :-1]), uniform[:, -1]


class _Placer:
    """Calls `placement.insertions` with the references and options of one data set."""

    def __init__(self, dataset: Dataset, options: Placement):
        self.references, self.options = placement.reference_table(dataset, options), options

    def __call__(self, x: _Drawn):
        part = x.draws[:, augmentation.DRAWS : augmentation.DRAWS + placement.DRAWS]
        return placement.insertions(x.images, x.valid_sizes, self.references, part, self.options)


def _open(dataset, split, subset=None):
    """Returns a `RecordSource` of the split's records, or of a `subset` of them."""
    strings = dataset.serialized(split) if subset is None else subset
    return streams.open_source(strings, f"split {split} of {dataset.name}")


def _drawn(dataset, source, seed, stream, rows: np.ndarray, start, max_boxes: int = 0) -> tf.data.Dataset:
    """Returns endless `_Drawn` batches of the `rows` (bool [batch size]) from element `start` on."""

    def decode(number, serialized):
        fields = _decode(dataset, serialized, max_boxes)
        return _Drawn(number, *fields, draws.uniforms(seed, stream, number, _DRAWS))

    elements = streams.endless(source, seed, stream, start)
    if not rows.all():  # rows of other hosts are dropped before they are decoded
        elements = elements.filter(lambda number, _: tf.constant(rows)[(number - start) % len(rows)])
    return _mapped(elements, decode).batch(rows.sum(), drop_remainder=True)


def _decode(
    dataset, serialized, max_boxes: int = 0
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
    """Returns image, image_id, group, boxes, labels and valid_size of one record, all of static shape."""
    record = dataset.decode(serialized)
    image = tf.ensure_shape(record.image, dataset.image_shape)
    boxes, labels = placement.padded_boxes(record, max_boxes or dataset.max_boxes)
    valid_size = tf.ensure_shape(record.valid_size, [2])
    return image, record.image_id, record.groups[0], boxes, labels, valid_size


def _mapped(dataset, function):
    function = tf.autograph.experimental.do_not_convert(function)  # no tensor-dependent branches: faster
    return dataset.map(function, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)


def _finished(dataset, count: int | None = None):
    options = tf.data.Options()
    options.deterministic = True
    # tf.distribute only splits a host's batch among its replicas: no record is dropped or repeated.
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    if count is not None:
        dataset = dataset.take(max(count, 0))
    return dataset.with_options(options).prefetch(2)
