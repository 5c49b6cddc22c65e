"""report(): all that can be said of some codes, on one page."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from .. import evaluation
from ..errors import HeadError, SplitError
from ..features import FeatureSet
from ..progress import Progress, progress_for
from ..reporting.document import Document, Section, Text
from ..reporting.escaping import short
from ..reporting.result import Result
from ..sources import ImageSource
from ..splits import whole_number
from . import calibration, confusion, describing, findings, headline, neighbours, projection, protocol
from .contest import comparison_section, curves_section, shots_for
from .held import HeldOut, held_out
from .others import sections_of
from .picturing import with_pictures
from .subjects import plain_images, sampled

__all__ = ["SECTIONS", "report"]

#: Keys of the sections, in the order of the page.
SECTIONS = (
    "summary",
    "data",
    "comparison",
    "curves",
    "errors",
    "calibration",
    "map",
    "neighbours",
    "findings",
    "protocol",
)
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
    max_rows: int = 20_000,
    max_bytes: int = 2_950_000,
    seed: int = 0,
    progress: bool | str | Progress | None = "auto",
) -> Document:
    """Write a report on cached codes: one HTML page that needs no network, or Markdown, or JSON.

    It says which head is best and which cannot be told from it, what more labels bring, what is mixed up, whether
    probabilities can be believed, which images look like copies or wrongly labelled, and shows a map of the codes and
    nearest images. Every section can be had alone.

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
        Some of summary, data, comparison, curves, errors, calibration, map, neighbours, findings, protocol; None: all.
    projection : {"auto", "tsne", "pca", "umap"}, default="auto"
        How the map is made (of 1,500 images at most); "auto" is t-SNE. UMAP needs the extra ``featcache[umap]``.
    title : str, default=None
        Headline; None: the name of the data.
    result : Result, default=None
        What `compare` found of the same data; None: it is compared here.
    found : object with rows, or sequence of mapping, default=None
        What an audit found (kind, ids, score, detail of each); None: audited here.
    more : sequence of dataclass, default=()
        Further results, such as what `rank`, `advise` and `suggest` return: a section each.
    max_rows : int, default=20_000
        Of larger sets a sample of so many images is used, drawn by seed; the page says so.
    max_bytes : int, default=2_950_000
        The page's size: as many thumbnails are shown as fit.
    seed : int, default=0
        Of all samples, folds and of the map.
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
    sets = _named(data) if result is None else evaluation.comparing._named_sets(data)
    if out is not None:
        Document.check_target(os.fspath(out))  # before the work, not after it
    if projection not in METHODS:
        raise HeadError(f"projection: expected one of {', '.join(METHODS)}, got {projection!r}")
    source = None if images is None else ImageSource.open(images)
    plan = _Plan(wanted, tuple(heads), shots, seeds, metric, projection, seed, max_rows)
    with progress_for(progress) as bar:
        made = _Made(plan, sets, source, result, found, bar)
        parts = made.sections(sections_of(more))
        document = Document(title or short(made.name, 80), made.subtitle(), tuple(parts), about=made.about())
        if source is not None:
            document = with_pictures(document, source, max_bytes, bar)
    if out is not None:
        document.write(os.fspath(out))
    return document


METHODS = projection.METHODS


def _named(data: Any) -> dict[str, FeatureSet]:
    """Sets by name; a store's folder without its ending, where that is a name of its own."""
    named = evaluation.comparing._named_sets(data)
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


@dataclass(frozen=True)
class _Plan:
    """What was asked for."""

    sections: tuple[str, ...]
    heads: tuple[Any, ...]
    shots: Sequence[int | str] | None
    seeds: int
    metric: str
    projection: str
    seed: int
    max_rows: int

    def needs(self, *names: str) -> bool:
        return any(name in self.sections for name in (*names, "summary"))


