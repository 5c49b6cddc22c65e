"""Items of a torch or torchvision data set, without importing torch: what is asked of a tensor is asked by its methods.

Tensors are (C, H, W). A float tensor in [0, 1] whose values are all k/255, as ``ToTensor`` makes them, goes back to the
very bytes it came from; one with values in between stays float and is rounded to the nearest level when it is used.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from ..errors import ImageError, SourceError
from ..images import Payload, pixel_identity
from .files import FileStat

__all__ = ["DatasetReader", "examine"]

_IMAGE_KEYS = ("image", "img", "picture", "pixel_values")
_LABEL_KEYS = ("label", "class", "target", "labels", "fine_label")
_TARGETS = ("targets", "labels", "_labels")

#: How many times in all items are read again at listing, to find random ones: a coin flip escapes once in 2^8.
_SECOND_LOOKS = 8


class DatasetReader:
    """Images of a data set.

    Parameters
    ----------
    dataset : torch.utils.data.Dataset
        With a length and items.
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def read(self, i: int) -> Payload:
        """Return the image of item `i`: PIL or array (H, W[, C])."""
        return _payload(_image(_item(self.dataset, i)), i)

    def stat(self, i: int) -> FileStat | None:
        """Return None: what an item was made of is the data set's secret."""
        return None


def examine(dataset: Any, version: str | None) -> tuple[int, list[str] | None]:
    """Look at a data set once, before it is used.

    Parameters
    ----------
    dataset : torch.utils.data.Dataset
        With a length and items.
    version : str or None
        None to look for random items.

    Returns
    -------
    count : int
        Number of items.
    labels : list of str or None
        None when items have no labels.

    Raises
    ------
    SourceError
        When this is no data set of images, is empty, random or normalised.
    """
    if version is not None and (not isinstance(version, str) or not version):
        raise SourceError(
            f"version: expected text that you change with the pixels, got {version!r}; give e.g. version='1'"
        )
    count = _length(dataset)
    sample = sorted({round(i * (count - 1) / (_SECOND_LOOKS - 1)) for i in range(_SECOND_LOOKS)})
    _check_images(dataset, sample, version)
    return count, _labels(dataset, count, sample)


def _length(dataset: Any) -> int:
    try:
        count = len(dataset)
    except (TypeError, NotImplementedError) as error:
        raise SourceError(
            f"{type(dataset).__name__}: expected a data set with a length and items, got {error}; give a map-style "
            "Dataset, or its items as a list"
        ) from error
    if not count:
        raise SourceError(f"{type(dataset).__name__}: expected at least one item, got none; check how it was made")
    return count


