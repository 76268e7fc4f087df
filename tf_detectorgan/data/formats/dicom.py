"""Reads a folder of DICOM files with a CSV file of boxes (see table.py)."""

from __future__ import annotations

import itertools
from pathlib import Path

from tf_detectorgan import progress
from tf_detectorgan.data import medical_images
from tf_detectorgan.data.document import Document
from tf_detectorgan.data.formats import table
from tf_detectorgan.errors import InputError

_SAMPLED = 50  # files that `likely` reads


def likely(folder: Path) -> bool:
    """Returns whether one of the first files below `folder` is a DICOM file."""
    first = itertools.islice((path for path in folder.rglob("*") if path.is_file()), _SAMPLED)
    return any(map(medical_images.is_dicom, first))


def read(annotations: Path, images: Path) -> Document:
    """Reads a CSV file that names images by SOPInstanceUID or file; ignores a DICOMDIR (PS3.3, F.3).

    Raises:
      InputError: a header or the CSV file cannot be read, or pydicom is not installed.
    """
    medical_images.library("pydicom")
    files = (path for path in sorted(images.rglob("*")) if path.is_file())
    found = [path for path in files if medical_images.is_dicom(path)]  # DICOM files often have no suffix
    uids: dict[Path, str] = {}
    for path in progress.bar(found, desc="reading headers", unit="image"):
        try:
            header = medical_images.dicom_header(path)
            uid = str(header.get("SOPInstanceUID", ""))
        except Exception as error:  # pydicom raises many kinds for a damaged file
            raise InputError(f"{path}: its DICOM header cannot be read ({error}); remove the file") from error
        if "DirectoryRecordSequence" not in header:
            uids[path] = uid
    names = table.names_of(list(uids), images)
    for path, uid in uids.items():
        relative = path.relative_to(images).as_posix()
        if uid and names.setdefault(uid, relative) != relative:
            raise InputError(f"{path}: SOPInstanceUID {uid} is also that of {names[uid]}; remove one of them")
    return table.assemble(annotations, names)
