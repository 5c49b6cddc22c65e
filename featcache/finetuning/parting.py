"""Which rows train, which judge while it trains, and which test: named splits first, else a hold-out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..errors import FinetuneError
from ..sources import ImageSource
from ..splits import holdout, named_splits

__all__ = ["class_codes", "given_parts", "parts_of"]

PARTS = ("train", "val", "test")


def class_codes(source: ImageSource, classes: Sequence[str] | None) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return each image's class as a number, -1 for none, and the classes.

    Parameters
    ----------
    source : ImageSource
        With labels.
    classes : sequence of str, optional
        Their order; by default sorted.

    Returns
    -------
    codes : ndarray of int64
    classes : tuple of str

    Raises
    ------
    FinetuneError
        When there are no labels, or one that is no class.
    """
    if "label" not in source.roles:
        raise FinetuneError("images: expected labels, got none; sort the images into folders or give a list of labels")
    labels = [str(label) for label in source.columns[source.roles["label"]].tolist()]
    found = sorted({label for label in labels if label})
    names = tuple(str(name) for name in classes) if classes is not None else tuple(found)
    unknown = [label for label in found if label not in set(names)]
    if unknown:
        raise FinetuneError(
            f"images: expected labels among the network's {len(names)} classes ({', '.join(names[:5])}…), got "
            f"{unknown[0]!r}; fit a head on images of all classes first, or leave those images out"
        )
    if len(names) < 2:
        raise FinetuneError(f"images: expected two classes or more, got {len(names)}; add images of another class")
    code = {name: i for i, name in enumerate(names)}
    return np.asarray([code.get(label, -1) for label in labels], dtype=np.int64), names


def parts_of(
    source: ImageSource, codes: np.ndarray, *, val_size: float, test_size: float, seed: int
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Return the rows of each part, and a sentence for each thing that was decided.

    Parameters
    ----------
    source : ImageSource
        Its split column decides, where it names a training part.
    codes : ndarray of int64
        As `class_codes` gives them; rows without a class belong to no part.
    val_size, test_size : float
        Shares of the rows that train otherwise, class by class and group by group; 0 for none. Rows that are named as a
        part are not drawn from for another.
    seed : int
        Of the hold-outs.

    Returns
    -------
    parts : dict of str to ndarray of int
        "train", "val" and "test", sorted; empty where there is none.
    notes : list of str
    """
    notes = []
    labelled = codes >= 0
    if not labelled.all():
        notes.append(f"{int((~labelled).sum())} images have no label and are left out")
    parts = {name: np.zeros(0, np.intp) for name in PARTS}
    named = named_splits(source.columns[source.roles["split"]]) if "split" in source.roles else {}
    if "train" in named:
        parts.update({name: rows[labelled[rows]] for name, rows in named.items()})
        if (left := int(labelled.sum()) - sum(map(len, parts.values()))) > 0:
            inside = np.concatenate(list(named.values()))
            others = np.setdiff1d(np.flatnonzero(labelled), inside)
            values = _some(sorted(set(source.columns[source.roles["split"]][others].tolist())))
            notes.append(f"{left} images belong to no named part ({values}) and are left out")
    else:  # what is named as another part never trains
        parts.update({name: rows[labelled[rows]] for name, rows in named.items()})
        others = np.concatenate([parts["val"], parts["test"]])
        parts["train"] = np.setdiff1d(np.flatnonzero(labelled), others)
        if not len(parts["train"]):
            sizes = ", ".join(f"{len(rows)} {name}" for name, rows in named.items())
            raise FinetuneError(f"images: expected some that train, got none ({sizes}); check the split column")
        if "split" in source.roles:
            values = _some(sorted(set(source.columns[source.roles["split"]].tolist())))
            notes.append(f"split column {source.roles['split']!r}: it names no part that trains ({values})")
    for name, share in (("test", test_size), ("val", val_size)):
        if share and not len(parts[name]) and not (name == "test" and "train" in named):
            parts["train"], parts[name] = _drawn(source, codes, parts["train"], share, seed, name)
            notes.append(f"{name}: {len(parts[name])} of the images were drawn ({share:g} of each class)")
    if not len(parts["train"]):
        raise FinetuneError("images: expected some that train, got none; check the split column")
    return parts, notes


def _some(values: Sequence[Any]) -> str:
    """Name the first of some values."""
    shown = ", ".join(repr(str(value))[:40] for value in values[:3])
    return shown + (", …" if len(values) > 3 else "")


def _drawn(
    source: ImageSource, codes: np.ndarray, rows: np.ndarray, share: float, seed: int, name: str
) -> tuple[np.ndarray, np.ndarray]:
    if not 0.0 < share < 1.0:
        raise FinetuneError(f"{name}_size: expected a share between 0 and 1, got {share!r}; 0.2 is usual, 0 is none")
    groups = source.columns[source.roles["group"]][rows] if "group" in source.roles else None
    ids = [source.ids[row] for row in rows]
    # Two hold-outs of one seed would draw the same order of the ids twice.
    kept, drawn = holdout(codes[rows], test_size=share, ids=ids, groups=groups, seed=seed + (name == "val"))
    return rows[kept], rows[drawn]


def given_parts(parts: Mapping[str, Any], codes: np.ndarray) -> dict[str, np.ndarray]:
    """Return parts that the caller chose, checked: known names, labelled rows, each in one part."""
    unknown = sorted(set(parts) - set(PARTS))
    if unknown or "train" not in parts:
        raise FinetuneError(f"parts: expected 'train' and perhaps 'val' and 'test', got {sorted(parts)}; rename them")
    rows = {name: np.unique(np.asarray(parts.get(name, []), dtype=np.intp)) for name in PARTS}
    together = np.concatenate(list(rows.values()))
    if len(together) and (together.min() < 0 or together.max() >= len(codes)):
        raise FinetuneError(f"parts: expected row numbers from 0 to {len(codes) - 1}, got {int(together.max())}")
    if len(np.unique(together)) != len(together):
        raise FinetuneError("parts: expected each row in one part, got some in two; take them out of one")
    if (codes[together] < 0).any():
        raise FinetuneError("parts: expected rows with a label, got some without; leave them out")
    if not len(rows["train"]):
        raise FinetuneError("parts: expected some rows that train, got none")
    return rows
