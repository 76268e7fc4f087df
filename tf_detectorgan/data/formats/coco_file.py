"""Reads COCO detection files (cocodataset.org, "Data format"); pycocotools prints and checks no boxes."""

from __future__ import annotations

import json
from os.path import normpath
from pathlib import Path
from typing import Any

from tf_detectorgan.data.document import Document
from tf_detectorgan.data.formats import table
from tf_detectorgan.errors import InputError


def document(path: Path, flag: str = "--annotations") -> Document:
    """Returns the images, annotations and categories of a COCO detection file, which `flag` names.

    Raises:
      InputError: the file is missing, empty, not JSON or not a COCO file.
    """
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{flag}={path}: cannot be read as UTF-8 text ({error}); check the file") from error
    if not text.strip():
        raise InputError(f"{flag}={path}: the file is empty; give a COCO detection file")
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{flag}={path}: not JSON ({error}); give a COCO detection file") from error
    for key in ("images", "annotations", "categories"):
        rows = content.get(key) if isinstance(content, dict) else None
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise InputError(f"{flag}={path}: {key!r} is not a list of objects; give a COCO detection file")
    if not content["images"]:
        raise InputError(f"{flag}={path}: 'images' is empty; add an entry for each image")
    images, annotations, categories = (content[key] for key in ("images", "annotations", "categories"))
    return Document(path, images, annotations, categories, citation=_citation(content))


def read(path: Path, folder: Path) -> Document:
    """Reads a COCO file; adds a note if `folder` has images that the file does not list."""
    result, bases = document(path), (folder, path.parent)
    listed = {normpath(base / str(row.get("file_name"))) for row in result.images for base in bases}
    if unlisted := sum(normpath(file) not in listed for file in table.image_paths(folder)):
        result.notes.append(
            f"{unlisted} images that {path.name} does not list are left out; to use an image without "
            "objects, list it in 'images' without annotations"
        )
    return result


def _citation(document: dict[str, Any]) -> str:
    """Returns one line for each key of `info`, then the names and URLs of `licenses`."""
    info, licenses = document.get("info"), document.get("licenses")
    lines = [f"{key}: {value}" for key, value in info.items()] if isinstance(info, dict) else []
    for one in licenses if isinstance(licenses, list) else []:
        if isinstance(one, dict):
            lines.append(f"licence: {' '.join(str(one[key]) for key in ('name', 'url') if one.get(key))}")
    return "\n".join(lines).encode("utf-8", "replace").decode()  # JSON may contain unpaired surrogates
