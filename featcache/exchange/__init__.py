"""Out and in: features as one plain file that any program reads, and plain files from anywhere as a FeatureSet.

`export` writes HDF5, npz or parquet; `read_features` reads these, and .npy, whoever made them. What `export` wrote
comes back whole: codes to the last bit, labels, ids, groups, splits, columns and provenance.
"""

from .reading import is_plain_file, read_features
from .writing import export

__all__ = ["export", "is_plain_file", "read_features"]
