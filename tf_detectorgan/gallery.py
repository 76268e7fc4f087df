"""Gallery page and contact sheet of synthetic images: background, insertion, difference, object.

An entry is a dict: `background`, `inserted` and `matched` are uint8 [H, W, C] (C 1 or 3); `box` is the box of
the object in `inserted` and in `matched`, as in boxes.py; `caption` contains the ids.
"""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from tf_detectorgan import boxes as box_ops

COLUMNS = ("background", "with object", "difference", "object", "real object matched")
SMALLEST_SCALE = 8  # grey levels; a smaller scale would make rounding to 8 bits visible as a difference
SURROUND = 8  # minimum number of pixels around the box in the object's crop
LARGEST = 512  # pixels; larger images are shrunk on the page
CELL, GAP, LINE = 256, 8, 18  # pixels of the contact sheet
BOX_COLOR = (255, 176, 0)


class Change(NamedTuple):
    """Change of the background by the generator, in grey levels of 255, mean over channels."""

    signed: np.ndarray  # [H, W] float32
    in_box: float  # largest absolute change
    away: float  # the same outside the object's crop


def environment() -> jinja2.Environment:
    """Returns the environment of all page templates, which escapes HTML and raises on undefined names."""
    return jinja2.Environment(
        loader=jinja2.PackageLoader("tf_detectorgan", "experiments/templates"),
        autoescape=jinja2.select_autoescape(),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def image_uri(image: np.ndarray) -> str:
    """Returns the data URI of a uint8 image [H, W, C] or [H, W] as PNG, at most LARGEST pixels per side."""
    picture = _picture(image)
    picture.thumbnail((LARGEST, LARGEST), Image.Resampling.BOX)
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def change(entry: Mapping[str, Any]) -> Change:
    """Returns inserted minus background, and the largest change in the box and outside the object's crop."""
    difference = entry["inserted"].astype(np.float32) - entry["background"].astype(np.float32)
    signed = difference.mean(axis=-1)
    size = np.abs(signed)
    inside = box_ops.mask(np.asarray(entry["box"], np.float32), *signed.shape).numpy() > 0
    away = np.ones_like(inside)
    away[_surround(signed.shape, entry["box"])] = False
    return Change(signed, float(size[inside].max(initial=0)), float(size[away].max(initial=0)))


def color_difference(signed: np.ndarray, scale: float) -> np.ndarray:
    """Returns a signed change [H, W] as uint8 RGB: white 0, red brighter, blue darker, full at `scale`."""
    saturation = np.clip(np.abs(signed) / scale, 0, 1)[..., None]
    end = np.where(signed[..., None] > 0, np.array([196.0, 20, 20]), np.array([20.0, 60, 196]))
    return np.round(255 * (1 - saturation) + end * saturation).astype(np.uint8)


def crop(image: np.ndarray, box: Sequence[float]) -> np.ndarray:
    """Returns the box with a margin of 1/4 of its longer side, at least SURROUND pixels, [h, w, C]."""
    return image[_surround(image.shape, box)]


def _surround(shape: Sequence[int], box: Sequence[float]) -> tuple[slice, slice]:
    """Returns the rows and columns of `crop`, clipped to the image, at least one of each."""
    height, width = shape[:2]
    w, h = box_ops.to_xywh(np.asarray(box, np.float32)).numpy()[2:]
    around = box_ops.dilate(np.asarray(box, np.float32), max(SURROUND, float(np.ceil(max(w, h) / 4))))
    x, y, w, h = box_ops.to_xywh(box_ops.clip(around, height, width)).numpy()
    top, left = min(int(y), height - 1), min(int(x), width - 1)
    return slice(top, max(int(np.ceil(y + h)), top + 1)), slice(left, max(int(np.ceil(x + w)), left + 1))


def write_gallery(
    directory: str | os.PathLike, sections: Mapping[str, Sequence[Mapping[str, Any]]], title: str
) -> Path:
    """Writes `gallery.html`, a self-contained page; returns its path. `sections`: heading -> entries."""
    changes = {heading: [change(entry) for entry in entries] for heading, entries in sections.items()}
    scale = _scale([one for some in changes.values() for one in some])
    cards = {
        heading: [_card(entry, one, scale) for entry, one in zip(entries, changes[heading], strict=True)]
        for heading, entries in sections.items()
    }
    page = environment().get_template("gallery.html").render(title=title, sections=cards, scale=scale)
    path = Path(directory) / "gallery.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")
    return path


