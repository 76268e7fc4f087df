import errno
import os
import signal
from pathlib import Path

import pytest

from tf_detectorgan import command, config
from tf_detectorgan.errors import EXIT_CANNOT_WRITE, InputError, Interrupted
from tf_detectorgan.preflight import outcome
from tf_detectorgan.preflight.outcome import Ended, PhaseCost
from tf_detectorgan.preflight.plan import PhasePlan
from tf_detectorgan.training.settings import Train

GIB = 2**30
JOINT = PhasePlan(Path("arms/detectorgan/joint"), "joint", 10)
FINAL = PhasePlan(Path("arms/real_only/final_detector"), "detector", 10)
IMAGES = PhasePlan(Path("arms/cut_paste/synthetic"), "images", 10)
PRETRAIN = PhasePlan(Path("shared/pretrain_gan"), "gan", 10)
EVALUATION = PhasePlan(Path("arms/real_only/evaluation"), "evaluation", 10)


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
        (
            JOINT,
            {"unroll_steps": 0, "precision": "mixed_bfloat16"},
            (1, True),
            ["a lower --gan_batch than 4"],
        ),
        (PRETRAIN, {}, (1, False), ["a lower --gan_batch than 4"]),
        (FINAL, {}, (1, False), ["a lower --detector_batch than 8"]),
        (IMAGES, {"precision": "mixed_float16"}, (1, True), None),
        (EVALUATION, {}, (1, False), None),
    ],
)
def test_remedies_affect_the_phase(phase, changes, devices, expected):
    other = ["smaller images, smaller networks (--generator_filters, --detector), or more memory"]
    assert outcome.remedies(phase, Train(**changes), *devices) == (expected or other)


TRACEBACK = """Traceback (most recent call last):
  File "x.py", line 1
tensorflow.python.framework.errors_impl.InvalidArgumentError: {node y} No kernel
\t [[y]] [Op:__inference_1]
"""
NO_OP = """step 1
Traceback (most recent call last):
  File "x.py", line 1, in first
KeyError: 'x'

During handling of the above exception, another exception occurred:

Traceback (most recent call last):
  File "x.py", line 2, in second
tensorflow.python.framework.errors_impl.UnimplementedError: Graph execution error:

Detected at node CropAndResize defined at (most recent call last):
  File "<frozen runpy>", line 198, in _run_module_as_main

  File "x.py", line 3, in third

Deterministic GPU implementation of CropAndResize is not available.
\t [[{{node CropAndResize}}]] [Op:__inference_step_1]
2026-01-01 10:00:00.000000: W tensorflow/core/x.cc:1] Allocator (GPU_0) ran out of memory, OOM
"""
HARMLESS = (
    "2026-01-01 10:00:00.000000: W bfc_allocator.cc:1] Allocator (GPU_0_bfc) ran out of memory trying to "
    "allocate 2GiB. The caller indicates that this is not a failure; OOM\n"
)
CRASH = """F cuda_dnn.cc:7] Check failed: status == 0
Fatal Python error: Segmentation fault

Current thread 0x0000 (most recent call first):
  File "x.py", line 1 in f

Extension modules: numpy (total: 1)
"""
OOM = """Traceback (most recent call last):
tensorflow...ResourceExhaustedError: Graph execution error:
OOM when allocating tensor
[Op:x]"""
ADVICE = "; try a lower --detector_batch than 8"


def error(code, output, gpu=False):
    ended = Ended(code, output, 3 * GIB, 4 * GIB)
    return outcome.of_end(ended, FINAL, Train(), 1, gpu, Path("log"))


@pytest.mark.parametrize(
    "code, output, sentence",
    [
        (
            -9,
            "step",
            "was killed, probably because memory ran out (3.0 GiB of 4.0 GiB of memory in use)" + ADVICE,
        ),
        (1, HARMLESS + OOM, "needs more memory than the GPU has" + ADVICE + ", --precision=mixed_bfloat16"),
        (
            -6,
            "terminate called after throwing an instance of 'std::bad_alloc'",
            "needs more memory than there is" + ADVICE,
        ),
    ],
)
def test_out_of_memory_is_bad_input(code, output, sentence):
    refused = error(code, output, gpu="Resource" in output)
    assert type(refused) is InputError
    assert str(refused) == f"preflight: real_only/final_detector {sentence}"


@pytest.mark.parametrize(
    "code, output, sentence",
    [
        (
            1,
            HARMLESS + TRACEBACK,
            "tensorflow.python.framework.errors_impl.InvalidArgumentError: {node y} No kernel",
        ),
        (
            1,
            NO_OP,
            "Deterministic GPU implementation of CropAndResize is not available.",
        ),
        (-11, HARMLESS + CRASH, "ended by SIGSEGV: F cuda_dnn.cc:7] Check failed: status == 0"),
        (-15, "", "ended by SIGTERM: no output"),
        (1, "", "no output"),
    ],
)
def test_other_failures_are_runtime_errors(code, output, sentence):
    failed = error(code, output)
    assert type(failed) is RuntimeError
    assert str(failed) == f"preflight: real_only/final_detector failed: {sentence} (full log: log)"


def test_bad_input_of_the_short_run_keeps_its_message():
    refused = error(78, "w: note\nerror: --placement_file=x: no such file\n")
    assert type(refused) is InputError
    assert str(refused) == "--placement_file=x: no such file"


@pytest.mark.parametrize(
    "number, file", [(errno.ENOSPC, "run/ckpt"), (errno.EROFS, "run/ckpt"), (errno.ENOSPC, None)]
)
def test_full_disk_keeps_its_message_and_exit_code(monkeypatch, capsys, number, file):
    """`command` prints the same line and code in the short run and in the run."""
    monkeypatch.setattr(config, "read_flags", lambda options: None)

    def ends(error):
        def main(options):
            raise error

        with monkeypatch.context() as patch:
            patch.setattr(signal, "signal", lambda *given: None)
            return command.guard(Train, main), capsys.readouterr().err

    code, line = ends(OSError(number, os.strerror(number), file))
    assert code == EXIT_CANNOT_WRITE
    assert ends(error(code, "note\n" + line)) == (code, line)


def test_signal_to_the_short_run_raises_interrupted():
    assert type(error(75, "interrupted: SIGTERM in joint")) is Interrupted


def test_memory_must_suffice_for_concurrent_runs():
    found = [PhaseCost(JOINT, 1.0, 1.0, 9000, 3 * 1024, 0), PhaseCost(FINAL, 1.0, 1.0, 1, 1, 0)]
    outcome.require_memory(found, 1, 2 * GIB)
    outcome.require_memory(found, 2, 6 * GIB)
    with pytest.raises(InputError) as refused:
        outcome.require_memory(found, 3, 8 * GIB)
    assert str(refused.value) == (
        "preflight: 3 concurrent runs need 9.0 GiB of memory in detectorgan/joint, but there are 8.0 GiB; "
        "give lower --processes"
    )


def test_disk_must_suffice_for_all_runs():
    found = [PhaseCost(JOINT, 1.0, 1.0, 1, 1, GIB), PhaseCost(IMAGES, 1.0, 1.0, 1, 1, 3 * GIB)]
    outcome.require_disk(found, 2 * GIB, 2, 12 * GIB, "runs/x")
    with pytest.raises(InputError) as refused:
        outcome.require_disk(found, 2 * GIB, 3, 12 * GIB, "runs/x")
    assert str(refused.value) == (
        "preflight: about 18.0 GiB of disk are needed, most of it by cut_paste/synthetic, but 12.0 GiB are "
        "free at runs/x; free space, choose another --run_dir, lower --synthetic_count"
    )
