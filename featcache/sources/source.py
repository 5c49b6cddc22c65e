"""`ImageSource`: ids in a fixed order, a way to read each image, and columns beside them."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..errors import SourceError
from ..images import Payload
from . import datasets, folders, lists, memory
from .columns import text_column, typed_column
from .files import FileReader, FileStat, Reader, TakenReader
from .names import id_of, missing, shown, sort_key

__all__ = ["ImageSource"]


class ImageSource:
    """An ordered set of images.

    Make one with `from_folder`, `from_list`, `from_arrays`, `from_dataset` or `from_paths`, or let `open` choose.
    Listing reads no image that has a known extension. A source can be pickled when its images can.

    Parameters
    ----------
    ids : sequence of str
        Unique, sorted by their UTF-8 bytes.
    reader : Reader
        How to get at image ``i``.
    columns : mapping of str to numpy.ndarray
        Each of length n: ``<U`` ("" for missing), int64, float64 or bool.
    roles : mapping of str to str
        Which column serves as "label", "group" and "split".
    ignored : mapping of str to int, optional
        What was passed over while listing: extension, or a word in brackets, to number.
    name, location : str, default ""
        What to call the source, and where it is.
    version : str, optional
        Stands for the pixels of a data set that was given with one.

    Attributes
    ----------
    ids, columns, roles, ignored, name, location, version
        As above; `ids` is a tuple.

    Raises
    ------
    SourceError
        When ids are repeated or out of order, or a column or role does not fit.

    Examples
    --------
    >>> source = ImageSource.from_arrays(np.zeros((2, 8, 8), np.uint8), labels=["zero", "one"])
    >>> source.ids
    ('00000000', '00000001')
    >>> source.columns[source.roles["label"]].tolist()
    ['zero', 'one']
    """

    def __init__(
        self,
        ids: Sequence[str],
        reader: Reader,
        columns: Mapping[str, np.ndarray] | None = None,
        roles: Mapping[str, str] | None = None,
        *,
        ignored: Mapping[str, int] | None = None,
        name: str = "",
        location: str = "",
        version: str | None = None,
    ) -> None:
        self.ids = tuple(ids)
        self.columns = dict(columns or {})
        self.roles = dict(roles or {})
        self.ignored = dict(ignored or {})
        self.name = name
        self.location = location
        self.version = version
        self._reader = reader
        self._check()

    def _check(self) -> None:
        keys = [sort_key(identity) for identity in self.ids]
        for i in range(1, len(keys)):
            if keys[i - 1] >= keys[i]:
                raise SourceError(
                    f"ids: expected each once and sorted by UTF-8 bytes, got {self.ids[i - 1]!r} before "
                    f"{self.ids[i]!r}; sort them"
                )
        for name, column in self.columns.items():
            if column.shape != (len(self.ids),):
                raise SourceError(f"column {name!r}: expected {len(self.ids)} entries, got shape {column.shape}")
        for role, name in self.roles.items():
            if name not in self.columns:
                raise SourceError(f"role {role!r}: expected one of the columns {list(self.columns)}, got {name!r}")

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        roles = "".join(f", {role}={name!r}" for role, name in self.roles.items())
        return f"<ImageSource {self.name!r}: {len(self)} images{roles}>"

    def read(self, i: int) -> Payload:
        """Return one image, still encoded where it was.

        Parameters
        ----------
        i : int
            Position in `ids`.

        Returns
        -------
        bytes, PIL.Image.Image or numpy.ndarray
            For `featcache.images.open_rgb` or `Preprocess.pixels`.

        Raises
        ------
        OSError
            When the file cannot be read.
        ImageError
            When what is there is no image that can be used.
        """
        return self._reader.read(i)

    def stat(self, i: int) -> FileStat | None:
        """Return the state of the file of one image, at the price of one system call.

        Parameters
        ----------
        i : int
            Position in `ids`.

        Returns
        -------
        FileStat or None
            None when the image has no file, or the file is missing.
        """
        return self._reader.stat(i)

    def stats(self, indices: Iterable[int]) -> list[FileStat | None]:
        """Return `stat` of many images.

        Parameters
        ----------
        indices : iterable of int
            Positions in `ids`.

        Returns
        -------
        list of FileStat or None
        """
        return list(map(self._reader.stat, indices))

    def take(self, indices: Iterable[int]) -> ImageSource:
        """Return a source of some of the images, in the same order.

        Parameters
        ----------
        indices : iterable of int
            Positions in `ids`, in any order; one that is named twice counts once.

        Examples
        --------
        >>> ImageSource.from_arrays(np.zeros((3, 8, 8), np.uint8)).take([2, 0]).ids
        ('00000000', '00000002')
        """
        listed = list(indices)
        rows = np.unique(np.asarray(listed)) if listed else np.zeros(0, dtype=np.intp)
        if rows.dtype.kind not in "iu":
            raise SourceError(f"take: expected whole numbers, positions in ids, got {rows.dtype}; use np.flatnonzero")
        if len(rows) and not 0 <= rows[0] <= rows[-1] < len(self):
            raise SourceError(f"take: expected positions from 0 to {len(self) - 1}, got {rows[0]} to {rows[-1]}")
        return ImageSource(
            [self.ids[i] for i in rows.tolist()],
            TakenReader(self._reader, rows),
            {name: column[rows] for name, column in self.columns.items()},
            self.roles,
            name=self.name,
            location=self.location,
            version=self.version,
        )

    # ------------------------------------------------------------------------------------------------ constructors

    @classmethod
    def from_folder(cls, path: str | os.PathLike[str]) -> ImageSource:
        """List the images under a folder.

        The label is the name of the first folder level. Where that level is made of nothing but train, val, valid,
        validation and test (in any case), it becomes the split ("train", "val", "test") and the label is the next
        level. Images in no folder have no label.

        Parameters
        ----------
        path : path-like
            The folder; searched to any depth, links followed.

        Returns
        -------
        ImageSource
            With the columns "label" and "split" where the folders say so; `ignored` counts other files by extension.

        Raises
        ------
        SourceError
            When there is no such folder, no image in it, or a folder that cannot be listed.

        Examples
        --------
        >>> ImageSource.from_folder("flowers/")  # doctest: +SKIP
        <ImageSource 'flowers': 3670 images, label='label'>
        """
        base = os.path.abspath(path)  # noqa: PTH100 - resolve() would follow links
        ids, names, ignored = folders.scan(base)
        if not ids:
            raise folders.nothing_found(base, ignored)
        columns = {name: text_column(name, values) for name, values in folders.structure(ids).items()}
        return cls(
            ids,
            FileReader(base, names),
            columns,
            {name: name for name in columns},
            ignored=ignored,
            name=shown(Path(base).name),
            location=shown(base),
        )

    @classmethod
    def from_list(
        cls,
        path: str | os.PathLike[str],
        *,
        root: str | os.PathLike[str] | None = None,
        suffix: str = "",
        path_column: str | None = None,
        label_column: str | None = None,
        group_column: str | None = None,
        split_column: str | None = None,
    ) -> ImageSource:
        """Take the images that a CSV, TSV or parquet file names.

        Parameters
        ----------
        path : path-like
            CSV (UTF-8 or UTF-16 with BOM; separated by comma, semicolon, tab or ``|``) or parquet (the extra
            ``featcache[parquet]``), with column names in the first line.
        root : path-like, optional
            Folder that the paths are relative to; the list's own by default.
        suffix : str, default ""
            Appended to each path that does not end with it, e.g. ".jpg" for lists of bare names.
        path_column, label_column, group_column, split_column : str, optional
            Names of the columns. By default, in any case: path, file, image or filename; label, class or target;
            group; split.

        Returns
        -------
        ImageSource
            All other columns come along: text from CSV ("01" stays "01"), typed from parquet. Ids are relative to
            `root`; paths outside of it keep their absolute path, or ``..``, as id.

        Raises
        ------
        SourceError
            When the list cannot be read, has no column of paths, names an image twice with different values, or when
            not one of its images exists. A single missing image is no error here.

        Examples
        --------
        >>> ImageSource.from_list("labels.csv", root="images", suffix=".jpg")  # doctest: +SKIP
        <ImageSource 'labels': 1000 images, label='class'>
        """
        wanted = {"path": path_column, "label": label_column, "group": group_column, "split": split_column}
        listing = lists.read_list(os.fspath(path), root, suffix, wanted)
        return cls(
            listing.ids,
            FileReader(listing.base, listing.names),
            listing.columns,
            listing.roles,
            ignored=listing.ignored,
            name=shown(Path(path).stem),
            location=shown(os.path.abspath(path)),  # noqa: PTH100
        )

    @classmethod
    def from_arrays(
        cls,
        images: Any,
        labels: Any = None,
        *,
        ids: Sequence[str] | None = None,
        groups: Any = None,
        splits: Any = None,
    ) -> ImageSource:
        """Take images that are in memory.

        Parameters
        ----------
        images : numpy.ndarray or sequence
            (N, H, W) or (N, H, W, C), or a list of arrays, PIL images and encoded bytes, of any sizes; types and ranges
            as for `featcache.images.open_rgb`.
        labels, groups, splits : array-like of length N, optional
            Text, whole numbers, floats or truth values; kept as they are.
        ids : sequence of str, optional
            Unique; by default positions in 8 digits. The images are put in the order of their ids.

        Returns
        -------
        ImageSource

        Raises
        ------
        SourceError
            When lengths differ, ids are repeated, or something is no image.

        Examples
        --------
        >>> ImageSource.from_arrays([np.zeros((4, 4, 3), np.uint8)], labels=["black"])
        <ImageSource 'arrays': 1 images, label='label'>
        """
        payloads = memory.image_list(images)
        ordered, order = memory.in_order(ids, len(payloads))
        given = {"label": labels, "group": groups, "split": splits}
        columns = {
            name: typed_column(f"{name}s", values, len(payloads))[order]
            for name, values in given.items()
            if values is not None
        }
        reader = memory.MemoryReader([payloads[i] for i in order])
        return cls(ordered, reader, columns, {name: name for name in columns}, name="arrays")

    @classmethod
    def from_dataset(cls, dataset: Any, *, version: str | None = None) -> ImageSource:
        """Take the items of a torch or torchvision data set.

        Parameters
        ----------
        dataset : torch.utils.data.Dataset
            Anything with a length and items ``(image, label)``, ``{"image": …, "label": …}`` or bare images: PIL,
            arrays (H, W[, C]), or tensors (C, H, W), uint8 or float in [0, 1].
        version : str, optional
            A text that you change whenever the pixels change; it then stands for them. Without it the items are known
            by their pixels, and a few are read twice: what differs is refused as random.

        Returns
        -------
        ImageSource
            Ids are positions in 8 digits. Labels are text: names from ``dataset.classes``, else the label itself.

        Raises
        ------
        SourceError
            When items are random, normalised (outside [0, 1]), or nothing that an image can be made of.

        Examples
        --------
        >>> from torchvision.datasets import FakeData  # doctest: +SKIP
        >>> ImageSource.from_dataset(FakeData(size=10))  # doctest: +SKIP
        <ImageSource 'FakeData': 10 images, label='label'>
        """
        count, labels = datasets.examine(dataset, version)
        columns = {} if labels is None else {"label": text_column("label", labels)}
        return cls(
            memory.default_ids(count),
            datasets.DatasetReader(dataset),
            columns,
            {name: name for name in columns},
            name=type(dataset).__name__,
            location=str(getattr(dataset, "root", None) or ""),
            version=version,
        )

    @classmethod
    def from_paths(cls, paths: Iterable[str | os.PathLike[str]]) -> ImageSource:
        """Take image files and folders as they are named, without labels; for prediction.

        Parameters
        ----------
        paths : iterable of path-like
            A file is taken whatever it is called; a folder stands for all images under it.

        Returns
        -------
        ImageSource
            Ids are the paths as given, ``/`` between the parts; an image that is named twice counts once.

        Raises
        ------
        SourceError
            When a path does not exist, or nothing is left.

        Examples
        --------
        >>> ImageSource.from_paths(["new.jpg", "more/"]).ids  # doctest: +SKIP
        ('more/1.jpg', 'more/2.jpg', 'new.jpg')
        """
        if isinstance(paths, (str, os.PathLike)):
            paths = [paths]
        found: dict[str, str] = {}
        ignored: dict[str, int] = {}
        for path in paths:
            names, passed = _expand(os.path.normpath(path))
            found.update((id_of(name), name) for name in names)
            for extension, count in passed.items():
                ignored[extension] = ignored.get(extension, 0) + count
        if not found:
            raise folders.nothing_found("paths", ignored)
        ids = sorted(found, key=sort_key)
        here = os.getcwd()  # noqa: PTH109
        return cls(ids, FileReader(here, [found[i] for i in ids]), ignored=ignored, name="paths", location=shown(here))

    @classmethod
    def open(cls, x: Any, **options: Any) -> ImageSource:
        """Make a source of whatever `x` is.

        Parameters
        ----------
        x : ImageSource, path-like, sequence, numpy.ndarray or torch data set
            A folder, a list (.csv, .tsv, .parquet) or an image file; paths; images; a data set.
        **options
            Of the constructor that `x` calls for: `from_list`, `from_arrays` or `from_dataset`.

        Returns
        -------
        ImageSource

        Raises
        ------
        SourceError
            When `x` is nothing of the kind, or an option does not fit it.

        Examples
        --------
        >>> ImageSource.open([np.zeros((4, 4), np.uint8)])
        <ImageSource 'arrays': 1 images>
        """
        make = cls._constructor(x)
        unknown = sorted(set(options) - set(inspect.signature(make).parameters))
        if unknown:
            raise SourceError(
                f"option {unknown[0]}: expected one that {make.__name__}() has, got a source of that kind without it; "
                "leave it out"
            )
        return make(x, **options)

    @classmethod
    def _constructor(cls, x: Any) -> Callable[..., ImageSource]:
        """Choose the constructor that fits `x`."""
        if isinstance(x, ImageSource):
            return _itself
        if isinstance(x, (str, os.PathLike)):
            return cls._constructor_for_path(os.fspath(x))
        if isinstance(x, (list, tuple)) and x and all(isinstance(item, (str, os.PathLike)) for item in x):
            return cls.from_paths
        if isinstance(x, (list, tuple, np.ndarray, Image.Image, bytes)):
            return cls.from_arrays
        if hasattr(x, "__getitem__"):
            return cls.from_dataset
        raise SourceError(
            f"source: expected a folder, a CSV or parquet list, images, paths or a torch data set, got "
            f"{type(x).__name__}; see ImageSource.from_*"
        )

    @classmethod
    def _constructor_for_path(cls, path: str) -> Callable[..., ImageSource]:
        place = Path(path)
        if place.is_dir():
            return cls.from_folder
        if not place.exists():
            raise missing(path, "a folder of images, a CSV or parquet list, or an image")
        if place.suffix.lower() in lists.LIST_EXTENSIONS:
            return cls.from_list
        if folders.is_candidate(path):
            return cls.from_paths
        raise SourceError(
            f"{shown(path)}: expected a folder of images, a CSV or parquet list, or an image, got another kind of "
            "file; give one of these"
        )


def _itself(source: ImageSource) -> ImageSource:
    return source


def _expand(path: str) -> tuple[list[str], dict[str, int]]:
    """Return the files that a path stands for, by the path's own name, and what was ignored."""
    if not os.path.isdir(path):  # noqa: PTH112
        if not os.path.lexists(path):
            raise missing(path, "an image or a folder of images")
        return [path], {}
    _, names, ignored = folders.scan(path)
    return [os.path.normpath(os.path.join(path, name)) for name in names], ignored  # noqa: PTH118
