"""Builds networks, optimizers and image pools from the settings, on one device or several."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from tf_detectorgan.cluster import devices
from tf_detectorgan.data.augmentation import Augmentation
from tf_detectorgan.data.placement import Placement
from tf_detectorgan.data.records import Dataset
from tf_detectorgan.errors import InputError
from tf_detectorgan.models import detectors
from tf_detectorgan.models.detectors.detector import Detector
from tf_detectorgan.models.discriminators import patch_gan
from tf_detectorgan.models.generators import Composition, resnet_generator
from tf_detectorgan.models.layers import dtype_policy
from tf_detectorgan.models.person_discriminator import PersonDiscriminator
from tf_detectorgan.models.unet import unet
from tf_detectorgan.run_layout import RunLayout
from tf_detectorgan.training import backbone_weights
from tf_detectorgan.training.base_gan import BaseGAN
from tf_detectorgan.training.cyclegan import CycleGAN, CycleObjective
from tf_detectorgan.training.detector_step import CLIP_NORM
from tf_detectorgan.training.image_pool import ImagePool
from tf_detectorgan.training.joint_step import Objective
from tf_detectorgan.training.loss_scale import LossScale
from tf_detectorgan.training.psgan import PSGAN, AlignedObjective
from tf_detectorgan.training.schedules import ConstantThenLinear, WarmUpThenCosine
from tf_detectorgan.training.settings import ARMS, Arm, Train

LOCAL_LAYERS = 2  # layers of DIS_localX: its crops are smaller than 70 pixels
JOINT_RATE = {"sgd": 0.01, "nesterov": 0.01, "adam": 1e-4, "adamw": 1e-4}
WARM_UP = 0.05  # fraction of a detector's steps
WEIGHT_DECAY = 1e-4  # of AdamW
FEATHER = 0.25  # width of the blend around a box, as a fraction of its longer side
POOL_SIZE = 50  # synthetic images in a discriminator's image pool, as in CycleGAN


def strategy(settings: Train, over_workers: tf.distribute.Strategy | None = None) -> tf.distribute.Strategy:
    """Returns the strategy that --distribution names, or `over_workers` if given.

    With --distribution=auto, prints which GPUs stay idle.

    Raises:
      InputError: a batch size is not divisible by the number of devices.
    """
    found = gpus()
    devices.require_gpus(len(found), os.environ)
    batches = {name: getattr(settings, name) for name in ("gan_batch", "detector_batch")}
    if over_workers is not None:
        chosen = over_workers
    elif settings.distribution == "mirrored":
        names = found or [device.name for device in tf.config.list_logical_devices("CPU")]
        chosen = tf.distribute.MirroredStrategy(names)
    elif settings.distribution == "auto":
        used = usable(found, batches)
        if len(used) < len(found):
            print(idle_message(found, len(used), batches))
        chosen = tf.distribute.MirroredStrategy(used) if len(used) > 1 else tf.distribute.get_strategy()
    else:
        chosen = tf.distribute.get_strategy()
    for name, size in batches.items():
        if size % chosen.num_replicas_in_sync:
            raise InputError(f"--{name}={size} is not divisible by {chosen.num_replicas_in_sync} devices")
    return chosen


def gpus() -> list[str]:
    """Returns the names of TensorFlow's logical GPUs."""
    return [device.name for device in tf.config.list_logical_devices("GPU")]


def usable(found: Sequence[str], batches: Mapping[str, int]) -> list[str]:
    """Returns the first n of the devices, with the largest n that divides all batch sizes."""
    common = math.gcd(*batches.values())
    return list(found[: max((n for n in range(1, len(found) + 1) if common % n == 0), default=0)])


def idle_message(found: Sequence[str], used: int, batches: Mapping[str, int]) -> str:
    """Returns a message with the GPUs after the first `used`, and the batch sizes that would use all."""
    names = ", ".join(name.removeprefix("/device:") for name in found[used:])
    total = len(found)
    suggested = " ".join(
        f"--{name}={-(-size // total) * total}" for name, size in batches.items() if size % total
    )
    given = " ".join(f"--{name}={size}" for name, size in batches.items())
    return f"idle: {names}; {total} GPUs cannot share {given} equally; use all of them with {suggested}"


def precision(settings: Train) -> contextlib.AbstractContextManager:
    """Returns the context to build generators and discriminators in; with float32 they use Keras's floatx."""
    return contextlib.nullcontext() if settings.precision == "float32" else dtype_policy(settings.precision)


def detector_precision(settings: Train) -> contextlib.AbstractContextManager:
    """Returns the context to build detectors in; not float16, in which Eqn 3's gradient vanishes (0120)."""
    return precision(settings) if settings.precision == "mixed_bfloat16" else contextlib.nullcontext()


