"""What a run knows of its images and keys, and how ids and keys are looked up many at a time."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from ..store import FeatureStore

__all__ = ["NO_KEYS", "KnownKeys", "Tally", "among"]

NO_KEYS = np.zeros((0, 32), dtype="u1")


@dataclass
class Tally:
    """What a run has learnt so far about each image and key."""

    keys: np.ndarray
    readable: np.ndarray
    errors: dict[int, str] = field(default_factory=dict)
    failed_keys: dict[bytes, str] = field(default_factory=dict)
    computed: int = 0

    @classmethod
    def for_images(cls, n: int) -> Tally:
        """Nothing known about n images."""
        return cls(np.zeros((n, 32), dtype="u1"), np.zeros(n, dtype=bool))

    def note_key(self, index: int, key: bytes) -> None:
        """Remember the key of an image (called from the reading threads, each index once)."""
        self.keys[index] = np.frombuffer(key, "u1")
        self.readable[index] = True


class KnownKeys:
    """Keys that are in a store for certain, asked for at once: one look-up in the store costs as much as a small file.

    Parameters
    ----------
    store : FeatureStore
        The store.
    keys : ndarray of uint8 of shape (n, 32)
        Keys that are probably in it.
    """

    def __init__(self, store: FeatureStore, keys: np.ndarray) -> None:
        kept = np.ascontiguousarray(keys[store.has(keys)])
        prefixes = kept[:, :8].copy().view("<u8").ravel()
        order = np.argsort(prefixes)
        self._prefixes, self._keys = prefixes[order], kept[order]

    def __contains__(self, key: bytes) -> bool:
        prefix = np.frombuffer(key, "<u8", 1)[0]
        place = int(np.searchsorted(self._prefixes, prefix))
        while place < len(self._prefixes) and self._prefixes[place] == prefix:
            if self._keys[place].tobytes() == key:
                return True
            place += 1
        return False


def among(ids: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Tell which of some ids are among others, both sorted: nearly always all of them, so that is looked at first."""
    if np.array_equal(ids, known):
        return np.ones(len(ids), dtype=bool)
    if not len(known):
        return np.zeros(len(ids), dtype=bool)
    return known[np.minimum(np.searchsorted(known, ids), len(known) - 1)] == ids
