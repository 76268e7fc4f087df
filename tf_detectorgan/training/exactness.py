"""How good the modes of Eqn 3 are, measured on a detector and a batch."""

from __future__ import annotations

import keras
import tensorflow as tf

from tf_detectorgan.batch import Labelled
from tf_detectorgan.models.detectors.detector import Detector
from tf_detectorgan.training import unroll


def cosine(
    DET: Detector, optimizer: keras.optimizers.Optimizer, y: Labelled, synthetic: Labelled, y2: Labelled
) -> float:
    """Of dL~_real/dx_syn by finite difference to the exact one. Arguments as of `lookahead`."""
    a, b = (
        tf.convert_to_tensor(unroll.lookahead(DET, optimizer, y, synthetic, y2, mode=mode).d_L_real_ahead)
        for mode in ("exact", "finite_difference")
    )
    return float(tf.math.divide_no_nan(tf.reduce_sum(a * b), tf.norm(a) * tf.norm(b)))