def loss_scale(settings: Train, chosen: tf.distribute.Strategy) -> LossScale | None:
    """Returns a loss scale for float16, otherwise None: bfloat16 has float32's range."""
    if settings.precision != "mixed_float16":
        return None
    with chosen.scope():
        return LossScale()


def composition(settings: Train, classes: int) -> Composition:
    """Returns how the generators' outputs become images."""
    return Composition(settings.output, settings.generator_input, FEATHER, classes)


def objective(settings: Train, arm: Arm) -> Objective:
    """Returns the weights of the settings times the arm's signs; without Eqn 3, lambda_real is 0."""
    real_sign = arm.real_sign if settings.unroll_steps else 0.0
    return Objective(
        lambda_real=real_sign * settings.lambda_real,
        lambda_syn=arm.syn_sign * settings.lambda_syn,
        syn_cap=settings.syn_cap or math.inf,
        recompute=settings.unroll_recompute,
    )


def placement(settings: Train, images: str, gan: str) -> Placement:
    """Returns where objects are inserted and from which exemplars; `images`, `gan`: of `Arm`."""
    residual = images == "residual" or (gan == "cyclegan" and settings.object_source == "residual")
    mode = settings.placement
    if mode == "auto":
        mode = "context" if residual or images == "clean" else "matched_shift"
    starts_from_object = gan == "cyclegan" and settings.generator_input == "mask_and_object"
    low, high = settings.residual_scale if starts_from_object else (1.0, 1.0)
    return Placement(
        mode=mode,
        candidates=settings.match_candidates,
        flip_objects=settings.flip_objects,
        keep_edges=settings.keep_edges,
        residual=residual,
        noise=gan in ("pix2pix", "psgan"),
        residual_scale=(low, high),
        objects=settings.synthetic_objects,
    )


def augmentation(settings: Train) -> Augmentation:
    """Returns the augmentation of detector training, which is the same in every arm."""
    return (
        Augmentation() if settings.augment else Augmentation(flip=False, shift=0.0, scale=0.0, intensity=0.0)
    )


def gan(settings: Train, kind: str, dataset: Dataset, chosen: tf.distribute.Strategy) -> BaseGAN:
    """Returns the built base GAN of `kind`, one of settings.GANS. Seeds Keras's initialisers.

    Raises:
      InputError: the GAN does not support the number of classes or the image size.
    """
    if kind == "cyclegan":
        return cyclegan(settings, dataset, chosen)
    side, classes = dataset.image_shape[0], dataset.class_names
    if len(classes) != 1:
        raise InputError(
            f"--arm: pix2pix and psgan insert objects of one class, the data set has {', '.join(classes)}; "
            "prepare it with one class or leave these arms out"
        )
    if side & (side - 1):
        raise InputError(
            f"--arm: pix2pix and psgan need images whose side is a power of 2, but it is {side} px; prepare "
            "the data set with --image_size=64, 128 or 256, or leave these arms out"
        )
    return psgan(settings, kind == "psgan", dataset, chosen)


def psgan(settings: Train, person: bool, dataset: Dataset, chosen: tf.distribute.Strategy) -> PSGAN:
    """Returns PS-GAN with its optimizers, or without `person` pix2pix, which has no person discriminator."""
    shape = dataset.image_shape
    keras.utils.set_random_seed(settings.seed)
    with chosen.scope(), precision(settings):
        rate = ConstantThenLinear(
            settings.gan_learning_rate, settings.pretrain_gan_steps, settings.joint_steps
        )
        width = settings.discriminator_filters
        G = unet(shape, filters=settings.generator_filters, name="G")
        DIS_image = patch_gan((*shape[:2], 2 * shape[2]), filters=width, name="DIS_image")
        DIS_person = None
        phi = DIS_image.trainable_variables
        if person:
            DIS_person = PersonDiscriminator(width, name="DIS_person")
            DIS_person(tf.zeros([1, *shape]), tf.constant([[0.0, 0.0, *shape[:2]]]))  # builds it
            phi = phi + DIS_person.trainable_variables
        generator_optimizer = keras.optimizers.Adam(rate, beta_1=0.5)
        generator_optimizer.build(G.trainable_variables)
        discriminator_optimizer = keras.optimizers.Adam(rate, beta_1=0.5)
        discriminator_optimizer.build(phi)
    weights = AlignedObjective(settings.lambda_gan, composition(settings, 1))
    return PSGAN(weights, G, DIS_image, DIS_person, generator_optimizer, discriminator_optimizer)


