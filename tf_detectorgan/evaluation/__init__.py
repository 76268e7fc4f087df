"""How good a detector is: AP, recall, localization accuracy and FROC, with intervals. NumPy in, JSON out."""

from tf_detectorgan.evaluation.metrics import evaluate
from tf_detectorgan.evaluation.records import (
    Found,
    Truth,
    found_of,
    from_coco_results,
    to_coco_results,
    truth_from_json,
    truth_to_json,
    write_json,
)

__all__ = [
    "Found",
    "Truth",
    "evaluate",
    "found_of",
    "from_coco_results",
    "to_coco_results",
    "truth_from_json",
    "truth_to_json",
    "write_json",
]
