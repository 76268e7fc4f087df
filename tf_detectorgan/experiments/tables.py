"""Defines the paper's tables and our own: each row is an arm, each column a metric.

Tables may share runs: Tables 1 to 3 show different columns of the same runs.
"""

from __future__ import annotations

from typing import Any, NamedTuple


class Row(NamedTuple):
    """A row of a table. `paper` maps a column's title to the published number."""

    arm: str
    paper: dict[str, float] = {}


class Published(NamedTuple):
    """A row of other authors: numbers by column title, and how their evaluation differs from ours."""

    title: str
    numbers: dict[str, float]
    note: str


class Column(NamedTuple):
    """A column: the path of {"value": ...} in an arm's metrics; "main" stands for the run's --primary_iou."""

    title: str
    path: tuple[str, ...]

    def at(self, primary_iou: str) -> Column:
        """Returns the column with the primary IoU in place of "main"."""
        path = tuple(primary_iou if key == "main" else key for key in self.path)
        return Column(self.title.replace("@main", f"@{primary_iou}"), path)

    def of(self, metrics: dict) -> dict[str, Any]:
        """Returns {"value", "low", "high"} of the column for an arm; each is None if the arm lacks it."""
        for key in self.path:
            metrics = metrics.get(key, {})
        return metrics or {"value": None, "low": None, "high": None}


class Table(NamedTuple):
    """A table. `comparisons`: pairs of arms, first minus second, for the columns of AP and recall."""

    title: str
    source: str
    rows: tuple[Row, ...]
    columns: tuple[Column, ...]
    comparisons: tuple[tuple[str, str], ...] = ()
    published: tuple[Published, ...] = ()

    @property
    def arms(self) -> list[str]:
        """Returns the arms in the order of the rows."""
        return [row.arm for row in self.rows]


AP = (
    Column("AP@main", ("ap", "main")),
    Column("AP@0.5", ("ap", "0.5")),
    Column("AP@0.5:0.95", ("ap", "0.5:0.95")),
    Column("recall@main", ("recall", "main")),
)
TABLE_1 = (
    Row("real_only", {"AP@main": 0.124}),
    Row("cut_paste"),
    Row("poisson_blend"),
    Row("superpose"),
    Row("cyclegan_bbox"),
    Row("acgan"),
    Row("detectorgan_no_unroll"),
    Row("detectorgan", {"AP@main": 0.236}),
)
# The order that the paper reports, and comparisons with methods that need no GAN.
CLAIMS = (
    ("detectorgan", "cut_paste"),
    ("detectorgan", "poisson_blend"),
    ("detectorgan", "superpose"),
    ("superpose", "cut_paste"),
    ("detectorgan", "detectorgan_no_unroll"),
    ("detectorgan", "cyclegan_bbox"),
    ("detectorgan", "acgan"),
    ("detectorgan", "real_only"),
    ("detectorgan_no_unroll", "cyclegan_bbox"),
    ("cyclegan_bbox", "acgan"),
    ("acgan", "real_only"),
    ("cut_paste", "real_only"),
)
# No published numbers: those of Table 5 are for Cityscapes at the paper's image size, and were not available.
TABLE_5 = tuple(Row(arm) for arm in ("real_only", "pix2pix", "psgan", "psgan_detectorgan"))
IOBB = ("0.1", "0.25", "0.5", "0.75", "0.9")

WANG = Published(
    "Wang et al. 2017",
    {f"T(IoBB) {t}": v for t, v in zip(IOBB, (0.1645, 0.0506, 0.0126, 0.0126, 0.0126), strict=True)},
    "their Table 4, class Nodule; evaluated on other test images, trained on image labels only, and an image "
    "also counts as correct if only its IoU is above the threshold",
)

TABLES = {
    "1": Table("Average precision and recall by arm", "Liu et al. 2019, Table 1", TABLE_1, AP, CLAIMS),
    "2": Table(
        "Localization accuracy by T(IoU)",
        "Liu et al. 2019, Table 2",
        tuple(row._replace(paper={}) for row in TABLE_1),
        tuple(Column(f"T(IoU) {t}", ("localization", "iou", t)) for t in ("0.1", "0.3", "0.5", "0.7")),
    ),
    "3": Table(
        "Localization accuracy by T(IoBB)",
        "Liu et al. 2019, Table 3",
        tuple(row._replace(paper={}) for row in TABLE_1),
        tuple(Column(f"T(IoBB) {t}", ("localization", "iobb", t)) for t in IOBB),
        published=(WANG,),
    ),
    "5": Table(
        "Pedestrians, by arm",
        "Liu et al. 2019, Table 5",
        TABLE_5,
        AP,
        (
            ("psgan_detectorgan", "psgan"),
            ("psgan_detectorgan", "pix2pix"),
            ("psgan_detectorgan", "real_only"),
            ("psgan", "pix2pix"),
            ("psgan", "real_only"),
        ),
    ),
    "control": Table(
        "Effect of inserted objects and of their positions",
        "ours",
        tuple(Row(a) for a in ("real_only", "boxes_only", "cut_paste", "superpose", "detectorgan")),
        AP,
        (
            ("boxes_only", "real_only"),
            ("superpose", "boxes_only"),
            ("detectorgan", "boxes_only"),
            ("cut_paste", "boxes_only"),
        ),
    ),
}
