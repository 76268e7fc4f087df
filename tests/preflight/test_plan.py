import types
from pathlib import Path

from tf_detectorgan.preflight import plan
from tf_detectorgan.preflight.plan import PhasePlan, phases
from tf_detectorgan.training.settings import Train

STEPS = {
    "pretrain_gan_steps": 40,
    "joint_steps": 30,
    "pretrain_detector_steps": 20,
    "final_detector_steps": 10,
}


def test_phases_are_in_the_order_of_the_run():
    s = Train(arm=("real_only", "pix2pix", "detectorgan"), synthetic_count=7, crossfit_folds=2, **STEPS)
    assert phases(s, test_images=5) == [
        PhasePlan(Path("shared/pretrain_pix2pix"), "gan", 40),
        PhasePlan(Path("shared/pretrain_gan"), "gan", 40),
        PhasePlan(Path("shared/pretrain_detector"), "detector", 20),
        PhasePlan(Path("shared/held_out_detector_0"), "detector", 20),
        PhasePlan(Path("shared/held_out_detector_1"), "detector", 20),
        PhasePlan(Path("arms/real_only/final_detector"), "detector", 10),
        PhasePlan(Path("arms/real_only/evaluation"), "evaluation", 5),
        PhasePlan(Path("arms/pix2pix/joint"), "gan", 30),
        PhasePlan(Path("arms/pix2pix/synthetic"), "images", 7),
        PhasePlan(Path("arms/pix2pix/final_detector"), "detector", 10),
        PhasePlan(Path("arms/pix2pix/evaluation"), "evaluation", 5),
        PhasePlan(Path("arms/detectorgan/joint"), "joint", 30),
        PhasePlan(Path("arms/detectorgan/synthetic"), "images", 7),
        PhasePlan(Path("arms/detectorgan/final_detector"), "detector", 10),
        PhasePlan(Path("arms/detectorgan/evaluation"), "evaluation", 5),
    ]
    assert [phase.name for phase in phases(s, 5)[3:6]] == [
        "held_out_detector_0",
        "held_out_detector_1",
        "real_only/final_detector",
    ]


def test_real_only_needs_no_held_out_detectors():
    assert [phase.kind for phase in phases(Train(arm=("real_only",)), 1)] == ["detector", "evaluation"]


def test_short_run_has_the_batch_of_one_worker_and_at_most_the_steps_of_the_run():
    s = Train(workers=4, gan_batch=8, detector_batch=16, synthetic_objects=3, pretrain_gan_steps=1)
    short = plan.in_short(s, "short")
    assert (short.run_dir, short.preflight, short.workers) == ("short", "false", 1)
    assert (short.gan_batch, short.detector_batch) == (2, 4)
    assert (
        short.pretrain_gan_steps,
        short.joint_steps,
        short.pretrain_detector_steps,
        short.final_detector_steps,
    ) == (
        1,
        2,
        2,
        3,
    )
    assert short.synthetic_count == 2 * (32 // 3)
    assert plan.in_short(Train(synthetic_count=5), "x").synthetic_count == 5


def test_evaluated_images_counts_labelled_and_clean_images():
    counts = {"validation_clean": 9, "test_labelled": 2, "test_clean": 3, "test_unboxed": 50}
    dataset = types.SimpleNamespace(count=lambda split: counts.get(split, 0))
    assert plan.evaluated_images(dataset, "test") == 5
    assert plan.evaluated_images(dataset, "validation") == 0  # without labelled images there is no validation
    counts["validation_labelled"] = 1
    assert plan.evaluated_images(dataset, "validation") == 10
