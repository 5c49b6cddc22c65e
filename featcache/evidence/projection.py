"""Codes as points of a plane: PCA, t-SNE, or UMAP where it is installed."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..errors import HeadError
from ..features import FeatureSet
from ..reporting.document import Cloud, Picture, Section, Text
from ..reporting.escaping import short
from .subjects import chosen_rows

__all__ = ["METHODS", "project", "section"]

METHODS = ("auto", "tsne", "pca", "umap")
#: Colours and shapes tell so many classes apart; the rest is one more.
_CLASSES = 24
_ROWS = 1500


def project(X: np.ndarray, method: str = "auto", *, seed: int = 0) -> tuple[np.ndarray, str]:
    """Place rows in a plane.

    Parameters
    ----------
    X : ndarray of shape (n, d)
        Codes, in an order of their own (by id, say): the result depends on it.
    method : {"auto", "tsne", "pca", "umap"}, default="auto"
        "auto": t-SNE for 10 rows or more, else PCA. Both others start from the first 50 principal components. UMAP
        needs the extra ``featcache[umap]``.
    seed : int, default=0
        Of t-SNE and UMAP.

    Returns
    -------
    places : ndarray of shape (n, 2)
        In [0, 1].
    said : str
        How.

    Raises
    ------
    HeadError
        Unknown method, or one that is not installed.

    References
    ----------
    L. van der Maaten and G. Hinton, "Visualizing data using t-SNE", JMLR 9 (2008).

    Examples
    --------
    >>> places, said = project(np.eye(4), "pca")
    >>> places.shape, said
    ((4, 2), 'PCA')
    """
    if method not in METHODS:
        raise HeadError(f"projection: expected one of {', '.join(METHODS)}, got {method!r}")
    if method == "auto":
        method = "tsne" if len(X) >= 10 else "pca"
    from sklearn.decomposition import PCA
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    X = np.asarray(X, dtype=np.float64).reshape(len(X), -1)
    X = X - X.mean(axis=0, keepdims=True) if len(X) else X
    length = np.linalg.norm(X, axis=1)
    X = X / max(float(np.median(length[length > 0])) if (length > 0).any() else 1.0, 1e-300)
    # One thread: the sums, and so the places, do not depend on how many cores there are.
    with threadpool_limits(1):
        wanted = min(2 if method == "pca" else 50, *X.shape)
        main = PCA(wanted, random_state=seed).fit_transform(X) if min(X.shape) > 1 and X.any() else X[:, :2]
        if method == "tsne" and len(X) >= 4 and X.any():
            places, said = _tsne(main, seed), "t-SNE of the first 50 principal components"
        elif method == "umap" and len(X) >= 4 and X.any():
            places, said = _umap(main, seed), "UMAP of the first 50 principal components"
        else:
            places, said = main, "PCA"
    return _in_square(np.asarray(places, dtype=np.float64)), said


def _tsne(X: np.ndarray, seed: int) -> np.ndarray:
    from sklearn.manifold import TSNE

    init: Any = "pca" if X.shape[1] >= 2 and float(X[:, 0].std()) > 0 else "random"
    perplexity = min(30.0, (len(X) - 1) / 3)
    return TSNE(init=init, perplexity=perplexity, random_state=seed, max_iter=500).fit_transform(X)


def _umap(X: np.ndarray, seed: int) -> np.ndarray:
    try:
        import umap  # type: ignore[import-not-found]
    except ImportError as error:
        raise HeadError(
            "projection 'umap': expected umap-learn, which is not installed; pip install 'featcache[umap]'"
        ) from error
    return umap.UMAP(n_neighbors=min(15, len(X) - 1), random_state=seed).fit_transform(X)


def _in_square(places: np.ndarray) -> np.ndarray:
    if places.shape[1] < 2:
        places = np.column_stack([places[:, :1] if places.shape[1] else np.zeros(len(places)), np.zeros(len(places))])
    low, high = places.min(axis=0), places.max(axis=0)
    return (places - low) / np.where(high > low, high - low, 1.0)


def section(data: FeatureSet, method: str = "auto", *, seed: int = 0, wrong: frozenset[str] = frozenset()) -> Section:
    """Return the section with the map of a sample of images; those in `wrong` (ids) are named as errors."""
    few = data.select(chosen_rows(data, _ROWS, seed=seed, purpose="map"))
    places, said = project(few.X, method, seed=seed)
    labels = np.full(len(few), "") if few.y is None else few.y
    names, counts = np.unique(labels, return_counts=True)
    shown = sorted(
        names[np.argsort(-counts, kind="stable")][: _CLASSES if len(names) > _CLASSES + 1 else None].tolist()
    )
    number = {name: i for i, name in enumerate(shown)}
    classes = [short(name) if name else "(no label)" for name in shown]
    if len(names) > len(shown):
        classes.append(f"{len(names) - len(shown)} other classes")
    pictures = tuple(
        Picture(i, i, (short(label, 28) or "(no label)", *(("taken for another",) if i in wrong else ())))
        for i, label in zip(few.row_ids.tolist(), labels.tolist(), strict=True)
    )
    drawn = f"{len(few)} images" + (f", drawn from {len(data)} by seed {seed}" if len(few) < len(data) else "")
    cloud = Cloud(
        tuple(places[:, 0].round(4).tolist()),
        tuple(places[:, 1].round(4).tolist()),
        tuple(classes),
        tuple(number.get(label, len(shown)) for label in labels.tolist()),
        pictures,
        f"{drawn} of {len(names)} classes, {said}",
        f"{said}: {drawn}. Point at a mark, tap it, or use the arrow keys to see the image; a class dims the rest.",
    )
    note = Text(
        "Near each other means similar codes. Distances of far groups, and the sizes of groups, say little in such "
        "a map (PCA aside); what is mixed up is measured above, not here.",
        note=True,
    )
    return Section("map", "Map of the codes", (cloud, note), {"method": said, "images": len(few), "seed": seed})
