"""FeatureStore: a folder of immutable HDF5 shards (codes by content key) and snapshots (which image has which key).

The format is described in ARCHITECTURE.md. Rooms: `feature_store` (the public face), `header` (store.json), `container`
(one file), `entries` (the table of a view), `snapshot` (states and commits), `loading` (rows gathered from shards),
`index` (private caches), `check` (integrity). h5py and NumPy only: no torch, no scikit-learn.
"""

from .check import CheckReport
from .entries import CONSTANT, FAILED, NO_KEY, OK, Entries
from .feature_store import FeatureStore
from .snapshot import Snapshot, check_view_name

__all__ = [
    "CONSTANT",
    "FAILED",
    "NO_KEY",
    "OK",
    "CheckReport",
    "Entries",
    "FeatureStore",
    "Snapshot",
    "check_view_name",
]
