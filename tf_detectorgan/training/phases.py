"""The phases of a run, in order. A finished phase is skipped, an unfinished one is resumed.

    pretrain_gan, pretrain_detector, held_out_detectors, joint, synthesize, final_detector, evaluate

The first three are shared by all arms of a run; the others are run for each arm.
"""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tf_detectorgan import checkpoints, disk, run_layout
from tf_detectorgan.batch import Synthesis
from tf_detectorgan.data import pipeline, records, split_guard
from tf_detectorgan.evaluation import held_out_detectors
from tf_detectorgan.evaluation.detect import detect_split, quick_ap
from tf_detectorgan.evaluation.held_out_detectors import HeldOutDetectors
from tf_detectorgan.evaluation.metrics import evaluate as score
from tf_detectorgan.evaluation.metrics import with_current_keys
from tf_detectorgan.evaluation.records import to_coco_results, truth_to_json, write_json
from tf_detectorgan.models.generators import paste
from tf_detectorgan.poisson import poisson_blend
from tf_detectorgan.synthesis import Inserter, Screening, synthesize
from tf_detectorgan.training import build, peak_memory, summaries
from tf_detectorgan.training.base_gan import BaseGAN
from tf_detectorgan.training.joint_step import JointModels
from tf_detectorgan.training.loop import Phase, run_phase, skip_finished
from tf_detectorgan.training.run import (
    DetectorTraining,
    GANTraining,
    Run,
    build_detector_training,
    build_gan_training,
    with_detector,
)
from tf_detectorgan.training.settings import ARMS
from tf_detectorgan.training.step_clock import seconds_per_image

SAMPLES = {"test_labelled": 7, "test_clean": 1}  # images saved for the report's pictures


def run_arms(run: Run) -> None:
    """Runs all phases of all chosen arms. All workers train; only the chief makes images and evaluates."""
    s, workers, layout = run.settings, run.workers, run.layout
    kinds = list(dict.fromkeys(ARMS[name].gan for name in s.arm if ARMS[name].gan))
    # Built by all workers together, before only the chief uses them.
    gans = {kind: build_gan_training(run, kind) for kind in kinds}
    pretraining = build_detector_training(run, s.pretrain_detector_steps)
    same_steps = s.final_detector_steps == s.pretrain_detector_steps
    final = pretraining if same_steps else build_detector_training(run, s.final_detector_steps)
    for kind, gan in gans.items():
        train_gan(run, layout.pretrain_gan(kind), gan, range(s.pretrain_gan_steps))
    if any(ARMS[name].detector for name in s.arm):
        train_detector(run, layout.pretrain_detector, pretraining)
    needs_images = workers.run_on_chief(lambda: _needs_images(run))
    held_out = train_held_out_detectors(run, pretraining) if needs_images else None
    for name in s.arm:
        arm_gan = gans.get(ARMS[name].gan)
        if arm_gan:
            joint(run, name, arm_gan)
        workers.run_on_chief(functools.partial(make_images, run, name, arm_gan, held_out))
        final_detector(run, name, final)
        workers.run_on_chief(functools.partial(_evaluate, run, name))


def train_held_out_detectors(run: Run, training: DetectorTraining) -> HeldOutDetectors | None:
    """Trains the held-out detectors as in pretrain_detector; returns None if no folds or not the chief."""
    s = run.settings
    if not s.crossfit_folds:
        return None
    assigned = held_out_detectors.assign_folds(run.dataset, s.crossfit_folds)
    folds = []
    for k in range(s.crossfit_folds):
        directory = run.layout.held_out_detector(k)
        train_detector(
            run, directory, training, real=held_out_detectors.training_part(run.dataset, assigned, k)
        )
        run.load(directory, {"DET": run.DET.network})
        if not run.workers.chief:
            continue
        weights = [tf.identity(w) for w in run.DET.weights]
        image_ids = [image_id for image_id, fold in assigned if fold == k]
        folds.append(held_out_detectors.calibrate(run.detect, weights, run.dataset, image_ids, s.primary_iou))
    return HeldOutDetectors(run.detect, s.primary_iou, dict(assigned), folds) if run.workers.chief else None


def joint(run: Run, name: str, gan: GANTraining) -> None:
    """Trains the arm's GAN together with DET; for arms without a detector, the base GAN alone."""
    s, arm, directory = run.settings, ARMS[name], run.layout.arm(name).joint
    if _is_finished(run, directory):
        return
    run.load(run.layout.pretrain_gan(arm.gan), _trackable_parts(gan.joint_models))
    unroll_steps = 1
    if arm.detector:
        run.load(run.layout.pretrain_detector, {"DET": run.DET.network})
        objective = build.objective(s, arm)
        gan = with_detector(run, gan, objective)
        unroll_steps = s.unroll_steps if objective.lambda_real else 1
    train_gan(
        run, directory, gan, range(s.pretrain_gan_steps, s.pretrain_gan_steps + s.joint_steps), unroll_steps
    )


