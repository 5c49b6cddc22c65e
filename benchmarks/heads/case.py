"""What the parts work with: cached codes of real sets, made once per run, and generated codes of any size."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from parts import Skip

from featcache import FeatureSet, FeatureStore

REAL = ("clothing10", "sign_digits", "bccd_cells", "pneumonia_xray")
WEIGHTS = {"mobilenet_v2": "mobilenet_v2-tf2_ptq_int8.pth", "squeezenet1_1": "squeezenet1_1-caffe_ncnn_fp16.pth"}


@dataclass(frozen=True)
class Case:
    """One run.

    Attributes
    ----------
    work : Path
        A folder of this part's own.
    data : Path or None
        Folder with datasets/ and weights/; None: generated data only.
    stores : Path
        Where stores of codes are kept from part to part (and from run to run, with --stores).
    repeats : int or None
        In place of each part's own number.
    tiny : bool
        A trial run of seconds.
    """

    work: Path
    data: Path | None
    stores: Path
    repeats: int | None
    tiny: bool

    def load(self, name: str, arch: str = "mobilenet_v2") -> FeatureSet:
        """Return the codes of a real set (in a trial run: small generated ones with the same roles)."""
        if self.tiny:
            return _generated(name)
        if self.data is None or not (self.data / "datasets" / name).is_dir():
            raise Skip(f"no data set {name}")
        path = self.stores / f"{name}-{arch}.features"
        if not path.exists():
            from featcache import Backbone, extract

            backbone = Backbone(arch, weights=str(self.data / "weights" / WEIGHTS[arch]))
            extract(str(self.data / "datasets" / name), backbone, path, precision="fp32", progress=False)
        return FeatureStore.open(path).load()


def _generated(name: str) -> FeatureSet:
    """180 rows of 6 classes in 48 features; with four alphabets as splits where identities are asked for."""
    rng = np.random.default_rng(len(name))
    classes, per_class = (24, 6) if name.startswith("omniglot") else (6, 30)
    labels = np.repeat(np.arange(classes), per_class)
    X = rng.normal(size=(classes, 48))[labels] + 0.8 * rng.normal(size=(len(labels), 48))
    splits = np.char.add("alphabet ", (labels % 4).astype(str)) if name.startswith("omniglot") else None
    return FeatureSet(X.astype("float32"), labels.astype(str), splits=splits, name=name)


def standardised(data: FeatureSet) -> tuple[np.ndarray, np.ndarray]:
    """Return codes standardised over all rows, and integer labels: what solvers are compared on."""
    from featcache.heads import ShrunkScaler

    X, y = data.xy
    return ShrunkScaler().fit_transform(np.asarray(X, dtype=np.float32)), np.unique(y, return_inverse=True)[1]


def synthetic(n: int, d: int, k: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return correlated codes behind a ReLU, standardised, float32 (n, d), and labels of a softmax model on them.

    The spectrum falls as that of real codes does; about half of the labels are not the most probable one, so that the
    classes are not separable where n is well above d.
    """
    rng = np.random.default_rng(seed)
    mix = (rng.standard_normal((d, d)) * np.arange(1, d + 1) ** -0.5).astype(np.float32)
    X = np.empty((n, d), dtype=np.float32)
    for start in range(0, n, 8192):
        X[start : start + 8192] = rng.standard_normal((min(8192, n - start), d), dtype=np.float32) @ mix.T
    np.maximum(X, 0.0, out=X)
    X -= X.mean(axis=0)
    X /= X.std(axis=0) + 1e-3
    weights = (rng.standard_normal((d, k)) * (2.0 / np.sqrt(d))).astype(np.float32)
    y = np.concatenate(
        [
            (X[start : start + 8192] @ weights + rng.gumbel(size=(min(8192, n - start), k))).argmax(axis=1)
            for start in range(0, n, 8192)
        ]
    )
    return X, np.unique(y, return_inverse=True)[1]


def alike(n: int, d: int, k: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return codes as `synthetic` does, and labels with n / k rows of each class: for more classes than it could fill.

    Rows lie around the middles of their classes, near enough to each other that classes overlap.
    """
    rng = np.random.default_rng(seed)
    spectrum = (np.arange(1, d + 1) ** -0.5).astype(np.float32)
    y = np.arange(n) % k
    X = rng.standard_normal((n, d), dtype=np.float32)
    X += rng.standard_normal((k, d), dtype=np.float32)[y]
    X = np.maximum((X * spectrum) @ rng.standard_normal((d, d), dtype=np.float32), 0.0)
    X -= X.mean(axis=0)
    X /= X.std(axis=0) + 1e-3
    return X, y


def seconds(call: Callable[[], Any]) -> tuple[float, Any]:
    """Return how long a call takes, and what it returns; threads of the contestant before come to rest first."""
    time.sleep(0.25)
    start = time.perf_counter()
    value = call()
    return time.perf_counter() - start, value
