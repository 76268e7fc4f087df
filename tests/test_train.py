"""`python -m tf_detectorgan.train` with tiny networks: all phases, repeated, killed and resumed."""

import json
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from tf_detectorgan import checkpoints, run_layout
from tf_detectorgan.errors import EXIT_INTERRUPTED
from tf_detectorgan.preflight import plan
from tf_detectorgan.training.settings import Train

ROOT = Path(__file__).resolve().parents[1]
ARMS = ("real_only", "cut_paste", "cyclegan_bbox", "detectorgan")
JOINT_STEPS, CHECKPOINT_EVERY, FINAL_STEPS, SYNTHETIC = 12, 2, 3, 5
FLAGS = [
    "--generator_filters=4",
    "--generator_blocks=1",
    "--discriminator_filters=4",
    "--crop_size=16",
    "--detector=tests.own_detector:tiny",
    "--gan_batch=2",
    "--pretrain_gan_steps=3",
    f"--joint_steps={JOINT_STEPS}",
    "--pretrain_detector_steps=2",
    "--detector_batch=4",
    f"--final_detector_steps={FINAL_STEPS}",
    f"--synthetic_count={SYNTHETIC}",
    "--log_every=2",
    f"--validate_every={JOINT_STEPS}",
    f"--checkpoint_every={CHECKPOINT_EVERY}",
]


@pytest.fixture(scope="module")
def data(tiny_phantom):
    """A phantom of 32 pixels with a handful of images of each kind."""
    counts = {"train_images": 8, "clean_images": 12, "unboxed_images": 4, "validation_images": 4}
    return tiny_phantom("train", test_images=6, **counts)


class Call:
    """The command, running in a separate process."""

    def __init__(self, run, data, *more, arms=ARMS):
        where = [f"--run_dir={run}", f"--data_dir={data}", f"--arm={','.join(arms)}"]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tf_detectorgan.train", *where, *FLAGS, *more],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.process.kill()
        self.process.wait()

    def wait_until(self, happened):
        while not happened():
            assert self.process.poll() is None, self.process.communicate()[1]
            time.sleep(0.005)

    def finish(self):
        """Returns standard output, standard error and the exit code."""
        out, errors = self.process.communicate(timeout=900)
        return out, errors, self.process.returncode


@pytest.fixture(scope="module")
def runs(data, tmp_path_factory):
    """Returns a run of all arms, and one of detectorgan that is killed in the joint phase and resumed.

    The step of the SIGKILL is random. Both runs start from the same pretraining, and run at the same time,
    because one run uses only one core.
    """
    parent = tmp_path_factory.mktemp("run")
    whole, killed = parent / "whole", parent / "killed"
    joint = killed / "arms" / "detectorgan" / "joint"
    after = random.SystemRandom().choice(range(CHECKPOINT_EVERY, JOINT_STEPS - 3, CHECKPOINT_EVERY))
    with Call(whole, data) as all_arms:
        for phase in ("pretrain_gan", "held_out_detector_1"):
            all_arms.wait_until((whole / "shared" / phase / "done.json").exists)
        shutil.copytree(whole / "shared", killed / "shared")
        with Call(killed, data, arms=["detectorgan"]) as first:
            first.wait_until(lambda: steps_saved(joint) >= after)
            time.sleep(random.SystemRandom().uniform(0, 0.15))
            first.process.kill()
            assert first.finish()[2] == -9
        assert checkpoints.finished(joint) is None, f"killed too late, after {after} steps"
        with Call(killed, data, arms=["detectorgan"]) as second:
            _, errors, code = second.finish()
            assert code == 0, errors
        out, errors, code = all_arms.finish()
        assert code == 0, errors
    return types.SimpleNamespace(whole=whole, printed=out, killed=killed, after=after)


def steps_saved(directory):
    """Returns the step from which a resumed call will start: that of the newest checkpoint in the index."""
    newest = tf.train.latest_checkpoint(str(directory))
    return int(newest.rpartition("-")[2]) if newest else 0


def read_json(file):
    return json.loads(file.read_text(encoding="utf-8"))


