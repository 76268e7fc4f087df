import signal
from pathlib import Path

import pytest

from tf_detectorgan.preflight import refusal
from tf_detectorgan.preflight.plan import Phase
from tf_detectorgan.preflight.refusal import Ended
from tf_detectorgan.preflight.table import Row
from tf_detectorgan.training.settings import Train

GIB = 2**30
JOINT = Phase("arms/detectorgan/joint", "joint", 10)
FINAL = Phase("arms/real_only/final_detector", "detector", 10)
IMAGES = Phase("arms/cut_paste/synthetic", "images", 10)
PRETRAIN = Phase("shared/pretrain_gan", "gan", 10)
EVALUATION = Phase("arms/real_only/evaluation", "evaluation", 10)


@pytest.mark.parametrize(
    "phase, changes, devices, expected",
    [
        (
            JOINT,
            {},
            (1, True),
            ["a lower --gan_batch than 4", "--unroll_recompute", "--precision=mixed_bfloat16"],
        ),
        (JOINT, {"gan_batch": 1, "unroll_recompute": True}, (1, True), ["--precision=mixed_bfloat16"]),
        (JOINT, {"workers": 2}, (2, False), ["--unroll_recompute"]),  # one image on each device
        (JOINT, {"unroll": "finite_difference"}, (1, True), ["a lower --gan_batch than 4"]),
        (PRETRAIN, {}, (1, False), ["a lower --gan_batch than 4"]),
        (FINAL, {}, (1, False), ["a lower --detector_batch than 8"]),
        (IMAGES, {"precision": "mixed_float16"}, (1, True), None),
        (EVALUATION, {}, (1, False), None),
    ],
)
def test_remedies_are_flags_that_the_phase_feels(phase, changes, devices, expected):
    other = ["smaller images, smaller networks (--generator_filters, --detector), or more memory"]
    assert refusal.remedies(phase, Train(**changes), *devices) == (expected or other)


TRACEBACK = """Traceback (most recent call last):
  File "x.py", line 1
tensorflow.python.framework.errors_impl.InvalidArgumentError: {node y} No kernel
\t [[y]] [Op:__inference_1]
"""
OOM = "tensorflow...ResourceExhaustedError: Graph execution error:\nOOM when allocating tensor\n[Op:x]"
HELPS = "; try a lower --detector_batch than 8"


@pytest.mark.parametrize(
    "ended, sentence",
    [
        ((78, "w: note\nerror: --placement_file=x: no such file\n"), "--placement_file=x: no such file"),
        (
            (-9, "step"),
            "final_detector was killed, as for want of memory (3.0 GiB of 4.0 GiB of memory held)" + HELPS,
        ),
        (
            (1, OOM),
            "final_detector needs more memory than the GPU has" + HELPS + ", --precision=mixed_bfloat16",
        ),
        (
            (-6, "terminate called after throwing an instance of 'std::bad_alloc'"),
            "needs more memory than there is",
        ),
        (
            (1, TRACEBACK),
            "failed: tensorflow.python.framework.errors_impl.InvalidArgumentError: {node y} No kernel",
        ),
        (
            (74, "error: ckpt: No space left on device"),
            "failed: ckpt: No space left on device (all that was said: log)",
        ),
        ((1, ""), "final_detector failed: no output"),
    ],
)
def test_a_sentence_for_each_end(ended, sentence):
    gpu = "ResourceExhausted" in ended[1]
    said = refusal.of_end(Ended(*ended, 3 * GIB, 4 * GIB, False), FINAL, Train(), 1, gpu, Path("log"))
    assert sentence in said
    assert "\n" not in said
    assert said.startswith("preflight: real_only/") == (ended[0] != 78)


def test_what_was_ended_before_the_kernel_did_it_says_so():
    ended = Ended(-signal.SIGKILL, "", 3 * GIB, 4 * GIB, watched=True)
    assert refusal.of_end(ended, FINAL, Train(), 1, False, Path("log")) == (
        "preflight: real_only/final_detector needs more memory than there is "
        "(3.0 GiB of 4.0 GiB of memory held)" + HELPS
    )


def test_several_runs_at_a_time_share_the_memory():
    found = [Row(JOINT, 1.0, 1.0, 9000, 3 * 1024, 0), Row(FINAL, 1.0, 1.0, 1, 1, 0)]
    assert refusal.of_processes(found, 1, 2 * GIB) is None
    assert refusal.of_processes(found, 2, 6 * GIB) is None
    assert refusal.of_processes(found, 3, 8 * GIB) == (
        "preflight: 3 runs at a time need 9.0 GiB of memory in detectorgan/joint, but there are 8.0 GiB; "
        "give a lower --workers"
    )


def test_all_runs_share_the_disk():
    found = [Row(JOINT, 1.0, 1.0, 1, 1, GIB), Row(IMAGES, 1.0, 1.0, 1, 1, 3 * GIB)]
    assert refusal.of_disk(found, 2 * GIB, 2, 12 * GIB, "runs/x") is None
    assert refusal.of_disk(found, 2 * GIB, 3, 12 * GIB, "runs/x") == (
        "preflight: about 18.0 GiB of disk are needed, most of it by cut_paste/synthetic, but 12.0 GiB are "
        "free at runs/x; make room, choose another --run_dir, lower --synthetic_count"
    )
