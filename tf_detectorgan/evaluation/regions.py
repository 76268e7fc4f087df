"""From heat maps to detections: boxes around isolated regions (Wang et al. 2017, section 3.2).

Letters: N images, P cells a side, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from scipy import ndimage

from tf_detectorgan import boxes as box_ops
from tf_detectorgan.data.records import Dataset
from tf_detectorgan.evaluation.detect import batches_of_split
from tf_detectorgan.evaluation.records import Found


def regions(heat: np.ndarray, thresholds: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Boxes (x, y, width, height) [d, 4] in cells and mean heat [d] of the regions of one map [P, P].

    A region is what hangs together, by sides and not by corners, of the cells at a threshold or above. Each
    threshold gives regions of its own, so a high one may lie within a low one.
    """
    rows, means = [], []
    for threshold in thresholds:
        numbered, count = ndimage.label(heat >= threshold)
        for y, x in ndimage.find_objects(numbered):
            rows.append([x.start, y.start, x.stop - x.start, y.stop - y.start])
        means += list(ndimage.mean(heat, numbered, range(1, count + 1))) if count else []
    return np.array(rows, np.float64).reshape(-1, 4), np.array(means, np.float64)


def localize_split(
    heat_of: Callable, thresholds: Sequence[float], dataset: Dataset, split: str, batch_size: int
) -> list[Found]:
    """The regions of every image of `split`, labelled and clean, cut to the content without padding.

    Args:
      heat_of: images [N, H, W, D] to (cells [N, P, P, C] in [0, 1], confidence [N, C]).
      thresholds: of `regions`.
      dataset: whose images.
      split: "validation" or "test".
      batch_size: N.

    Returns:
      Detections whose score is the region's mean heat times the image's confidence.
    """
    height, width, _ = dataset.image_shape
    result = []
    for batch in batches_of_split(dataset, split, batch_size):
        cells, confidence = (part.numpy() for part in heat_of(batch.images))
        size = np.tile([width / cells.shape[2], height / cells.shape[1]], 2)
        for i in np.flatnonzero(batch.real):
            boxes, scores, labels = [], [], []
            for label in range(cells.shape[-1]):
                xywh, means = regions(cells[i, ..., label], thresholds)
                boxes.append(xywh * size)
                scores.append(means * confidence[i, label])
                labels.append(np.full(len(means), label))
            content = box_ops.clip(box_ops.from_xywh(np.concatenate(boxes)), *batch.valid_sizes[i]).numpy()
            kept = box_ops.area(content).numpy() > 0
            result.append(
                Found(
                    int(batch.image_ids[i]),
                    content[kept],
                    np.concatenate(scores)[kept],
                    np.concatenate(labels)[kept],
                )
            )
    return result
