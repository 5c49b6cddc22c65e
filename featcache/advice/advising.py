"""advise(): the four classic scenarios of transfer learning, as measurements."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from ..errors import HeadError
from ..features import FeatureSet
from ..heads.labelled import Rows, name_of
from ..ranking.shared import is_logits
from ..splits import whole_number
from .command import Command
from .deciding import SETTINGS, Found, choose, options_of, scenario_of
from .explaining import notes_of, reasons_of
from .finding import Advice
from .measuring import learning_curve, profile_of, source_of, training_part

__all__ = ["advise", "advised"]


def advise(
    data: FeatureSet | Mapping[str, FeatureSet] | Sequence[FeatureSet],
    *,
    logits: str | None = "auto",
    seeds: int = 5,
    images_per_second: float | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> Advice:
    """Recommend what to train, from measurements on cached codes: a head, the last blocks, all, or from scratch.

    Measured are where along the network a head is best (left-out ridge and kNN at every node), how accuracy grows with
    labels, and, where the source classifier's outputs are stored, how much it makes of the images. Rows that a split
    column calls test are never looked at, labelled or not.

    Parameters
    ----------
    data : FeatureSet, mapping of name to FeatureSet, or sequence of FeatureSet
        Codes of several nodes of one network; in a sequence without a spec, from the first layer to the last. With one
        node the advice says what it could not measure.
    logits : str or None, default="auto"
        Node that holds the source classifier's outputs; as in `rank`.
    seeds : int, default=5
        Draws of the learning curve.
    images_per_second : float, default=None
        What `extract` reached on your machine; turns passes over the images into seconds. None: as the store
        remembers it, if it does.
    progress : callable, default=None
        Called as progress(done, total, what) after each step.

    Returns
    -------
    Advice
        With reasons, each a measured number and a command that measures it again.

    Raises
    ------
    HeadError
        No labels, no labelled training row, one class only, nodes of different networks or images, numbers out
        of range.

    Notes
    -----
    The scenario: labels are "many" from 30 images in the smallest class. The domain is "dissimilar" where a head on the
    last node is worse than on an earlier one, and not by chance: late blocks are then too much of the source's task
    (J. Yosinski et al., "How transferable are features in deep neural networks?", NeurIPS 2014); or where the source's
    classes carry less than a quarter of the labels' information.

    A head alone where it misses about 2 points or less, or labels are few; of dissimilar images the last blocks from
    10 images per class on, where the usual advice is a head on an earlier node. Many and dissimilar: all. Many
    otherwise: the last blocks. From scratch only with 10,000 images and more, of which codes say next to nothing.

    The thresholds are rules of thumb. They were set on the cases of benchmarks/evidence/advising.py, two budgets of
    each of three small sets with one small network (one to three cases per scenario); that the advice holds there is no
    independent test of it. Last blocks were always cut at one depth there, whatever node the advice names.

    Each training of the network should begin with the trained head (A. Kumar et al., "Fine-tuning can distort
    pretrained features and underperform out-of-distribution", ICLR 2022).

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> X, y = load_digits(return_X_y=True)
    >>> advice = advise({"early": FeatureSet(X[:200, :24], y[:200]), "late": FeatureSet(X[:200], y[:200])}, seeds=2)
    >>> advice.recommendation, advice.node, advice.scenario["labels"]
    ('head', 'late', 'few')
    """
    return advised(data, None, logits=logits, seeds=seeds, images_per_second=images_per_second, progress=progress)


def advised(
    data: FeatureSet | Mapping[str, FeatureSet] | Sequence[FeatureSet],
    command: Command | None,
    *,
    logits: str | None,
    seeds: int,
    images_per_second: float | None,
    progress: Callable[[int, int, str], None] | None,
) -> Advice:
    """Do what `advise` does; `command` is what the command line was given."""
    if not whole_number(seeds, 1):
        raise HeadError(f"seeds: expected a whole number of 1 or more, got {seeds!r}")
    if images_per_second is not None and not 0 < float(images_per_second) < np.inf:
        raise HeadError(f"images_per_second: expected a number above 0, got {images_per_second!r}")
    nodes, source = _nodes(data, logits)
    steps = _Steps(progress, len(nodes))
    found_parts = {name: training_part(item) for name, item in nodes.items()}
    parts = {name: part for name, (part, _) in found_parts.items()}
    profile = profile_of(parts, steps)
    notes = dict.fromkeys(note for _, some in found_parts.values() for note in some)
    profile = replace(profile, notes=(*notes, *profile.notes))
    names = list(parts)
    best = parts[names[profile.best]]
    counts = np.unique(best.y if best.y is not None else np.empty(0), return_counts=True)[1]
    curve = learning_curve(best, seeds=seeds)
    made = None if source is None else source_of(training_part(source)[0])
    if images_per_second is None and best.extract_seconds:
        images_per_second = round(1.0 / best.extract_seconds, 1)
    if command is None:
        command = Command(best.name or "STORE", has_nodes=best.spec is not None)
    whole = len(best) == Rows.of(nodes[names[profile.best]], on_disk=True).plain().X.shape[0]
    found = Found(profile, curve, made, len(best), int(counts.min()))
    options = options_of(found, images_per_second)
    chosen = options[choose(found)]
    return Advice(
        chosen.recommendation,
        chosen.node,
        chosen.k,
        scenario_of(found),
        tuple(reasons_of(found, best.node, command, seeds=seeds, whole=whole)),
        chosen.gain,
        chosen.cost,
        tuple(asdict(each) for each in options.values()),
        profile.rows,
        curve.rows,
        curve.doubling,
        made,
        tuple(notes_of(found)),
        {"logits": logits, "seeds": seeds, "images_per_second": images_per_second, **SETTINGS},
    )


class _Steps:
    """Counts steps for a progress callback."""

    def __init__(self, progress: Callable[[int, int, str], None] | None, total: int) -> None:
        self._progress, self._total, self._done = progress, total, 0

    def __call__(self, what: str) -> None:
        self._done += 1
        if self._progress is not None:
            self._progress(self._done, self._total, what)


def _nodes(data: Any, logits: str | None) -> tuple[dict[str, FeatureSet], FeatureSet | None]:
    """Return name → codes in the network's order, and the source's outputs."""
    named = list(data.items()) if isinstance(data, Mapping) else None
    items = [item for _, item in named] if named else list(data) if isinstance(data, (list, tuple)) else [data]
    for item in items:
        name_of(item)
    if not items:
        raise HeadError("data: expected a FeatureSet or several, got none")
    if len(prints := {item.fingerprint for item in items}) > 1:
        raise HeadError(f"data: expected nodes of one network, got {len(prints)}; rank compares networks")
    labels = [str(name) for name, _ in named] if named else [i.node or f"node {n}" for n, i in enumerate(items, 1)]
    if len(set(labels)) < len(labels):
        raise HeadError("data: expected each node once; advise takes the nodes of one network")
    is_source = [is_logits(item) if logits == "auto" else logits is not None and item.node == logits for item in items]
    if logits not in (None, "auto") and not any(is_source):
        raise HeadError(f"logits: no codes of the node {logits!r}; there are {', '.join(labels)}")
    source = next((item for item, yes in zip(items, is_source, strict=True) if yes), None)
    kept = [i for i, yes in enumerate(is_source) if not yes] or list(range(len(items)))
    order = ((items[0].spec or {}).get("backbone") or {}).get("nodes") or []
    if all(items[i].node in order for i in kept):
        kept.sort(key=lambda i: order.index(items[i].node))
    return {labels[i]: items[i] for i in kept}, source