@dataclass
class _Made:
    """The report in the making: each step once, and only when a section needs it."""

    plan: _Plan
    given: Mapping[str, FeatureSet]
    source: ImageSource | None
    result: Result | None
    found: Any
    bar: Progress
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        plan = self.plan
        self.sets = {name: sampled(item, plan.max_rows, seed=plan.seed) for name, item in self.given.items()}
        for name, item in self.sets.items():
            if len(item) < len(self.given[name]):
                whole = len(plain_images(self.given[name]))
                self.notes.append(
                    f"{short(name)}: {len(plain_images(item)):,} of {whole:,} images, drawn by seed {plan.seed}"
                )
        self.labelled = all(len(item.classes) > 1 for item in self.sets.values())
        self._compare()
        self.name = next(iter(self.sets)) if self.result is None else headline.best_row(self.result)["dataset"]
        if self.name not in self.sets:  # a result of other data, or of the same under another name
            self.name = next(iter(self.sets))
        self.data = plain_images(self.sets[self.name])
        self.held = self._held()
        self.rows = self._findings()
        self.forecasts = self._forecasts()
        wrong = [] if self.held is None else self.held.ids[self.held.y != self.held.predicted].tolist()
        self.wrong = frozenset(map(str, wrong))

    def _compare(self) -> None:
        plan = self.plan
        if self.result is not None or not self.labelled or not plan.needs("comparison", "curves"):
            return
        sizes = [n for item in self.sets.values() for n in describing.class_counts(plain_images(item)).values()]
        shots = shots_for(sizes) if plan.shots is None else plan.shots
        if "curves" not in plan.sections and plan.shots is None:
            shots = ("all",)

        def step(done: int, total: int, what: str) -> None:
            if done == 1:
                self.bar.start("comparing", total)
            self.bar.advance(1, what)

        self.result = evaluation.compare(
            self.sets, plan.heads, shots=shots, seeds=plan.seeds, metric=plan.metric, progress=step
        )

    def _held(self) -> HeldOut | None:
        if not self.labelled or not self.plan.needs("errors", "calibration", "findings"):
            return None
        self.bar.start("holding out", None)
        head = self.plan.heads[0]
        if self.result is not None:
            best = headline.best_row(self.result)["head"]
            head = next((h for h in self.plan.heads if h == best or type(h).__name__ == best), best)
        try:
            return held_out(self.sets[self.name], head, seed=self.plan.seed)
        except SplitError as error:
            self.notes.append(f"no image could be held out: {error}")
            return None

    def _findings(self) -> list[Mapping[str, Any]] | None:
        if not self.plan.needs("findings"):
            return None
        self.bar.start("looking for copies", None)
        if self.found is None:
            self.found = findings.audited(self.data, self.source, self.plan.seed)
        if self.found is None:
            return list(findings.quick_look(self.data, self.held))
        return [dict(row) for row in getattr(self.found, "rows", self.found)]

    def _forecasts(self) -> list[Any]:
        """Curves carried on, where there are three points or more."""
        forecast = getattr(evaluation, "forecast", None)
        if forecast is None or self.result is None:
            return []
        try:
            return list(forecast(self.result))
        except HeadError:
            return []

    def sections(self, more: list[Section]) -> list[Section]:
        makers: dict[str, Callable[[], Section | None]] = {
            "summary": self._summary,
            "data": lambda: describing.section(self.data, seed=self.plan.seed, pictures=self.source is not None),
            "comparison": lambda: None if self.result is None else comparison_section(self.result),
            "curves": lambda: (
                None
                if self.result is None
                else curves_section(self.result, [each.statement() for each in self.forecasts])
            ),
            "errors": lambda: None if self.held is None else confusion.section(self.held),
            "calibration": lambda: None if self.held is None else calibration.section(self.held),
            "map": self._map,
            "neighbours": lambda: (
                neighbours.section(self.data, seed=self.plan.seed, wrong=self.wrong) if len(self.data) > 1 else None
            ),
            "findings": lambda: findings.section(self.rows or [], self.data, findings.sentences(self.found)),
            "protocol": lambda: protocol.section(self.given, self.settings(), tuple(self.notes)),
        }
        self.bar.start("writing", len(self.plan.sections))
        made = []
        for name in self.plan.sections:
            section = makers[name]()
            self.bar.advance(1, name)
            if name == "protocol":
                made += more
            if section is not None:
                made.append(section)
        return made if "protocol" in self.plan.sections else [*made, *more]

    def _summary(self) -> Section:
        known = headline.Known(self.data, self.result, self.held, self.rows, self.forecasts, self.source is not None)
        made = headline.section(known)
        if not self.source is not None:
            note = Text("No pictures: a store keeps codes, not images. Give them with --images (images=).", note=True)
            made = replace(made, blocks=(*made.blocks, note))
        return made

    def _map(self) -> Section:
        return projection.section(self.data, self.plan.projection, seed=self.plan.seed, wrong=self.wrong)

    def subtitle(self) -> str:
        classes = len(self.data.classes)
        backbone = (self.data.spec or {}).get("backbone", {}).get("arch") or "codes"
        codes = f"{len(self.sets)} sets of codes compared" if len(self.sets) > 1 else f"{backbone}, {self.data.node}"
        return f"{len(self.data):,} images, {classes} classes; {codes}".strip(", ")

    def settings(self) -> dict[str, Any]:
        plan = self.plan
        own = {"images per set": {name: len(item) for name, item in self.sets.items()}, "seed": plan.seed}
        own |= {"the page is about": self.name} if len(self.sets) > 1 else {}
        if self.held is not None:
            own |= {"errors and calibration": f"{self.held.head}: {self.held.how}"}
        return {**({} if self.result is None else self.result.settings), **own}

    def about(self) -> dict[str, Any]:
        return {"settings": self.settings(), "versions": protocol.versions(), "notes": self.notes}
