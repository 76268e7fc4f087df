"""Everything that `train` can be told, and the arms of the paper as rows of one table."""

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
    """One way to make synthetic images. Signs multiply --lambda_real and --lambda_syn."""

    images: str  # "none", "clean", "paste", "poisson" or "residual" (nothing is trained), or "generator"
    detector: bool  # DET takes part in the joint phase
    real_sign: float
    syn_sign: float
    gan: str = ""  # whose generator: of GANS


GANS = ("cyclegan", "pix2pix", "psgan")
ARMS = {
    "real_only": Arm("none", False, 0, 0),
    "boxes_only": Arm("clean", False, 0, 0),  # a control: boxes on clean images, no objects
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
    """Options of `train`. Steps are optimizer steps, sizes pixels of the prepared images."""

    BASIC: ClassVar[tuple[str, ...]] = (  # what --help shows first
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
        "runs/phantom", "Where everything of this run is written; call again to resume.", heading="Run"
    )
    arm: tuple[str, ...] = option(("detectorgan",), f"Arms to run: {', '.join(ARMS)}.", choices=tuple(ARMS))
    seed: int = option(0, "Every random number follows from it.", low=0)
    deterministic: bool = option(
        True,
        "The same seed gives the same bits, also when resumed. False: GPUs may be faster; two runs then "
        "differ by rounding, which grows.",
    )
    distribution: str = option(
        "auto",
        "auto: as many GPUs as divide --gan_batch and --detector_batch, or the CPU; one: one device; "
        "mirrored: all GPUs, or all CPU devices, which must divide both.",
        choices=("auto", "one", "mirrored"),
    )
    workers: int = option(
        1,
        "Processes that train together, each with all GPUs of its machine, on one --run_dir and --data_dir "
        "that all can read; as an Indexed Job (k8s/train-nih-multiworker.yaml), or with TF_CONFIG set.",
        low=1,
    )
    preflight: str = option(
        "auto",
        "A few steps of every phase before the run, in a process of its own: prints a table of hours, memory "
        "and disk, and refuses the run where they will not do. auto: where the steps are estimated to take "
        "over an hour, in Kubernetes, and with several workers, unless every chosen arm has begun. One that "
        "has passed (preflight.json in --run_dir) is not repeated.",
        ("auto", "true", "false"),
    )

    data_dir: str = option(
        "", "A data set made by tf_detectorgan.prepare; empty: the built-in phantom.", heading="Data"
    )
    phantom_size: int = option(
        64, "Side of the built-in phantom's images.", low=phantom.SIZES[0], high=phantom.SIZES[1]
    )
    phantom_train_images: int = option(57, "Labelled training images of the built-in phantom.", low=1)

    precision: str = option(
        "float32",
        "What networks compute in; weights, updates and losses are float32. mixed_bfloat16: for GPUs from "
        "2020 on, CPUs with AVX512_BF16. mixed_float16: for older GPUs; generators and discriminators, with "
        "loss scaling, while DET stays in float32.",
        ("float32", "mixed_bfloat16", "mixed_float16"),
        heading="Networks",
    )
    generator_filters: int = option(64, "Filters of the generators' first layer.", low=1)
    generator_blocks: int = option(0, "Residual blocks; 0: 9, or 6 at up to 128 pixels.", low=0)
    discriminator_filters: int = option(64, "Filters of the discriminators' first layer.", low=1)
    crop_size: int = option(32, "Side of the crops that DIS_localX sees.", low=16)
    output: str = option(
        "blend_in_box",
        "full_image: the generator's output is the image. blend_in_box: it is blended into the image near "
        "the box.",
        ("full_image", "blend_in_box"),
    )
    generator_input: str = option(
        "mask_and_object",
        "Input of G_X. mask: the image and the mask. mask_and_object: also the matched object.",
        ("mask", "mask_and_object"),
    )

    gan_loss: str = option("lsgan", "Adversarial loss; log is Eqn 4.", ("log", "lsgan"), heading="GAN losses")
    lambda_gan: float = option(1.0, "Weight of the adversarial losses.", low=0.0)
    lambda_bbox: float = option(1.0, "Weight of BboxLoss.", low=0.0)
    lambda_cycle: float = option(10.0, "Weight of the cycle loss.", low=0.0)
    lambda_identity: float = option(5.0, "Weight of the identity loss.", low=0.0)

    lambda_real: float = option(1.0, "Weight of L~_real, Eqn 3.", low=0.0, heading="Detector loop (Eqn 3)")
    lambda_syn: float = option(0.05, "Weight of L_syn, which G_X maximises.", low=0.0)
    syn_cap: float = option(
        5.0, "L_syn above this is worth nothing more to G_X; 0: more is always better.", low=0.0
    )
    unroll_steps: int = option(
        1,
        "Virtual detector steps through which arms with Eqn 3 (detectorgan, psgan_detectorgan) take their "
        "gradient; 0: they leave Eqn 3 out, so that detectorgan becomes detectorgan_no_unroll.",
        low=0,
    )
    unroll_recompute: bool = option(
        False, "Run synthetic passes of virtual steps again instead of keeping them: less memory, more time."
    )
    joint_detector_optimizer: str = option(
        "sgd",
        "Of DET in the joint phase, through which Eqn 3 looks: sgd or nesterov (rate 0.01, momentum 0.9), "
        "adam or adamw (rate 1e-4).",
        ("sgd", "nesterov", "adam", "adamw"),
    )

    detector: str = option(
        "retinanet_small",
        f"DET: {', '.join(DETECTORS)}, or one's own as package.module:function.",
        heading="Detector",
    )
    anchor_sizes: tuple[float, ...] = option(
        (), "Anchor sides, one a pyramid level; empty: the detector's own."
    )
    anchor_ratios: tuple[float, ...] = option((), "Widths over heights; empty: the detector's own.")
    backbone_weights: str = option(
        "none",
        "What the ResNet-50 of retinanet_resnet50 and retinanet_kerashub starts from: none; imagenet, which "
        "Keras downloads; or a file of its weights (.keras, .weights.h5, .h5). Kept in --run_dir.",
    )
    detector_learning_rate: float = option(
        1e-3, "AdamW's of a detector alone: warm-up, then a cosine to 0.", low=0.0
    )
    augment: bool = option(True, "Flip, shift, scale and light changes for detectors, the same in all arms.")

    object_source: str = option(
        "residual",
        "The matched object, as generators get it. crop: cut out with its background. residual: what it adds "
        "to its background, added to x.",
        ("crop", "residual"),
        heading="Insertion",
    )
    residual_scale: tuple[float, ...] = option(
        (0.0, 1.0),
        "Range of the random factor on what G_X adds to the matched object in synthetic images; 1 with "
        "--generator_input=mask.",
        absent=(1.0, 1.0),
    )
    placement: str = option(
        "auto",
        "Where to insert. auto: context for what is laid over x, matched_shift for objects cut out.",
        ("auto", *MODES),
    )
    match_candidates: int = option(
        Placement.candidates, "The matched image is drawn from this many most similar ones.", low=1
    )
    flip_objects: bool = option(Placement.flip_objects, "Insert objects mirrored half of the time.")
    keep_edges: bool = option(
        Placement.keep_edges, "An object cut off by its image's edge is inserted at that edge.", absent=False
    )

    pretrain_gan_steps: int = option(20000, "Steps of pretrain_gan.", low=0, heading="Schedule")
    joint_steps: int = option(10000, "Steps of the joint phase.", low=0)
    pretrain_detector_steps: int = option(2000, "Steps of pretrain_detector.", low=0)
    final_detector_steps: int = option(5000, "Steps of final_detector, the same for all arms.", low=1)
    gan_batch: int = option(4, "Images of each stream a step, over all devices.", low=1)
    detector_batch: int = option(8, "Images a step of a detector alone, over all devices.", low=1)
    gan_learning_rate: float = option(
        2e-4, "Adam's, constant, then linearly to 0 over the joint phase.", low=0.0
    )

    synthetic_count: int = option(1000, "Synthetic images an arm makes.", low=1, heading="Synthetic set")
    synthetic_objects: int = option(
        1,
        "Objects that a synthetic image gets, fewer where they would meet. Try 3 where synthetic images help "
        "(docs/experiments/phantom.md).",
        low=1,
    )
    synthetic_fraction: float = option(0.5, "Share of them in a batch of final_detector.", low=0.0, high=1.0)
    crossfit_folds: int = option(
        2,
        "Held-out detectors that score synthetic objects, each trained without one fold of the labelled "
        "groups for --pretrain_detector_steps; 0: none.",
        low=0,
    )

    primary_iou: float = option(
        0.1,
        "IoU from which on FROC and the headline count a detection as correct.",
        choices=SINGLE,
        heading="Logging",
    )
    log_every: int = option(50, "Steps between two rows of scalars.", low=1)
    checkpoint_every: int = option(500, "Steps between two checkpoints, and two pictures.", low=1)
    validate_every: int = option(500, "Steps between two APs on the validation split.", low=1)

    def __post_init__(self):
        maker(self.detector, [option for option, value in self.detector_options.items() if value])
        if self.workers > 1 and self.distribution != "auto":
            raise InputError(f"--workers={self.workers} uses all devices; --distribution must be auto")
        if self.crossfit_folds == 1:
            raise InputError(
                "--crossfit_folds=1: no labelled image would be left to train on; give 2 or more, or 0"
            )
        if self.synthetic_objects > 1 and self.output == "full_image":
            raise InputError(
                f"--synthetic_objects={self.synthetic_objects}: with --output=full_image a generator draws "
                "the whole image, so it can insert one object only; give --synthetic_objects=1"
            )
        scale = self.residual_scale
        if len(scale) != 2 or not 0.0 <= scale[0] <= scale[1] <= 1.0:
            raise InputError(
                f"--residual_scale={','.join(map(str, scale))}: give two factors from 0 to 1, the lower first"
            )
        if self.unroll_recompute and not self.unroll_steps:
            raise InputError("--unroll_recompute: --unroll_steps=0 keeps nothing to be recomputed")
        if self.detector == "retinanet_kerashub" and self.precision == "mixed_bfloat16":
            raise InputError(
                f"--precision={self.precision}: rounding spoils Eqn 3 through --detector=retinanet_kerashub "
                "(decision 0120); use float32"
            )

    @property
    def detector_options(self) -> dict[str, Any]:
        """What `detectors.build` is told; empty or False: the detector's own."""
        return {
            "sizes": self.anchor_sizes,
            "ratios": self.anchor_ratios,
            "pretrained": self.backbone_weights != "none",
        }
