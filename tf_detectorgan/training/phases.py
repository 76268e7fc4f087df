"""The phases of a run, in order. Each is skipped when done and resumed when half done.

    pretrain_gan -> pretrain_detector -> audit_detectors -> joint -> synthesize -> final_detector -> evaluate

The first three are shared by all arms of a run; the others are an arm's own.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from tf_detectorgan import checkpoints, disk
from tf_detectorgan import evaluation as ev
from tf_detectorgan.batch import Labelled, Synthesis
from tf_detectorgan.data import pipeline, records, split_guard
from tf_detectorgan.evaluation import auditors
from tf_detectorgan.evaluation.auditors import Auditors
from tf_detectorgan.evaluation.detect import detect_split, quick_ap
from tf_detectorgan.models.generators import paste
from tf_detectorgan.poisson import poisson_blend
from tf_detectorgan.synthesis import synthesize
from tf_detectorgan.training import build, exactness, peak_memory
from tf_detectorgan.training.joint_step import Players
from tf_detectorgan.training.loop import run_phase, skip_finished
from tf_detectorgan.training.loss_scale import LossScale
from tf_detectorgan.training.run import Run, joint_function
from tf_detectorgan.training.settings import ARMS, Arm
from tf_detectorgan.training.step_clock import seconds_per_image

SAMPLES = {"test_labelled": 7, "test_clean": 1}  # images kept for the report's pictures


def pretrain_gan(run: Run, kind: str) -> None:
    """A base GAN without a detector: what every arm with a generator of this kind starts from."""
    directory = pretrained(run, kind)
    if run.skips(directory.name, directory):
        return
    s, function = run.settings, run.gan_step(kind)
    _train_generators(run, "shared", directory, run.players(kind), function, 0, s.gan_steps, kind)


def pretrained(run: Run, kind: str) -> Path:
    """Where a base GAN of a kind of settings.GANS is pretrained."""
    return run.path / "shared" / ("pretrain_gan" if kind == "cyclegan" else f"pretrain_{kind}")


def pretrain_detector(run: Run) -> None:
    """DET on the real labelled images: where the joint phase's DET starts."""
    directory = run.path / "shared" / "pretrain_detector"
    if run.skips("pretrain_detector", directory):
        return
    _train_detector(run, "shared", "pretrain_detector", directory, run.settings.pretrain_detector_steps)


def audit_detectors(run: Run) -> Auditors | None:
    """Trains what judges the arms' synthetic images, as pretrain_detector does; None: not wanted (here)."""
    s = run.settings
    if not s.audit_folds:
        return None
    dealt = auditors.deal(run.dataset, s.audit_folds)
    folds = []
    for k in range(s.audit_folds):
        phase = f"audit_detector_{k}"
        directory = run.path / "shared" / phase
        if not run.skips(phase, directory):
            real = auditors.outside(run.dataset, dealt, k)
            _train_detector(run, "shared", phase, directory, s.pretrain_detector_steps, real=real)
        run.load(directory, {"DET": run.detector.network})
        if not run.workers.chief:
            continue
        weights = [tf.identity(w) for w in run.detector.weights]
        wanted = [image_id for image_id, fold in dealt if fold == k]
        folds.append(auditors.calibrated(run.detect, weights, run.dataset, wanted, s.main_iou))
    return Auditors(run.detect, s.main_iou, dict(dealt), folds) if run.workers.chief else None


