"""What sets of codes share: the labelled training rows that all have, and whose logits are whose."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..errors import HeadError
from ..features import FeatureSet
from ..heads.labelled import Rows, as_matrix, name_of
from ..splits import holdout, named_splits
from .left_out import answerable

__all__ = ["Shared", "is_logits", "matrix_of", "named", "shared_by", "sources_of", "training_rows"]

#: Names of the layer that torchvision's classifiers end in.
_LAST_LAYER = re.compile(r"(fc|head|heads\.head|classifier)(\.\d+)?")
_SOURCE_CLASSES = 1000


@dataclass(frozen=True)
class Shared:
    """The rows that all sets of codes share: labelled images that may train, by id."""

    ids: np.ndarray
    codes: np.ndarray
    groups: np.ndarray | None
    asked: np.ndarray  # mask: rows that some head could get right
    weight: np.ndarray  # of each row in a score, 0 where it is not asked; sums to 1
    balanced: bool
    notes: tuple[str, ...]


def is_logits(data: FeatureSet) -> bool:
    """Return whether codes are the 1000 outputs of a torchvision classifier, by the name of their node."""
    return data.X.shape[1:] == (_SOURCE_CLASSES,) and bool(_LAST_LAYER.fullmatch(data.node))


def training_rows(data: FeatureSet) -> Rows:
    """Return the labelled images that may train.

    What the split column calls test is out whatever else it says: it is read as a whole, before rows without a label
    are dropped. Without test rows in it, it says nothing of training.

    Raises
    ------
    HeadError
        No labels, one class only, or no labelled training row.
    """
    parts = named_splits(_splits_of_images(data))
    if "test" not in parts:
        return Rows.of(data, on_disk=True).plain()
    labelled, name = data.labelled, name_of(data)
    allowed = np.zeros(len(data), dtype=bool)
    for part in ("train", "val"):
        allowed[parts.get(part, np.empty(0, dtype=np.intp))] = True
    if not labelled.any():
        raise HeadError(f"{name}: no row has a label; put images into one folder per class, or give y=")
    if not (labelled[parts["train"]].any() if "train" in parts else False):
        raise HeadError(
            f"{name}: no labelled training row: those with a label are test, val or in no part by "
            "the split column; label training rows, or name another split column"
        )
    rows = Rows.kept(replace(data, splits=None), labelled & allowed, "a label", on_disk=True).plain()
    notes = [note for note in rows.notes if not note.endswith("without a label left out")]
    tested = np.isin(np.arange(len(data)), parts["test"])
    for lost, why in (
        (allowed & ~labelled, "training rows without a label"),
        (~allowed & ~tested, "rows outside train, val and test"),
    ):
        notes += [f"{int(lost.sum())} {why} left out"] * bool(lost.any())
    return replace(rows, notes=tuple(notes))


def _splits_of_images(data: FeatureSet) -> np.ndarray | None:
    """The split column, in which augmented views stand where their image does."""
    if data.splits is None or data.view_of is None:
        return data.splits
    place = {name: i for i, name in enumerate(data.row_ids.tolist())}
    image = [place.get(name, i) if name else i for i, name in enumerate(data.view_of.tolist())]
    return np.asarray(data.splits)[image]


def named(data: Any) -> dict[str, FeatureSet]:
    """Return name → codes; of a sequence the names are those of the sets, with their nodes where needed."""
    if isinstance(data, Mapping):
        found = {str(name): item for name, item in data.items()}
    else:
        items = list(data) if isinstance(data, (list, tuple)) else [data]
        names = [name_of(item) for item in items]
        nodes = {name: len({item.node for item, n in zip(items, names, strict=True) if n == name}) for name in names}
        found = {}
        for item, name in zip(items, names, strict=True):
            name = f"{name}:{item.node}" if nodes[name] > 1 else name
            if any(_same(item, other) for other in found.values()):
                raise HeadError(f"{name}: expected each set of codes once, got it twice; name each node and store once")
            n = 2
            while (free := name if n == 2 else f"{name} ({n - 1})") in found:
                n += 1
            found[free] = item
    if not found:
        raise HeadError("data: expected a FeatureSet or several, got none")
    for item in found.values():
        name_of(item)
    return found


def _same(one: FeatureSet, other: FeatureSet) -> bool:
    return one is other or (
        (one.name, one.node, one.fingerprint) == (other.name, other.node, other.fingerprint)
        and one.X.shape == other.X.shape
        and np.array_equal(one.row_ids, other.row_ids)
        and np.array_equal(one.X, other.X)
    )


def sources_of(sets: dict[str, FeatureSet], logits: str | None) -> tuple[dict[str, str], list[str]]:
    """Return fingerprint → name of its logits, and the names of what is to be ranked."""
    if logits is None:
        return {}, list(sets)
    chosen = [name for name, item in sets.items() if (is_logits(item) if logits == "auto" else item.node == logits)]
    if logits != "auto" and not chosen:
        nodes = ", ".join(sorted({item.node for item in sets.values()} - {""})) or "none that has a name"
        raise HeadError(f"logits: no codes of the node {logits!r}; there are {nodes}")
    # Codes without a spec have no fingerprint: whose outputs they are is not known, and another network's say nothing.
    sources = {sets[name].fingerprint: name for name in chosen if sets[name].fingerprint}
    others = {item.fingerprint for name, item in sets.items() if name not in chosen}
    # The outputs are codes, too: a network of which there is nothing else is ranked by them.
    return sources, [name for name, item in sets.items() if name not in chosen or item.fingerprint not in others]


def matrix_of(rows: Rows, shared: Shared, name: str) -> np.ndarray:
    """Return the codes of the shared rows."""
    return as_matrix(rows.X[_at(rows, shared.ids)], name)


def shared_by(rows: dict[str, Rows], metric: str, max_rows: int, seed: int) -> Shared:
    """Return what all sets share; rows that one of them calls test are in none."""
    first = next(iter(rows))
    ids, notes = np.sort(rows[first].ids), []
    for name, each in rows.items():
        ids = np.intersect1d(ids, each.ids)
        if not len(ids):
            raise HeadError(f"{name}: no training image in common with {first}; rank codes of the same images")
    most = max(len(each.ids) for each in rows.values())
    if len(ids) < most:
        notes.append(f"{len(ids)} images that all sets have, of {most}")
    y = _labels(rows, ids)
    if len(np.unique(y)) < 2:
        raise HeadError(f"{first}: expected two classes or more among the training rows, got one")
    groups = _groups(rows, ids)
    if len(ids) > max_rows:
        chosen = holdout(y, test_size=max_rows / len(ids), ids=ids, seed=seed)[1]
        notes.append(f"{len(chosen)} of {len(ids)} images drawn, class by class (max_rows)")
        ids, y, groups = ids[chosen], y[chosen], None if groups is None else groups[chosen]
    codes = np.unique(y, return_inverse=True)[1]
    if groups is not None:
        groups = np.unique(groups, return_inverse=True)[1]
        notes.append(f"{len(np.unique(groups))} groups, each left out as a whole")
    asked = answerable(codes, groups)
    if not asked.all():
        unit = "row" if groups is None else "group"
        notes.append(f"{int((~asked).sum())} rows not asked: the only {unit} of their class")
    if len(np.unique(codes[asked])) < 2:
        raise HeadError(f"{first}: expected two classes of two rows (or groups) or more; label more images")
    balanced = metric == "balanced_accuracy"
    share = 1.0 / np.bincount(codes[asked], minlength=int(codes.max()) + 1).clip(1)[codes]
    weight = asked * (share if balanced else 1.0)
    return Shared(ids, codes, groups, asked, weight / weight.sum(), balanced, tuple(notes))


def _at(rows: Rows, ids: np.ndarray) -> np.ndarray:
    """Row numbers of some ids."""
    order = np.argsort(rows.ids, kind="stable")
    return order[np.searchsorted(rows.ids[order], ids)]


def _labels(rows: dict[str, Rows], ids: np.ndarray) -> np.ndarray:
    first = next(iter(rows))
    y = rows[first].y[_at(rows[first], ids)]
    for name, each in rows.items():
        if (wrong := int((each.y[_at(each, ids)] != y).sum())) > 0:
            raise HeadError(f"{name}: {wrong} of {len(ids)} images have another label than in {first}; name one column")
    return y


def _groups(rows: dict[str, Rows], ids: np.ndarray) -> np.ndarray | None:
    """Groups that any set has: bursts of one image hold for all of its codes. Two that differ are refused."""
    found: tuple[str, np.ndarray] | None = None
    for name, each in rows.items():
        if each.groups is None:
            continue
        # By their first row, so that names do not matter.
        _, first, inverse = np.unique(each.groups[_at(each, ids)], return_index=True, return_inverse=True)
        groups = first[inverse]
        if found is None:
            found = name, groups
        elif not np.array_equal(groups, found[1]):
            raise HeadError(f"{name}: groups other than in {found[0]}; name one column (--group), or leave groups out")
    return None if found is None or len(np.unique(found[1])) == len(ids) else found[1]
