"""Tiny networks, batches and objectives: 32 pixels, 4 filters, 1 block, 2 images per stream."""

import types

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests import own_detector
from tf_detectorgan.batch import Batch, Insertion, Labelled
from tf_detectorgan.data import noise
from tf_detectorgan.models.detectors import anchors, retinanet
from tf_detectorgan.models.discriminators import patch_gan
from tf_detectorgan.models.generators import Composition, resnet_generator
from tf_detectorgan.models.person_discriminator import PersonDiscriminator
from tf_detectorgan.models.unet import unet
from tf_detectorgan.training.cyclegan import CycleGAN, CycleObjective
from tf_detectorgan.training.image_pool import ImagePool
from tf_detectorgan.training.joint_step import JointModels, Objective
from tf_detectorgan.training.psgan import PSGAN, AlignedObjective

SIDE, CLASSES, CROP = 32, 2, 16
RECIPES = {"paper": ("full_image", "mask", "log"), "ours": ("blend_in_box", "mask_and_object", "lsgan")}


def objective(**changes):
    """Returns weights that are all different and not 0, so that an error in one of them is found."""
    return Objective(**{"lambda_real": 0.9, "lambda_syn": 0.3, "syn_cap": 1e6, **changes})


def cycle_objective(recipe="ours", **changes):
    """Returns such weights for the GAN's losses."""
    output, generator_input, gan_loss = RECIPES[recipe]
    values = {
        "gan_loss": gan_loss,
        "lambda_gan": 1.1,
        "lambda_bbox": 1.3,
        "lambda_cycle": 3.0,
        "lambda_identity": 2.0,
        "crop_size": CROP,
        "composition": Composition(output, generator_input, feather=0.25, classes=CLASSES),
    }
    return CycleObjective(**{**values, **changes})


def sgd(variables, rate=0.1, **options):
    optimizer = keras.optimizers.SGD(rate, momentum=0.9, **options)
    optimizer.build(variables)
    return optimizer


def one_level():
    """Returns a fast DET with one pyramid level."""
    return own_detector.tiny((SIDE, SIDE, 1), CLASSES, sizes=(10.0,))


def pyramid():
    """Returns the default DET of `train`, with three levels; its steps take five times as long."""
    return retinanet.small((SIDE, SIDE, 1), CLASSES, sizes=(8.0, 16.0, 24.0), width=16)