def _check_images(dataset: Any, sample: list[int], version: str | None) -> None:
    """Refuse what no item can be read of, and what differs between two reads."""
    reader = DatasetReader(dataset)
    looks = 0 if version is not None else -(-_SECOND_LOOKS // len(sample))
    broken: Exception | None = None
    readable = 0
    for i in sample:
        try:
            first = _pixels_of(reader.read(i))
            again = any(_pixels_of(reader.read(i)) != first for _ in range(looks))
        except (ImageError, OSError) as error:  # one broken image is for the ledger; all of them are for the user, now
            broken = error
            continue
        readable += 1
        if again:
            raise SourceError(
                f"{type(dataset).__name__} item {i}: expected the same pixels in two reads, got different ones; take "
                "the random transforms out, or give version= to say that you mean it"
            )
    if broken is not None and not readable:
        raise SourceError(f"{type(dataset).__name__}: expected images, got: {broken}") from broken


def _pixels_of(payload: Payload) -> Any:
    return payload if isinstance(payload, bytes) else pixel_identity(payload)


# ---------------------------------------------------------------------------------------------------------- images


def _item(dataset: Any, i: int) -> Any:
    """Return item `i`; whatever the data set's own code raises is about this item."""
    try:
        return dataset[i]
    except (OSError, ImageError):
        raise
    except Exception as error:
        words = " ".join(str(error).split())[:200]
        raise ImageError(
            f"item {i} of {type(dataset).__name__}: expected an image, got {type(error).__name__}: {words}; repair it "
            "or leave it out"
        ) from error


def _image(item: Any) -> Any:
    if isinstance(item, Mapping):
        return _value(item, _IMAGE_KEYS)
    return item[0] if isinstance(item, (tuple, list)) and item else item


def _value(item: Mapping[Any, Any], keys: tuple[str, ...]) -> Any:
    by_lower = {str(key).lower(): value for key, value in item.items()}
    return next((by_lower[key] for key in keys if key in by_lower), None)


def _payload(image: Any, i: int) -> Payload:
    """Bring the image of an item to a form that `open_rgb` takes."""
    if isinstance(image, (bytes, Image.Image, np.ndarray)):
        return image
    if hasattr(image, "detach") and hasattr(image, "cpu"):
        return _from_tensor(image.detach().cpu(), i)
    raise ImageError(
        f"item {i}: expected a PIL image, an array or a tensor, got {type(image).__name__}; return (image, label) or "
        "{'image': …, 'label': …}"
    )


def _from_tensor(tensor: Any, i: int) -> np.ndarray:
    """Turn a tensor (H, W) or (C, H, W) into an array (H, W[, C])."""
    if tensor.ndim not in (2, 3) or (tensor.ndim == 3 and tensor.shape[0] not in (1, 3, 4)):
        raise ImageError(
            f"item {i}: expected a tensor (C, H, W) with 1, 3 or 4 channels, got {tuple(tensor.shape)}; permute it"
        )
    if tensor.ndim == 3:
        tensor = tensor.permute(1, 2, 0)
    half = tensor.is_floating_point() and tensor.element_size() < 4
    array = (tensor.float() if half else tensor).numpy()  # NumPy has no bfloat16
    return _exact(array, i, 0.5 if half else 1e-3) if array.dtype.kind == "f" else np.ascontiguousarray(array)


def _exact(array: np.ndarray, i: int, slack: float) -> np.ndarray:
    """Undo the division by 255 where that gives whole numbers; `slack` is the rounding of the type, in levels."""
    low, high = (float(array.min()), float(array.max())) if array.size else (0.0, 0.0)
    if not (low >= -1e-6 and high <= 1 + 1e-6):
        raise ImageError(
            f"item {i}: expected values in [0, 1], got {low:.4g} to {high:.4g}; give the data set without Normalize "
            "(featcache normalises by itself)"
        )
    scaled = array.astype(np.float64) * 255
    levels = np.rint(scaled)
    whole = np.abs(scaled - levels).max(initial=0.0) <= slack
    return levels.clip(0, 255).astype(np.uint8) if whole else np.ascontiguousarray(array)


# ---------------------------------------------------------------------------------------------------------- labels


def _labels(dataset: Any, count: int, sample: list[int]) -> list[str] | None:
    """Return the labels as text: from the data set's own list where that agrees with its items, else from the items."""
    classes = _classes(dataset)
    seen = {i: _label(dataset, i, classes) for i in sample}
    if all(label is None for label in seen.values()):
        return None
    listed = _targets(dataset, count)
    if listed is not None:
        labels = [_as_text(value, classes) for value in listed]
        if all(label is None or labels[i] == label for i, label in seen.items()):
            return labels
    return [(seen[i] if i in seen else _label(dataset, i, classes)) or "" for i in range(count)]


def _label(dataset: Any, i: int, classes: list[str]) -> str | None:
    """Return the label of one item, None where it has none or cannot be read (which reading it will report)."""
    try:
        item = _item(dataset, i)
    except (ImageError, OSError):
        return None
    if isinstance(item, Mapping):
        value = _value(item, _LABEL_KEYS)
    else:
        value = item[1] if isinstance(item, (tuple, list)) and len(item) > 1 else None
    return None if value is None else _as_text(value, classes)


def _as_text(value: Any, classes: list[str]) -> str:
    """Return a label as text, by the name of its class where there is one."""
    if hasattr(value, "item") and math.prod(getattr(value, "shape", (0,))) == 1:  # of NumPy or torch
        value = value.item()
    if isinstance(value, (str, bool)):
        return str(value)
    if not isinstance(value, (int, float)):
        raise SourceError(
            f"label {str(value)[:40]!r}: expected text or one number per item, got {type(value).__name__}; give pairs "
            "(image, label)"
        )
    return classes[value] if isinstance(value, int) and 0 <= value < len(classes) else str(value)


def _classes(dataset: Any) -> list[str]:
    """Return the names of the classes, looking through Subset and ConcatDataset; empty where there are none."""
    for inner in _layers(dataset):
        names = getattr(inner, "classes", None)
        if isinstance(names, (list, tuple)) and all(isinstance(name, str) for name in names):
            return list(names)
    return []


def _layers(dataset: Any) -> list[Any]:
    layers = [dataset]
    while (inner := getattr(layers[-1], "dataset", None)) is not None and len(layers) < 20:
        layers.append(inner)
    parts = getattr(layers[-1], "datasets", None)
    return layers + (_layers(parts[0]) if isinstance(parts, (list, tuple)) and parts else [])


def _targets(dataset: Any, count: int) -> list[Any] | None:
    """Return the labels that a data set keeps in a list, so that no image need be read for them."""
    if getattr(dataset, "target_transform", None) is not None:
        return None
    inner, indices = getattr(dataset, "dataset", None), getattr(dataset, "indices", None)
    if inner is not None and indices is not None:
        listed = _targets(inner, len(inner))
        return None if listed is None else [listed[i] for i in indices]
    for name in _TARGETS:
        values: Any = getattr(dataset, name, None)
        listed = values.tolist() if hasattr(values, "tolist") else values
        if isinstance(listed, (list, tuple)) and len(listed) == count:
            return list(listed)
    return None