def cyclegan(settings: Train, dataset: Dataset, chosen: tf.distribute.Strategy) -> CycleGAN:
    """Returns the built G_X, G_Y and discriminators with their optimizers. Seeds Keras's initialisers."""
    keras.utils.set_random_seed(settings.seed)
    shape, classes = dataset.image_shape, len(dataset.class_names)
    composed = composition(settings, classes)
    crop_shape = (settings.crop_size, settings.crop_size, shape[2])
    with chosen.scope(), precision(settings):
        rate = ConstantThenLinear(
            settings.gan_learning_rate, settings.pretrain_gan_steps, settings.joint_steps
        )
        common: dict[str, Any] = {
            "filters": settings.generator_filters,
            "blocks": settings.generator_blocks or None,
        }
        G_X = resnet_generator(
            shape,
            composed.input_channels(shape[2]),
            residual=settings.generator_input == "mask_and_object",
            name="G_X",
            **common,
        )
        G_Y = resnet_generator(shape, shape[2] + classes, name="G_Y", **common)
        width = settings.discriminator_filters
        DIS_globalX = patch_gan(shape, filters=width, name="DIS_globalX")
        DIS_localX = patch_gan(crop_shape, filters=width, layers=LOCAL_LAYERS, name="DIS_localX")
        DIS_globalY = patch_gan(shape, filters=width, name="DIS_globalY")
        generator_optimizer = keras.optimizers.Adam(rate, beta_1=0.5)
        generator_optimizer.build(G_X.trainable_variables + G_Y.trainable_variables)
        discriminator_optimizer = keras.optimizers.Adam(rate, beta_1=0.5)
        discriminator_optimizer.build(
            [v for net in (DIS_globalX, DIS_localX, DIS_globalY) for v in net.trainable_variables]
        )
    batch = settings.gan_batch // chosen.num_replicas_in_sync
    replicas = range(chosen.num_replicas_in_sync)
    return CycleGAN(
        CycleObjective(
            gan_loss=settings.gan_loss,
            lambda_gan=settings.lambda_gan,
            lambda_bbox=settings.lambda_bbox,
            lambda_cycle=settings.lambda_cycle,
            lambda_identity=settings.lambda_identity,
            crop_size=settings.crop_size,
            composition=composed,
        ),
        G_X,
        G_Y,
        DIS_globalX,
        DIS_localX,
        DIS_globalY,
        generator_optimizer,
        discriminator_optimizer,
        pools_X=[ImagePool(POOL_SIZE, batch, shape) for _ in replicas],
        pools_Y=[ImagePool(POOL_SIZE, batch, shape) for _ in replicas],
    )


def detector(settings: Train, dataset: Dataset, chosen: tf.distribute.Strategy) -> Detector:
    """Returns DET with initial weights from the seed and, if the run has one, its backbone weights file."""
    keras.utils.set_random_seed(settings.seed + 1)
    with chosen.scope(), detector_precision(settings):
        DET = detectors.build(
            settings.detector,
            dataset.image_shape,
            len(dataset.class_names),
            **settings.detector_options,
        )
        if settings.detector_options["pretrained"]:
            backbone_weights.assign(DET.backbone, RunLayout(Path(settings.run_dir)).backbone_weights)
    eqn_3 = [arm for arm in settings.arm if ARMS[arm].detector and ARMS[arm].real_sign]
    if eqn_3 and not DET.unrollable:
        raise InputError(
            f"--detector={settings.detector} has no exact second derivative (`unrollable` is False), which "
            f"Eqn 3 needs; leave {', '.join(eqn_3)} out of --arm, or choose another detector"
        )
    return DET


def joint_detector_optimizer(settings: Train, DET: Detector, chosen) -> keras.optimizers.Optimizer:
    """Returns DET's optimizer of the joint phase, whose update is U of Eqn 3."""
    name = settings.joint_detector_optimizer
    options: dict[str, Any] = {"learning_rate": JOINT_RATE[name], "global_clipnorm": CLIP_NORM}
    if name in ("sgd", "nesterov"):
        options |= {"momentum": 0.9, "nesterov": name == "nesterov"}
    if name == "adamw":
        options["weight_decay"] = WEIGHT_DECAY
    kind = {"adam": keras.optimizers.Adam, "adamw": keras.optimizers.AdamW}.get(name, keras.optimizers.SGD)
    with chosen.scope():
        optimizer = kind(**options)
        optimizer.build(DET.network.trainable_variables)
    return optimizer


def alone_detector_optimizer(settings: Train, DET: Detector, steps: int, chosen) -> keras.optimizers.AdamW:
    """Returns AdamW with a warm-up and a cosine decay to 0, for a detector that is trained alone."""
    warm_up = max(1, int(WARM_UP * steps))
    with chosen.scope():
        rate = WarmUpThenCosine(settings.detector_learning_rate, warm_up, max(1, steps - warm_up))
        optimizer = keras.optimizers.AdamW(rate, weight_decay=WEIGHT_DECAY)
        optimizer.build(DET.network.trainable_variables)
    return optimizer
