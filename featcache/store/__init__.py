"""FeatureStore: a folder of immutable HDF5 shards (codes by content key) and snapshots (which image has which key).

The format is described in docs/file-format.md; the rooms, from the outside inwards, in ARCHITECTURE.md ("How a store
lives"). h5py and NumPy only: no torch, no scikit-learn.
"""

from .check import CheckReport
from .entries import CONSTANT, FAILED, NO_KEY, OK, Entries
from .feature_store import FeatureStore
from .snapshot import Snapshot
from .training import CodesDataset
from .views import check_view_name, parse_state

__all__ = [
    "CONSTANT",
    "FAILED",
    "NO_KEY",
    "OK",
    "CheckReport",
    "CodesDataset",
    "Entries",
    "FeatureStore",
    "Snapshot",
    "check_view_name",
    "parse_state",
]
