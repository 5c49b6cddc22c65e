"""FeatureStore: a folder of immutable HDF5 shards (codes by content key) and snapshots (which image has which key).

The format is described in docs/file-format.md. Rooms, from the outside inwards: `feature_store` (the public face);
`check`, `keeping` (retire, gc), `trash`, `pins`, `compacting`, `describe`; `snapshot` (states and commits), `entries`
and `texts` (the table of a view); `shards` (all rows as one set), `index`, `digests` and `private` (disposable caches),
`training`, `access` and `streaming` (a view as a data set and as an array), `blocks` (shuffling), `loading` (rows
gathered); `container` (reading one file), `writing` (making one), `header` (store.json). h5py and NumPy
only: no torch, no scikit-learn.
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
