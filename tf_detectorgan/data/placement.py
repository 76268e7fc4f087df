"""Chooses the box and the exemplar of each insertion into a clean image.

For a clean image x, a labelled training image and one of its boxes are drawn: the *reference*, or matched
image and object. A map (mirroring, scaling, shifting) moves the box to a position in x, where G_X inserts an
object. The same map moves the reference's image, or its object residual, which gives the exemplar.
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
EDGE = 0.02  # in sides of the content: an object that is nearer to the edge counts as cut off by it


@dataclasses.dataclass(frozen=True)
class Placement:
    """Options of an insertion.

    Modes:
      matched_shift: the most similar reference; its box is shifted at random [paper].
      uniform: any reference; its box lies anywhere in the image.
      context: any reference; its box lies where the surroundings resemble those of labelled objects
        (context_placement.py).
    """

    mode: str = "matched_shift"
    max_shift: float = 0.05  # for matched_shift, in sides of the content
    candidates: int = 5  # the reference is drawn from this many most similar ones; 1 is the paper
    flip_objects: bool = True  # the reference is mirrored horizontally in half of the cases
    keep_edges: bool = True  # an object cut off by its image's edge stays at that edge (decision 0033)
    residual: bool = False  # the exemplar is x plus the object residual, not the moved image
    noise: bool = False  # the exemplar is x with noise in the box (noise.py)
    residual_scale: tuple[float, float] = (1.0, 1.0)  # range of `Synthesis.residual_scale`
    objects: int = 1  # insertions into each image of `synthesis_batches`


class Placed(NamedTuple):
    """Insertions, and the origin of their objects."""

    insertion: Insertion
    reference: tf.Tensor  # [N] int32 index of the reference
    moved: tf.Tensor  # [N, S, S, C] the reference's image, moved so that its object lies in the box


@dataclasses.dataclass(frozen=True)
class References:
    """The labelled training images, undecoded, with the columns that the choice of a reference needs."""

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
    """Returns descriptors [N, F] of length 1 of images [N, S, S, C] with content of valid_sizes [N, 2].

    A descriptor is the image minus its content's mean, averaged over a 16x16 grid. Padding counts as the
    mean. The product of two descriptors is the images' cosine similarity (decision 0032).
    """
    inside = valid_mask(valid_sizes, images.shape[1])
    pixels = tf.cast(tf.reduce_prod(valid_sizes, axis=1), tf.float32)[:, None, None, None]
    mean = tf.reduce_sum(tf.where(inside, images, 0.0), axis=(1, 2), keepdims=True) / pixels
    small = tf.image.resize(tf.where(inside, images - mean, 0.0), [DESCRIPTOR_SIDE] * 2, method="area")
    flat = tf.reshape(small, [-1, DESCRIPTOR_SIDE * DESCRIPTOR_SIDE * images.shape[3]])
    return tf.math.divide_no_nan(flat, tf.norm(flat, axis=1, keepdims=True))


def padded_boxes(record: Record, max_boxes: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns a record's boxes [max_boxes, 4], padded with zeros, and labels [max_boxes], padded with -1."""
    rows = [[0, max_boxes - tf.shape(record.labels)[0]]]
    boxes = tf.ensure_shape(tf.pad(record.boxes, rows + [[0, 0]]), [max_boxes, 4])
    return boxes, tf.ensure_shape(tf.pad(record.labels, rows, constant_values=-1), [max_boxes])


def reference_table(
    dataset: Dataset, options: Placement = Placement(), split: str = "train_labelled"
) -> References:
    """Reads the labelled images once; returns them with the columns that `options` need.

    Raises:
      InputError: there are no labelled images, or one has no box; as `object_residuals`.
    """

    def describe(serialized):
        record = dataset.decode(serialized)
        image = tf.ensure_shape(record.image, dataset.image_shape)
        descriptor = descriptors(image[None], record.valid_size[None])[0]
        boxes, labels = padded_boxes(record, dataset.max_boxes)
        return serialized, descriptor, boxes, labels, record.valid_size, record.image_id, record.groups[0]

    rows = list(dataset.serialized(split).map(describe, num_parallel_calls=tf.data.AUTOTUNE).batch(64))
    if not rows:
        raise InputError(f"split {split} has no images: add labelled training images")
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
    """Fits the context to about CONTEXT_OBJECTS evenly chosen objects, at least one of each class."""
    labels = references.labels.numpy()
    rows, columns = np.nonzero(labels >= 0)
    evenly = np.linspace(0, len(rows) - 1, min(len(rows), CONTEXT_OBJECTS)).astype(int)
    some = np.union1d(evenly, np.unique(labels[rows, columns], return_index=True)[1])
    rows, columns = rows[some], columns[some]
    images = _decoded(references, tf.constant(rows), [len(rows), *dataset.image_shape])
    boxes = tf.gather_nd(references.boxes, np.stack([rows, columns], axis=1))
    sizes = tf.gather(references.valid_sizes, rows)
    return context_placement.fit(
        images, sizes, boxes, tf.constant(labels[rows, columns]), options.flip_objects
    )