def make_images(run: Run, name: str, gan: GANTraining | None, held_out: HeldOutDetectors | None) -> None:
    """Makes and writes the arm's synthetic images, unless they are finished."""
    arm, directory = ARMS[name], run.layout.arm(name).synthetic
    phase = run_layout.phase_name(directory)
    if arm.images == "none" or skip_finished(phase, directory):
        return
    s, began, batches_began = run.settings, time.monotonic(), list[float]()

    def between() -> None:
        run.stop.check(phase)
        batches_began.append(time.monotonic())

    peak_memory.reset()
    inserter = inserter_of(run, name, gan.joint_models.gan if gan else None)
    run.functions[directory.name] = inserter.insert
    kept = synthesize(
        inserter,
        run.dataset,
        directory,
        count=s.synthetic_count,
        seed=s.seed,
        screening=Screening(held_out),
        between=between,
    )
    record = {"count": kept, "seconds": round(time.monotonic() - began, 1)} | peak_memory.read()
    record["image_seconds"] = seconds_per_image(batches_began, s.synthetic_count)
    checkpoints.finish(directory, record)


def inserter_of(run: Run, name: str, gan: BaseGAN | None) -> Inserter:
    """Returns the arm's inserter. The weights of `gan` are loaded; None: the arm has no generator."""
    arm, directory = ARMS[name], run.layout.arm(name).joint
    placement = build.placement(run.settings, arm.images, arm.gan)
    insert = _insertion(run, arm.images, gan)
    if gan is None:
        return Inserter(name, insert, placement, build.FEATHER)
    checkpoints.load(directory, gan.parts)
    return Inserter(name, insert, placement, build.FEATHER, checkpoints.fingerprint(directory))


def _insertion(run: Run, images: str, gan: BaseGAN | None) -> Callable[[Synthesis], tf.Tensor]:
    """Returns the function that inserts a batch's objects, by `Arm.images`; a graph unless it is Poisson."""
    if images == "clean":
        return lambda batch: batch.x
    if images == "poisson":
        return lambda batch: poisson_blend(batch.x, batch.insertion)
    if gan is None:  # paste; with object residuals, the exemplar is x with the residual added
        composition = build.composition(run.settings, len(run.dataset.class_names))

        @tf.function(autograph=False)
        def cut_and_paste(batch):
            x, insertion = batch.x, batch.insertion
            alpha = composition.blend(insertion.boxes, insertion.content, *x.shape[1:3])
            return paste(x, insertion.exemplars, alpha)

        return cut_and_paste

    @tf.function(autograph=False)
    def generator(batch):
        return gan.insert(batch.x, batch.insertion, batch.residual_scale)

    return generator


def final_detector(run: Run, name: str, training: DetectorTraining) -> None:
    """Trains a new detector on real and synthetic images, with the same steps and batch size in every arm."""
    arm, synthetic = run.layout.arm(name), None
    if ARMS[name].images != "none" and not checkpoints.finished(arm.final_detector):
        file = arm.synthetic / run_layout.SYNTHETIC
        synthetic = records.read_records(file)
        split_guard.check_parents(run.dataset, synthetic, str(file))
    train_detector(run, arm.final_detector, training, synthetic=synthetic)


def evaluate(run: Run, name: str, split: str = "test") -> dict[str, Any]:
    """Evaluates the final detector on a split of `run.dataset`; writes and returns its metrics.

    Detections and ground truth are written, too. If there are metrics with the same primary IoU, they are
    returned instead, because a finished detector does not change.
    """
    layout, arm = run.layout, run.layout.arm(name)
    directory = arm.evaluation(run.evaluation_set)
    metrics_file = run_layout.metrics(directory, split)
    if metrics_file.exists():
        metrics = with_current_keys(json.loads(metrics_file.read_text(encoding="utf-8")))
        if metrics["primary_iou"] == run.settings.primary_iou:
            return metrics
    run.stop.check(f"{name}/evaluation")
    peak_memory.reset()
    began = time.monotonic()
    checkpoints.load(arm.final_detector, {"DET": run.DET.network})
    detecting = time.monotonic()
    truth, found = detect_split(run.detect, run.dataset, split, run.settings.detector_batch)
    image_seconds = (time.monotonic() - detecting) / len(truth)
    write_json(run_layout.detections(directory, split), to_coco_results(found))
    truth_file = run_layout.truth(directory if run.evaluation_set else layout.path, split)
    write_json(truth_file, truth_to_json(truth))
    metrics = score(
        truth, found, run.dataset.class_names, seed=run.settings.seed, primary_iou=run.settings.primary_iou
    )
    write_json(metrics_file, metrics)
    if split == "test" and not run.evaluation_set:
        _save_samples(run)
        record = {"seconds": round(time.monotonic() - began, 1), "image_seconds": round(image_seconds, 5)}
        checkpoints.finish(directory, record | peak_memory.read())
    return metrics


