"""One joint iteration of DetectorGAN, in the paper's order and symbols (section 3, Eqn 1 to 4).

Letters: N images a replica, H, W, C channels. Every loss is this replica's share of the global batch's
(`replicas.py`).
"""

from __future__ import annotations

import dataclasses

import keras
import tensorflow as tf

from tf_detectorgan import boxes as boxes_lib
from tf_detectorgan import losses
from tf_detectorgan.batch import Batch, Labelled
from tf_detectorgan.models.detectors.retinanet import RetinaNet
from tf_detectorgan.models.discriminators import crop
from tf_detectorgan.models.generators import Composition, bbox_target, bbox_weight, insert, reinsert, remove
from tf_detectorgan.training import replicas, unroll
from tf_detectorgan.training.image_pool import ImagePool


@dataclasses.dataclass
class Players:
    """The networks that play against each other, their optimizers, and one pair of image pools a replica."""

    G_X: keras.Model
    G_Y: keras.Model
    DIS_globalX: keras.Model
    DIS_localX: keras.Model
    DIS_globalY: keras.Model
    generator_optimizer: keras.optimizers.Optimizer
    discriminator_optimizer: keras.optimizers.Optimizer
    pools_X: list[ImagePool]
    pools_Y: list[ImagePool]
    DET: RetinaNet | None = None
    detector_optimizer: keras.optimizers.SGD | None = None


@dataclasses.dataclass(frozen=True)
class Objective:
    """Weights of G_X's objective.

    lambda_syn > 0 *maximises* L_syn [paper], up to `syn_cap`; < 0 minimises it (ACGAN). rho > 0 takes the
    size of the lambda's place: the term's derivative at the synthetic image counts inside the box only, where
    its norm is made rho times that of the adversarial terms'.
    """

    gan_loss: str
    lambda_global: float
    lambda_local: float
    lambda_bbox: float
    lambda_cycle: float
    lambda_identity: float
    lambda_real: float
    lambda_syn: float
    rho_real: float
    rho_syn: float
    syn_cap: float
    crop_size: int
    crop_context: float
    composition: Composition


def joint_step(players: Players, objective: Objective, batch: Batch, seed) -> dict[str, tf.Tensor]:
    """Trains G_X, G_Y, DET (when present) and the discriminators once.

    Returns scalars: shares, and squared norms. `seed`: int32 [2], different at every step.
    """
    p, o = players, objective
    theta = p.G_X.trainable_variables + p.G_Y.trainable_variables

    with tf.GradientTape() as generators:
        x_syn = insert(p.G_X, batch.x, batch.insertion, o.composition)  # G_X(x, m)
        y_clean = remove(p.G_Y, *batch.y, batch.y_content, o.composition)  # G_Y(y, m)

    # Who judges the synthetic image, and how it should change to please them: d(term)/dx_syn, term by term.
    terms, wishes, g_cycle, d_y = _judge(p, o, batch, x_syn, y_clean, theta)
    if p.DET is not None:
        synthetic = Labelled(x_syn, batch.insertion.boxes[:, None], batch.insertion.labels[:, None])
        look = unroll.lookahead(
            p.DET, p.detector_optimizer, batch.y, synthetic, batch.y2 if o.lambda_real else None
        )
        terms |= {"L_real": look.L_real, "L_syn": look.L_syn}
        # - lambda_syn min(L_syn, cap): nothing more to gain beyond the cap.
        below_cap = tf.cast(replicas.total(look.L_syn) < o.syn_cap, tf.float32) if o.lambda_syn > 0 else 1.0
        wishes["syn"] = -o.lambda_syn * below_cap * look.d_L_syn
        if look.d_L_real_ahead is not None:
            terms["L_real_ahead"] = look.L_real_ahead
            wishes["real"] = o.lambda_real * look.d_L_real_ahead
        adversarial = wishes["global"] + wishes["local"]
        for name, rho in (("real", o.rho_real), ("syn", o.rho_syn)):
            if rho and name in wishes:
                wishes[name] = _balanced(wishes[name], adversarial, batch.insertion.boxes, rho)

    g = generators.gradient([x_syn, y_clean], theta, output_gradients=[tf.add_n(list(wishes.values())), d_y])
    g = [b if a is None else a if b is None else a + b for a, b in zip(g, g_cycle, strict=True)]
    replicas.require_gradients(g, [v.path for v in theta], "the generators' objective")
    p.generator_optimizer.apply(g, theta)
    if p.DET is not None:
        unroll.commit(p.DET, p.detector_optimizer, look.update)
    terms |= _train_discriminators(p, o, batch, x_syn, y_clean, seed)
    return terms | _norms(wishes, batch.insertion.boxes)


