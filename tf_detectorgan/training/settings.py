"""The options of `train`, and the arms of the paper as rows of one table."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

from tf_detectorgan.config import NewName, option
from tf_detectorgan.data import phantom
from tf_detectorgan.data.placement import MODES, Placement
from tf_detectorgan.errors import InputError
from tf_detectorgan.evaluation.average_precision import SINGLE
from tf_detectorgan.models.detectors import DETECTORS, maker


class Arm(NamedTuple):
    """One way to make synthetic images."""

    images: str  # "none", "clean", "paste", "poisson" or "residual" (nothing is trained), or "generator"
    detector: bool  # DET is trained in the joint phase
    real_sign: float  # factor on --lambda_real
    syn_sign: float  # factor on --lambda_syn
    gan: str = ""  # the GAN, one of GANS, that has the generator


GANS = ("cyclegan", "pix2pix", "psgan")
ARMS = {
    "real_only": Arm("none", False, 0, 0),
    "boxes_only": Arm("clean", False, 0, 0),  # control: boxes on clean images, without objects
    "cut_paste": Arm("paste", False, 0, 0),
    "poisson_blend": Arm("poisson", False, 0, 0),
    "superpose": Arm("residual", False, 0, 0),  # object residuals, nothing trained
    "cyclegan_bbox": Arm("generator", False, 0, 0, "cyclegan"),
    "acgan": Arm("generator", True, 0, -1, "cyclegan"),  # ACGAN-like: minimises L_syn
    "detectorgan_no_unroll": Arm("generator", True, 0, 1, "cyclegan"),
    "detectorgan": Arm("generator", True, 1, 1, "cyclegan"),
    "pix2pix": Arm("generator", False, 0, 0, "pix2pix"),
    "psgan": Arm("generator", False, 0, 0, "psgan"),
    "psgan_detectorgan": Arm("generator", True, 1, 1, "psgan"),
}


@dataclasses.dataclass(frozen=True)
class Train:
    """The options of `train`. Steps are optimizer steps; sizes are in pixels of the prepared images."""

    BASIC: ClassVar[tuple[str, ...]] = (  # shown first by --help
        "run_dir", "data_dir", "arm", "seed", "detector", "backbone_weights", "anchor_sizes",
        "anchor_ratios", "generator_filters", "discriminator_filters", "pretrain_gan_steps", "joint_steps",
        "pretrain_detector_steps", "final_detector_steps", "synthetic_count",
    )  # fmt: skip

    RENAMED: ClassVar[Mapping[str, NewName]] = {
        "exemplar": NewName("object_source", {"image": "crop", "layer": "residual"}),
        "condition": NewName("generator_input", {"exemplar": "mask_and_object"}),
        "compose": NewName("output", {"full": "full_image", "box": "blend_in_box"}),
        "strength": NewName("residual_scale"),
        "exemplar_flip": NewName("flip_objects"),
        "noexemplar_flip": NewName("noflip_objects"),
        "match_top_k": NewName("match_candidates"),
        "gan_steps": NewName("pretrain_gan_steps"),
        "final_steps": NewName("final_detector_steps"),
        "audit_folds": NewName("crossfit_folds"),
        "main_iou": NewName("primary_iou"),
    }

    run_dir: str = option(
        "runs/phantom", "Output directory of the run. Run the command again to resume.", heading="Run"
    )
    arm: tuple[str, ...] = option(("detectorgan",), f"Arms to run: {', '.join(ARMS)}.", choices=tuple(ARMS))
    seed: int = option(0, "Seed of all random numbers.", low=0)
    deterministic: bool = option(
        True,
        "Runs with the same seed are bit-identical, also after a resume. If false, GPUs may be faster, but "
        "runs with the same seed differ by rounding errors, which grow during training.",
    )
    distribution: str = option(
        "auto",
        "Devices of each process. auto: the largest number of GPUs that divides --gan_batch and "
        "--detector_batch, or the CPU; one: one device; mirrored: all GPUs, or all CPU devices, whose number "
        "must divide both.",
        choices=("auto", "one", "mirrored"),
    )
    workers: int = option(
        1,
        "Processes that train together, each with all GPUs of its machine. All must share --run_dir and "
        "--data_dir. Start them as an Indexed Job (k8s/train-nih-multiworker.yaml), or set TF_CONFIG.",
        low=1,
    )
    preflight: str = option(
        "auto",
        "First runs a few steps of every phase in a separate process, prints a table of hours, memory and "
        "disk space, and stops if memory or disk space is insufficient. auto: if the steps are estimated to "
        "take over an hour, in Kubernetes, and with several workers, unless every chosen arm has begun. A "
        "preflight that has passed (preflight.json in --run_dir) is not repeated.",
        ("auto", "true", "false"),
    )

    data_dir: str = option(
        "", "Data set made by tf_detectorgan.prepare; empty: the built-in phantom.", heading="Data"
    )
    phantom_size: int = option(
        64, "Side of the built-in phantom's images.", low=phantom.SIZES[0], high=phantom.SIZES[1]
    )
    phantom_train_images: int = option(57, "Labelled training images of the built-in phantom.", low=1)

    precision: str = option(
        "float32",
        "Precision in which networks compute; weights, updates and losses are float32. mixed_bfloat16: for "
        "GPUs since 2020 and CPUs with AVX512_BF16. mixed_float16: for older GPUs; for generators and "
        "discriminators, with loss scaling, while DET uses float32.",
        ("float32", "mixed_bfloat16", "mixed_float16"),
        heading="Networks",
    )
    generator_filters: int = option(64, "Filters of the generators' first layer.", low=1)
    generator_blocks: int = option(0, "Residual blocks; 0: 9, or 6 for images up to 128 pixels.", low=0)
    discriminator_filters: int = option(64, "Filters of the discriminators' first layer.", low=1)
    crop_size: int = option(32, "Side of the crops that are DIS_localX's input.", low=16)
    output: str = option(
        "blend_in_box",
        "full_image: the generator's output is the image. blend_in_box: the output is blended into the image "
        "in and around the box.",
        ("full_image", "blend_in_box"),
    )
    generator_input: str = option(
        "mask_and_object",
        "Input of G_X. mask: the image and the mask. mask_and_object: also the matched object.",
        ("mask", "mask_and_object"),
    )

    gan_loss: str = option("lsgan", "Adversarial loss; log: Eqn 4.", ("log", "lsgan"), heading="GAN losses")
    lambda_gan: float = option(1.0, "Weight of the adversarial losses.", low=0.0)
    lambda_bbox: float = option(1.0, "Weight of BboxLoss.", low=0.0)
    lambda_cycle: float = option(10.0, "Weight of the cycle loss.", low=0.0)
    lambda_identity: float = option(5.0, "Weight of the identity loss.", low=0.0)

    lambda_real: float = option(1.0, "Weight of L~_real, Eqn 3.", low=0.0, heading="Detector loop (Eqn 3)")
    lambda_syn: float = option(0.05, "Weight of L_syn, which G_X maximises.", low=0.0)
    syn_cap: float = option(5.0, "Upper bound on L_syn in G_X's objective; 0: no bound.", low=0.0)
    unroll_steps: int = option(
        1,
        "Number of unrolled detector steps in arms with Eqn 3 (detectorgan, psgan_detectorgan); 0: Eqn 3 is "
        "left out, so that detectorgan becomes detectorgan_no_unroll.",
        low=0,
    )
    unroll_recompute: bool = option(
        False, "Recompute synthetic passes of unrolled steps, not store them: less memory, more time."
    )
    joint_detector_optimizer: str = option(
        "sgd",
        "Optimizer of DET in the joint phase, through which Eqn 3 is differentiated: sgd or nesterov (rate "
        "0.01, momentum 0.9), adam or adamw (rate 1e-4).",
        ("sgd", "nesterov", "adam", "adamw"),
    )

    detector: str = option(
        "retinanet_small",
        f"DET: {', '.join(DETECTORS)}, or your own as package.module:function.",
        heading="Detector",
    )
    anchor_sizes: tuple[float, ...] = option(
        (), "Anchor sides, one per pyramid level; empty: the detector's default."
    )
    anchor_ratios: tuple[float, ...] = option((), "Anchor width / height; empty: the detector's default.")
    backbone_weights: str = option(
        "none",
        "Initial weights of the ResNet-50 in retinanet_resnet50 and retinanet_kerashub: none; imagenet, "
        "downloaded by Keras; or a weights file (.keras, .weights.h5, .h5). A copy is stored in --run_dir.",
    )
    detector_learning_rate: float = option(
        1e-3, "AdamW's, for a detector that is trained alone: warm-up, then cosine decay to 0.", low=0.0
    )
    augment: bool = option(True, "Flip, shift, scale and intensity augmentation of detectors, in all arms.")

    object_source: str = option(
        "residual",
        "The matched object in the generators' input. crop: cut out with its background. residual: only its "
        "object residual (what it adds to its background), added to x.",
        ("crop", "residual"),
        heading="Insertion",
    )
    residual_scale: tuple[float, ...] = option(
        (0.0, 1.0),
        "Range of the random factor on what G_X adds to the matched object in synthetic images; with "
        "--generator_input=mask, the factor is 1.",
        absent=(1.0, 1.0),
    )
    placement: str = option(
        "auto",
        "Where to insert. auto: context for object residuals, matched_shift for objects that are cut out.",
        ("auto", *MODES),
    )
    match_candidates: int = option(
        Placement.candidates, "The matched image is drawn from this number of most similar ones.", low=1
    )
    flip_objects: bool = option(Placement.flip_objects, "Mirror inserted objects with probability 1/2.")
    keep_edges: bool = option(
        Placement.keep_edges, "Insert an object that an image edge cuts off at the same edge.", absent=False
    )

    pretrain_gan_steps: int = option(20000, "Steps of pretrain_gan.", low=0, heading="Schedule")
    joint_steps: int = option(10000, "Steps of the joint phase.", low=0)
    pretrain_detector_steps: int = option(2000, "Steps of pretrain_detector.", low=0)
    final_detector_steps: int = option(5000, "Steps of final_detector, the same for all arms.", low=1)
    gan_batch: int = option(4, "Images of each kind (x, y, u, y2) per GAN step, over all devices.", low=1)
    detector_batch: int = option(8, "Images per step of a detector trained alone, over all devices.", low=1)
    gan_learning_rate: float = option(
        2e-4, "Adam's, for GANs: constant, then linear decay to 0 over the joint phase.", low=0.0
    )

    synthetic_count: int = option(1000, "Synthetic images per arm.", low=1, heading="Synthetic set")
    synthetic_objects: int = option(
        1,
        "Objects inserted per synthetic image, fewer if they would overlap. Try 3 if synthetic images help "
        "(docs/experiments/phantom.md).",
        low=1,
    )
    synthetic_fraction: float = option(0.5, "Their fraction in a final_detector batch.", low=0.0, high=1.0)
    crossfit_folds: int = option(
        2,
        "Number of held-out detectors that score synthetic objects, each trained without one fold of the "
        "labelled groups for --pretrain_detector_steps; 0: none.",
        low=0,
    )

    primary_iou: float = option(
        0.1,
        "Smallest IoU at which FROC and the headline count a detection as correct.",
        choices=SINGLE,
        heading="Logging",
    )
    log_every: int = option(50, "Steps between log entries.", low=1)
    checkpoint_every: int = option(500, "Steps between checkpoints, and between pictures.", low=1)
    validate_every: int = option(500, "Steps between evaluations on the validation split.", low=1)

    def __post_init__(self):
        maker(self.detector, [option for option, value in self.detector_options.items() if value])
        if self.workers > 1 and self.distribution != "auto":
            raise InputError(f"--workers={self.workers} uses all devices; set --distribution=auto")
        if self.crossfit_folds == 1:
            raise InputError("--crossfit_folds=1 leaves no labelled image to train on; set 2 or more, or 0")
        if self.synthetic_objects > 1 and self.output == "full_image":
            raise InputError(
                f"--synthetic_objects={self.synthetic_objects}: with --output=full_image the generator draws "
                "the whole image, so it can insert only one object; set --synthetic_objects=1"
            )
        scale = self.residual_scale
        if len(scale) != 2 or not 0.0 <= scale[0] <= scale[1] <= 1.0:
            raise InputError(
                f"--residual_scale={','.join(map(str, scale))}: give two factors from 0 to 1, the lower first"
            )
        if self.unroll_recompute and not self.unroll_steps:
            raise InputError("--unroll_recompute has no effect with --unroll_steps=0; remove one of the two")
        if self.detector == "retinanet_kerashub" and self.precision == "mixed_bfloat16":
            raise InputError(
                f"--precision={self.precision}: rounding makes the gradient of Eqn 3 too inexact with "
                "--detector=retinanet_kerashub (decision 0120); use float32"
            )

    @property
    def detector_options(self) -> dict[str, Any]:
        """The keyword arguments of `detectors.build`; empty or False: the detector's default."""
        return {
            "sizes": self.anchor_sizes,
            "ratios": self.anchor_ratios,
            "pretrained": self.backbone_weights != "none",
        }
