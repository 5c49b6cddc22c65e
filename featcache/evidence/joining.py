"""report(): all that can be said of some codes, on one page."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from .. import evaluation
from ..errors import HeadError
from ..features import FeatureSet
from ..progress import Progress, progress_for
from ..reporting.document import Document
from ..reporting.escaping import short
from ..reporting.result import Result
from ..sources import ImageSource
from ..splits import whole_number
from .making import SECTIONS, Made, Plan
from .others import sections_of
from .picturing import with_pictures
from .projection import METHODS

__all__ = ["SECTIONS", "report"]

HEADS = ("logreg", "ridge", "lda", "knn", "centroid")


def report(
    data: FeatureSet | Mapping[str, FeatureSet] | Sequence[FeatureSet],
    out: str | os.PathLike[str] | None = None,
    *,
    images: Any = None,
    heads: Sequence[Any] = HEADS,
    shots: Sequence[int | str] | None = None,
    seeds: int = 3,
    metric: str = "accuracy",
    sections: Sequence[str] | None = None,
    projection: str = "auto",
    title: str | None = None,
    result: Result | None = None,
    found: Any = None,
    more: Sequence[Any] = (),
    layers: Sequence[FeatureSet] = (),
    max_rows: int = 20_000,
    max_bytes: int = 2_950_000,
    seed: int = 0,
    progress: bool | str | Progress | None = "auto",
) -> Document:
    """Write a report on cached codes: one HTML page that needs no network, or Markdown, or JSON.

    It says which codes and which head are best and which cannot be told from them, what more labels bring, what to
    train, what is mixed up, whether probabilities can be believed, which images look like copies or wrongly labelled,
    and shows a map of the codes and nearest images. Every section can be had alone.

    Parameters
    ----------
    data : FeatureSet, mapping of name to FeatureSet, or sequence of FeatureSet
        Codes; several sets (of several backbones or nodes) are compared, and the rest of the page is about the best.
    out : path, default=None
        A file that ends in .html, .md or .json; None: nothing is written.
    images : path, list of paths, arrays or ImageSource, default=None
        Where the images are, with the ids that the codes have (what was extracted); None: a page without pictures.
    heads : sequence of str or estimator, default=("logreg", "ridge", "lda", "knn", "centroid")
        Heads to compare.
    shots : sequence of int or "all", default=None
        Training images per class of the learning curves; None: 1, 5, 20 and 80, as far as classes are large enough,
        and all.
    seeds : int, default=3
        Draws of each; more draws give narrower intervals.
    metric : str, default="accuracy"
        As for `compare`.
    sections : sequence of str, default=None
        Some of summary, data, rank, comparison, curves, advice, errors, calibration, map, neighbours, findings,
        protocol; None: all that the data allow (`rank` takes two sets of codes or more).
    projection : {"auto", "tsne", "pca", "umap"}, default="auto"
        How the map is made (of 1,500 images at most); "auto" is t-SNE. UMAP needs the extra ``featcache[umap]``.
    title : str, default=None
        Headline; None: the name of the data.
    result : Result, default=None
        What `compare` found of the same data; None: it is compared here.
    found : object with rows, or sequence of mapping, default=None
        What an audit found (kind, ids, score, detail of each); None: audited here.
    more : sequence of dataclass, default=()
        Further results, such as what `suggest` returns: a section each.
    layers : sequence of FeatureSet, default=()
        Codes of further nodes of the same images, which are ranked and advised on, and otherwise not looked at.
    max_rows : int, default=20_000
        Of larger sets a sample of so many images is used, drawn by seed; the page says so.
    max_bytes : int, default=2_950_000
        The page's size: as many thumbnails are shown as fit.
    seed : int, default=0
        Of all samples, the audit's folds and the map.
    progress : {"auto", True, False} or Progress, default="auto"
        A bar on standard error.

    Returns
    -------
    Document
        The report, with `to_html`, `to_markdown`, `to_json` and `write`.

    Raises
    ------
    HeadError
        An unknown section, head or projection, codes that heads cannot use, a file that cannot be written.
    SourceError
        When `images` is no source of images.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> X, y = load_iris(return_X_y=True)
    >>> page = report(FeatureSet(X, y, name="iris"), heads=["lda", "centroid"], sections=["summary", "errors"])
    >>> [section.title for section in page.sections]
    ['In short', 'What is mixed up']
    """
    wanted = _checked(sections, max_rows, max_bytes)
    sets = _named(data) if result is None else evaluation.named_sets(data)
    if out is not None:
        Document.check_target(os.fspath(out))  # before the work, not after it
    if projection not in METHODS:
        raise HeadError(f"projection: expected one of {', '.join(METHODS)}, got {projection!r}")
    source = None if images is None else ImageSource.open(images)
    plan = Plan(wanted, tuple(heads), shots, seeds, metric, projection, seed, max_rows)
    with progress_for(progress) as bar:
        made = Made(plan, sets, layers, source, result, found, bar)
        parts = made.sections(sections_of(more))
        document = Document(title or short(made.name, 80), made.subtitle(), tuple(parts), about=made.about())
        if source is not None:
            document = with_pictures(document, source, max_bytes, bar)
    if out is not None:
        document.write(os.fspath(out))
    return document


def _named(data: Any) -> dict[str, FeatureSet]:
    """Sets by name; a store's folder without its ending, where that is a name of its own."""
    named = evaluation.named_sets(data)
    bare = [name.removesuffix(".features") or name for name in named]
    return dict(zip(bare, named.values(), strict=True)) if len(set(bare)) == len(bare) else named


def _checked(sections: Sequence[str] | None, max_rows: int, max_bytes: int) -> tuple[str, ...]:
    for name, value, least in (("max_rows", max_rows, 4), ("max_bytes", max_bytes, 100_000)):
        if not whole_number(value, least):
            raise HeadError(f"{name}: expected a whole number of {least} or more, got {value!r}")
    wanted = SECTIONS if sections is None else [sections] if isinstance(sections, str) else list(sections)
    unknown = [name for name in wanted if name not in SECTIONS]
    if unknown or not wanted:
        raise HeadError(f"sections: expected some of {', '.join(SECTIONS)}, got {unknown or wanted}")
    return tuple(name for name in SECTIONS if name in wanted)
