"""`audit`: all questions about a data set in turn."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from ..errors import HeadError
from ..features import FeatureSet
from ..heads.labelled import as_matrix, name_of
from ..progress import Progress, progress_for
from ..splits import has_named_splits, named_splits, whole_number
from .findings import KINDS, Audit
from .near import Pairs, exact_copies, near_copies, whitened
from .pixels import thumbnails
from .strangers import blank_codes, blank_images, far_off
from .suspects import Suspects, doubted

__all__ = ["audit"]


def audit(
    data: FeatureSet,
    *,
    images: Any = None,
    false_share: float = 0.05,
    folds: int = 5,
    seed: int = 0,
    workers: int = 4,
    progress: bool | str | Progress | None = "auto",
) -> Audit:
    """Find copies, leaking groups, doubtful labels, outliers and blank images.

    Parameters
    ----------
    data : FeatureSet
        Codes, and labels, groups and named splits where there are; augmented views are left out.
    images : folder, list, ImageSource, images or callable, default=None
        The images of these codes: what `ImageSource.open` takes, with the same ids, or a function from id to an image.
        With them candidates are compared pixel by pixel, and copies are also searched by their looks: small, blurred
        and mirrored ones are then found that codes alone miss.
    false_share : float, default=0.05
        Accepted share of false ones among near duplicates and among outliers.
    folds : int, default=5
        Folds of the heads that doubt labels.
    seed : int, default=0
        Of these folds.
    workers : int, default=4
        Threads that decode images.
    progress : {"auto", True, False, None} or Progress, default="auto"
        A bar on standard error.

    Returns
    -------
    Audit
        Findings and statements; `groups` with which splits keep copies together; ids to `leave_out`.

    Raises
    ------
    HeadError
        No images, codes that are no finite matrix, a share or number out of range.
    SourceError
        `images` that know none of the ids.

    Notes
    -----
    No threshold is a fixed distance. Near duplicates: how much nearer two rows are to each other than to their
    surroundings, against the tail of that measure over the whole set, and the same for pixels. Outliers: the distance
    from the 5th neighbour, against its tail. Labels: held-out probabilities of two heads over all labelled rows, as in
    confident learning (Northcutt, Jiang and Chuang, JAIR 2021), with the share of wrong labels by greatest likelihood;
    copies are held out together. The score of a label is no measured chance; none is reported where the labels are
    explained as well by classes that overlap, or where heads cannot tell the classes.

    Examples
    --------
    >>> X = np.random.default_rng(0).normal(size=(60, 8)).astype("float32")
    >>> X[50] = X[3]
    >>> data = FeatureSet(X, splits=["train"] * 40 + ["test"] * 20)
    >>> found = audit(data)
    >>> found.rows[0]["kind"], found.rows[0]["ids"], found.rows[0]["across"], found.leave_out
    ('exact duplicate', ['3', '50'], True, ('3',))
    """
    name = name_of(data)
    if not 0.0 < false_share <= 0.5:
        raise HeadError(f"false_share: expected a share above 0 and up to 0.5, got {false_share!r}; 0.05 is usual")
    if not whole_number(folds, 2) or not whole_number(workers, 1) or not whole_number(seed, 0):
        raise HeadError(
            f"audit: expected folds of 2 or more, workers of 1 or more and seed of 0 or more, got {folds!r}, "
            f"{workers!r} and {seed!r}"
        )
    plain = np.arange(len(data)) if data.view_of is None else np.flatnonzero(data.view_of == "")
    if not len(plain):
        raise HeadError(f"{name}: expected images, got none; audit the set that has the plain rows")
    notes = [] if len(plain) == len(data) else [f"{len(data) - len(plain)} augmented views left out"]
    order = plain[np.argsort(data.row_ids[plain], kind="stable")]
    data = data if np.array_equal(order, np.arange(len(data))) else data.select(order)
    data = replace(data, X=as_matrix(data.X, name), view_of=None)
    thumbs, there = _seen(data, images, workers, progress, notes)
    return _Questions(data, thumbs, there, false_share, notes).answered(folds, seed)


def _seen(
    data: FeatureSet, images: Any, workers: int, progress: Any, notes: list[str]
) -> tuple[np.ndarray | None, np.ndarray]:
    """Thumbnails of all rows and which could be read; None without images."""
    if images is None:
        notes.append("no images given: copies are judged by codes alone; with images= more are found, and surer")
        return None, np.zeros(len(data), dtype=bool)
    with progress_for(progress) as bar:
        bar.start("looking at images", len(data))
        thumbs, there = thumbnails(images, data.row_ids, workers=workers, step=lambda _: bar.advance(1))
    if missing := int((~there).sum()):
        notes.append(f"{missing} of {len(data)} images could not be read: judged by their codes")
    return thumbs, there


@dataclass(frozen=True)
class _Questions:
    """One audit, on images in the order of their ids."""

    data: FeatureSet
    thumbs: np.ndarray | None
    there: np.ndarray
    false_share: float
    notes: list[str]

    def answered(self, folds: int, seed: int) -> Audit:
        X, n = self.data.X, len(self.data)
        blank = blank_codes(X)
        if self.thumbs is not None:
            blank |= self.there & blank_images(self.thumbs)
        shown = np.flatnonzero(~blank)
        equal = [shown[rows] for rows in exact_copies(X[shown])]
        near = self._near(np.setdiff1d(shown, [row for rows in equal for row in rows[1:].tolist()]))
        copies = _joined(n, [*equal, *near.rows])
        whole = _joined(n, [*equal, *near.rows, *self._own_groups()])
        groups = None if len(np.unique(whole)) == n else whole
        strange, distance, ordinary = far_off(X[shown], false_share=self.false_share)
        suspects = self._doubted(shown, groups, folds, seed)
        rows = [
            *(self._copy("exact duplicate", each, 1.0) for each in equal),
            *(self._copy("near duplicate", *each) for each in zip(near.rows, near.score.tolist(), strict=True)),
            *self._straddling(copies),
            *self._labels(suspects),
            *(self._row("outlier", [i], d / 2, _ALONE) for i, d in zip(shown[strange], distance, strict=True)),
            *(self._row("constant", [i], 1.0, "one flat colour: it shows nothing") for i in np.flatnonzero(blank)),
        ]
        rows.sort(key=lambda row: (KINDS.index(row["kind"]), not row["across"], -row["score"], row["ids"]))
        expected = {
            "near duplicate": len(near) - near.false,
            "label suspect": suspects.expected,
            "outlier": len(strange) - ordinary,
        }
        return Audit(
            tuple(rows),
            tuple(self.data.row_ids.tolist()),
            self._named(whole),
            self._leave_out(copies, blank),
            {kind: round(float(count), 1) for kind, count in expected.items() if any(r["kind"] == kind for r in rows)},
            (*self.notes, *suspects.notes),
            {
                "images": int(self.there.sum()),
                "false_share": self.false_share,
                "folds": folds,
                "seed": seed,
            },
            self.data.name,
            self._examined(len(shown) - sum(len(each) - 1 for each in equal), len(shown), suspects.examined),
        )

    def _examined(self, different: int, shown: int, labels: bool) -> tuple[str, ...]:
        """Kinds that could have been found."""
        asked = {
            "exact duplicate": shown > 1,
            "near duplicate": different >= 20,
            "group straddles": shown > 1 and len({part for part in self.parts.tolist() if part}) > 1,
            "label suspect": labels,
            "outlier": shown >= 20,
            "constant": True,
        }
        return tuple(kind for kind in KINDS if asked[kind])

    @cached_property
    def parts(self) -> np.ndarray:
        """Say of each row "train", "val" or "test", "" where the split column says nothing."""
        out = np.full(len(self.data), "", dtype="<U5")
        if has_named_splits(self.data.splits):
            for part, rows in named_splits(self.data.splits).items():
                out[rows] = part
        return out

    def _near(self, single: np.ndarray) -> Pairs:
        if len(single) < 20:
            self.notes.append("fewer than 20 different images: near duplicates and outliers were not searched")
            return Pairs(np.zeros((0, 2), dtype=np.intp), np.zeros(0))
        seen = self.thumbs is not None and bool(self.there[single].all())
        thumbs = self.thumbs[single] if seen and self.thumbs is not None else None
        if self.thumbs is not None and thumbs is None:  # pixels and codes are not comparable: two searches
            return self._in_two(single)
        return _at(near_copies(whitened(self.data.X[single]), thumbs, false_share=self.false_share), single)

    def _in_two(self, single: np.ndarray) -> Pairs:
        """By codes among all; by pixels among those that could be read."""
        assert self.thumbs is not None
        read = single[self.there[single]]
        found = [_at(near_copies(whitened(self.data.X[single]), false_share=self.false_share), single)]
        found[0] = _of_which(found[0], ~self.there[found[0].rows].all(axis=1))
        if len(read) >= 20:
            seen = near_copies(whitened(self.data.X[read]), self.thumbs[read], false_share=self.false_share)
            found.append(_at(seen, read))
        return Pairs(
            np.concatenate([p.rows for p in found]),
            np.concatenate([p.score for p in found]),
            sum(p.false for p in found),
        )

    def _own_groups(self) -> list[np.ndarray]:
        if self.data.groups is None:
            return []
        _, group = np.unique(self.data.groups, return_inverse=True)
        order = np.argsort(group, kind="stable")
        sets = np.split(order, np.flatnonzero(np.diff(group[order])) + 1)
        return [rows for rows in sets if len(rows) > 1 and self.data.groups[rows[0]] != ""]

    def _doubted(self, shown: np.ndarray, groups: np.ndarray | None, folds: int, seed: int) -> Suspects:
        rows = shown[self.data.labelled[shown]]
        y = np.zeros(0, dtype=np.str_) if self.data.y is None else self.data.y[rows]
        held = None if groups is None else groups[rows].astype(np.str_)
        found = doubted(self.data.X[rows], y, self.data.row_ids[rows], held, folds=folds, seed=seed)
        return replace(found, rows=rows[found.rows])

    def _labels(self, found: Suspects) -> list[dict[str, Any]]:
        out = []
        for i, score, other in zip(found.rows, found.score.tolist(), found.label.tolist(), strict=True):
            said = f"heads that never saw it say {other}"
            out.append({**self._row("label suspect", [i], score, said), "suggested": other})
        return out

    def _copy(self, kind: str, rows: np.ndarray, score: float) -> dict[str, Any]:
        row = self._row(kind, rows, score, "")
        parts = [part for part in ("train", "val", "test") if part in row["splits"]]
        row["across"] = len(parts) > 1
        row["conflict"] = len({label for label in row["labels"] if label}) > 1
        where = f"across {' and '.join(parts)}" if row["across"] else "on one side" if parts else "no split named"
        said = "labels differ" if row["conflict"] else "same label" if row["labels"][0] else "no label"
        own = None if self.data.groups is None else self.data.groups[np.asarray(rows)]
        group = "" if own is None else ", same group" if own[0] != "" and (own == own[0]).all() else ", not one group"
        return {**row, "detail": f"{where}, {said}{group}"}

    def _straddling(self, copies: np.ndarray) -> list[dict[str, Any]]:
        """Groups on two sides: the set's own and, where it has none, clusters of three or more copies."""
        given = self.data.groups is not None
        sets = self._own_groups() if given else [rows for rows in _members(copies) if len(rows) > 2]
        out = []
        for rows in sets:
            row = self._copy("group straddles", rows, 1.0)
            if row["across"]:
                name = f"group {self.data.groups[rows[0]]}" if self.data.groups is not None else "a burst of copies"
                sides = [part for part in ("train", "val", "test") if part in row["splits"]]
                counts = ", ".join(f"{row['splits'].count(part)} in {part}" for part in sides)
                out.append({**row, "conflict": False, "detail": f"{name}: {counts}"})
        return out

    def _row(self, kind: str, rows: Any, score: float, detail: str) -> dict[str, Any]:
        at = np.asarray(rows)
        labels = [""] * len(at) if self.data.y is None else self.data.y[at].tolist()
        return {
            "kind": kind,
            "ids": self.data.row_ids[at].tolist(),
            "score": round(float(score), 4),
            "labels": labels,
            "splits": self.parts[at].tolist(),
            "across": False,
            "conflict": False,
            "suggested": None,
            "detail": detail,
        }

    def _named(self, whole: np.ndarray) -> tuple[str, ...]:
        """Groups by name: the set's own where a cluster has one, else the first id; "" for rows that are alone."""
        names = np.full(len(whole), "", dtype=object)
        for rows in _members(whole):
            own = [] if self.data.groups is None else [name for name in self.data.groups[rows].tolist() if name]
            if own or len(rows) > 1:
                names[rows] = min(own) if own else f"copies of {self.data.row_ids[rows[0]]}"
        return tuple(names.tolist())

    def _leave_out(self, copies: np.ndarray, blank: np.ndarray) -> tuple[str, ...]:
        """Of copies the first stays, a test row before a validation row before a training row; blanks go."""
        rank = {"test": 0, "val": 1, "train": 2}
        gone = np.flatnonzero(blank).tolist()
        parts = self.parts
        for rows in _members(copies):
            gone += sorted(rows.tolist(), key=lambda i: (rank.get(str(parts[i]), 3), i))[1:]
        return tuple(self.data.row_ids[np.unique(np.asarray(gone, dtype=np.intp))].tolist())


_ALONE = "far from all other images; its score is half the distance from its 5th neighbour"


def _at(found: Pairs, rows: np.ndarray) -> Pairs:
    """Pairs among some rows, by their numbers among all."""
    return replace(found, rows=rows[found.rows])


def _of_which(found: Pairs, kept: np.ndarray) -> Pairs:
    return Pairs(found.rows[kept], found.score[kept], found.false * float(kept.mean()) if len(kept) else 0.0)


def _joined(n: int, sets: list[np.ndarray]) -> np.ndarray:
    """Number of the cluster of each of n rows, when the rows of each set belong together."""
    if not sets:
        return np.arange(n)
    first = np.concatenate([rows[:-1] for rows in sets])
    second = np.concatenate([rows[1:] for rows in sets])
    return connected_components(coo_array((np.ones(len(first)), (first, second)), shape=(n, n)), directed=False)[1]


def _members(cluster: np.ndarray) -> list[np.ndarray]:
    """The rows of each cluster, ascending."""
    order = np.argsort(cluster, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(cluster[order])) + 1)
