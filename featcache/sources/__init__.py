"""Where images come from: `ImageSource`, an ordered set of ids with a way to read each image, and columns beside them.

``source`` holds the class, ``names`` the rules for ids, ``files`` reading and `FileStat`; then one module per kind of
source: ``folders``, ``lists`` (CSV, TSV, parquet), ``memory`` (arrays and PIL images) and ``datasets`` (torch).
"""

from .files import FileStat
from .source import ImageSource

__all__ = ["FileStat", "ImageSource"]