def tensors(directory):
    """Returns {name: array} of the newest checkpoint: weights, momenta, pools, steps."""
    reader = tf.train.load_checkpoint(str(directory))
    names = set(reader.get_variable_to_shape_map()) - {"_CHECKPOINTABLE_OBJECT_GRAPH"}
    return {name: reader.get_tensor(name) for name in names}


@pytest.mark.slow
def test_all_phases_write_their_results(runs):
    run, out = runs.whole, runs.printed
    assert "training boxes overlap one of" in out
    # 3 steps of 4 images, half of them synthetic, and 8 labelled images
    assert "1.5 epochs over 8 labelled images, 0.75 in arms with synthetic images" in out
    for arm in ARMS:
        assert f"\n{arm} " in out
        home = run / "arms" / arm
        # The same number of steps in every arm.
        assert read_json(home / "final_detector" / "done.json")["steps"] == FINAL_STEPS
        ap = read_json(home / "evaluation" / "metrics.json")["ap"]["0.1"]
        assert 0 <= ap["low"] <= ap["value"] <= ap["high"] <= 1
        assert (home / "evaluation" / "detections.json").is_file()
        images = SYNTHETIC if arm != "real_only" else 0
        assert len(list((home / "synthetic" / "images").glob("*.png"))) == images
        if images:
            audit = read_json(home / "synthetic" / "audit.json")
            assert audit["made"] == SYNTHETIC
            assert {0 <= audit[k] <= 1 for k in ("found", "found_before", "found_real")} == {True}
        assert (home / "joint").is_dir() == (arm in ("cyclegan_bbox", "detectorgan"))
    for name in ("report.html", "report.md", "costs.json", "config.json", "data_card.json"):
        assert (run / name).is_file()
    assert str(run / "report.html") in out
    done = {str(file.parent.relative_to(run)) for file in run.glob("*/**/done.json")}
    assert done == {str(phase.folder) for phase in plan.phases(Train(arm=ARMS), 1)}


@pytest.mark.slow
def test_run_directory_diagram_equals_a_real_run(runs):
    """Folders and files at the top, in shared/ and in an arm's folder. README has the same diagram."""
    lines = [line for line in run_layout.DIAGRAM.splitlines() if line.startswith("  ")]
    top, shared, arm = set(), set(), set()
    for line in lines:
        names = re.split(r"\s{2,}", line.strip())[0].removesuffix(" ...").replace("/", "").split(", ")
        depth = len(line) - len(line.lstrip())
        if depth == 2:
            within = {"shared": shared, "armsARM": arm}.get(names[0], top)
            top |= {name.removesuffix("ARM") for name in names}
        else:
            within.update(names)
    found = {path.name for path in runs.whole.iterdir() if not path.name.startswith(".")}
    optional = {"phantom", "backbone.weights.h5", "preflight.json", "preflight.log"}
    assert found | optional == top
    assert {path.name for path in (runs.whole / "shared").iterdir()} == shared | {"held_out_detector_1"}
    assert {path.name for path in (runs.whole / "arms" / "detectorgan").iterdir()} == arm
    assert run_layout.DIAGRAM in (ROOT / "README.md").read_text("utf-8")


@pytest.mark.slow
def test_synthetic_images_have_the_fingerprint_of_their_generator(runs):
    run = runs.whole
    coco = read_json(run / "arms" / "detectorgan" / "synthetic" / "annotations.json")
    made_by = {image["provenance"]["checkpoint"] for image in coco["images"]}
    assert made_by == {checkpoints.fingerprint(run / "arms" / "detectorgan" / "joint")}


@pytest.mark.slow
def test_arms_change_the_shared_pretraining_in_different_ways(runs):
    """Both arms train the generators; only detectorgan trains DET, which the other arm does not save."""
    run = runs.whole
    start, no_det, det = (
        tensors(run / directory)
        for directory in ("shared/pretrain_gan", "arms/cyclegan_bbox/joint", "arms/detectorgan/joint")
    )
    generators = [name for name in start if name.startswith("generator_optimizer/_trainable_variables/")]
    assert len(generators) > 20
    for name in generators:
        assert np.any(no_det[name] != start[name]), name
        assert np.any(det[name] != start[name]), name
        assert det[name].ndim < 2 or np.any(no_det[name] != det[name]), name
    # Adam's moments differ between the arms; for a norm's scale of 1, small differences of steps round to 0.
    moments = [
        name for name, a in det.items() if name.startswith("generator_optimizer/_variables/") and a.ndim
    ]
    assert len(moments) == 2 * len(generators)
    for name in moments:
        assert np.any(no_det[name] != det[name]), name
    pretrained = tensors(run / "shared" / "pretrain_detector")
    detector = [name for name in pretrained if name.startswith("optimizer/_trainable_variables/")]
    assert len(detector) == 10
    for name in detector:
        assert np.any(pretrained[name] != det[f"detector_{name}"]), name
    assert not [name for name in no_det if name.startswith(("DET", "detector"))]


