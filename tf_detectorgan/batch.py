"""The records that rooms pass to each other.

Letters: N images, H, W, C channels, K padded boxes, D detections. Images are float32 in [-1, 1]; boxes are
float32 as in `boxes.py`; a padded box is zeros with label -1.
"""

from __future__ import annotations

from typing import NamedTuple

import tensorflow as tf


class Labelled(NamedTuple):
    """Images with boxes, as a detector is trained on them."""

    images: tf.Tensor  # [N, H, W, C]
    boxes: tf.Tensor  # [N, K, 4]
    labels: tf.Tensor  # [N, K] int32, -1 where padded


class Insertion(NamedTuple):
    """One object to be inserted into each image, and what it should look like."""

    boxes: tf.Tensor  # [N, 4], whole pixels from the matched box's own position
    labels: tf.Tensor  # [N] int32
    exemplars: tf.Tensor  # [N, H, W, C] object in `boxes`: moved labelled image, or x with a layer or noise
    content: tf.Tensor  # [N, 4] the box of what is no padding in x: nothing is drawn beyond


class Batch(NamedTuple):
    """One iteration of the joint step, the paper's streams by their symbols."""

    x: tf.Tensor  # [N, H, W, C] clean images
    insertion: Insertion  # where G_X puts an object into x, and the matched object (BboxLoss target)
    y: Labelled  # labelled images: L_real, DIS_globalX, DIS_localX, G_Y
    y_content: tf.Tensor  # [N, 4] the box of what is no padding in y
    y_boxes: tf.Tensor  # [N, 4] one box of each y, drawn at random: what DIS_localX sees of it
    u: tf.Tensor  # [N, H, W, C] labelled, boxes unknown: DIS_globalX only (y where there are none)
    y2: Labelled  # a fresh draw of labelled images: L~_real of Eqn 3
    y_later: tuple[Labelled, ...] = ()  # fresh draws too: L_real of virtual steps after the first
    y_noised: tf.Tensor | tuple[()] = ()  # [N, H, W, C] y with noise in y_boxes; only where it is drawn back


class Synthesis(NamedTuple):
    """Clean images with an insertion each and where both came from (scalars per row: [N]).

    The rows of an image that gets several objects follow one another.
    """

    x: tf.Tensor  # [N, H, W, C]
    insertion: Insertion
    matched: tf.Tensor  # [N, H, W, C] the matched labelled image, moved so that its object lies in the box
    background_ids: tf.Tensor  # int64
    matched_ids: tf.Tensor  # int64
    groups: tf.Tensor  # [N, 2] string: the background's and the matched image's group
    valid_sizes: tf.Tensor  # [N, 2] int32
    seeds: tf.Tensor  # [N] int64, the image's number, which every random choice was drawn from
    residual_scale: tf.Tensor  # [N] share of what G_X adds to the matched object


class Detections(NamedTuple):
    """A detector's answer, best first; a padded detection has score 0 and label -1."""

    boxes: tf.Tensor  # [N, D, 4]
    scores: tf.Tensor  # [N, D] float32 in [0, 1]
    labels: tf.Tensor  # [N, D] int32
