import pytest

from tf_detectorgan.errors import InputError
from tf_detectorgan.study import Study, main
from tf_detectorgan.user_study import plan as plans
from tf_detectorgan.user_study.answers import Answer, Answers
from tf_detectorgan.user_study.report import cohen_kappa, fleiss_kappa, sign_test


def answered(rater, pair, better):
    return Answer(rater, pair, "A", better, better, 4, 3, 2, 1)


def test_cohen_by_hand():
    # 3 of 4 agree; A: 2/4 and 3/4, B: 2/4 and 1/4, so chance 6/16 + 2/16 = 1/2 and kappa (3/4 - 1/2)/(1/2)
    assert cohen_kappa("AABB", "AAAB") == pytest.approx(0.5)
    assert cohen_kappa("AB", "BA") == pytest.approx(-1.0)
    assert cohen_kappa("AA", "AA") is None


def test_fleiss_by_hand():
    # AAA: 1, AAB: (2*1)/(3*2) = 1/3, mean 2/3; A 5/6, B 1/6: chance 26/36; (24 - 26)/(36 - 26)
    assert fleiss_kappa(["AAA", "AAB"]) == pytest.approx(-0.2)
    assert fleiss_kappa(["AAA", "BBB"]) == pytest.approx(1.0)
    assert fleiss_kappa(["AA", "AA"]) is None


def test_the_sign_test_is_over_pairs():
    answers = [answered(r, pair, "A") for pair in range(5) for r in (1, 2)]
    answers += [answered(1, 5, "A"), answered(2, 5, "B")]  # a draw, left out
    # five of five: 2 / 2^5
    assert sign_test(answers, "whole") == (5, 5, pytest.approx(0.0625))


def test_the_table(study, capsys):
    store = Answers(study)
    for name, better in (("Ada", "AAAA"), ("Bea", "AABB")):
        rater = store.join(name)
        for pair, choice in enumerate(better):
            store.add(answered(rater.id, pair, choice))
    main(Study(out=str(study), report=True))
    said = capsys.readouterr().out
    # A in 5 of 6, Clopper-Pearson [0.359, 0.996]; the check (pair 3) is not among them
    assert "a, whole   83% [36%, 100%]     4.00 ± 0.00" in said
    assert "b, object  17% [0%, 64%]       1.00 ± 0.00" in said
    assert "6 answers of 2 raters to 3 pairs" in said
    assert "preferred in 2 of 2 pairs that are no draw, sign test p 0.500" in said
    assert "Ada: 4 of 4 pairs, attention checks passed 1 of 1" in said
    assert "Bea: 4 of 4 pairs, attention checks passed 0 of 1" in said


def test_pairs_have_background_and_box_in_common(synthetic):
    first, second = plans.synthetic_images(synthetic("a")), plans.synthetic_images(synthetic("b", shift=1.0))
    with pytest.raises(InputError, match="only 0 images of a and b have background and box in common"):
        plans.matched(first, second, 1, 0)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"run": ("one",)}, "give it twice"),
        ({"run": ("gone", "gone")}, "no annotations.json there"),
        ({"report": True}, "no study that can be read"),
    ],
)
def test_bad_input(tmp_path, options, message):
    with pytest.raises(InputError, match=message):
        main(Study(out=str(tmp_path / "out"), **options))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "options, message",
    [
        ({"run": ("a", "b")}, "holds a study already"),
        ({"host": "0.0.0.0"}, "give raters a --token"),
        ({"token": "short"}, "needs 16 or more"),
    ],
)
def test_a_study_that_is_not_served(study, options, message):
    with pytest.raises(InputError, match=message):
        main(Study(out=str(study), **options))


def test_a_study_begins_with_checks_of_real_images(synthetic, tiny_phantom, tmp_path, monkeypatch):
    monkeypatch.setattr("tf_detectorgan.study.serve", lambda *_: None)
    runs = (str(synthetic("a")), str(synthetic("b")))
    out = tmp_path / "begun"
    main(Study(run=runs, out=str(out), pairs=2, checks=2, data_dir=str(tiny_phantom("checks"))))
    plan = plans.read(out)
    assert [pair.check for pair in plan.pairs] == [False, False, True, True]
    assert plan.methods == ("a", "b")
    assert all(plans.image_file(out, k, side).is_file() for k in range(4) for side in "AB")


def test_a_method_is_not_compared_with_itself(synthetic, tmp_path):
    arm = synthetic("a")
    with pytest.raises(InputError, match="hold the same images"):
        main(Study(run=(str(arm), str(arm / "synthetic")), out=str(tmp_path / "out")))
