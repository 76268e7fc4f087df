"""Where an object goes into a clean image, and what it should look like there.

For a clean image x a *reference* is chosen: a labelled training image, one of its boxes, and a map that moves
that box into x. The moved box is where G_X inserts, the moved image is the exemplar. Same map for both, so
they agree.
Letters: N clean images, L references, S stored side, C channels, K padded boxes, F descriptor length.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tf_detectorgan import boxes as box_ops
from tf_detectorgan.batch import Insertion
from tf_detectorgan.data import augmentation, context_placement, noise
from tf_detectorgan.data import draws as random
from tf_detectorgan.data.context_placement import Context
from tf_detectorgan.data.object_residuals import ObjectResiduals, object_residuals, residuals
from tf_detectorgan.data.records import Dataset, Record
from tf_detectorgan.errors import InputError
from tf_detectorgan.resampling import resample, valid_mask

MODES = ("matched_shift", "uniform", "context")
DRAWS = 6  # random numbers that one insertion needs
DESCRIPTOR_SIDE = 16
CONTEXT_OBJECTS = 128
EDGE = 0.02  # of the content's side: an object that near to the edge is cut off by it


@dataclasses.dataclass(frozen=True)
class Placement:
    """How boxes are placed.

    matched_shift: the most similar reference, its box shifted at random (the paper).
    uniform: any reference, its box anywhere in the image.
    context: any reference; its box is placed by its surroundings (context_placement.py).
    """

    mode: str = "matched_shift"
    max_shift: float = 0.05  # of the content's side, for matched_shift
    candidates: int = 5  # the reference is drawn from this many most similar ones; 1 is the paper
    flip_objects: bool = True  # the reference is mirrored (left, right) in half of the cases
    keep_edges: bool = True  # an object cut off by its image's edge stays at that edge (decision 0033)
    residual: bool = False  # the exemplar is x plus the object residual, not the moved image
    noise: bool = False  # the exemplar is x with noise in the box (noise.py)
    residual_scale: tuple[float, float] = (1.0, 1.0)  # range of `Synthesis.residual_scale`
    objects: int = 1  # insertions into each image of `synthesis_batches`


class Placed(NamedTuple):
    """An insertion, and where its object is from."""

    insertion: Insertion
    reference: tf.Tensor  # [N] int32
    moved: tf.Tensor  # [N, S, S, C] the reference's image, moved so that its object lies in the box


@dataclasses.dataclass(frozen=True)
class References:
    """The labelled training images with what is needed to choose among them; pixels stay undecoded."""

    serialized: tf.Tensor  # [L] string
    decode: Callable[[tf.Tensor], Record]
    descriptors: tf.Tensor  # [L, F]
    boxes: tf.Tensor  # [L, K, 4]
    labels: tf.Tensor  # [L, K] int32, -1 where padded
    valid_sizes: tf.Tensor  # [L, 2] int32
    image_ids: tf.Tensor  # [L] int64
    groups: tf.Tensor  # [L] string
    context: Context | None = None  # for mode "context"
    residuals: ObjectResiduals | None = None  # for `Placement.residual`


def descriptors(images, valid_sizes) -> tf.Tensor:
    """What similarity is measured on: [N, F] of length 1, from [N, S, S, C] and [N, 2].

    The image minus its content's mean, averaged over a 16x16 grid; padding counts as the mean: it says
    nothing. A product of two descriptors is the cosine similarity (decision 0032).
    """
    inside = valid_mask(valid_sizes, images.shape[1])
    pixels = tf.cast(tf.reduce_prod(valid_sizes, axis=1), tf.float32)[:, None, None, None]
    mean = tf.reduce_sum(tf.where(inside, images, 0.0), axis=(1, 2), keepdims=True) / pixels
    small = tf.image.resize(tf.where(inside, images - mean, 0.0), [DESCRIPTOR_SIDE] * 2, method="area")
    flat = tf.reshape(small, [-1, DESCRIPTOR_SIDE * DESCRIPTOR_SIDE * images.shape[3]])
    return tf.math.divide_no_nan(flat, tf.norm(flat, axis=1, keepdims=True))


def padded_boxes(record: Record, max_boxes: int) -> tuple[tf.Tensor, tf.Tensor]:
    """A record's boxes [max_boxes, 4] and labels [max_boxes], padded with zeros and -1."""
    rows = [[0, max_boxes - tf.shape(record.labels)[0]]]
    boxes = tf.ensure_shape(tf.pad(record.boxes, rows + [[0, 0]]), [max_boxes, 4])
    return boxes, tf.ensure_shape(tf.pad(record.labels, rows, constant_values=-1), [max_boxes])