def train_gan(run: Run, directory: Path, gan: GANTraining, numbers: range, unroll_steps: int = 1) -> None:
    """Trains the networks of `gan` unless finished; `numbers`: step numbers, for batches and seeds."""
    if _is_finished(run, directory):
        return
    s, joint_models, steps = run.settings, gan.joint_models, len(numbers)
    writer = _writer(run, directory)

    def batches(start: int) -> Iterator:
        return run.distributed(
            pipeline.joint_batches(
                run.dataset,
                batch_size=s.gan_batch,
                seed=s.seed,
                start_step=numbers.start + start,
                steps=numbers.stop,
                placement=gan.placement,
                unroll_steps=unroll_steps,
                host=run.workers.host,
            )
        )

    def step(batch, number: int):
        return gan.step(batch, tf.constant([s.seed, numbers.start + number], tf.int32))

    def inspect(done: int, batch) -> None:
        if done % s.checkpoint_every == 0 or done == steps:
            local = tf.nest.map_structure(lambda v: run.strategy.experimental_local_results(v)[0], batch)
            writer.image("insertions", done, joint_models.gan.summary_image(local))
        if joint_models.DET is not None and (done % s.validate_every == 0 or done == steps):
            writer.scalars(done, _validation(run))

    name, parts = run_layout.phase_name(directory), _trackable_parts(joint_models)
    _run(run, Phase(name, directory, parts, steps, step, batches, writer.scalars, inspect), gan.step)


def train_detector(run: Run, directory: Path, training: DetectorTraining, real=None, synthetic=None) -> None:
    """Trains DET alone from its initial weights, unless the phase is finished.

    `real`, `synthetic`: as in `labelled_batches`.
    """
    if _is_finished(run, directory):
        return
    s, steps, optimizer = run.settings, training.steps, training.optimizer
    writer = _writer(run, directory)
    run.reset_detector(optimizer)

    def batches(start: int) -> Iterator:
        return run.distributed(
            pipeline.labelled_batches(
                run.dataset,
                batch_size=s.detector_batch,
                seed=s.seed,
                start_step=start,
                steps=steps,
                augment=build.augmentation(s),
                real=real,
                synthetic=synthetic,
                synthetic_fraction=s.synthetic_fraction,
                synthetic_objects=s.synthetic_objects,
                host=run.workers.host,
            )
        )

    def step(batch, number: int):
        return training.step(batch)

    def inspect(done: int, batch) -> None:
        if done % s.validate_every == 0 or done == steps:
            writer.scalars(done, _validation(run))

    name, parts = run_layout.phase_name(directory), {"DET": run.DET.network, "optimizer": optimizer}
    _run(run, Phase(name, directory, parts, steps, step, batches, writer.scalars, inspect), training.step)


def _run(run: Run, phase: Phase, function) -> None:
    """Runs the phase, and raises RuntimeError if its `function` was traced more than once."""
    run.functions[phase.directory.name] = function
    run_phase(phase, run.every, run.stop, run.workers)
    traces = function.experimental_get_tracing_count()
    if traces > 1:
        raise RuntimeError(f"the step was traced {traces} times; its inputs must keep one shape and type")


def _is_finished(run: Run, directory: Path) -> bool:
    """Returns the chief's `skip_finished` on all workers."""
    name = run_layout.phase_name(directory)
    return bool(run.workers.run_on_chief(lambda: skip_finished(name, directory)))


def _writer(run: Run, directory: Path) -> summaries.Writer:
    """Returns the TensorBoard writer of the phase in `directory`, in the run of its arm or of "shared"."""
    return summaries.Writer(run.layout.tensorboard / directory.parent.name, directory.name)


def _needs_images(run: Run) -> bool:
    """Returns whether an arm's synthetic images are not finished."""
    arms = [name for name in run.settings.arm if ARMS[name].images != "none"]
    return not all(checkpoints.finished(run.layout.arm(name).synthetic) for name in arms)


def _evaluate(run: Run, name: str) -> None:
    evaluate(run, name)


def _trackable_parts(joint_models: JointModels) -> dict[str, Any]:
    """Returns the trackable objects that `joint_step` changes, by name."""
    parts = dict(joint_models.gan.parts)
    if joint_models.loss_scale is not None:
        parts["loss_scale"] = joint_models.loss_scale
    if joint_models.DET is not None:
        parts |= {"DET": joint_models.DET.network, "detector_optimizer": joint_models.detector_optimizer}
    return parts


def _validation(run: Run) -> dict[str, float]:
    """Returns the AP on the validation split, or {} if there is no such split."""
    if not run.dataset.count("validation_labelled"):
        return {}
    truth, found = detect_split(run.detect, run.dataset, "validation", run.settings.detector_batch)
    return {f"validation_{k}": v for k, v in quick_ap(truth, found, run.dataset.class_names).items()}


def _save_samples(run: Run) -> None:
    """Saves a few test images for the report's pictures."""
    file = run.layout.samples
    if file.exists():
        return
    images, ids = [], []
    for split, count in SAMPLES.items():
        if run.dataset.count(split):
            batch = next(iter(pipeline.evaluation_batches(run.dataset, [split], count)))
            images.append(batch.images.numpy()[batch.real.numpy()])
            ids.append(batch.image_ids.numpy()[batch.real.numpy()])
    with disk.whole_file(file) as partial, partial.open("wb") as out:
        np.savez_compressed(out, images=np.concatenate(images), image_id=np.concatenate(ids))