@pytest.mark.slow
def test_tensorboard_has_the_documented_tags(runs):
    run = runs.whole
    tags = {
        value.tag
        for file in (run / "tensorboard" / "detectorgan").glob("events*")
        for event in tf.compat.v1.train.summary_iterator(str(file))
        for value in event.summary.value
    }
    names = {"L_real", "L_syn", "L_real_unrolled", "L_bbox", "L_cycle", "L_DIS_globalX", "learning_rate/DET"}
    terms = ("global", "local", "bbox", "cycle", "real", "syn")
    names |= {f"gradient_at_x_syn/{term}_{where}" for term in terms for where in ("inside", "outside")}
    names |= {"insertions", "validation_ap@0.1", "steps_per_second"}
    assert {f"joint/{name}" for name in names} <= tags


@pytest.mark.slow
def test_second_call_of_a_finished_run_changes_nothing(runs, data):
    run = runs.whole
    trained = [file for file in run.rglob("*") if file.name.startswith(("ckpt", "synthetic.tf", "metrics"))]
    assert len(trained) > 20
    before = {file: file.stat().st_mtime_ns for file in trained}
    began = time.monotonic()
    with Call(run, data) as again:
        out, errors, code = again.finish()
    assert code == 0, errors
    assert time.monotonic() - began < 90  # training takes minutes, of which most are tracing
    assert f"detectorgan/joint: already finished ({JOINT_STEPS})" in out
    assert before == {file: file.stat().st_mtime_ns for file in trained}


@pytest.mark.slow
def test_other_settings_in_the_same_directory_end_with_a_one_line_error(runs, data):
    run = runs.whole
    settings = (run / "config.json").read_text()
    with Call(run, data, "--lambda_syn=0.5") as failed:
        _, errors, code = failed.finish()
    assert code == 78
    assert "Traceback" not in errors
    (line,) = [
        line for line in errors.splitlines() if line.startswith("error: ")
    ]  # TensorFlow writes to stderr, too
    assert line.startswith(f"error: {run} has a run with other settings (--lambda_syn was 0.05, is 0.5)")
    assert (run / "config.json").read_text() == settings


def test_sigterm_during_the_import_of_tensorflow_ends_the_process(tmp_path):
    """Process 1 of a pod has no default action for SIGTERM, so a handler is needed before the imports."""
    with Call(tmp_path / "run", tmp_path / "absent") as call:
        status = Path(f"/proc/{call.process.pid}/status")
        caught = 0
        while not caught >> (signal.SIGTERM - 1) & 1:
            caught = int(re.search(r"^SigCgt:\s*(\w+)", status.read_text(), re.MULTILINE)[1], 16)
            time.sleep(0.002)
        call.process.terminate()
        assert call.finish() == ("", "", EXIT_INTERRUPTED)


@pytest.mark.slow
def test_resume_after_sigkill_is_bit_identical(runs):
    """Weights, momenta, pools and counters of the joint phase, synthetic images and the final detector."""
    whole, killed = (path / "arms" / "detectorgan" for path in (runs.whole, runs.killed))
    reached = f"killed after {runs.after} saved steps"
    assert read_json(killed / "joint" / "done.json")["resumed_at"] >= runs.after, reached
    for phase, least in (("joint", 100), ("final_detector", 30)):
        expected, found = tensors(whole / phase), tensors(killed / phase)
        assert len(expected) > least
        assert found.keys() == expected.keys()
        assert [name for name in expected if not np.array_equal(found[name], expected[name])] == [], reached
    for number in range(SYNTHETIC):
        file = f"synthetic/images/{number:06d}.png"
        assert (killed / file).read_bytes() == (whole / file).read_bytes(), reached