def reference_table(
    dataset: Dataset, options: Placement = Placement(), split: str = "train_labelled"
) -> References:
    """Reads the labelled images once and describes them, as far as `options` need it.

    Raises:
      InputError: there are none, or one has no box; see `object_residuals`.
    """

    def describe(serialized):
        record = dataset.decode(serialized)
        image = tf.ensure_shape(record.image, dataset.image_shape)
        descriptor = descriptors(image[None], record.valid_size[None])[0]
        boxes, labels = padded_boxes(record, dataset.max_boxes)
        return serialized, descriptor, boxes, labels, record.valid_size, record.image_id, record.groups[0]

    rows = list(dataset.serialized(split).map(describe, num_parallel_calls=tf.data.AUTOTUNE).batch(64))
    if not rows:
        raise InputError(f"split {split} has no images: nothing to take objects from")
    columns = [tf.concat(column, axis=0) for column in zip(*rows, strict=True)]
    references = References(columns[0], dataset.decode, *columns[1:])
    empty = tf.reduce_all(references.labels < 0, axis=1)
    if tf.reduce_any(empty):
        which = references.image_ids[empty].numpy().tolist()
        raise InputError(f"split {split}: images {which[:5]} have no box; every labelled image needs one")
    if options.mode == "context":
        references = dataclasses.replace(references, context=_context(references, dataset, options))
    if options.residual:
        references = dataclasses.replace(references, residuals=object_residuals(dataset))
    return references


def _context(references: References, dataset: Dataset, options: Placement) -> Context:
    """Of at most CONTEXT_OBJECTS objects, spread over the references, and one of each class at least."""
    labels = references.labels.numpy()
    rows, columns = np.nonzero(labels >= 0)
    spread = np.linspace(0, len(rows) - 1, min(len(rows), CONTEXT_OBJECTS)).astype(int)
    some = np.union1d(spread, np.unique(labels[rows, columns], return_index=True)[1])
    rows, columns = rows[some], columns[some]
    images = _decoded(references, tf.constant(rows), [len(rows), *dataset.image_shape])
    boxes = tf.gather_nd(references.boxes, np.stack([rows, columns], axis=1))
    sizes = tf.gather(references.valid_sizes, rows)
    return context_placement.learn(
        images, sizes, boxes, tf.constant(labels[rows, columns]), options.flip_objects
    )


def insertions(images, valid_sizes, references: References, draws, options: Placement) -> Placed:
    """Chooses a reference for each clean image and moves it there; every box lies inside the valid content.

    Args:
      images: [N, S, S, C] float32, clean, as they will be used (already mirrored or not).
      valid_sizes: [N, 2] int32.
      references: what to choose from, read with the same options.
      draws: [N, DRAWS] float32 in [0, 1).
      options: how.
    """
    flip = (draws[:, 1] < 0.5) & options.flip_objects
    candidates = _candidates(references, valid_sizes)
    chosen = _choose(images, valid_sizes, references, candidates, draws[:, 2], options)
    box_index = random.pick_true(draws[:, 3], tf.gather(candidates, chosen, batch_dims=1))
    boxes = own_boxes = tf.gather(tf.gather(references.boxes, chosen), box_index, batch_dims=1)
    labels = tf.gather(tf.gather(references.labels, chosen), box_index, batch_dims=1)

    sizes = tf.gather(references.valid_sizes, chosen)
    scale, offset = augmentation.mirror(flip, tf.cast(sizes, tf.float32))
    boxes = box_ops.affine(boxes, scale, offset)
    limits = tf.cast(valid_sizes, tf.float32)
    start, extent = _starts_and_extents(boxes)
    zoom = tf.minimum(1.0, tf.reduce_min((limits - 1.0) / extent, axis=1, keepdims=True))  # until it fits
    extent *= zoom
    # The first and last whole-pixel shift of the top-left corner that keep the box inside.
    shifts = tf.math.ceil(-start), tf.floor(limits - start - extent)
    if options.keep_edges:
        shifts = _at_edges(boxes, tf.cast(sizes, tf.float32), limits, extent, shifts)
    if references.context is None:
        shift = _random(shifts, limits, draws[:, 4:6], options)
    else:
        middle = start + extent / 2
        bounds = middle + shifts[0], middle + shifts[1]
        wanted = context_placement.choose(
            references.context, images, valid_sizes, extent, labels, bounds, draws[:, 4]
        )
        shift = tf.clip_by_value(tf.round(wanted - middle), *shifts)
    move = shift + (1.0 - zoom) * start  # the top-left corner keeps its place under the zoom
    zoom = tf.repeat(zoom, 2, axis=1)
    target = box_ops.affine(boxes, zoom, move)
    target = box_ops.clip(target, limits[:, 0], limits[:, 1])  # by rounding errors at most
    total = zoom * scale, zoom * offset + move, sizes
    decoded = _decoded(references, chosen, images.shape)
    exemplars = moved = resample(decoded, *total)
    if references.residuals is not None:
        number = tf.gather(references.residuals.first, chosen) + box_index
        parts = (
            tf.gather(part, number) for part in (references.residuals.cells, references.residuals.weights)
        )
        exemplars = images + resample(residuals(decoded, own_boxes, *parts), *total)
        exemplars = tf.clip_by_value(exemplars, -1.0, 1.0)
    if options.noise:
        exemplars = noise.fill(images, target, draws[:, :2])
    return Placed(Insertion(target, labels, exemplars, box_ops.of_sizes(valid_sizes)), chosen, moved)


