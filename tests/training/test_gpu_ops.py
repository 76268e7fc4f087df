"""No phase has an op in its graphs that fails on deterministic GPUs, lacks a kernel, or runs on the host."""

import mmap
import re
from pathlib import Path

import pytest
import tensorflow as tf

from tf_detectorgan import config
from tf_detectorgan.data import pipeline, records
from tf_detectorgan.models.detectors import DETECTORS
from tf_detectorgan.training import build, gpu_ops, phases
from tf_detectorgan.training.host_transfers import host_transfers
from tf_detectorgan.training.loop import StopSignal
from tf_detectorgan.training.run import (
    Run,
    build_detector_training,
    build_gan_training,
    build_run,
    with_detector,
)
from tf_detectorgan.training.settings import ARMS, GANS, Train
from tf_detectorgan.training.workers import Workers

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = [ROOT / "configs" / f"{name}.flags" for name in ("nih", "cityscapes", "cityscapes_psgan")]
SIDE = 64
LARGEST = 1000  # elements of a tensor in host memory; an image has 4,096, a level of anchors 2,304

TINY = ["--generator_filters=4", "--generator_blocks=1", "--discriminator_filters=4", "--crop_size=16"]
OWN = "--detector=tests.own_detector:tiny"
PAPER = f"--flagfile={ROOT / 'configs' / 'paper.flags'}"
# They include every base GAN, detector and precision, and one, recomputed and several unrolled steps.
CASES = {path.stem: [f"--flagfile={path}", "--data_dir="] for path in CONFIGS}
CASES |= {
    "fcos_small in bfloat16": [*TINY, "--detector=fcos_small", "--precision=mixed_bfloat16"],
    "paper in float16": [*TINY, OWN, PAPER, "--precision=mixed_float16", "--unroll_recompute"],
    "aligned": [*TINY, OWN, "--arm=pix2pix,psgan_detectorgan"],
    "two unrolled steps": [*TINY, OWN, "--unroll_steps=2"],
    "retinanet_kerashub": [*TINY, "--detector=retinanet_kerashub"],
}


@pytest.fixture(scope="module")
def dataset(tiny_phantom):
    return records.open_dataset(tiny_phantom("gpu_ops", size=SIDE))


def joint_spec(run, gan, unroll_steps):
    """Returns the element spec of a batch of the joint phase."""
    batches = pipeline.joint_batches(
        run.dataset, batch_size=run.settings.gan_batch, seed=0, start_step=0, steps=1,
        placement=gan.placement, unroll_steps=unroll_steps,
    )  # fmt: skip
    return batches.element_spec


def training_graphs(run: Run) -> dict[str, tf.Graph]:
    """Returns {phase: graph of its step} for all phases of the run's arms."""
    s, seed = run.settings, tf.TensorSpec([2], tf.int32)
    graphs, gans = {}, {}
    for name, arm in ((name, ARMS[name]) for name in s.arm if ARMS[name].gan):
        if arm.gan not in gans:
            gans[arm.gan] = gan = build_gan_training(run, arm.gan)
            graphs[f"pretrain_{arm.gan}"] = gan.step.get_concrete_function(
                joint_spec(run, gan, 1), seed
            ).graph
        if arm.detector:
            gan = with_detector(run, gans[arm.gan], build.objective(s, arm))
            spec = joint_spec(run, gan, s.unroll_steps)
            graphs[f"{name}/joint"] = gan.step.get_concrete_function(spec, seed).graph
    labelled = pipeline.labelled_batches(
        run.dataset, batch_size=s.detector_batch, seed=0, start_step=0, steps=1, augment=build.augmentation(s)
    )
    step = build_detector_training(run, s.final_detector_steps).step
    graphs["final_detector"] = step.get_concrete_function(labelled.element_spec).graph
    return graphs


def inference_graphs(run: Run) -> dict[str, tf.Graph]:
    """Returns the graphs of detection, and of synthesis by the run's arms."""
    s = run.settings
    images = tf.TensorSpec([2, *run.dataset.image_shape])
    graphs = {"detect": run.detect.get_concrete_function(images).graph}
    for name in (name for name in s.arm if ARMS[name].images in ("paste", "residual", "generator")):
        arm = ARMS[name]
        placed = build.placement(s, arm.images, arm.gan)
        batches = pipeline.synthesis_batches(
            run.dataset, count=2, batch_size=2, seed=0, start=0, placement=placed
        )
        gan = build.gan(s, arm.gan, run.dataset, run.strategy) if arm.gan else None
        insert = phases.inserter_of(run, name, gan).insert
        graphs[f"{name}/synthetic"] = insert.get_concrete_function(batches.element_spec).graph
    return graphs


