"""Annotations of any format, as the readers of `formats/` return them and `validation.check` takes them."""

from __future__ import annotations

import dataclasses
import enum
from pathlib import Path
from typing import Any


class Mark(enum.Enum):
    """Keys that a reader adds to an entry; no strings, so no user's key is one of them."""

    WHERE = enum.auto()  # the entry's place, for messages: "a.xml, object 2"
    FAULT = enum.auto()  # (reason, sentence): why the entry cannot be used


@dataclasses.dataclass
class Document:
    """Images and boxes, unchecked, in the terms of a COCO detection file: boxes are x, y, width, height."""

    file: Path  # what messages name
    images: list[dict[Any, Any]] = dataclasses.field(default_factory=list)
    annotations: list[dict[Any, Any]] = dataclasses.field(default_factory=list)
    categories: list[dict[Any, Any]] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)
    citation: str = ""  # what the publisher says of source and licence

    def add_image(self, file_name: str, **keys: Any) -> dict[Any, Any]:
        """A further image with the next id, and whatever its format says of it (split, split_group, ...)."""
        self.images.append({"id": len(self.images) + 1, "file_name": file_name, **keys})
        return self.images[-1]

    def add_box(self, image: dict[Any, Any], category: int, bbox: Any, where: str) -> None:
        """A box (x, y, width, height), file pixels, of an image that `add_image` returned."""
        self._add(image, category_id=category, bbox=bbox)[Mark.WHERE] = where

    def add_fault(self, image: dict[Any, Any], reason: str, sentence: str) -> None:
        """A box that cannot be read: its image shows an object, and must not pass for a clean one."""
        self._add(image)[Mark.FAULT] = (reason, sentence)

    def category(self, name: str) -> int:
        """The id of a category, which is new when its name is."""
        for row in self.categories:
            if row["name"] == name:
                return row["id"]
        self.categories.append({"id": len(self.categories), "name": name})
        return self.categories[-1]["id"]

    def _add(self, image: dict[Any, Any], **values: Any) -> dict[Any, Any]:
        self.annotations.append({"id": len(self.annotations) + 1, "image_id": image["id"], **values})
        return self.annotations[-1]
