"""Everything that `train` can be told, and the arms of the paper as rows of one table."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

from tf_detectorgan.config import option
from tf_detectorgan.data.placement import MODES
from tf_detectorgan.errors import InputError
from tf_detectorgan.evaluation.average_precision import SINGLE
from tf_detectorgan.models.detectors import DETECTORS, maker


class Arm(NamedTuple):
    """One way to make synthetic images. Signs multiply --lambda_real and --lambda_syn."""

    images: str  # "none", "clean", "paste", "poisson" or "layer" (nothing is trained), or "generator"
    detector: bool  # DET takes part in the joint phase
    real_sign: float
    syn_sign: float
    title: str
    gan: str = ""  # whose generator: of GANS


GANS = ("cyclegan", "pix2pix", "psgan")
ARMS = {
    "real_only": Arm("none", False, 0, 0, "real images only"),
    "boxes_only": Arm("clean", False, 0, 0, "control: boxes on clean images, no objects"),
    "cut_paste": Arm("paste", False, 0, 0, "feathered cut-and-paste"),
    "poisson_blend": Arm("poisson", False, 0, 0, "Poisson blending"),
    "superpose": Arm("layer", False, 0, 0, "object layers, nothing trained"),
    "cyclegan_bbox": Arm("generator", False, 0, 0, "CycleGAN + BboxLoss", "cyclegan"),
    "acgan": Arm("generator", True, 0, -1, "ACGAN-like: minimises L_syn", "cyclegan"),
    "detectorgan_no_unroll": Arm("generator", True, 0, 1, "DetectorGAN without Eqn 3", "cyclegan"),
    "detectorgan": Arm("generator", True, 1, 1, "DetectorGAN", "cyclegan"),
    "pix2pix": Arm("generator", False, 0, 0, "pix2pix", "pix2pix"),
    "psgan": Arm("generator", False, 0, 0, "PS-GAN", "psgan"),
    "psgan_detectorgan": Arm("generator", True, 1, 1, "DetectorGAN around PS-GAN", "psgan"),
}


@dataclasses.dataclass(frozen=True)
class Train:
    """Options of `train`. Steps are optimizer steps, sizes pixels of the prepared images."""

    run_dir: str = option("runs/phantom", "Where everything of this run is written; call again to resume.")
    data_dir: str = option("", "A data set made by tf_detectorgan.prepare; empty: the built-in phantom.")
    phantom_size: int = option(64, "Side of the built-in phantom's images.", low=32, high=1024)
    phantom_train_images: int = option(57, "Labelled training images of the built-in phantom.", low=1)
    arm: tuple[str, ...] = option(("detectorgan",), f"Arms to run: {', '.join(ARMS)}.", choices=tuple(ARMS))
    seed: int = option(0, "Every random number follows from it.", low=0)
    recipe: str = option("ours", "Defaults of the method.", choices=("ours", "paper"))
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

    precision: str = option(
        "float32",
        "What networks compute in; weights, updates and losses are float32. mixed_bfloat16: for GPUs from "
        "2020 on, CPUs with AVX512_BF16. mixed_float16: for older GPUs, with loss scaling.",
        ("float32", "mixed_bfloat16", "mixed_float16"),
    )

    generator_filters: int = option(64, "Filters of the generators' first layer.", low=1)
    generator_blocks: int = option(0, "Residual blocks; 0: 9, or 6 at up to 128 pixels.", low=0)
    discriminator_filters: int = option(64, "Filters of the discriminators' first layer.", low=1)
    compose: str = option(
        "box", "full: G's output is the image. box: blended near the box.", ("full", "box"), paper="full"
    )
    condition: str = option(
        "exemplar",
        "What G_X sees: image and mask, or also the matched object.",
        ("mask", "exemplar"),
        paper="mask",
    )
    feather: float = option(0.25, "Width of the blend around a box, in box sides.", low=0.0)
    crop_size: int = option(32, "Side of the crops that DIS_localX sees.", low=16)

    gan_loss: str = option("lsgan", "Adversarial loss; log is Eqn 4.", ("log", "lsgan", "hinge"), paper="log")
    lambda_global: float = option(1.0, "Weight of DIS_globalX and DIS_globalY; PS-GAN's DIS_image.", low=0.0)
    lambda_local: float = option(1.0, "Weight of DIS_localX; PS-GAN's DIS_person.", low=0.0)
    lambda_bbox: float = option(1.0, "Weight of BboxLoss.", low=0.0)
    lambda_cycle: float = option(10.0, "Weight of the cycle loss.", low=0.0)
    lambda_identity: float = option(5.0, "Weight of the identity loss.", low=0.0)
    lambda_l1: float = option(100.0, "Weight of pix2pix's and PS-GAN's L1 to the real image.", low=0.0)
    lambda_real: float = option(1.0, "Weight of L~_real, Eqn 3.", low=0.0)
    lambda_syn: float = option(0.05, "Weight of L_syn, which G_X maximises.", low=0.0, paper=1.0)
    syn_cap: float = option(
        5.0, "L_syn above this is worth nothing more to G_X; 0: more is always better.", low=0.0, paper=0.0
    )
    unroll_real: str = option(
        "fresh", "Images of L~_real: a fresh draw, or those of L_real.", ("fresh", "same")
    )

    unroll: str = option(
        "exact",
        "How arms with Eqn 3 (detectorgan, psgan_detectorgan) compute it. exact: through one detector step. "
        "k_steps: through --unroll_steps of them. finite_difference: approximately (DARTS). none: they leave "
        "it out, so that detectorgan becomes detectorgan_no_unroll.",
        ("exact", "k_steps", "finite_difference", "none"),
    )
    unroll_steps: int = option(1, "Virtual detector steps of --unroll=k_steps, 2 or more.", low=1)
    unroll_recompute: bool = option(
        False, "Run synthetic passes of virtual steps again instead of keeping them: less memory, more time."
    )
    force_finite_difference: bool = option(
        False, "Let --unroll=finite_difference go through a detector with kinks (ReLU)."
    )

    detector: str = option(
        "retinanet_small", f"DET: {', '.join(DETECTORS)}, or one's own as package.module:function."
    )
    anchor_sizes: tuple[float, ...] = option(
        (), "Anchor sides, one a pyramid level; empty: the detector's own."
    )
    anchor_scales: tuple[float, ...] = option((), "Multiples of the sizes; empty: the detector's own.")
    anchor_ratios: tuple[float, ...] = option((), "Widths over heights; empty: the detector's own.")

    backbone_weights: str = option(
        "none",
        "What the ResNet-50 of retinanet_resnet50 and retinanet_kerashub starts from: none; imagenet, which "
        "Keras downloads; or a file of its weights (.keras, .weights.h5, .h5). Kept in --run_dir.",
    )

    exemplar: str = option(
        "layer",
        "What generators start from. image: the matched object cut out with its background. layer: what it "
        "adds to its background, laid over x.",
        ("image", "layer"),
        paper="image",
    )
    strength: tuple[float, ...] = option(
        (0.0, 1.0),
        "Synthetic images keep a share of what G_X adds to the matched object, drawn between these two; with "
        "--condition=mask all of it.",
    )
    placement: str = option("matched_shift", "Where to insert.", MODES)
    layer_placement: str = option(
        "context",
        "Where to insert what is laid over x, unless --placement=file.",
        [m for m in MODES if m != "file"],
    )
    placement_file: str = option("", "Boxes for --placement=file (CSV or JSON).")
    max_shift: float = option(0.05, "Largest shift of the matched box, in image sides.", low=0.0, high=1.0)
    match_top_k: int = option(5, "Draw the matched image among this many best ones.", low=1, paper=1)
    exemplar_flip: bool = option(True, "Insert objects mirrored half of the time.", paper=False)
    keep_edges: bool = option(
        True, "An object cut off by its image's edge is inserted at that edge.", paper=False
    )
    augment: bool = option(True, "Flip, shift, scale and light changes for detectors, the same in all arms.")

    gan_steps: int = option(20000, "Steps of pretrain_gan.", low=0)
    joint_steps: int = option(10000, "Steps of the joint phase.", low=0)
    pretrain_detector_steps: int = option(2000, "Steps of pretrain_detector.", low=0)
    final_steps: int = option(5000, "Steps of final_detector, the same for all arms.", low=1)
    gan_batch: int = option(4, "Images of each stream a step, over all devices.", low=1)
    detector_batch: int = option(8, "Images a step of a detector alone, over all devices.", low=1)
    gan_learning_rate: float = option(
        2e-4, "Adam's, constant, then linearly to 0 over the joint phase.", low=0.0
    )
    joint_detector_optimizer: str = option(
        "sgd",
        "Of DET in the joint phase, through which Eqn 3 looks: sgd or nesterov (momentum 0.9), adam, adamw.",
        ("sgd", "nesterov", "adam", "adamw"),
    )
    joint_detector_learning_rate: float = option(
        0.0, "Of DET in the joint phase; 0: 0.01 with sgd and nesterov, 1e-4 with adam and adamw.", low=0.0
    )
    detector_learning_rate: float = option(
        1e-3, "AdamW's of a detector alone: warm-up, then a cosine to 0.", low=0.0
    )
    weight_decay: float = option(1e-4, "AdamW's, of a detector alone and jointly.", low=0.0)
    clipnorm: float = option(10.0, "Largest norm of a detector's gradient.", low=1e-6)
    pool_size: int = option(50, "Synthetic images that discriminators remember.", low=0)

    synthetic_count: int = option(1000, "Synthetic images an arm makes.", low=1)
    synthetic_objects: int = option(
        1,
        "Objects that a synthetic image gets, fewer where they would meet. Try 3 where synthetic images help "
        "(decision 0125).",
        low=1,
    )
    audit_folds: int = option(
        2,
        "Detectors that judge synthetic objects they were not trained on (cross-fitted over the labelled "
        "groups, --pretrain_detector_steps each); 0: none.",
        low=0,
    )
    audit_features: str = option(
        "none",
        "Compare synthetic with real objects also by the features of a ResNet-50: none; imagenet, which "
        "Keras downloads; or a file of its weights, as --backbone_weights takes. Kept in --run_dir.",
    )
    min_audit: float = option(
        0.0,
        "Leave out synthetic objects that score lower with such a detector than this share of the real "
        "objects do, and images without any other.",
        low=0.0,
        high=1.0,
    )
    synthetic_fraction: float = option(0.5, "Share of them in a batch of final_detector.", low=0.0, high=1.0)

    main_iou: float = option(
        0.1, "IoU at which FROC and the headline count a detection as right.", choices=SINGLE
    )

    log_every: int = option(50, "Steps between two rows of scalars.", low=1)
    image_every: int = option(500, "Steps between two pictures.", low=1)
    checkpoint_every: int = option(500, "Steps between two checkpoints.", low=1)
    validate_every: int = option(500, "Steps between two APs on the validation split.", low=1)

    def __post_init__(self):
        maker(self.detector, [option for option, value in self.detector_options.items() if value])
        if self.workers > 1 and self.distribution != "auto":
            raise InputError(f"--workers={self.workers} uses all devices; --distribution must be auto")
        if self.audit_folds == 1:
            raise InputError(
                "--audit_folds=1: a detector judges what others are trained on; give 2 or more, or 0"
            )
        if self.min_audit and not self.audit_folds:
            raise InputError(f"--min_audit={self.min_audit} needs --audit_folds of 2 or more")
        if (self.unroll == "k_steps") != (self.unroll_steps > 1):
            raise InputError(
                f"--unroll={self.unroll} --unroll_steps={self.unroll_steps}: k_steps takes 2 or more steps, "
                "the others take 1"
            )
        if self.synthetic_objects > 1 and self.compose == "full":
            raise InputError(
                f"--synthetic_objects={self.synthetic_objects}: with --compose=full a generator draws the "
                "whole image, so it can insert one object only; give --synthetic_objects=1"
            )
        if len(self.strength) != 2 or not 0.0 <= self.strength[0] <= self.strength[1] <= 1.0:
            raise InputError(
                f"--strength={','.join(map(str, self.strength))}: two shares within 0 and 1, the lower first"
            )
        if self.unroll_recompute and self.unroll not in ("exact", "k_steps"):
            raise InputError(f"--unroll_recompute: --unroll={self.unroll} keeps nothing to be recomputed")
        if self.detector == "retinanet_kerashub" and self.precision != "float32":
            raise InputError(
                f"--precision={self.precision}: rounding spoils Eqn 3 through --detector=retinanet_kerashub "
                "(decision 0122); use float32"
            )
        if self.unroll == "finite_difference" and self.precision != "float32":
            raise InputError(
                f"--unroll=finite_difference: its difference of weights is lost in {self.precision}; use "
                "--precision=float32, or --unroll=exact"
            )

    @property
    def detector_options(self) -> dict[str, Any]:
        """What `detectors.build` is told; empty or False: the detector's own."""
        return {
            "sizes": self.anchor_sizes,
            "scales": self.anchor_scales,
            "ratios": self.anchor_ratios,
            "pretrained": self.backbone_weights != "none",
        }