def _candidates(references, valid_sizes):
    """Which boxes may be used for which clean image: bool [N, L, K], at least one for each image."""
    usable = references.labels >= 0
    # One pixel of room, so that a whole-pixel shift exists whatever the box's fraction.
    room = tf.cast(valid_sizes[:, None, None, ::-1], tf.float32) - 1.0
    fits = tf.reduce_all(box_ops.to_xywh(references.boxes)[..., 2:] <= room, axis=-1) & usable
    return tf.where(tf.reduce_any(fits, axis=(1, 2), keepdims=True), fits, usable)


def _choose(images, valid_sizes, references, candidates, draw, options):
    """Index of a reference [N] int32: among the most similar ones that have a candidate box."""
    similarity = tf.matmul(descriptors(images, valid_sizes), references.descriptors, transpose_b=True)
    allowed = tf.reduce_any(candidates, axis=2)
    similarity = tf.where(allowed, similarity, -2.0)  # below every cosine
    total = references.labels.shape[0]
    best = total if options.mode in ("uniform", "context") else min(options.candidates, total)
    ranked = tf.math.top_k(similarity, best).indices
    available = tf.minimum(tf.reduce_sum(tf.cast(allowed, tf.int32), axis=1), best)
    return tf.gather(ranked, random.pick(draw, available), batch_dims=1)


def _at_edges(boxes, sizes, limits, extent, shifts):
    """Of `shifts` the one that keeps the distance to the edge, along axes where the box [N, 4] is at one.

    Edges are those of the box's own content, of `sizes` [N, 2]; the upper or left one if it is at both.
    `extent` [N, 2] is the box's where it is inserted.
    """
    start, own_extent = _starts_and_extents(boxes)
    beyond = sizes - start - own_extent
    at_first, at_last = start <= EDGE * sizes, beyond <= EDGE * sizes
    only = tf.where(at_first, 0.0, tf.round(limits - beyond - start - extent))
    only = tf.clip_by_value(only, *shifts)
    first, last = (tf.where(at_first | at_last, only, one) for one in shifts)
    return first, last


def _random(shifts, limits, draws, options):
    """One of `shifts` [N, 2], within reach of the box's own place."""
    reach = limits if options.mode == "uniform" else tf.floor(options.max_shift * limits)
    # Where the reach ends before the content begins: the nearest place inside.
    first, last = tf.clip_by_value(-reach, *shifts), tf.clip_by_value(reach, *shifts)
    return first + tf.cast(random.pick(draws, last - first + 1.0), tf.float32)


def _starts_and_extents(boxes):
    x, y, width, height = tf.unstack(box_ops.to_xywh(boxes), axis=1)
    return tf.stack([y, x], axis=1), tf.stack([height, width], axis=1)


def _decoded(references, chosen, shape):
    serialized = tf.gather(references.serialized, chosen)
    images = tf.map_fn(lambda one: references.decode(one).image, serialized, fn_output_signature=tf.float32)
    return tf.ensure_shape(images, shape)