def test_cases_include_every_base_gan_detector_and_precision():
    flags = [config.parse(Train, words) for name, words in CASES.items() if name != "retinanet_kerashub"]
    assert {ARMS[arm].gan for s in flags for arm in s.arm} - {""} == set(GANS)
    assert {s.detector for s in flags} >= set(DETECTORS) - {"retinanet_kerashub"}
    assert {s.precision for s in flags} == {"float32", "mixed_bfloat16", "mixed_float16"}


NIGHTLY = ("nih", "cityscapes", "cityscapes_psgan", "two unrolled steps", "retinanet_kerashub")


@pytest.mark.slow
@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=pytest.mark.nightly if case in NIGHTLY else ()) for case in CASES]
)
def test_no_graph_has_an_op_that_fails_on_deterministic_gpus(case, dataset, tmp_path, monkeypatch):
    if case == "retinanet_kerashub":
        pytest.importorskip("keras_hub")
    monkeypatch.setattr(phases.checkpoints, "load", lambda *_: None)  # no generator is trained here
    monkeypatch.setattr(phases.checkpoints, "fingerprint", lambda _: "")
    settings = config.parse(Train, [*CASES[case], f"--run_dir={tmp_path}"])
    run = build_run(settings, dataset, StopSignal(), Workers())
    training = training_graphs(run)
    graphs = training | inference_graphs(run)
    print(f"{case}: {', '.join(f'{name} {len(graph.get_operations())}' for name, graph in graphs.items())}")
    arms = run.settings.arm
    assert sum("joint" in name for name in graphs) == sum(bool(ARMS[arm].detector) for arm in arms)
    assert sum("synthetic" in name for name in graphs) == len(set(arms) - {"real_only"})
    found = {name: gpu_ops.faults(graph, LARGEST) for name, graph in graphs.items()}
    assert not any(found.values()), found
    copied = {name: host_transfers(graph) for name, graph in training.items()}
    assert not any(copied.values()), copied  # no step waits for the device


def crop_and_resize(image):
    boxes, size = tf.constant([[0.1, 0.1, 0.9, 0.9]]), [8, 8]
    with tf.GradientTape() as tape:
        tape.watch(image)
        cropped = tf.image.crop_and_resize(image, boxes, [0], size)
    return tape.gradient(cropped, image)


def resize_nearest(image):
    with tf.GradientTape() as tape:
        tape.watch(image)
        larger = tf.image.resize(image, [96, 96], "nearest")
    return tape.gradient(larger, image)


PLANTS = {
    "CropAndResizeGradImage": crop_and_resize,
    "ResizeNearestNeighborGrad": resize_nearest,
    "EagerPyFunc": lambda image: tf.py_function(lambda v: v + 1, [image], tf.float32),
    "TensorScatterUpdate": lambda image: tf.tensor_scatter_nd_update(image, [[0]], image),
    "EncodePng": lambda image: tf.strings.length(tf.io.encode_png(tf.cast(image[0], tf.uint8))),
    "Less": lambda image: tf.cast(image, tf.int32) < 3,
}


@pytest.mark.parametrize("kind", PLANTS)
@pytest.mark.parametrize("nested", [False, True])
def test_planted_ops_are_found(kind, nested):
    """Also in a function that is called in a loop in a branch."""
    plant = PLANTS[kind]

    @tf.function(autograph=False)
    def inner(image):
        return tf.reduce_sum(tf.cast(plant(image), tf.float32))

    @tf.function(autograph=False)
    def outer(image):
        if not nested:
            return plant(image)

        def loop():
            return tf.while_loop(lambda i, _: i < 2, lambda i, s: (i + 1, s + inner(image)), (0, 0.0))[1]

        return tf.cond(tf.reduce_sum(image) > 0, loop, lambda: 0.0)

    graph = outer.get_concrete_function(tf.TensorSpec([1, SIDE, SIDE, 1])).graph
    assert kind in {fault.kind for fault in gpu_ops.faults(graph, LARGEST)}
    assert not [f for f in gpu_ops.faults(graph, SIDE * SIDE) if f.kind == "Less"]  # not larger than allowed


