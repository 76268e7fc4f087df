import dataclasses
import json
import sys

import pytest

from tf_detectorgan import study as command
from tf_detectorgan.errors import InputError
from tf_detectorgan.study import Study, main
from tf_detectorgan.user_study import plan as plans
from tf_detectorgan.user_study.answers import Answer, Answers
from tf_detectorgan.user_study.report import agreement, fleiss_kappa, sign_test


def answered(rater, pair, better):
    return Answer(rater, pair, "A", better, better, 4, 3, 2, 1)


def test_fleiss_kappa_by_hand():
    # AAA: 1, AAB: (2*1)/(3*2) = 1/3, mean 2/3; A 5/6, B 1/6: chance 26/36; (24 - 26)/(36 - 26)
    assert fleiss_kappa(["AAA", "AAB"]) == pytest.approx(-0.2)
    assert fleiss_kappa(["AAA", "BBB"]) == pytest.approx(1.0)
    assert fleiss_kappa(["AA", "AA"]) is None


def test_sign_test_is_over_pairs():
    answers = [answered(r, pair, "A") for pair in range(5) for r in (1, 2)]
    answers += [answered(1, 5, "A"), answered(2, 5, "B")]  # a tie, which is ignored
    # five of five: p = 2 / 2^5
    assert sign_test(answers, "whole") == (5, 5, pytest.approx(0.0625))


def test_agreement_ignores_incomplete_raters():
    """Raters 1 and 2 agree on 3 of 4, A is 5/8: chance 34/64, (48 - 34)/(64 - 34). Rater 3 is incomplete."""
    answers = [
        answered(r, pair, b) for r, given in ((1, "AABB"), (2, "AAAB")) for pair, b in enumerate(given)
    ]
    whole = "Fleiss' kappa 0.47 (2 raters who answered all 4 pairs)"
    assert agreement(answers, "whole", 4) == whole
    more = [*answers, answered(3, 0, "B")]
    assert agreement(more, "whole", 4) == f"{whole[:-1]}, without 1 who did not)"
    more += [answered(3, pair, "A") for pair in (1, 2, 3)]
    assert agreement(more, "whole", 4).endswith("(3 raters who answered all 4 pairs)")
    assert agreement(answers[:6], "whole", 4) == "no kappa: fewer than two raters answered all 4 pairs"


def two_raters(study):
    """Ada passes the check (pair 3), Bea does not."""
    store = Answers(study)
    for name, better in (("Ada", "AAAA"), ("Bea", "AABB")):
        rater = store.join(name)
        for pair, choice in enumerate(better):
            store.add(answered(rater.id, pair, choice))
    return store


def test_progress_before_the_first_answer_that_counts(study, capsys):
    store = Answers(study)
    store.add(answered(store.join("Ada").id, 3, "A"))
    main(Study(out=str(study), report=True))
    printed = capsys.readouterr().out
    assert printed == "no answers to count yet\nAda: 1 of 4 pairs, attention checks passed 1 of 1\n"


def test_report_table(study, capsys):
    two_raters(study)
    main(Study(out=str(study), report=True))
    printed = capsys.readouterr().out
    # A in 5 of 6, Clopper-Pearson [0.359, 0.996]; without the check (pair 3)
    assert "a, whole   83% [36%, 100%]     4.00 ± 0.00" in printed
    assert "b, object  17% [0%, 64%]       1.00 ± 0.00" in printed
    assert "6 answers of 2 raters to 3 pairs" in printed
    assert "preferred in 2 of 2 pairs without ties, sign test p 0.500" in printed
    assert "Ada: 4 of 4 pairs, attention checks passed 1 of 1" in printed
    assert "Bea: 4 of 4 pairs, attention checks passed 0 of 1" in printed


def test_synthetic_image_without_a_box_raises(synthetic):
    home = synthetic("a")
    file = home / "synthetic" / "annotations.json"
    document = json.loads(file.read_text())
    file.write_text(json.dumps(document | {"annotations": document["annotations"][1:]}))
    with pytest.raises(InputError, match="is not a file of synthetic images"):
        plans.synthetic_images(home)


