"""Reads Pascal VOC: one XML file per image (host.robots.ox.ac.uk/pascal/VOC, development kit, section 4).

Pixels are numbered from 1 and xmax, ymax are inclusive: the box is [xmin - 1, xmax] x [ymin - 1, ymax].
"""

from __future__ import annotations

from pathlib import Path
from xml.etree.ElementTree import Element, ParseError

from defusedxml import DefusedXmlException, ElementTree

from tf_detectorgan.data.document import Document, Mark

_PARTS = ("train", "val", "test")
_SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp")


def read(annotations: Path, images: Path) -> Document:
    """Reads all XML files of a folder; if ImageSets/Main is next to it, images have a key `split`.

    An XML file without <object> declares an image without objects. An image without XML file is left out.
    """
    document, listed = Document(annotations), set[str]()
    splits = _splits(annotations.parent / "ImageSets" / "Main")
    if splits:
        document.notes.append("ImageSets/Main gives the split of each image; use it with --split_key=split")
    for file in sorted(annotations.glob("*.xml")):
        keys = {"split": splits[file.stem]} if file.stem in splits else {}
        try:
            root = ElementTree.parse(file).getroot()
            name = (root.findtext("filename") or "").strip()
            if root.tag != "annotation" or not name:
                raise ValueError("no <annotation> with a <filename>")
        except (ParseError, DefusedXmlException, ValueError, LookupError, OSError) as error:
            image = document.add_image(file.name, **keys)
            image[Mark.FAULT] = ("unreadable XML file", f"{file}: {error}")
            listed.add(file.stem)
            continue
        sides = ((side, root.findtext(f"size/{side}") or "") for side in ("width", "height"))
        image = document.add_image(name, **keys, **{k: int(t) for k, t in sides if t.strip().isdecimal()})
        listed.add(Path(name).stem)
        for number, one in enumerate(root.findall("object"), 1):
            _add_object(document, image, one, f"{file.name}, object {number}")
    unlisted = sum(path.stem not in listed for path in images.iterdir() if path.suffix.lower() in _SUFFIXES)
    if unlisted:
        document.notes.append(
            f"{unlisted} images without an XML file are left out; to use an image without objects, write an "
            "XML file without <object>"
        )
    return document


def _add_object(document: Document, image: dict, one: Element, where: str) -> None:
    name = (one.findtext("name") or "").strip()
    if not name:
        document.add_fault(image, "box without class", f"{where}: no <name>")
        return
    texts = [(one.findtext(f"bndbox/{key}") or "").strip() for key in ("xmin", "ymin", "xmax", "ymax")]
    try:
        left, top, right, bottom = map(float, texts)
    except ValueError:
        document.add_fault(image, "malformed box", f"{where}: corners {', '.join(texts)} must be numbers")
        return
    x, y = left - 1, top - 1
    document.add_box(image, document.category(name), [x, y, right - x, bottom - y], where)


def _splits(folder: Path) -> dict[str, str]:
    """Maps each image stem in train.txt, val.txt and test.txt, if they exist, to its split."""
    return {
        line.split()[0]: part
        for part in _PARTS
        if (folder / f"{part}.txt").is_file()
        for line in (folder / f"{part}.txt").read_text("utf-8", "replace").splitlines()
        if line.strip()
    }