def joint_models(
    recipe="ours", *, detector=one_level, pool_size=0, batch_size=2, clipnorm=None, strategy=None
):
    """Returns JointModels with seeded random weights and SGD with momentum, m' = 0.9 m - lr g."""
    strategy = strategy or tf.distribute.get_strategy()
    keras.utils.set_random_seed(0)
    own = cycle_objective(recipe)
    composed = own.composition
    shape = (SIDE, SIDE, 1)
    with strategy.scope():
        G_X = resnet_generator(
            shape,
            composed.input_channels(1),
            filters=4,
            blocks=1,
            residual=composed.generator_input == "mask_and_object",
            name="G_X",
        )
        G_Y = resnet_generator(shape, 1 + CLASSES, filters=4, blocks=1, name="G_Y")
        DIS_globalX = patch_gan(shape, filters=4, layers=2, name="DIS_globalX")
        DIS_localX = patch_gan((CROP, CROP, 1), filters=4, layers=1, name="DIS_localX")
        DIS_globalY = patch_gan(shape, filters=4, layers=2, name="DIS_globalY")
        DET = detector()
        theta = G_X.trainable_variables + G_Y.trainable_variables
        phi = [v for net in (DIS_globalX, DIS_localX, DIS_globalY) for v in net.trainable_variables]
        generator_optimizer, discriminator_optimizer = sgd(theta), sgd(phi)
        detector_optimizer = sgd(DET.network.trainable_variables, 0.01, global_clipnorm=clipnorm)
    rng = np.random.default_rng(1)
    for v in [*theta, *phi]:
        v.assign(v.numpy() + 0.05 * rng.normal(size=v.shape))
    for m in detector_optimizer.momentums:
        m.assign(1e-3 * rng.normal(size=m.shape))
    count = strategy.num_replicas_in_sync
    pools = [[ImagePool(pool_size, batch_size // count, shape) for _ in range(count)] for _ in range(2)]
    gan = CycleGAN(
        own, G_X, G_Y, DIS_globalX, DIS_localX, DIS_globalY, generator_optimizer, discriminator_optimizer,
        *pools,
    )  # fmt: skip
    return JointModels(gan, DET, detector_optimizer)


def psgan(output, person=True, strategy=None):
    """Returns PS-GAN with SGD, so that the first momentum is -lr g. Its loss weights are all different."""
    keras.utils.set_random_seed(0)
    with (strategy or tf.distribute.get_strategy()).scope():
        G = unet((SIDE, SIDE, 1), filters=2)
        DIS_image = patch_gan((SIDE, SIDE, 2), filters=4, layers=2)
        phi = DIS_image.trainable_variables
        DIS_person = None
        if person:
            DIS_person = PersonDiscriminator(filters=2)
            DIS_person(tf.zeros([1, SIDE, SIDE, 1]), tf.constant([[0.0, 0, 8, 8]]))
            phi = phi + DIS_person.trainable_variables
        optimizers = sgd(G.trainable_variables), sgd(phi)
    weights = AlignedObjective(1.1, Composition(output, "mask", 0.25, 1))
    return PSGAN(weights, G, DIS_image, DIS_person, *optimizers)


def aligned(batch):
    """Returns the batch as the pipeline makes it for PS-GAN."""
    insertion = batch.insertion
    draws = tf.reshape(tf.linspace(0.1, 0.4, 2 * len(batch.x)), [-1, 2])
    exemplars = noise.fill(batch.x, insertion.boxes, draws)
    y_noised = noise.fill(batch.y.images, batch.y_boxes, draws)
    return batch._replace(insertion=insertion._replace(exemplars=exemplars), y_noised=y_noised)


def labelled(rng, count):
    """Returns labelled images with two boxes; every other image has one."""
    corner = rng.integers(0, 16, (count, 2, 2))
    boxes = np.concatenate([corner, corner + rng.integers(6, 15, (count, 2, 2))], -1).astype(np.float32)
    labels = np.where(
        np.arange(count)[:, None] % 2 + np.arange(2) < 2, rng.integers(0, CLASSES, (count, 2)), -1
    )
    boxes *= labels[..., None] >= 0
    return Labelled(images(rng, count), tf.constant(boxes), tf.constant(labels, tf.int32))


def images(rng, count):
    return tf.constant(rng.uniform(-1, 1, (count, SIDE, SIDE, 1)), tf.float32)


def batch(seed=0, count=2):
    rng = np.random.default_rng(seed)
    y = labelled(rng, count)
    where = labelled(rng, count)
    # Every other image has padding at the bottom.
    content = tf.constant([[0.0, 0, SIDE, SIDE - 6 * (i % 2)] for i in range(count)])
    insertion = Insertion(where.boxes[:, 0], where.labels[:, 0], images(rng, count), content)
    return Batch(
        images(rng, count), insertion, y, content, y.boxes[:, 0], images(rng, count), labelled(rng, count)
    )


def networks(p):
    """Returns {name: weights} of every network, as arrays."""
    nets = {name: getattr(p.gan, name) for name in ("G_X", "G_Y", "DIS_globalX", "DIS_localX", "DIS_globalY")}
    if p.DET is not None:
        nets["DET"] = p.DET.network
    return {name: [w.numpy() for w in net.weights] for name, net in nets.items()}


class ToyDetector:
    """A detector for `unrolled_step` of a dozen ops without kinks, by default with a frozen normalisation."""

    def __init__(self, normalization=None):
        keras.utils.set_random_seed(0)
        frozen = keras.layers.BatchNormalization(trainable=False)
        self.network = keras.Sequential(
            [
                keras.Input((SIDE, SIDE, 1)),
                keras.layers.Conv2D(4, 3, 4, "same", activation="silu"),
                normalization or frozen,
                keras.layers.Conv2D(1, 3, activation="silu", name="head"),
            ]
        )
        self.weights = [v.value for v in self.network.trainable_variables]

    def targets(self, labelled):
        return anchors.AnchorTargets(labelled.labels, labelled.boxes)

    def positives(self, targets):
        return tf.reduce_sum(tf.cast(targets.classes >= 0, tf.float32))

    def call(self, W, images):
        fixed = [v.value for v in self.network.non_trainable_variables]
        output = self.network.stateless_call(list(W), fixed, images, training=True)[0]
        return tf.cast(output, self.network.variable_dtype)

    def detect(self, images):
        return self.call(self.weights, images)

    def loss(self, W, images, targets, normalizer):
        out = self.call(W, images)
        target = tf.cast(tf.reduce_mean(targets.offsets, [1, 2])[:, None, None, None], out.dtype)
        return tf.reduce_sum((out - target / SIDE) ** 2) / tf.cast(normalizer, out.dtype)


@pytest.fixture
def eagerly():
    """Runs functions eagerly, because tracing graphs would take most of the time."""
    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


@pytest.fixture(scope="session")
def tiny():
    return types.SimpleNamespace(
        objective=objective,
        cycle_objective=cycle_objective,
        joint_models=joint_models,
        one_level=one_level,
        pyramid=pyramid,
        psgan=psgan,
        aligned=aligned,
        sgd=sgd,
        batch=batch,
        labelled=labelled,
        networks=networks,
        ToyDetector=ToyDetector,
        recipes=tuple(RECIPES),
    )


@pytest.fixture(scope="session")
def mirrored():
    """Returns a strategy with two replicas, one for all tests: two strategies would share keys of sums."""
    devices = tf.config.list_logical_devices("CPU")
    assert len(devices) == 2
    return tf.distribute.MirroredStrategy([device.name for device in devices])
