"""The records that packages pass to each other.

Letters: N images, H, W, C channels, K padded boxes, D detections. Images are float32 in [-1, 1]; boxes are
float32 as in `boxes.py`; a padded box is zeros with label -1.
"""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf


class Labelled(NamedTuple):
    """Images with boxes, the training input of a detector."""

    images: tf.Tensor  # [N, H, W, C]
    boxes: tf.Tensor  # [N, K, 4]
    labels: tf.Tensor  # [N, K] int32, -1 where padded


class Insertion(NamedTuple):
    """One object to be inserted into each image: box, class and exemplar."""

    boxes: tf.Tensor  # [N, 4], at whole-pixel offsets from the matched box
    labels: tf.Tensor  # [N] int32
    exemplars: tf.Tensor  # [N, H, W, C] object in `boxes`: moved matched image, or x + residual or noise
    content: tf.Tensor  # [N, 4] box of the pixels of x that are not padding: only they may change


class Batch(NamedTuple):
    """The input of one joint step; fields have the paper's symbols."""

    x: tf.Tensor  # [N, H, W, C] clean images
    insertion: Insertion  # box of the object to insert into x, and the matched object (target of BboxLoss)
    y: Labelled  # labelled images: for L_real, DIS_globalX, DIS_localX, G_Y
    y_content: tf.Tensor  # [N, 4] box of the pixels of y that are not padding
    y_boxes: tf.Tensor  # [N, 4] one random box of each y: its crop is DIS_localX's real input
    u: tf.Tensor  # [N, H, W, C] unboxed images: for DIS_globalX only; y if the data set has none
    y2: Labelled  # other labelled images, drawn independently: for L~_real of Eqn 3
    y_later: tuple[Labelled, ...] = ()  # also drawn independently: for L_real of unrolled steps 2 to K
    y_noised: tf.Tensor | tuple[()] = ()  # [N, H, W, C] y with noise in y_boxes; for PS-GAN and pix2pix only


class Synthesis(NamedTuple):
    """Clean images with one insertion each, and the origin of both (scalars per row: [N]).

    If an image gets several objects, its rows are consecutive.
    """

    x: tf.Tensor  # [N, H, W, C]
    insertion: Insertion
    matched: tf.Tensor  # [N, H, W, C] the matched labelled image, moved so that its object lies in the box
    background_ids: tf.Tensor  # int64
    matched_ids: tf.Tensor  # int64
    groups: tf.Tensor  # [N, 2] string: the background's and the matched image's group
    valid_sizes: tf.Tensor  # [N, 2] int32
    seeds: tf.Tensor  # [N] int64, the image's number, the seed of its random choices
    residual_scale: tf.Tensor  # [N] factor on what G_X adds to the matched object


class Detections(NamedTuple):
    """A detector's output, sorted by descending score; a padded detection has score 0 and label -1."""

    boxes: tf.Tensor  # [N, D, 4]
    scores: tf.Tensor  # [N, D] float32 in [0, 1]
    labels: tf.Tensor  # [N, D] int32