def _judge(p: Players, o: Objective, batch: Batch, x_syn, y_clean, theta):
    """Everybody's opinion but DET's.

    Returns:
      terms: name -> scalar; wishes: name -> weighted derivative at x_syn [N, H, W, C]; the derivative of the
        cycle and
      identity terms by theta; the derivative of everything at y_clean.
    """
    boxes = batch.insertion.boxes
    with tf.GradientTape(persistent=True) as tape:
        tape.watch([x_syn, y_clean])
        # Eqn 4, the generators' side.
        L_globalX = replicas.share(losses.adversarial_generator(p.DIS_globalX(x_syn), o.gan_loss))
        crops = crop(x_syn, boxes, o.crop_size, o.crop_context)
        L_localX = replicas.share(losses.adversarial_generator(p.DIS_localX(crops), o.gan_loss))
        L_globalY = replicas.share(losses.adversarial_generator(p.DIS_globalY(y_clean), o.gan_loss))
        # BboxLoss: the object should look like the matched one.
        weight = bbox_weight(batch.insertion, o.composition, *x_syn.shape[1:3])
        target = bbox_target(batch.x, batch.insertion, o.composition)
        L_bbox = replicas.share(losses.bbox_loss(x_syn, target, weight))
        # Cycle consistency, and identity on images that are already what the generator should make.
        x, y = batch.x, batch.y
        y_twice = Labelled(*(tf.concat([v, v], 0) for v in y))
        boxes_twice, labels_twice = (tf.concat([v, v], 0)[:, None] for v in batch.insertion[:2])
        x_content, y_content = (tf.concat([v, v], 0) for v in (batch.insertion.content, batch.y_content))
        y_back, y_same = tf.split(
            reinsert(p.G_X, tf.concat([y_clean, y.images], 0), y_twice, y_content, o.composition), 2
        )
        removed = remove(p.G_Y, tf.concat([x_syn, x], 0), boxes_twice, labels_twice, x_content, o.composition)
        x_back, x_same = tf.split(removed, 2)
        L_cycle = replicas.share(losses.l1(x_back, x) + losses.l1(y_back, y.images))
        L_identity = replicas.share(losses.l1(y_same, y.images) + losses.l1(x_same, x))
        cyclic = o.lambda_cycle * L_cycle + o.lambda_identity * L_identity
        adversarial_Y = o.lambda_global * L_globalY
        weighted = {
            "global": o.lambda_global * L_globalX,
            "local": o.lambda_local * L_localX,
            "bbox": o.lambda_bbox * L_bbox,
        }
    wishes = {name: tape.gradient(term, x_syn) for name, term in weighted.items()}
    wishes["cycle"], d_y_cycle, *g_cycle = tape.gradient(cyclic, [x_syn, y_clean, *theta])
    d_y = tape.gradient(adversarial_Y, y_clean) + d_y_cycle
    terms = {
        "L_globalX": L_globalX,
        "L_localX": L_localX,
        "L_globalY": L_globalY,
        "L_bbox": L_bbox,
        "L_cycle": L_cycle,
        "L_identity": L_identity,
    }
    return terms, wishes, g_cycle, d_y


def _balanced(wish, reference, boxes, rho: float):
    """`wish` [N, H, W, C] inside boxes [N, 4] only, scaled there to rho times the norm of `reference`.

    The norms are those of the whole batch, over all replicas (the adaptive weight of Esser et al. 2021, eqn
    7, at the image instead of the last layer).
    """
    inside = boxes_lib.mask(boxes, *wish.shape[1:3])[..., None]
    squares = tf.stack([tf.reduce_sum(inside * v * v) for v in (reference, wish)])
    wanted, own = tf.unstack(replicas.total(squares))
    return rho * tf.sqrt(tf.math.divide_no_nan(wanted, own)) * inside * wish


def _train_discriminators(p: Players, o: Objective, batch: Batch, x_syn, y_clean, seed):
    """Eqn 4, the discriminators' side, on real images and on the pool. u trains DIS_globalX only."""
    replica = replicas.index()
    seed = seed + tf.constant([0, 7919], tf.int32) * replica
    fake_X, fake_boxes = p.pools_X[replica].exchange(x_syn, batch.insertion.boxes, seed)
    fake_Y, _ = p.pools_Y[replica].exchange(y_clean, batch.y_boxes, seed + 2)
    phi = [v for net in (p.DIS_globalX, p.DIS_localX, p.DIS_globalY) for v in net.trainable_variables]
    with tf.GradientTape() as tape:

        def loss(net, real, fake):
            count = tf.shape(real)[0]
            logits = net(tf.concat([real, fake], 0))
            L_real = replicas.share(losses.adversarial_real(logits[:count], o.gan_loss))
            return 0.5 * (L_real + replicas.share(losses.adversarial_fake(logits[count:], o.gan_loss)))

        terms = {
            "L_DIS_globalX": loss(p.DIS_globalX, tf.concat([batch.y.images, batch.u], 0), fake_X),
            "L_DIS_localX": loss(
                p.DIS_localX,
                crop(batch.y.images, batch.y_boxes, o.crop_size, o.crop_context),
                crop(fake_X, fake_boxes, o.crop_size, o.crop_context),
            ),
            "L_DIS_globalY": loss(p.DIS_globalY, batch.x, fake_Y),
        }
        objective = tf.add_n(list(terms.values()))
    g = tape.gradient(objective, phi)
    replicas.require_gradients(g, [v.path for v in phi], "the discriminators' objective")
    p.discriminator_optimizer.apply(g, phi)
    return terms


SQUARED = "squared_norm/"


def _norms(wishes: dict[str, tf.Tensor], boxes) -> dict[str, tf.Tensor]:
    """Squared norm of each term's weighted derivative at the synthetic image, inside and outside the box."""
    norms = {}
    for name, wish in wishes.items():
        inside = boxes_lib.mask(boxes, wish.shape[1], wish.shape[2])[..., None]
        norms[f"{SQUARED}{name}_inside"] = tf.reduce_sum(inside * wish * wish)
        norms[f"{SQUARED}{name}_outside"] = tf.reduce_sum((1 - inside) * wish * wish)
    return norms