def joint(run: Run, name: str) -> None:
    """DetectorGAN proper; for arms that are a base GAN alone the same steps without a detector."""
    arm, directory = ARMS[name], run.arm_path(name) / "joint"
    if arm.images != "generator" or run.skips(f"{name}/joint", directory):
        return
    s, players, unroll_steps = run.settings, run.players(arm.gan), 1
    run.load(pretrained(run, arm.gan), _player_parts(players))
    if arm.detector:
        run.load(run.path / "shared" / "pretrain_detector", {"DET": run.detector.network})
        optimizer = build.joint_detector_optimizer(s, run.detector, run.strategy)
        players = dataclasses.replace(players, DET=run.detector, detector_optimizer=optimizer)
        objective = build.objective(s, arm)
        if objective.unroll == "finite_difference":
            cosine = _cosine(run, players, arm.gan)
            print(f"{name}/joint: finite_difference's gradient has cosine {cosine:.3f} to the exact one")
            file, record = directory / "finite_difference.json", json.dumps({"cosine_to_exact": cosine})
            run.workers.of_chief(functools.partial(checkpoints.write_text, file, record))
        if objective.unroll == "k_steps":
            unroll_steps = s.unroll_steps
        function = joint_function(run, players, objective)
    else:
        function = run.gan_step(arm.gan)  # traced once for pretraining and for this
    steps = s.gan_steps, s.joint_steps
    _train_generators(run, name, directory, players, function, *steps, arm.gan, unroll_steps)


def make_images(run: Run, name: str, judges: Auditors | None) -> None:
    """The arm's synthetic images."""
    arm, directory = ARMS[name], run.arm_path(name) / "synthetic"
    if arm.images == "none" or skip_finished(f"{name}/synthetic", directory):
        return
    s, began, batches_began = run.settings, time.monotonic(), list[float]()

    def between() -> None:
        run.stop.check(f"{name}/synthetic")
        batches_began.append(time.monotonic())

    peak_memory.reset()
    method, checkpoint = insertion_of(run, name, arm)
    run.functions[directory.name] = method
    kept = synthesize(
        method,
        run.dataset,
        directory,
        count=s.synthetic_count,
        seed=s.seed,
        placement=build.placement(s, arm),
        method=name,
        checkpoint=checkpoint,
        reach=s.feather,
        judges=judges,
        describe=build.describer(s, run.dataset.image_shape[-1]),
        min_audit=s.min_audit,
        between=between,
    )
    if s.min_audit:
        print(f"{name}/synthetic: {kept} of {s.synthetic_count} images pass --min_audit={s.min_audit}")
    record = {"count": kept, "seconds": round(time.monotonic() - began, 1)} | peak_memory.read()
    record["image_seconds"] = seconds_per_image(batches_began, s.synthetic_count)
    checkpoints.finish(directory, record)


def insertion_of(run: Run, name: str, arm: Arm) -> tuple[Callable[[Synthesis], tf.Tensor], str]:
    """How the arm inserts an object, as a graph, and the hash of the weights it uses ("" for none)."""
    if arm.images == "clean":
        return lambda batch: batch.x, ""
    if arm.images in ("paste", "layer"):  # where layers are laid over x, the exemplar is the result
        composed = build.composition(run.settings, len(run.dataset.class_names))

        @tf.function(autograph=False)
        def cut_and_paste(batch):
            x, insertion = batch.x, batch.insertion
            alpha = composed.blend(insertion.boxes, insertion.content, *x.shape[1:3])
            return paste(x, insertion.exemplars, alpha)

        return cut_and_paste, ""
    if arm.images == "poisson":
        return lambda batch: poisson_blend(batch.x, batch.insertion), ""
    directory, gan = run.arm_path(name) / "joint", run.players(arm.gan).gan
    checkpoints.load(directory, gan.parts)

    @tf.function(autograph=False)
    def generator(batch):
        return gan.insert(batch.x, batch.insertion, batch.strength)

    return generator, checkpoints.fingerprint(directory)


def final_detector(run: Run, name: str) -> None:
    """A fresh detector on real and synthetic images; equal steps and equal batches in every arm."""
    directory = run.arm_path(name) / "final_detector"
    if run.skips(f"{name}/final_detector", directory):
        return
    synthetic = None
    if ARMS[name].images != "none":
        file = run.arm_path(name) / "synthetic" / "synthetic.tfrecord"
        synthetic = records.read_records(file)
        split_guard.check_parents(run.dataset, synthetic, str(file))
    _train_detector(run, name, "final_detector", directory, run.settings.final_steps, synthetic=synthetic)


