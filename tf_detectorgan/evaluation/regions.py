"""From heat maps to detections: isolated regions and the boxes around them (Wang et al. 2017, section 3.2).

Letters: N images, P cells a side, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from pycocotools import mask as coco_mask
from scipy import ndimage

from tf_detectorgan import boxes as box_ops
from tf_detectorgan.data.records import Dataset
from tf_detectorgan.evaluation.detect import batches_of_split
from tf_detectorgan.evaluation.records import Found, Region


def regions(heat: np.ndarray, thresholds: Sequence[float]) -> list[tuple[np.ndarray, float]]:
    """(cells [P, P] bool, mean heat) of each region of one map [P, P].

    A region is what hangs together, by sides and not by corners, of the cells at a threshold or above. Each
    threshold gives regions of its own, so a high one may lie within a low one.
    """
    result = []
    for threshold in thresholds:
        numbered, count = ndimage.label(heat >= threshold)
        result += [
            (cells, float(heat[cells].mean())) for cells in numbered == np.arange(1, count + 1)[:, None, None]
        ]
    return result


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
      Detections with their region; the score is the region's mean heat times the image's confidence.
    """
    result = []
    for batch in batches_of_split(dataset, split, batch_size):
        cells, confidence = (part.numpy() for part in heat_of(batch.images))
        for i in np.flatnonzero(batch.real):
            codes, scores, labels = [], [], []
            for label in range(cells.shape[-1]):
                for region, mean in regions(cells[i, ..., label], thresholds):
                    code = _code(region, dataset.image_shape[:2], batch.valid_sizes[i])
                    if coco_mask.area(code):
                        codes.append(code)
                        scores.append(mean * confidence[i, label])
                        labels.append(label)
            boxes = box_ops.from_xywh(np.array([coco_mask.toBbox(code) for code in codes]).reshape(-1, 4))
            as_text = [Region(code | {"counts": code["counts"].decode("ascii")}) for code in codes]
            result.append(
                Found(
                    int(batch.image_ids[i]), boxes.numpy(), np.array(scores), np.array(labels, int), as_text
                )
            )
    return result


def _code(cells: np.ndarray, size: Sequence[int], valid: Sequence[int]) -> dict:
    """COCO's run lengths of the pixels whose centres lie in the cells and in the image's `valid` corner."""
    rows, columns = (
        ((np.arange(pixels) + 0.5) * count / pixels).astype(int)
        for pixels, count in zip(size, cells.shape, strict=True)
    )
    mask = cells[np.ix_(rows, columns)]
    mask[int(valid[0]) :], mask[:, int(valid[1]) :] = False, False
    return coco_mask.encode(np.asfortranarray(mask, np.uint8))