def insertions(images, valid_sizes, references: References, draws, options: Placement) -> Placed:
    """Draws a reference and a position for each clean image; every box lies inside the content.

    Args:
      images: [N, S, S, C] float32 clean images, after augmentation.
      valid_sizes: [N, 2] int32 height and width of their content.
      references: as `reference_table` returns them for the same options.
      draws: [N, DRAWS] float32 random numbers in [0, 1).
      options: mode and the others.
    """
    flip = (draws[:, 1] < 0.5) & options.flip_objects
    candidates = _candidates(references, valid_sizes)
    chosen = _choose(images, valid_sizes, references, candidates, draws[:, 2], options)
    box_index = random.pick_true(draws[:, 3], tf.gather(candidates, chosen, batch_dims=1))
    boxes = reference_boxes = tf.gather(tf.gather(references.boxes, chosen), box_index, batch_dims=1)
    labels = tf.gather(tf.gather(references.labels, chosen), box_index, batch_dims=1)

    sizes = tf.gather(references.valid_sizes, chosen)
    scale, offset = augmentation.mirror(flip, tf.cast(sizes, tf.float32))
    boxes = box_ops.affine(boxes, scale, offset)
    limits = tf.cast(valid_sizes, tf.float32)
    start, extent = _starts_and_extents(boxes)
    zoom = tf.minimum(
        1.0, tf.reduce_min((limits - 1.0) / extent, axis=1, keepdims=True)
    )  # shrinks a box that is too large
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
        centres = context_placement.draw_positions(
            references.context, images, valid_sizes, extent, labels, bounds, draws[:, 4]
        )
        shift = tf.clip_by_value(tf.round(centres - middle), *shifts)
    move = shift + (1.0 - zoom) * start  # zoom about the top-left corner
    zoom = tf.repeat(zoom, 2, axis=1)
    target = box_ops.affine(boxes, zoom, move)
    target = box_ops.clip(target, limits[:, 0], limits[:, 1])  # removes rounding errors only
    total = zoom * scale, zoom * offset + move, sizes
    decoded = _decoded(references, chosen, images.shape)
    exemplars = moved = resample(decoded, *total)
    if references.residuals is not None:
        number = tf.gather(references.residuals.first, chosen) + box_index
        parts = (
            tf.gather(part, number) for part in (references.residuals.cells, references.residuals.weights)
        )
        exemplars = images + resample(residuals(decoded, reference_boxes, *parts), *total)
        exemplars = tf.clip_by_value(exemplars, -1.0, 1.0)
    if options.noise:
        exemplars = noise.fill(images, target, draws[:, :2])
    return Placed(Insertion(target, labels, exemplars, box_ops.of_sizes(valid_sizes)), chosen, moved)


def _candidates(references, valid_sizes):
    """Returns bool [N, L, K]: boxes that may be used for a clean image, at least one for each image."""
    usable = references.labels >= 0
    # One pixel less than the content, so that a whole-pixel shift exists for any fractional position.
    available = tf.cast(valid_sizes[:, None, None, ::-1], tf.float32) - 1.0
    fits = tf.reduce_all(box_ops.to_xywh(references.boxes)[..., 2:] <= available, axis=-1) & usable
    return tf.where(tf.reduce_any(fits, axis=(1, 2), keepdims=True), fits, usable)


def _choose(images, valid_sizes, references, candidates, draw, options):
    """Draws the index of a reference [N] int32 from the most similar ones that have a candidate box."""
    similarity = tf.matmul(descriptors(images, valid_sizes), references.descriptors, transpose_b=True)
    allowed = tf.reduce_any(candidates, axis=2)
    similarity = tf.where(allowed, similarity, -2.0)  # below every cosine
    total = references.labels.shape[0]
    best = total if options.mode in ("uniform", "context") else min(options.candidates, total)
    ranked = tf.math.top_k(similarity, best).indices
    available = tf.minimum(tf.reduce_sum(tf.cast(allowed, tf.int32), axis=1), best)
    return tf.gather(ranked, random.pick(draw, available), batch_dims=1)


def _at_edges(boxes, sizes, limits, extent, shifts):
    """Restricts `shifts` so that a box [N, 4] at an edge of its own image keeps its distance to that edge.

    The edges are those of the content of size `sizes` [N, 2]; the upper or left one if the box touches both.
    `extent` [N, 2] is the height and width of the inserted box.
    """
    start, own_extent = _starts_and_extents(boxes)
    beyond = sizes - start - own_extent
    at_first, at_last = start <= EDGE * sizes, beyond <= EDGE * sizes
    only = tf.where(at_first, 0.0, tf.round(limits - beyond - start - extent))
    only = tf.clip_by_value(only, *shifts)
    first, last = (tf.where(at_first | at_last, only, one) for one in shifts)
    return first, last


def _random(shifts, limits, draws, options):
    """Draws a shift [N, 2] from `shifts`, in matched_shift near to the box's own position."""
    reach = limits if options.mode == "uniform" else tf.floor(options.max_shift * limits)
    # If no shift within reach lies inside the content, the nearest one that does is taken.
    first, last = tf.clip_by_value(-reach, *shifts), tf.clip_by_value(reach, *shifts)
    return first + tf.cast(random.pick(draws, last - first + 1.0), tf.float32)


def _starts_and_extents(boxes):
    x, y, width, height = tf.unstack(box_ops.to_xywh(boxes), axis=1)
    return tf.stack([y, x], axis=1), tf.stack([height, width], axis=1)


def _decoded(references, chosen, shape):
    serialized = tf.gather(references.serialized, chosen)
    images = tf.map_fn(lambda one: references.decode(one).image, serialized, fn_output_signature=tf.float32)
    return tf.ensure_shape(images, shape)
