"""The report in the making: each step once, and only when a section needs it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from .. import evaluation, hygiene
from ..advice import Advice, advise
from ..errors import FeatcacheError, HeadError, SplitError
from ..features import FeatureSet
from ..heads.labelled import as_matrix
from ..progress import Progress
from ..ranking import Ranking, rank
from ..reporting.document import Section, Text
from ..reporting.escaping import short
from ..reporting.result import Result
from ..sources import ImageSource
from . import advised, calibration, confusion, describing, findings, headline, neighbours, projection, protocol, ranked
from .contest import comparison_section, curves_section, most_shots, shots_for
from .held import HeldOut, held_out
from .subjects import plain_images, sampled

__all__ = ["SECTIONS", "Made", "Plan"]

#: Keys of the sections, in the order of the page.
SECTIONS = (
    "summary",
    "data",
    "rank",
    "comparison",
    "curves",
    "advice",
    "errors",
    "calibration",
    "map",
    "neighbours",
    "findings",
    "protocol",
)


def _check_codes(name: str, data: FeatureSet) -> None:
    """Raise HeadError for codes that nothing can be computed on, block by block."""
    if not len(data):
        raise HeadError(f"{name}: expected images, got none; extract some first")
    for start in range(0, len(data), 4096):
        block = np.asarray(data.X[start : start + 4096])
        as_matrix(block.reshape(len(block), -1), name)


@dataclass(frozen=True)
class Plan:
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
        """Tell whether one of these sections was asked for, or the summary, which needs them all."""
        return any(name in self.sections for name in (*names, "summary"))


@dataclass
class Made:
    """The report in the making: each step once, and only when a section needs it."""

    plan: Plan
    given: Mapping[str, FeatureSet]
    layers: Sequence[FeatureSet]
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
            _check_codes(name, item)
        self.labelled = all(len(item.classes) > 1 for item in self.sets.values())
        self._compare()
        if self.result is not None and not most_shots(self.result):
            self.result = None  # a metric that none of the heads can give
        self.name = next(iter(self.sets)) if self.result is None else headline.best_row(self.result)["dataset"]
        if self.name not in self.sets:  # a result of other data, or of the same under another name
            self.name = next(iter(self.sets))
        self.data = plain_images(self.sets[self.name])
        self.held = self._held()
        self.rows = self._findings()
        self.forecasts = self._forecasts()
        self.nodes = self._nodes()
        self.ranking, self.advice = self._rank(), self._advise()
        wrong = [] if self.held is None else self.held.ids[~self.held.right].tolist()
        self.wrong = frozenset(map(str, wrong))

    def _nodes(self) -> dict[str, FeatureSet]:
        """Return all codes that are ranked, by name: those of the page, and the further layers."""
        further = [sampled(item, self.plan.max_rows, seed=self.plan.seed) for item in self.layers]
        prints = {item.fingerprint for item in further}
        named = {f"{n}:{i.node}" if i.fingerprint in prints else n: i for n, i in self.sets.items()}
        names = {item.fingerprint: name for name, item in self.sets.items()}
        for item in further:
            base = names.get(item.fingerprint) or item.name.removesuffix(".features")
            named.setdefault(f"{base}:{item.node}", item)
        return named

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

        try:
            self.result = evaluation.compare(
                self.sets, plan.heads, shots=shots, seeds=plan.seeds, metric=plan.metric, progress=step
            )
        except SplitError as error:  # a row per class, one group: the rest of the page can still be had
            self.notes.append(f"heads could not be compared: {error}")

    def _held(self) -> HeldOut | None:
        if not self.labelled or not self.plan.needs("errors", "calibration", "findings"):
            return None
        self.bar.start("holding out", None)
        head = self.plan.heads[0]
        if self.result is not None:
            best = headline.best_row(self.result)["head"]
            head = next((h for h in self.plan.heads if h == best or type(h).__name__ == best), best)
        try:
            return held_out(self.sets[self.name], head)
        except SplitError as error:
            self.notes.append(f"no image could be held out: {error}")
            return None

    def _findings(self) -> list[Mapping[str, Any]] | None:
        if not self.plan.needs("findings"):
            return None
        self.bar.start("looking for copies", None)
        if self.found is None:
            try:
                self.found = hygiene.audit(self.data, images=self.source, seed=self.plan.seed, progress=False)
            except FeatcacheError as error:  # codes that are no matrix, images of other ids
                self.notes.append(f"not audited: {error}")
                return None
        return [dict(row) for row in getattr(self.found, "rows", self.found)]

    def _rank(self) -> Ranking | None:
        """All codes at hand ranked, where there are two or more of the same images."""
        if "rank" not in self.plan.sections or not self.labelled or len(self.nodes) < 2:
            return None
        self.bar.start("ranking", None)
        try:
            return rank(self.nodes, seed=self.plan.seed)
        except FeatcacheError as error:  # other images, other labels
            self.notes.append(f"codes could not be ranked: {error}")
            return None

    def _advise(self) -> Advice | None:
        """What to train, by the nodes of the network that the page is about."""
        if "advice" not in self.plan.sections or not self.labelled:
            return None
        self.bar.start("measuring what to train", None)
        own = self.sets[self.name]
        nodes = {own.node: own}
        if own.fingerprint:  # without one nobody knows what belongs to one network
            nodes |= {item.node: item for item in self.nodes.values() if item.fingerprint == own.fingerprint}
        try:
            return advise(list(nodes.values()), seeds=self.plan.seeds)
        except FeatcacheError as error:
            self.notes.append(f"no advice on what to train: {error}")
            return None

    def _forecasts(self) -> list[Any]:
        """Curves carried on, where there are three points or more."""
        if self.result is None:
            return []
        try:
            return list(evaluation.forecast(self.result))
        except HeadError:
            return []

    def sections(self, more: list[Section]) -> list[Section]:
        """Return the sections in the order of the page; further ones before the protocol."""
        makers: dict[str, Callable[[], Section | None]] = {
            "summary": self._summary,
            "data": lambda: describing.section(self.data, seed=self.plan.seed, pictures=self.source is not None),
            "rank": lambda: None if self.ranking is None else ranked.section(self.ranking, self.nodes),
            "comparison": lambda: None if self.result is None else comparison_section(self.result),
            "curves": lambda: None if self.result is None else curves_section(self.result, self.forecasts),
            "advice": lambda: None if self.advice is None else advised.section(self.advice),
            "errors": lambda: None if self.held is None else confusion.section(self.held),
            "calibration": lambda: None if self.held is None else calibration.section(self.held),
            "map": self._map,
            "neighbours": lambda: (
                neighbours.section(self.data, seed=self.plan.seed, wrong=self.wrong) if len(self.data) > 1 else None
            ),
            "findings": lambda: (
                None if self.rows is None else findings.section(self.rows, self.data, findings.sentences(self.found))
            ),
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
        known = headline.Known(
            self.data, self.result, self.held, self.rows, self.forecasts, self.advice, self.source is not None
        )
        made = headline.section(known)
        notes = list(self.notes)
        if self.source is None:
            notes.append("No pictures: a store keeps codes, not images. Give them with --images (images=).")
        return replace(made, blocks=(*made.blocks, *(Text(note, note=True) for note in notes)))

    def _map(self) -> Section:
        return projection.section(self.data, self.plan.projection, seed=self.plan.seed, wrong=self.wrong)

    def subtitle(self) -> str:
        """Return how many images and classes, and which codes."""
        classes = len(self.data.classes)
        backbone = (self.data.spec or {}).get("backbone", {}).get("arch") or "codes"
        codes = f"{len(self.sets)} sets of codes compared" if len(self.sets) > 1 else f"{backbone}, {self.data.node}"
        return f"{len(self.data):,} images, {classes} classes; {codes}".strip(", ")

    def settings(self) -> dict[str, Any]:
        """Return the protocol of the comparison and of the rest of the page."""
        plan = self.plan
        own = {"images per set": {name: len(item) for name, item in self.sets.items()}, "seed": plan.seed}
        own |= {"the page is about": self.name} if len(self.sets) > 1 else {}
        if self.held is not None:
            own |= {"errors and calibration": f"{self.held.head}: {self.held.how}"}
        return {**({} if self.result is None else self.result.settings), **own}

    def about(self) -> dict[str, Any]:
        """Return protocol, versions and notes for machines."""
        return {"settings": self.settings(), "versions": protocol.versions(), "notes": self.notes}
