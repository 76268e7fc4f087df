from tf_detectorgan.experiments.evaluation_table import aligned, evaluation_table


def number(value, low=None, high=None):
    return {"value": value, "low": low, "high": high}


def metrics(ap):
    return {
        "ap": {"0.5": ap},
        "recall": {"0.5": number(0.75)},
        "localization": {"iou": {"0.1": number(0.5, 0.25, 0.75)}, "iobb": {"0.9": number(None)}},
        "froc": {"sensitivity": {"0.125": 0.25, "1": None}, "mean": 0.375},
        "primary_iou": 0.5,
        "counts": {"images": 9, "groups": 4, "boxes": 12},
        "note": "only 4 groups",
    }


def test_each_metric_has_a_row_and_each_arm_a_column():
    text = evaluation_table({"a": metrics(number(0.125, 0.0, 0.5)), "better": metrics(number(None))})
    assert [" ".join(line.split()) for line in text.splitlines()[:1] + text.splitlines()[2:]] == [
        "a better",
        "AP@0.5 0.12 [0.00, 0.50] –",
        "recall@0.5 0.75 0.75",
        "localization T(IoU) 0.1 0.50 [0.25, 0.75] 0.50 [0.25, 0.75]",
        "localization T(IoBB) 0.9 – –",
        "sensitivity at 0.125 false positives per image (IoU 0.5) 0.25 0.25",
        "sensitivity at 1 false positives per image (IoU 0.5) – –",
        "FROC mean 0.38 0.38",
        "9 images of 4 groups, 12 objects; "
        "[95 % interval: bootstrap over groups (AP, recall), exact (localization)]",
        "small test set: only 4 groups",
    ]


def test_columns_are_as_wide_as_their_widest_field():
    assert aligned([["", "arm"], ["long", "1"]]) == "      arm\n---------\nlong  1"
