"""extract(): run a frozen backbone once over a source of images and keep its codes in a store.

Rooms: `run` (one extraction from plan to snapshot), `planning` (what it will take), `tally` (what it knows of images
and keys), `encoder` (the spec in force, pixels → codes), `reading` and `publishing` (the two ends of the stream, with
`team`, its threads, `pixels`, their memory, `budget`, the limits on what is under way, and `gauge`, where the time
goes), `precision` (numerical classes and how codes are compared), `probing` (a few of the user's images, on which
pixels and modes are judged), `choosing` (the mode and engine that pay) and `remembered` (figures of this machine),
`report` (what will be and was done), `settings`; `audit` (stored rows computed again).
"""

from __future__ import annotations

import os
from typing import Any

from ..backbone import Backbone
from ..errors import BackboneError
from ..progress import Progress
from ..sources import ImageSource
from ..store import FeatureStore
from .report import ExtractionReport, Plan
from .run import Extraction
from .settings import Settings

__all__ = ["ExtractionReport", "Plan", "Settings", "extract", "plan"]


def extract(
    source: ImageSource | str | os.PathLike[str] | Any,
    backbone: Backbone | str,
    store: FeatureStore | str | os.PathLike[str],
    *,
    view: str = "main",
    add: bool = False,
    replace: bool = False,
    precision: str = "auto",
    dtype: str = "auto",
    batch_size: int | None = None,
    workers: int | None = None,
    device: str = "auto",
    publish_seconds: float | None = None,
    max_failed: float = 0.01,
    pixels: str = "auto",
    engine: str = "auto",
    augmented: int = 0,
    progress: bool | str | Progress | None = "auto",
) -> FeatureStore:
    """Compute the codes that a store does not have yet, and make a view of it equal to the source.

    An image is recognised by its content: renaming, moving, copying or relabelling costs nothing, a changed image is
    computed again, and a run that was killed goes on from what it had published.

    Parameters
    ----------
    source : ImageSource, path or anything `ImageSource.open` takes
        The images.
    backbone : Backbone or str
        The network; a name means ``Backbone(name)``.
    store : FeatureStore or path
        Where to; made when it does not exist.
    view : str, default="main"
        Which view of the store to update.
    add : bool, default=False
        Add the source's images to the view instead of making the view equal to the source.
    replace : bool, default=False
        Make the view equal to a source that shares nothing with it (without this, that is refused).
    precision : {"auto", "fp32", "bf16", "fp16"}, default="auto"
        "auto": the store's own class, for a new store the class ``tolerance``: the fastest pixels and mode whose
        centred codes of your own images have a cosine of at least 0.998 with the exact ones (0.999 on a probe of 32),
        where trying them repays itself. "fp32": the class ``exact``: float32 arithmetic on reference pixels. "bf16" and
        "fp16" pin a mode.
    dtype : {"auto", "float32", "float16"}, default="auto"
        What codes are stored in. "auto": the store's; for a new one float32 under ``exact``, else float16 where the
        probe's values allow it.
    batch_size : int, default=None
        Images handed to the network at once; None = what keeps the device busy. Does not change the codes.
    workers : int, default=None
        Threads that read and decode, beside those that compute; 0 = none. None = one thread per core for all of it,
        and more that read while those wait for bytes.
    device : str, default="auto"
        "cpu", "cuda", "cuda:1", …; "cuda:0,cuda:1" or "cuda:all" for several; "auto" = the first GPU, else the CPU.
    publish_seconds : float, default=None
        Publish at least this often; None = after 5 s, then 10, 20, … up to 300 s. 0 = each batch.
    max_failed : float, default=0.01
        Part of the images that may fail before this raises. Failed images are listed in the store either way.
    pixels : {"auto", "reference", "given"}, default="auto"
        "auto": outside the class ``exact`` a new store takes faster decoding and resizing where fp32 codes of your own
        images agree (a value of the spec: `Preprocess`'s resampling and decoder). "reference": Pillow's, as
        torchvision's presets use it. "given": the backbone's own recipe as it is, under ``exact``, too.
    engine : {"auto", "eager", "fused", "compiled"}, default="auto"
        How the network is run, see `Backbone.encode`; recorded, no part of the spec. "auto" compiles only where so many
        images are to be computed that it repays itself.
    augmented : int, default=0
        Augmented views per image, beside the plain one: the mirrored image, then random crops, made from one decoded
        image (`Preprocess.views`). Rows of view number 1…, see `FeatureStore.load`.
    progress : {"auto", True, False} or Progress, default="auto"
        A bar on standard error; "auto" = when that is a terminal.

    Returns
    -------
    FeatureStore
        With the `ExtractionReport` as its `report`.

    Raises
    ------
    SpecMismatch
        The store holds codes of another spec; the message prints the difference, the store is untouched.
    ViewMismatch
        The source shares nothing with the view.
    FailureBudgetExceeded
        More than `max_failed` of the images failed; the rows of the others are kept and in the view.
    SourceError, BackboneError, WeightsError, StoreError
        As their names say.

    Examples
    --------
    >>> import featcache as fc
    >>> store = fc.extract("flowers/", fc.Backbone("resnet50"), "flowers.features")  # doctest: +SKIP
    >>> store.load().X.shape  # doctest: +SKIP
    (3670, 2048)
    """
    settings = Settings(
        view=view,
        add=add,
        replace=replace,
        precision=precision,
        dtype=dtype,
        batch_size=batch_size,
        workers=workers,
        device=device,
        publish_seconds=publish_seconds,
        max_failed=max_failed,
        pixels=pixels,
        engine=engine,
        augmented=augmented,
    )
    return Extraction(_source(source), _backbone(backbone), store, settings, progress).run()


def plan(
    source: ImageSource | str | os.PathLike[str] | Any,
    backbone: Backbone | str,
    store: FeatureStore | str | os.PathLike[str],
    *,
    view: str = "main",
    add: bool = False,
    replace: bool = False,
    precision: str = "auto",
    dtype: str = "auto",
    batch_size: int | None = None,
    workers: int | None = None,
    device: str = "auto",
    pixels: str = "auto",
    engine: str = "auto",
    augmented: int = 0,
    progress: bool | str | Progress | None = "auto",
) -> Plan:
    """Tell what `extract` with the same arguments would do, without writing anything.

    Reads every image once (for its digest) unless its file is known, and runs a few through the network to predict the
    time; with nothing to compute, the network is not even loaded.

    Parameters
    ----------
    source, backbone, store, view, add, replace, precision, dtype
        As for `extract`.
    batch_size, workers, device, pixels, engine, augmented, progress
        As for `extract`.

    Returns
    -------
    Plan

    Raises
    ------
    SpecMismatch, ViewMismatch, SourceError, BackboneError, StoreError
        As `extract` would.
    """
    settings = Settings(
        view=view,
        add=add,
        replace=replace,
        precision=precision,
        dtype=dtype,
        batch_size=batch_size,
        workers=workers,
        device=device,
        pixels=pixels,
        engine=engine,
        augmented=augmented,
    )
    return Extraction(_source(source), _backbone(backbone), store, settings, progress).plan()


def _source(source: Any) -> ImageSource:
    return source if isinstance(source, ImageSource) else ImageSource.open(source)


def _backbone(backbone: Backbone | str) -> Backbone:
    if isinstance(backbone, str):
        return Backbone(backbone)
    if isinstance(backbone, Backbone):
        return backbone
    raise BackboneError(
        f"backbone: expected a Backbone or the name of one, got {type(backbone).__name__}; wrap your own network as "
        "Backbone(network, version=…, preprocess=…)"
    )
