"""Do the draws of a comparison test images of which training has a copy?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..heads.labelled import Rows
from ..hygiene import leaks, near_pairs
from .draws import Draw

__all__ = ["note_of_leaks"]

#: Near copies are looked for among so many images: the search takes seconds for them, and grows with their square.
_MOST = 10_000


def note_of_leaks(name: str, rows: Rows, draws: Sequence[Draw]) -> str | None:
    """Return a warning where test images have a copy, or nearly one, among the training images of the same draw.

    From codes alone: it finds what is nearly the same to the backbone. Silence is no proof; `audit` with the images
    sees more.

    Parameters
    ----------
    name : str
        What the set is called.
    rows : Rows
        Labelled rows; views of an image are no copies of it.
    draws : sequence of Draw
        Of these rows.
    """
    images = rows.standing(np.arange(len(rows.y)))
    if len(images) > _MOST:
        return None
    place = np.full(len(rows.y), -1)
    place[images] = np.arange(len(images))
    X, ids = np.asarray(rows.X[images]), rows.ids[images]
    pairs = near_pairs(X, ids=ids)
    if not len(pairs):
        return None
    found: dict[int, int] = {}
    for draw in draws:
        both = leaks(X, place[draw.train], place[draw.test], pairs=pairs)
        found.update({int(test): int(train) for train, test in both.rows})
    if not found:
        return None
    test = min(found, key=lambda row: str(ids[row]))
    some = "1 test image has" if len(found) == 1 else f"{len(found)} test images have"
    return (
        f"{name}: {some} a copy, or nearly one, among training images, such as {str(ids[test])!r} of "
        f"{str(ids[found[test]])!r}: scores may be too good; see `featcache audit`, and give copies one group"
    )