# The error messages in TensorFlow 2.21's library, and the types of the ops whose GPU kernels raise them.
MESSAGES: dict[str, tuple[str, ...]] = {
    "A deterministic GPU implementation of AdjustContrast is not currently available.": ("AdjustContrast",),
    "A deterministic GPU implementation of AdjustContrastv2 is not currently available.": (
        "AdjustContrastv2",
    ),
    "A deterministic GPU implementation of ResizeNearestNeighborGrad is not currently available.": (
        "ResizeNearestNeighborGrad",
    ),
    "A deterministic GPU implementation of SparseTensorDenseMatmulOp is not currently available.": (
        "SparseTensorDenseMatMul",
    ),
    "A deterministic GPU implementation of fused batch-norm backprop, when training is disabled, is not "
    "currently available.": ("FusedBatchNormGrad", "FusedBatchNormGradV2", "FusedBatchNormGradV3"),
    "Determinism is not yet supported for DebugNumericSummaryV2 when tensor_debug_mode is "
    "CONCISE_HEALTH.": ("DebugNumericSummaryV2",),
    "Determinism is not yet supported for DebugNumericSummaryV2 when tensor_debug_mode is FULL_HEALTH.": (
        "DebugNumericSummaryV2",
    ),
    "Determinism is not yet supported for Dilation2DBackpropFilter.": ("Dilation2DBackpropFilter",),
    "Determinism is not yet supported for Dilation2DBackpropInput.": ("Dilation2DBackpropInput",),
    "Determinism is not yet supported for MaxPoolGradWithArgmax.": ("MaxPoolGradWithArgmax",),
    "Determinism is not yet supported for SVD of matrices with 1 column.": ("Svd",),
    "Determinism is not yet supported in GPU implementation of Bincount.": ("Bincount",),
    "Determinism is not yet supported in GPU implementation of DenseBincount.": ("DenseBincount",),
    "Determinism is not yet supported in GPU implementation of FakeQuantWithMinMaxVarsGradient.": (
        "FakeQuantWithMinMaxVarsGradient",
    ),
    "Determinism is not yet supported in GPU implementation of FakeQuantWithMinMaxVarsPerChannelGradient.": (
        "FakeQuantWithMinMaxVarsPerChannelGradient",
    ),
    "Determinism is not yet supported in GPU implementation of Scatter ops with ref inputs. Consider using "
    "resource variables instead if you want to run Scatter when op determinism is enabled.": (
        "ScatterAdd", "ScatterDiv", "ScatterMax", "ScatterMin", "ScatterMul", "ScatterSub", "ScatterUpdate",
        "ScatterNdAdd", "ScatterNdSub", "ScatterNdUpdate",
    ),
    "Deterministic GPU implementation of CropAndResizeBackpropBoxes not available.": (
        "CropAndResizeGradBoxes",
    ),
    "Deterministic GPU implementation of CropAndResizeBackpropImage not available.": (
        "CropAndResizeGradImage",
    ),
    "The GPU implementation of SoftmaxCrossEntropyWithLogits that would have been executed is not "
    "deterministic. Note that the Python API uses an alternative, deterministic, GPU-accelerated path when "
    "determinism is enabled.": ("SoftmaxCrossEntropyWithLogits",),
    "The GPU implementation of SparseSoftmaxCrossEntropyWithLogits that would have been executed is not "
    "deterministic. Note that the Python API uses an alternative, deterministic, GPU-accelerated path when "
    "determinsim is enabled.": ("SparseSoftmaxCrossEntropyWithLogits",),
    "Timestamp cannot be called when determinism is enabled": ("Timestamp",),
    # Of ResourceScatter ops of some dtypes, which are all in ON_HOST.
    " do not yet have a deterministic implementation": (),
    # Not raised here: by segment sums, which are the gradient of a gather, only on Windows; by depthwise
    # convolutions only with cuDNN before 7.6.3; the last one only in XLA, which `train` does not use.
    "Deterministic GPU implementation of sorted segment reduction op not available.": (),
    "Deterministic GPU implementation of unsorted segment reduction op not available.": (),
    "A deterministic GPU implementation of DepthwiseConvBackpropFilter is not available with this version "
    "of cuDNN. Please build with cuDNN version 7.6.3 or later.": (),
    "GPU MaxPool gradient ops do not yet have a deterministic XLA implementation.": (),
}  # fmt: skip


def test_nondeterministic_ops_are_those_of_the_installed_library():
    """Fails if a new TensorFlow has another error message, or if an op is missing in NONDETERMINISTIC."""
    library = Path(tf.sysconfig.get_lib()) / "libtensorflow_cc.so.2"
    message = re.compile(
        rb"not (currently |yet )?(available|supported)|not determ|not yet have a determ|cannot be called when"
    )
    found = set()
    with library.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as code:
        place = code.find(b"eterminis")
        while place >= 0:
            first, last = code.rfind(b"\0", 0, place) + 1, code.find(b"\0", place)
            if message.search(code[first:last]):
                found.add(code[first:last].decode())
            place = code.find(b"eterminis", last)
    assert found == set(MESSAGES)
    assert {kind for kinds in MESSAGES.values() for kind in kinds} == set(gpu_ops.NONDETERMINISTIC)
