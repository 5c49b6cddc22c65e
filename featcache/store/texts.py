"""Texts as one blob of UTF-8 bytes with offsets: mapped, looked up and decoded only where somebody asks."""

from __future__ import annotations

import bisect
import contextlib
from collections.abc import Sequence

import numpy as np

from ..features import is_thrifty, texts_of

__all__ = ["LONGEST_ID", "Texts", "ids_fit", "pack_text", "unpack_text"]

#: Ids are arrays of fixed width throughout: a longer one would cost every line of its view that much.
LONGEST_ID = 1 << 14

#: Texts are turned into a matrix of characters while that is at most so many times the blob (long outliers).
_PADDING = 16
_CHECKED = 1 << 20
#: The room that ids take as an array of fixed width: so many bytes, and so many for each byte and each id.
_ID_ROOM, _ID_WASTE = 1 << 27, 1 << 7


def ids_fit(width: int, n: int, held: int) -> bool:
    """Tell whether n ids, the longest of `width` characters and all of `held` bytes, may be an array of fixed width."""
    return width <= LONGEST_ID and 4 * width * n <= _ID_ROOM + _ID_WASTE * (n + held)


def pack_text(values: Sequence[str] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return texts as offsets (uint64 of length n + 1) into one blob of UTF-8 bytes (uint8).

    Raises
    ------
    ValueError
        For a text that UTF-8 cannot hold, nor undecodable bytes in it explain: it would come back as another one.
    """
    array = values if isinstance(values, np.ndarray) and values.dtype.kind == "O" else np.asarray(values, dtype=np.str_)
    offsets = np.zeros(len(array) + 1, dtype="<u8")
    if array.dtype.kind == "O":
        return _packed(offsets, [value.rstrip("\0") for value in array.tolist()])
    if not array.itemsize or not len(array):
        return offsets, np.zeros(0, "u1")
    points = np.ascontiguousarray(array).view("<u4").reshape(len(array), -1)
    if points.max(initial=0) < 128:
        # Trailing NULs are NumPy's padding; it cannot store them as content.
        lengths = np.char.str_len(array)
        np.cumsum(lengths, out=offsets[1:])
        return offsets, points.astype("u1")[np.arange(points.shape[1]) < lengths[:, None]]
    return _packed(offsets, array.tolist())


def _packed(offsets: np.ndarray, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    encoded = [_bytes_of(text) for text in texts]
    np.cumsum([len(e) for e in encoded], out=offsets[1:])
    return offsets, np.frombuffer(b"".join(encoded), dtype="u1")


def _bytes_of(text: str) -> bytes:
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError:
        pass
    with contextlib.suppress(UnicodeEncodeError):
        found = text.encode("utf-8", "surrogateescape")
        if found.decode("utf-8", "surrogateescape") == text:
            return found
    raise ValueError(f"{text[:80]!r} holds surrogates that stand for no undecodable byte")


def unpack_text(offsets: np.ndarray, blob: np.ndarray, *, fixed: bool = False) -> np.ndarray:
    """Undo `pack_text`: an array of text of length n, of objects where a fixed width would be absurd and is not asked.

    Parameters
    ----------
    offsets, blob : ndarray
        As `pack_text` made them.
    fixed : bool, default=False
        An array of fixed width in any case.
    """
    if len(offsets) < 2:
        return np.zeros(0, "U1")
    ends = np.asarray(offsets, dtype=np.int64)
    lengths = np.diff(ends)
    width = max(1, int(lengths.max(initial=0)))
    used = blob[ends[0] : ends[-1]]
    thrifty = fixed or is_thrifty(width, len(lengths), len(used))
    if thrifty and used.max(initial=0) < 128 and width * len(lengths) <= _PADDING * len(used) + (1 << 16):
        out = np.zeros((len(lengths), width), "<u4")
        out[np.arange(width) < lengths[:, None]] = used
        return out.view(f"<U{width}").ravel()
    data = used.tobytes()
    places = (ends - ends[0]).tolist()
    texts = [data[a:b].decode("utf-8", "surrogateescape") for a, b in zip(places, places[1:], strict=False)]
    return np.asarray(texts, dtype=np.str_) if fixed else texts_of(texts)


class Texts(Sequence[str]):
    """An array of texts that stays packed.

    Parameters
    ----------
    offsets : ndarray of uint64 of shape (n + 1,)
        Where each text begins in the blob, and where the last one ends.
    blob : ndarray of uint8
        UTF-8; bytes that are none stand as they were (surrogateescape).

    Raises
    ------
    ValueError
        When the offsets fall, or leave the blob: they may come from anywhere.
    """

    def __init__(self, offsets: np.ndarray, blob: np.ndarray) -> None:
        if offsets.ndim != 1 or blob.ndim != 1 or (offsets.dtype, blob.dtype) != (np.uint64, np.uint8):
            raise ValueError("offsets or texts of the wrong type")
        if not len(offsets) or int(offsets[0]) != 0 or int(offsets[-1]) != len(blob):
            raise ValueError("offsets that do not span their texts")
        width = 0
        for start in range(0, len(offsets) - 1, _CHECKED):
            part = offsets[start : start + _CHECKED + 1]
            if bool((part[1:] < part[:-1]).any()):
                raise ValueError("offsets of texts that fall")
            width = max(width, int((part[1:] - part[:-1]).max()))
        self._offsets, self._blob = offsets, blob
        #: Bytes of the longest one, and of all.
        self.widest, self.held = width, len(blob)

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def raw(self, place: int) -> bytes:
        """Return one text as bytes."""
        return self._blob[int(self._offsets[place]) : int(self._offsets[place + 1])].tobytes()

    def __getitem__(self, place: int) -> str:  # type: ignore[override]
        return self.raw(place).decode("utf-8", "surrogateescape")

    def longest(self) -> int:
        """Return how many characters the longest one has; where none can be longer than an id, at least so many."""
        if self.widest <= LONGEST_ID:
            return self.widest
        long = np.flatnonzero(np.diff(np.asarray(self._offsets, np.int64)) > LONGEST_ID)
        return max(len(self[place]) for place in long.tolist())

    def array(self, *, fixed: bool = False) -> np.ndarray:
        """Return all of them decoded: ndarray of text of shape (n,); `fixed` as of `unpack_text`."""
        return unpack_text(self._offsets, self._blob, fixed=fixed)

    def take(self, places: np.ndarray) -> np.ndarray:
        """Return some of them decoded, in fixed width: these must be ids."""
        if len(places) * 4 > len(self):
            return self.array(fixed=True)[places]
        return np.asarray([self[place] for place in places.tolist()], dtype=np.str_).reshape(len(places))

    def find(self, texts: np.ndarray) -> np.ndarray:
        """Look texts up; these here must be sorted (by code points, as NumPy sorts text).

        Parameters
        ----------
        texts : ndarray of text of shape (k,)
            In any order.

        Returns
        -------
        ndarray of int64 of shape (k,)
            Place of each, −1 where it is not among them.
        """
        if len(texts) * 8 > len(self):
            mine = self.array(fixed=True)
            place = np.searchsorted(mine, texts)
            inside = np.flatnonzero(place < len(mine))
            found = np.full(len(texts), -1, dtype=np.int64)
            hit = inside[mine[place[inside]] == texts[inside]]
            found[hit] = place[hit]
            return found
        return np.asarray([self._find(text) for text in texts.tolist()], dtype=np.int64).reshape(len(texts))

    def _find(self, text: str) -> int:
        # Compared as text, not as bytes: where undecodable bytes stand in names, the two orders differ.
        place = bisect.bisect_left(range(len(self)), text, key=self.__getitem__)
        return place if place < len(self) and self[place] == text else -1