def _card(entry: Mapping[str, Any], changed: Change, scale: float) -> dict[str, Any]:
    x, y, w, h = box_ops.to_xywh(np.asarray(entry["box"], np.float32)).numpy().tolist()
    objects = [crop(entry[name], entry["box"]) for name in ("inserted", "matched")]
    return {
        "caption": str(entry["caption"]),
        "background": image_uri(entry["background"]),
        "inserted": image_uri(entry["inserted"]),
        "difference": image_uri(color_difference(changed.signed, scale)),
        "objects": [(image_uri(c), c.shape[1], c.shape[0]) for c in objects],
        "size": entry["inserted"].shape[:2],
        "rectangle": {"x": x, "y": y, "width": w, "height": h},
        "in_box": changed.in_box,
        "away": changed.away,
    }


def contact_sheet(entries: Sequence[Mapping[str, Any]], path: str | os.PathLike) -> Path:
    """Writes a PNG with one entry per row, and returns its path.

    Raises:
      ValueError: there are no entries.
    """
    if not entries:
        raise ValueError("a contact sheet needs at least one entry")
    changes = [change(entry) for entry in entries]
    scale = _scale(changes)
    row_height = CELL + LINE + GAP
    sheet = Image.new("RGB", (5 * CELL + 6 * GAP, 2 * LINE + GAP + len(entries) * row_height), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for column, name in enumerate(COLUMNS):
        draw.text((GAP + column * (CELL + GAP), GAP // 2), name, "black", font)
    note = f"difference: red brighter, blue darker, full colour at {scale:.0f} of 255 grey levels (all rows)"
    draw.text((GAP, GAP // 2 + LINE), note, (90, 90, 90), font)
    for row, (entry, changed) in enumerate(zip(entries, changes, strict=True)):
        top = 2 * LINE + GAP + row * row_height
        cells = [
            _fit(entry["background"]),
            _boxed(entry["inserted"], entry["box"]),
            _fit(color_difference(changed.signed, scale)),
            *(_fit(crop(entry[name], entry["box"])) for name in ("inserted", "matched")),
        ]
        for column, cell in enumerate(cells):
            left = GAP + column * (CELL + GAP)
            sheet.paste(cell, (left, top))
            if column == 2:  # mostly white
                frame = (left, top, left + cell.width - 1, top + cell.height - 1)
                draw.rectangle(frame, outline=(217, 222, 227))
        text = f"{entry['caption']}   change: {changed.in_box:.0f} in the box, {changed.away:.0f} outside"
        draw.text((GAP, top + CELL + 1), text, "black", font)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path, "PNG", optimize=True)
    return path


def _scale(changes: Sequence[Change]) -> float:
    """Returns one color scale for all entries, so that their differences can be compared."""
    return max([SMALLEST_SCALE, *(float(np.abs(c.signed).max()) for c in changes)])


def _picture(image: np.ndarray) -> Image.Image:
    if image.dtype != np.uint8:
        raise ValueError(f"images must be uint8, got {image.dtype}")
    return Image.fromarray(image[..., 0] if image.ndim == 3 and image.shape[-1] == 1 else image)


def _fit(image: np.ndarray) -> Image.Image:
    """Returns the image, enlarged by an integer factor or shrunk, so that it fits into a cell."""
    height, width = image.shape[:2]
    factor = max(1, CELL // max(height, width))
    picture = _picture(image).convert("RGB")
    picture = picture.resize((width * factor, height * factor), Image.Resampling.NEAREST)
    picture.thumbnail((CELL, CELL), Image.Resampling.BOX)
    return picture


def _boxed(image: np.ndarray, box: Sequence[float]) -> Image.Image:
    """Returns the image of `_fit` with the outline of the box, drawn outside of the object's pixels."""
    picture = _fit(image)
    ratio = picture.width / image.shape[1]
    outline = np.round(np.asarray(box_ops.dilate(np.asarray(box, np.float32) * ratio, 2.0))).tolist()
    ImageDraw.Draw(picture).rectangle(outline, outline=BOX_COLOR, width=2)
    return picture
