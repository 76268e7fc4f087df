"""Tests of the report's training curves, read from TensorBoard files."""

import numpy as np

from tests.experiments.test_report import assert_self_contained, make_run
from tf_detectorgan.experiments import training_curves
from tf_detectorgan.experiments.report import write_report
from tf_detectorgan.training.summaries import Writer


def write(directory, arm, losses):
    writer = Writer(directory / "tensorboard" / arm, "final_detector")
    for step, loss in losses:
        writer.scalars(step, {"L_d": loss, "validation_ap@0.1": 0.5, "gradient_norm": 7.0})
    writer.image("samples", 1, np.zeros([1, 4, 4, 1], np.float32))


def test_last_value_of_a_repeated_step_counts(tmp_path):
    """A run that was killed after step 3 resumes from its checkpoint of step 2.

    Files written in the same second need not be in order by name; here they are not.
    """
    write(tmp_path, "a", [(1, 4.0), (2, 3.0), (3, 2.5)])
    (first,) = (tmp_path / "tensorboard" / "a").iterdir()
    first.rename(first.with_name("events.out.tfevents.9999999999.x"))
    write(tmp_path, "a", [(3, 2.0), (4, 1.0)])
    write(tmp_path, "b", [(1, 5.0)])
    (loss, curves), (ap, _) = training_curves.read(tmp_path / "tensorboard", ["a", "b", "none"], "0.1")
    assert (loss, ap) == ("Final detector: loss L_d", "Final detector: validation AP@0.1")
    np.testing.assert_array_equal(curves["a"].steps, [1, 2, 3, 4])
    np.testing.assert_allclose(curves["a"].values, [4, 3, 2, 1])
    assert curves.keys() == {"a", "b"}
    ((only, _),) = training_curves.read(tmp_path / "tensorboard", ["a"], "0.5")
    assert only == loss


def test_report_shows_training_curves(tmp_path):
    make_run(tmp_path, ["real_only", "detectorgan"])
    assert "<h2>Training</h2>" not in write_report(tmp_path).read_text()
    write(tmp_path, "real_only", [(1, 4.0), (2, 3.0)])
    text = write_report(tmp_path).read_text()
    assert_self_contained(text)
    assert text.count('alt="training curves of all arms"') == 2