def evaluate(run: Run, name: str, split: str = "test") -> dict[str, Any]:
    """The final detector on a split of `run.dataset`; writes metrics, detections and the truth beside them.

    Metrics that are there at the same main IoU are returned as they are: a finished detector stays the same.
    """
    suffix = "" if split == "test" else f"_{split}"
    directory = run.evaluation_path(name)
    metrics_file = directory / f"metrics{suffix}.json"
    if metrics_file.exists():
        metrics = json.loads(metrics_file.read_text(encoding="utf-8"))
        if metrics["main_iou"] == run.settings.main_iou:
            return metrics
    run.stop.check(f"{name}/evaluation")
    peak_memory.reset()
    began = time.monotonic()
    checkpoints.load(run.arm_path(name) / "final_detector", {"DET": run.detector.network})
    detecting = time.monotonic()
    truth, found = detect_split(run.detect, run.dataset, split, run.settings.detector_batch)
    image_seconds = (time.monotonic() - detecting) / len(truth)
    ev.write_json(directory / f"detections{suffix}.json", ev.to_coco_results(found))
    ev.write_json((directory if run.elsewhere else run.path) / f"truth{suffix}.json", ev.truth_to_json(truth))
    metrics = ev.evaluate(
        truth, found, run.dataset.class_names, seed=run.settings.seed, main_iou=run.settings.main_iou
    )
    ev.write_json(metrics_file, metrics)
    if split == "test" and not run.elsewhere:
        _keep_samples(run)
        record = {"seconds": round(time.monotonic() - began, 1), "image_seconds": round(image_seconds, 5)}
        checkpoints.finish(directory, record | peak_memory.read())
    return metrics


def run_arms(run: Run) -> None:
    """All phases of all chosen arms. Workers train together; the chief alone makes images and evaluates."""
    arms, workers = run.settings.arm, run.workers
    kinds = list(dict.fromkeys(ARMS[a].gan for a in arms if ARMS[a].gan))
    for kind in kinds:  # all of them before the first one trains
        build.refuse_undrawable(kind, run.dataset)
    for kind in kinds:
        pretrain_gan(run, kind)
    if any(ARMS[a].detector for a in arms):
        pretrain_detector(run)
    unmade = workers.of_chief(lambda: _without_images(run))
    judges = audit_detectors(run) if unmade else None
    for name in arms:
        if ARMS[name].gan:
            run.players(ARMS[name].gan)  # made by all workers together, before the chief uses them alone
        joint(run, name)
        workers.of_chief(functools.partial(make_images, run, name, judges))
        final_detector(run, name)
        workers.of_chief(functools.partial(_evaluated, run, name))


def _without_images(run: Run) -> bool:
    """Whether there are synthetic images to be made."""
    arms = [a for a in run.settings.arm if ARMS[a].images != "none"]
    return not all(checkpoints.finished(run.arm_path(a) / "synthetic") for a in arms)


def _evaluated(run: Run, name: str) -> None:
    evaluate(run, name)


def _player_parts(players: Players) -> dict[str, Any]:
    """The trackable parts that `joint_step` changes, by name."""
    parts = players.gan.parts | _scale_part(players.loss_scale)
    if players.DET is None:
        return parts
    return parts | {"DET": players.DET.network, "detector_optimizer": players.detector_optimizer}


def _scale_part(loss_scale: LossScale | None) -> dict[str, Any]:
    return {} if loss_scale is None else {"loss_scale": loss_scale}


