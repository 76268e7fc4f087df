"""The annotations that the readers in `formats/` return and `validation.check` checks."""

from __future__ import annotations

import dataclasses
import enum
from pathlib import Path
from typing import Any


class Mark(enum.Enum):
    """Keys that a reader adds to an entry; not strings, so they cannot collide with a user's keys."""

    WHERE = enum.auto()  # where the entry is, for messages: "a.xml, object 2"
    FAULT = enum.auto()  # (reason, message): why the entry cannot be used


@dataclasses.dataclass
class Document:
    """Unchecked images and boxes with the keys of a COCO detection file; boxes are x, y, width, height."""

    file: Path  # the annotation file, for messages
    images: list[dict[Any, Any]] = dataclasses.field(default_factory=list)
    annotations: list[dict[Any, Any]] = dataclasses.field(default_factory=list)
    categories: list[dict[Any, Any]] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)
    citation: str = ""  # the publisher's statement of source and licence

    def add_image(self, file_name: str, **keys: Any) -> dict[Any, Any]:
        """Adds an image with the next id and the keys of its format (split, split_group, ...); returns it."""
        self.images.append({"id": len(self.images) + 1, "file_name": file_name, **keys})
        return self.images[-1]

    def add_box(self, image: dict[Any, Any], category: int, bbox: Any, where: str) -> None:
        """Adds a box (x, y, width, height), in pixels of the file, to an image that `add_image` returned."""
        self._add(image, category_id=category, bbox=bbox)[Mark.WHERE] = where

    def add_fault(self, image: dict[Any, Any], reason: str, message: str) -> None:
        """Adds a box that cannot be read: its image shows an object, so it must not count as clean."""
        self._add(image)[Mark.FAULT] = (reason, message)

    def category(self, name: str) -> int:
        """Returns the id of the category with this name; adds the category if it is missing."""
        for row in self.categories:
            if row["name"] == name:
                return row["id"]
        self.categories.append({"id": len(self.categories), "name": name})
        return self.categories[-1]["id"]

    def _add(self, image: dict[Any, Any], **values: Any) -> dict[Any, Any]:
        self.annotations.append({"id": len(self.annotations) + 1, "image_id": image["id"], **values})
        return self.annotations[-1]
