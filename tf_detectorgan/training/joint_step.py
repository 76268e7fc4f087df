"""One joint iteration of DetectorGAN, in the paper's order and symbols (section 3, Eqn 1 to 4).

The GAN that is trained (`base_gan.py`) brings Eqn 4; Eqn 1 to 3 are here and in `unroll.py`, for any GAN.
Letters: N images a replica, H, W, C channels. Every loss is this replica's share of the global batch's
(`replicas.py`).
"""

from __future__ import annotations

import dataclasses

import keras
import tensorflow as tf

from tf_detectorgan import boxes as boxes_lib
from tf_detectorgan.batch import Batch, Labelled
from tf_detectorgan.models.detectors.detector import Detector
from tf_detectorgan.training import replicas, unroll
from tf_detectorgan.training.base_gan import BaseGAN
from tf_detectorgan.training.loss_scale import LossScale, Step


@dataclasses.dataclass
class Players:
    """The GAN, and the detector that plays along in the joint phase of some arms."""

    gan: BaseGAN
    DET: Detector | None = None
    detector_optimizer: keras.optimizers.Optimizer | None = None  # one of update_rules'
    loss_scale: LossScale | None = None  # where networks compute in float16


@dataclasses.dataclass(frozen=True)
class Objective:
    """Weights of DET's opinion in the generator's objective.

    lambda_syn > 0 *maximises* L_syn [paper], up to `syn_cap`; < 0 minimises it (ACGAN).
    """

    lambda_real: float
    lambda_syn: float
    syn_cap: float
    recompute: bool = False  # of unroll.lookahead


ALONE = Objective(0.0, 0.0, 0.0)  # of a GAN without a detector: nothing of it is looked at


def joint_step(players: Players, objective: Objective, batch: Batch, seed) -> dict[str, tf.Tensor]:
    """Trains the generators, DET (when present) and the discriminators once; with a loss scale all or none.

    Returns scalars: shares, and squared norms. `seed`: int32 [2], different at every step.
    """
    gan, p, o, step = players.gan, players, objective, Step(players.loss_scale)
    with tf.GradientTape() as generators:
        drawn = gan.draw(batch)  # x_syn = G_X(x, m)

    after: dict[str, tf.Tensor] = {}  # scalars that hang on gradients
    terms, wishes, d_beside, d_theta = gan.judge(batch, drawn, step)  # Eqn 4, the GAN's own
    if p.DET is not None:
        synthetic = Labelled(drawn.x_syn, batch.insertion.boxes[:, None], batch.insertion.labels[:, None])
        # In turns: the activations of the cycle are free before those of DET are kept (decision 0135).
        with tf.control_dependencies(
            [tf.group(*wishes.values(), *d_beside, *(d for d in d_theta if d is not None))]
        ):
            look = unroll.lookahead(
                p.DET,
                p.detector_optimizer,
                batch.y,
                synthetic,
                batch.y2 if o.lambda_real else None,
                batch.y_later,
                o.recompute,
            )
        terms |= {"L_real": look.L_real, "L_syn": look.L_syn}
        # - lambda_syn min(L_syn, cap): nothing more to gain beyond the cap.
        below_cap = tf.cast(replicas.total(look.L_syn) < o.syn_cap, tf.float32) if o.lambda_syn > 0 else 1.0
        wishes["syn"] = -o.lambda_syn * below_cap * look.d_L_syn
        if look.d_L_real_ahead is not None:
            after["L_real_ahead"] = look.L_real_ahead
            wishes["real"] = o.lambda_real * look.d_L_real_ahead

    # An x_syn that nobody judges is not asked for.
    d_x_syn = [tf.add_n(list(wishes.values()))] if wishes else []
    images = [drawn.x_syn, *drawn.beside] if wishes else list(drawn.beside)
    g = step.gradient(generators, images, gan.theta, [*d_x_syn, *d_beside])
    g = [b if a is None else a if b is None else a + b for a, b in zip(g, d_theta, strict=True)]
    replicas.require_gradients(g, [v.path for v in gan.theta], "the generators' objective")
    step.apply(gan.generator_optimizer, replicas.total(g))
    if p.DET is not None:
        step.commit(p.detector_optimizer, look.update)
    terms |= gan.train_discriminators(batch, drawn, seed, step)
    return terms | step.end(after | _norms(wishes, batch.insertion.boxes))


SQUARED = "squared_norm/"


def _norms(wishes: dict[str, tf.Tensor], boxes) -> dict[str, tf.Tensor]:
    """Squared norm of each term's weighted derivative at the synthetic image, inside and outside the box."""
    norms = {}
    for name, wish in wishes.items():
        inside = boxes_lib.mask(boxes, wish.shape[1], wish.shape[2])[..., None]
        norms[f"{SQUARED}{name}_inside"] = tf.reduce_sum(inside * wish * wish)
        norms[f"{SQUARED}{name}_outside"] = tf.reduce_sum((1 - inside) * wish * wish)
    return norms