def _train_generators(
    run: Run,
    arm: str,
    directory: Path,
    players: Players,
    function: Callable,
    first: int,
    steps: int,
    kind: str,
    unroll_steps: int = 1,
) -> None:
    """`steps` of `function`, which trains `players`; step 0 is number `first` of batches and seeds."""
    s, writer = run.settings, run.writer(arm, directory.name)
    run.functions[directory.name] = function

    def batches(start: int) -> Iterator:
        return run.distributed(_joint_batches(run, kind, first + start, first + steps, unroll_steps))

    def step(batch, number: int):
        return function(batch, tf.constant([s.seed, first + number], tf.int32))

    def inspect(done: int, batch) -> None:
        if done % s.image_every == 0 or done == steps:
            local = tf.nest.map_structure(lambda v: run.strategy.experimental_local_results(v)[0], batch)
            writer.image("insertions", done, players.gan.picture(local))
        if players.DET is not None and (done % s.validate_every == 0 or done == steps):
            writer.scalars(done, _validation(run))

    _run(run, writer, directory, _player_parts(players), steps, step, batches, inspect)
    _assert_one_trace(function)


def _joint_batches(run: Run, kind: str, start: int, end: int, unroll_steps: int = 1) -> tf.data.Dataset:
    """The batches of steps `start` to `end` - 1, counted from the first of the pretraining."""
    s = run.settings
    return pipeline.joint_batches(
        run.dataset,
        batch_size=s.gan_batch,
        seed=s.seed,
        start_step=start,
        steps=end,
        placement=build.placement(s, next(a for a in ARMS.values() if a.gan == kind)),
        unroll_real=s.unroll_real,
        unroll_steps=unroll_steps,
        host=run.workers.host,
    )


def _cosine(run: Run, players: Players, kind: str) -> float:
    """`exactness.cosine` on this host's rows of the joint phase's first batch."""
    first = run.settings.gan_steps
    batch = next(iter(_joint_batches(run, kind, first, first + 1)))
    x_syn = players.gan.insert(batch.x, batch.insertion)
    synthetic = Labelled(x_syn, batch.insertion.boxes[:, None], batch.insertion.labels[:, None])
    return exactness.cosine(run.detector, players.detector_optimizer, batch.y, synthetic, batch.y2)


def _train_detector(run, arm, phase, directory, steps, *, real=None, synthetic=None) -> None:
    """A fresh detector, alone. `real`, `synthetic`: as in `labelled_batches`."""
    s, writer = run.settings, run.writer(arm, phase)
    optimizer, function = run.alone[steps]
    run.functions[phase] = function
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

    def inspect(done: int, batch) -> None:
        if done % s.validate_every == 0 or done == steps:
            writer.scalars(done, _validation(run))

    parts = {"DET": run.detector.network, "optimizer": optimizer} | _scale_part(run.loss_scale)
    _run(run, writer, directory, parts, steps, lambda batch, number: function(batch), batches, inspect)
    _assert_one_trace(function)


def _run(run: Run, writer, directory: Path, parts, steps: int, step, batches, inspect) -> None:
    """`run_phase` with what all phases of a run have alike; the bar bears the directory's name."""
    run_phase(
        str(directory.relative_to(run.path)).removeprefix("shared/").removeprefix("arms/"),
        directory=directory,
        parts=parts,
        steps=steps,
        step=step,
        batches=batches,
        scalars=writer.scalars,
        every=run.every,
        stop=run.stop,
        inspect=inspect,
        workers=run.workers,
    )


def _assert_one_trace(function) -> None:
    traces = function.experimental_get_tracing_count()
    if traces > 1:
        raise RuntimeError(f"the step was traced {traces} times; its inputs must keep one shape and type")


def _validation(run: Run) -> dict[str, float]:
    """AP on the validation split, or nothing where there is none."""
    if not run.dataset.count("validation_labelled"):
        return {}
    truth, found = detect_split(run.detect, run.dataset, "validation", run.settings.detector_batch)
    return {f"validation_{k}": v for k, v in quick_ap(truth, found, run.dataset.class_names).items()}


def _keep_samples(run: Run) -> None:
    """A few test images for the report's pictures."""
    file = run.path / "evaluation_samples.npz"
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