def test_matched_pairs_have_the_same_background_and_boxes(synthetic):
    first, second = plans.synthetic_images(synthetic("a")), plans.synthetic_images(synthetic("b", shift=1.0))
    with pytest.raises(InputError, match="only 0 images of a and b have the same background and boxes"):
        plans.matched(first, second, 1, 0)
    second = [one._replace(boxes=(*first[i].boxes, (0.0, 0.0, 4.0, 4.0))) for i, one in enumerate(second)]
    with pytest.raises(InputError, match="only 0 images"):
        plans.matched(first, second, 1, 0)
    many = [one._replace(boxes=second[i].boxes) for i, one in enumerate(first)]
    assert len(plans.matched(many, second, len(first), 0)) == len(first)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"run": ("one",)}, "give it twice"),
        ({"run": ("gone", "gone")}, "contains no annotations.json"),
        ({"report": True}, "cannot be read as a study"),
    ],
)
def test_invalid_options_raise(tmp_path, free_port, options, message):
    with pytest.raises(InputError, match=message):
        main(Study(out=str(tmp_path / "out"), port=free_port, **options))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "options, message",
    [
        ({"host": "0.0.0.0"}, "set a --token"),
        ({"host": "::1"}, "--host=::1: .* use 127.0.0.1"),
        ({"host": "no.such.host.invalid", "token": "x" * 16}, "--host=no.such.host.invalid --port=.*: "),
        ({"token": "short"}, "needs 16 or more"),
        ({}, "--port=.*: Address already in use"),
    ],
)
def test_invalid_server_options_raise_before_files_are_written(
    synthetic, tmp_path, free_port, options, message
):
    runs = (str(synthetic("a")), str(synthetic("b")))
    options = Study(run=runs, out=str(tmp_path / "out"), pairs=1, checks=0, port=free_port, **options)
    with command.socket.create_server(("127.0.0.1", free_port)), pytest.raises(InputError, match=message):
        main(options)
    assert not (tmp_path / "out").exists()


def test_missing_extra_raises_before_files_are_written(synthetic, tmp_path, free_port, monkeypatch):
    monkeypatch.setitem(sys.modules, "waitress", None)
    runs = (str(synthetic("a")), str(synthetic("b")))
    with pytest.raises(InputError, match=r"pip install 'tf_detectorgan\[study\]'"):
        main(Study(run=runs, out=str(tmp_path / "out"), pairs=1, checks=0, port=free_port))
    assert not (tmp_path / "out").exists()


def test_same_command_continues_the_study(synthetic, tmp_path, free_port, monkeypatch):
    served = []
    monkeypatch.setattr(command, "serve", lambda options, out, pairs, listener: served.append(pairs))
    monkeypatch.chdir(tmp_path)
    synthetic("a"), synthetic("b")
    first = Study(run=("a", "b"), out="out", pairs=2, checks=0, port=free_port)
    for again in (first, dataclasses.replace(first, run=("./a", str(tmp_path / "b"))), Study(out="out")):
        main(dataclasses.replace(again, port=free_port))
    assert served == [2, 2, 2]
    for change in ({"run": ("b", "a")}, {"pairs": 3}, {"seed": 1}):
        with pytest.raises(
            InputError, match="contains a study with other --run, --pairs, --checks or --seed; leave"
        ):
            main(dataclasses.replace(first, **change))


@pytest.mark.parametrize(
    "host, token, expected",
    [
        ("127.0.0.1", "", "http://127.0.0.1:8000/"),
        ("::", "a+b&c=d#e é%41 ok", "http://[::]:8000/?token=a%2Bb%26c%3Dd%23e+%C3%A9%2541+ok"),
    ],
)
def test_address_has_the_encoded_token(host, token, expected):
    assert command.address(Study(host=host, token=token)) == expected


def test_new_study_has_attention_checks_of_real_images(
    synthetic, tiny_phantom, tmp_path, free_port, monkeypatch
):
    monkeypatch.setattr("tf_detectorgan.study.serve", lambda *_: None)
    runs = (str(synthetic("a")), str(synthetic("b")))
    out, data = tmp_path / "begun", str(tiny_phantom("checks"))
    main(Study(run=runs, out=str(out), pairs=2, checks=2, data_dir=data, port=free_port))
    plan = plans.read(out)
    assert [pair.check for pair in plan.pairs] == [False, False, True, True]
    assert plan.methods == ("a", "b")
    assert all(plans.image_file(out, k, side).is_file() for k in range(4) for side in "AB")


def test_two_runs_with_the_same_images_raise(synthetic, tmp_path, free_port):
    arm = synthetic("a")
    with pytest.raises(InputError, match="contain the same images"):
        main(Study(run=(str(arm), str(arm / "synthetic")), out=str(tmp_path / "out"), port=free_port))
