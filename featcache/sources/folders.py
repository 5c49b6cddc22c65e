"""Images in a folder: which files are candidates, and what their folders say about them.

A candidate is a file with a known image extension, or one whose first bytes are an image's; files of well-known other
kinds are never opened. Everything else is counted as ignored, by extension. Links are followed; a link that leads
back into a folder above it is counted as ``(link loop)``. Hidden files and folders (``.name``) and those that systems
leave behind (``__MACOSX``, ``@eaDir`` …) are counted as ``(hidden)``, a store of codes among the images as one
``(featcache store)``. A broken link or a pipe that is called ``x.jpg``
stays a candidate, so that it ends in the ledger and not in silence.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from ..errors import SourceError
from ..images import EXTENSIONS, HEAD_BYTES, looks_like_image
from .names import id_of, missing, shown

__all__ = ["SPLIT_FOLDERS", "Scan", "is_candidate", "nothing_found", "scan", "structure"]

#: Folder names that mean a split, and the name that the split gets.
SPLIT_FOLDERS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}

_JUNK = frozenset(("__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found"))

#: What a store of codes consists of; one that lies inside a source is no part of it.
_STORE = frozenset(("store.json", "shards", "snapshots"))

# Never opened to look for an image inside: tables, texts, archives, arrays, films, vector graphics (EPS among them),
# and camera raw and slide formats that begin like a TIFF but hold only a preview that Pillow could read.
_OTHER = frozenset(
    (
        *(".csv", ".tsv", ".txt", ".json", ".jsonl", ".xml", ".yaml", ".yml", ".toml", ".ini", ".cfg", ".md", ".rst"),
        *(".html", ".htm", ".css", ".js", ".py", ".pyc", ".ipynb", ".c", ".h", ".cpp", ".sh", ".log", ".tex", ".doc"),
        *(".docx", ".xls", ".xlsx", ".ppt", ".pptx", ".odt", ".ods", ".rtf", ".db", ".sqlite", ".lock", ".sha256"),
        *(".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z", ".rar", ".npy", ".npz", ".mat", ".h5", ".hdf5"),
        *(".parquet", ".arrow", ".feather", ".pkl", ".pickle", ".joblib", ".pt", ".pth", ".safetensors", ".onnx"),
        *(".mp4", ".mov", ".avi", ".mkv", ".webm", ".mp3", ".wav", ".flac", ".eps", ".ps", ".pdf", ".ai", ".svg"),
        *(".cr2", ".cr3", ".nef", ".arw", ".dng", ".orf", ".rw2", ".pef", ".srw", ".raf", ".svs", ".ndpi", ".scn"),
    )
)


class Scan(NamedTuple):
    """What was found under a folder.

    Attributes
    ----------
    ids : list of str
        Sorted by their UTF-8 bytes.
    names : list of str
        The same as `os` takes them, relative to the folder.
    ignored : dict of str to int
        Extension, or a word in brackets, to number of files.
    """

    ids: list[str]
    names: list[str]
    ignored: dict[str, int]


def scan(root: str | os.PathLike[str]) -> Scan:
    """List the candidates under a folder.

    Parameters
    ----------
    root : path-like
        An existing folder.

    Returns
    -------
    Scan
        Possibly without any.

    Raises
    ------
    SourceError
        When there is no folder, or one under it cannot be listed (its images would be lost in silence).
    """
    base = os.fspath(root)
    if not Path(base).is_dir():
        raise _no_folder(base)
    ignored: Counter[str] = Counter()
    names = list(_walk(base, ignored))
    ids = list(map(id_of, names))
    if ids == names:  # nearly always
        # Code points order as their UTF-8 bytes do, and comparing texts as they are is three times as fast.
        names.sort()
        ids = names.copy()
    else:
        pairs = sorted(zip(ids, names, strict=True))
        ids, names = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    return Scan(ids, names, dict(sorted(ignored.items())))


def _no_folder(base: str) -> SourceError:
    if not os.path.lexists(base):  # also true for a broken link
        return missing(base, "a folder of images")
    got = "a file" if Path(base).is_file() else "a broken link"
    return SourceError(
        f"{shown(base)}: expected a folder of images, got {got}; give the folder, from_list() for a CSV or parquet "
        "list, or from_paths() for single images"
    )


def _walk(base: str, ignored: Counter[str]) -> Iterator[str]:
    """Yield the name, relative to `base`, of every candidate; count the rest in `ignored`."""
    pending: list[tuple[str, str, tuple[tuple[int, int], ...]]] = [(base, "", ())]
    while pending:
        folder, prefix, above = pending.pop()
        identity = _identity(folder)
        if identity in above:
            ignored["(link loop)"] += 1
            continue
        entries = _entries(folder)
        if _STORE.issubset([entry.name for entry in entries]):
            ignored["(featcache store)"] += 1
            continue
        for entry in entries:
            name = entry.name
            if name[0] == "." or name in _JUNK:
                ignored["(hidden)"] += 1
            elif _is_folder(entry):
                pending.append((entry.path, f"{prefix}{name}{os.sep}", (*above, identity)))
            elif (extension := _extension(name)) in EXTENSIONS or _is_image_by_content(extension, entry.path):
                yield prefix + name
            else:
                ignored[shown(extension) or "(no extension)"] += 1


def _identity(folder: str) -> tuple[int, int]:
    try:
        found = os.stat(folder)  # noqa: PTH116
    except OSError as error:
        raise _closed(folder, error) from error
    return found.st_dev, found.st_ino


def _entries(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        raise _closed(folder, error) from error


def _closed(folder: str, error: OSError) -> SourceError:
    return SourceError(
        f"{shown(folder)}: expected a folder that can be listed, got {error.strerror or error}; make it readable, or "
        "move it away so that its images are not left out in silence"
    )


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def is_candidate(path: str) -> bool:
    """Tell whether a file is taken for an image: by its extension, else by its first bytes.

    Parameters
    ----------
    path : str
        Anything but a folder.

    Returns
    -------
    bool
    """
    extension = _extension(os.path.basename(path))  # noqa: PTH119
    return extension in EXTENSIONS or _is_image_by_content(extension, path)


def _is_image_by_content(extension: str, path: str) -> bool:
    return extension not in _OTHER and _begins_like_image(path)


def _begins_like_image(path: str) -> bool:
    try:
        if not Path(path).is_file():  # opening a pipe would wait
            return False
        with open(path, "rb", buffering=0) as file:  # noqa: PTH123
            return looks_like_image(file.read(HEAD_BYTES))
    except OSError:
        return False


def _extension(name: str) -> str:
    """Return what `os.path.splitext` does for a name without folders, in lower case, in a third of its time."""
    return name[name.rfind(".") :].lower() if "." in name.lstrip(".") else ""


def structure(ids: Sequence[str]) -> dict[str, list[str]]:
    """Read labels and splits off the folders that the images are in.

    Parameters
    ----------
    ids : sequence of str
        Source-relative paths.

    Returns
    -------
    dict of str to list of str
        "label" and "split", each only where the folders say something; "" for an image that lies outside of them.

    Examples
    --------
    >>> structure(["train/cat/1.jpg", "Valid/dog/1.jpg"])
    {'label': ['cat', 'dog'], 'split': ['train', 'val']}
    >>> structure(["1.jpg"])
    {}
    """
    # Many images, few folders: each folder is looked at once.
    places = [identity[: identity.rfind("/") + 1] for identity in ids]
    parts = {place: place.split("/")[:-1] for place in set(places)}
    tops = {folders[0] for folders in parts.values() if folders}
    columns: dict[str, list[str]] = {}
    if tops and all(top.lower() in SPLIT_FOLDERS for top in tops):
        splits = {place: SPLIT_FOLDERS[folders[0].lower()] if folders else "" for place, folders in parts.items()}
        columns["split"] = [splits[place] for place in places]
        parts = {place: folders[1:] for place, folders in parts.items()}
    labels = {place: folders[0] if folders else "" for place, folders in parts.items()}
    return {"label": [labels[place] for place in places], **columns} if any(labels.values()) else columns


def nothing_found(place: str, ignored: dict[str, int]) -> SourceError:
    """Return the error for a place without candidates: what was looked for, and what was there instead."""
    listed = ", ".join(
        f"{count} {extension}" for extension, count in sorted(ignored.items(), key=lambda kv: (-kv[1], kv))
    )
    return SourceError(
        f"{shown(place)}: expected images ({' '.join(sorted(EXTENSIONS))}, or files that begin like one), got "
        f"{'only ' + listed if listed else 'an empty folder'}; give the folder that holds the images"
    )
