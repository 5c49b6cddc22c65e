"""One file per head: arrays and JSON in the safetensors layout, never pickle.

The file is a safetensors file. Its metadata hold one text, ``featcache_head``: a digest, a line break, and JSON with
the format version, the fields of the FittedHead, and the estimator as a tree: class name, parameters, fitted
attributes. Arrays in that tree are references to the file's tensors. The digest is that of the JSON, and the JSON holds
the digest of the tensors, so that a flipped bit is found. (Version 1 had the digest in an entry of its own,
``featcache_sha256``; safetensors writes several entries in random order, and equal heads had different files.) Only
classes on a whitelist are written and read: loading runs no code that the file names.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import sklearn

from .. import files
from ..errors import HeadError
from .contents import check_contents, check_state, text_array

if TYPE_CHECKING:
    from .fitted import FittedHead

__all__ = ["check_target", "head_bytes", "head_of_bytes", "load_head", "save_head"]

#: 2 has the fields that `fit` adds on request, 3 those of several labels per image and of numbers. Only heads that have
#: such a field are written as 3, so that any other can be read by a featcache that knows none; 1 and 2 are read.
FORMAT_VERSION = 3

_ALLOWED: dict[str, str] = {
    name: module
    for module, names in {
        "sklearn.pipeline": ("Pipeline",),
        "sklearn.preprocessing": ("StandardScaler", "Normalizer", "LabelBinarizer", "MinMaxScaler", "RobustScaler"),
        "sklearn.decomposition": ("PCA",),
        "sklearn.linear_model": ("LogisticRegression", "RidgeClassifier", "RidgeClassifierCV"),
        "sklearn.svm": ("LinearSVC", "SVC"),
        "sklearn.neighbors": ("KNeighborsClassifier",),
        "sklearn.discriminant_analysis": ("LinearDiscriminantAnalysis",),
        "sklearn.naive_bayes": ("GaussianNB",),
        "featcache.softmax": ("SoftmaxClassifier", "SoftmaxClassifierCV"),
        "featcache.heads.estimators": ("ShrunkScaler",),
        "featcache.heads.closed_forms": ("CentroidClassifier", "LDAClassifier", "SimpleShotClassifier"),
        "featcache.heads.ridge": ("IncrementalRidgeClassifier",),
        "featcache.heads.regression": ("IncrementalRidge",),
        "featcache.heads.auto": ("AutoClassifier",),
        "featcache.heads.margin": ("GaussianSVC", "SquaredHingeSVC"),
        "featcache.heads.neighbors": ("CosineKNeighborsClassifier",),
        "featcache.heads.kernel": ("NystroemClassifier",),
        "featcache.heads.calibration": ("TemperatureClassifier",),
        "featcache.heads.ensemble": ("EnsembleClassifier",),
        "featcache.heads.rejection": ("RejectingClassifier",),
        "featcache.heads.novelty": ("KNeighborsDetector", "MahalanobisDetector"),
        "sklearn.kernel_approximation": ("Nystroem",),
        "featcache.heads.preprocessing": ("CodeScaler", "ShrunkWhitener", "SignedPower"),
        "featcache.heads.searching": ("SearchedHead",),
        "featcache.heads.selecting": ("HeadToToeClassifier",),
        "featcache.heads.views": ("ViewsClassifier",),
        "featcache.heads.many": ("TorchMLPClassifier",),
        "featcache.heads.sweep": ("HeadSweep",),
        "featcache.verification.metrics": ("CosineMetric", "LDAMetric", "WCCNMetric", "WhiteningMetric"),
        "featcache.verification.plda": ("PLDAMetric",),
        "featcache.verification.siamese": ("SiameseMetric",),
        "featcache.verification.verifier": ("Verifier",),
    }.items()
    for name in names
}

#: dtypes that safetensors holds and heads use.
_DTYPES = {"float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint8", "bool"}

_FIELDS = (
    "head",
    "params",
    "scores",
    "metric",
    "n_train",
    "training_digest",
    "n_features",
    "spec",
    "locator",
    "node",
    "fingerprint",
    "notes",
)

#: Since version 2.
_GUARDS = ("temperature", "rejection", "detector")

#: Since version 3.
_KINDS = ("separator", "target")


def check_target(path: Path, *, replace: bool = True) -> None:
    """Raise HeadError when no head can be written to `path`; only a head is ever replaced by one."""
    if path.is_dir():
        raise HeadError(f"{path}: expected the name of a file for the head, got a folder; name a file in it")
    if not path.parent.is_dir():
        raise HeadError(f"{path}: expected a folder {str(path.parent)!r} to put the head in, got none; make it first")
    if not os.path.lexists(path):
        return
    if not replace:
        raise HeadError(f"{path}: exists already; give another name, or allow replacing it")
    if path.exists() and not _is_head(path):
        raise HeadError(f"{path}: exists and is no head, so it is not replaced; give another name")


def _is_head(path: Path) -> bool:
    """Tell whether a file begins as `save_head` writes them (it may be damaged further on), or is empty."""
    try:
        with path.open("rb") as file:
            start = file.read(4096)
    except OSError:
        return False
    return not start or b'"__metadata__":{"featcache_head"' in start or b'"featcache_sha256"' in start


def save_head(fitted: FittedHead, path: Path, *, replace: bool) -> Path:
    """Write a head; see `FittedHead.save`."""
    check_target(path, replace=replace)
    try:
        files.publish_bytes(path, head_bytes(fitted), replace=replace)
    except FileExistsError:
        raise HeadError(f"{path}: exists already; give another name, or allow replacing it") from None
    except OSError as error:
        raise HeadError(
            f"{path}: the head cannot be written: {error.strerror or error}; look at the folder and the free space"
        ) from error
    return path


def head_bytes(fitted: FittedHead) -> bytes:
    """Return what a head's file holds; the same for equal heads. HeadError for an estimator that cannot be written."""
    from safetensors.numpy import save

    tensors: dict[str, np.ndarray] = {}
    # What only a featcache of today reads rightly says so.
    version = 3 if fitted.separator or fitted.target or "temperature" in (fitted.rejection or {}) else 2
    body = {
        "format": version,
        "sklearn": sklearn.__version__,
        "classes": fitted.classes_.tolist(),
        "fields": {name: _encode(getattr(fitted, name), tensors, name) for name in _names(version)},
        "estimator": _encode(fitted.estimator, tensors, "estimator"),
        "tensors": _digest(tensors),
    }
    text = json.dumps(body, allow_nan=False)
    metadata = {"featcache_head": f"{hashlib.sha256(text.encode()).hexdigest()}\n{text}"}
    return save(tensors, metadata)


def load_head(path: Path) -> FittedHead:
    """Read a head; see `FittedHead.load`."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise HeadError(f"{path}: the head cannot be read: {error.strerror or error}") from error
    return head_of_bytes(data, str(path))


def head_of_bytes(data: bytes, path: str) -> FittedHead:
    """Return the head that `head_bytes` gave; `path` is what messages call it. HeadError for anything else."""
    from .fitted import FittedHead

    body, tensors = _read(data, path)
    try:
        fields = {name: _decode(body["fields"][name], tensors) for name in _names(body["format"])}
        estimator = _decode(body["estimator"], tensors)
        classes = np.asarray(body["classes"], dtype=np.str_)
        if body["format"] < 3 and any(body["fields"].get(name) for name in _KINDS):
            raise HeadError(f"expected {' and '.join(_KINDS)} in files of format 3 only; save the head again")
        check_contents(estimator, classes, fields, sum(array.size for array in tensors.values()))
    except HeadError as error:
        raise HeadError(f"{path}: {error}") from error
    except Exception as error:  # whatever a damaged or foreign tree provokes, the caller gets one line
        raise HeadError(
            f"{path}: the head inside makes no sense ({type(error).__name__}: {' '.join(str(error).split())}); "
            "save it again"
        ) from error
    return FittedHead(estimator=estimator, classes_=classes, **fields)


def _names(version: int) -> tuple[str, ...]:
    """The fields in files of a version."""
    return _FIELDS + (_GUARDS if version > 1 else ()) + (_KINDS if version > 2 else ())


def _read(data: bytes, path: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return the verified JSON body and the tensors of a file."""
    from safetensors.numpy import load

    try:
        length = int.from_bytes(data[:8], "little")
        metadata = json.loads(data[8 : 8 + length]).get("__metadata__") or {}
        tensors = load(data)
        digest, text = _parts(metadata)
        intact = hashlib.sha256(text.encode()).hexdigest() == digest
        body = json.loads(text) if intact else {}
    except Exception as error:
        raise HeadError(
            f"{path}: expected a head saved by featcache, got {len(data)} bytes that are damaged or something else; "
            "give a file that fit has written"
        ) from error
    if intact and (not isinstance(body, dict) or type(body.get("format")) is not int):
        raise HeadError(f"{path}: expected a head with a format number, got something else; save the head again")
    if intact and body["format"] > FORMAT_VERSION:
        raise HeadError(
            f"{path}: expected head format {FORMAT_VERSION} or older, got {body['format']}; install a newer featcache"
        )
    if intact and body["format"] < 1:
        raise HeadError(
            f"{path}: expected head format 1 to {FORMAT_VERSION}, got {body['format']}; save the head again"
        )
    if not intact or body.get("tensors") != _digest(tensors):
        raise HeadError(f"{path}: the checksum does not fit the contents; the file is damaged, save the head again")
    return body, tensors


def _parts(metadata: dict[str, str]) -> tuple[str, str]:
    """Return the digest and the JSON of a file's metadata, of this version or of the first."""
    text = metadata["featcache_head"]
    if "featcache_sha256" in metadata:
        return metadata["featcache_sha256"], text
    digest, _, text = text.partition("\n")
    return digest, text


def _digest(tensors: dict[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        array = tensors[name]
        digest.update(json.dumps([name, array.dtype.name, list(array.shape)]).encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _encode(value: Any, tensors: dict[str, np.ndarray], where: str) -> Any:
    """Turn a value into JSON; arrays go to `tensors`. `where` names the value in errors."""
    if value is None or isinstance(value, (bool, int, str)) and not isinstance(value, np.generic):
        return value
    if isinstance(value, np.ndarray):
        return _encode_array(value, tensors, where)
    if isinstance(value, np.generic):
        return {"$": "scalar", "dtype": value.dtype.str, "value": _encode(value.item(), tensors, where)}
    if isinstance(value, float):
        return value if math.isfinite(value) else {"$": "float", "value": repr(value)}
    if isinstance(value, (list, tuple)):
        items = [_encode(item, tensors, f"{where}.{i}") for i, item in enumerate(value)]
        return items if isinstance(value, list) else {"$": "tuple", "items": items}
    if isinstance(value, dict):
        pairs = [[_encode(k, tensors, where), _encode(v, tensors, f"{where}.{k}")] for k, v in value.items()]
        return {"$": "dict", "items": pairs}
    return _encode_estimator(value, tensors, where)


def _encode_array(array: np.ndarray, tensors: dict[str, np.ndarray], where: str) -> Any:
    if array.dtype.kind == "U":
        return {"$": "text", "items": array.tolist(), "dtype": array.dtype.str}
    if array.dtype.name not in _DTYPES:
        raise HeadError(f"{where}: an array of {array.dtype} cannot be saved; use text or numbers")
    # The order in memory decides which BLAS routine runs, hence the last bit: it is kept.
    fortran = array.ndim == 2 and array.flags.f_contiguous and not array.flags.c_contiguous
    tensors[where] = np.ascontiguousarray(array.T if fortran else array)
    return {"$": "array", "name": where, "order": "F" if fortran else "C", "shape": list(array.shape)}


def _encode_estimator(value: Any, tensors: dict[str, np.ndarray], where: str) -> Any:
    name = type(value).__name__
    if _ALLOWED.get(name) is None or type(value) is not _class(name):
        raise HeadError(
            f"{where}: {type(value).__module__}.{name} is not among the estimators that featcache writes; keep "
            "fitted.estimator yourself with joblib or skops"
        )
    params = value.get_params(deep=False)
    state = {key: item for key, item in vars(value).items() if key not in params}
    return {
        "$": "estimator",
        "class": name,
        "params": {key: _encode(item, tensors, f"{where}.{key}") for key, item in params.items()},
        "state": {key: _encode(item, tensors, f"{where}.{key}") for key, item in state.items()},
    }


def _class(name: str) -> Any:
    return getattr(importlib.import_module(_ALLOWED[name]), name)


def _decode(value: Any, tensors: dict[str, np.ndarray]) -> Any:
    if isinstance(value, list):
        return [_decode(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    return _DECODERS[value["$"]](value, tensors)


def _decode_array(value: dict[str, Any], tensors: dict[str, np.ndarray]) -> np.ndarray:
    # A copy is aligned and writable, as the estimator's own array was.
    array = np.array(tensors[value["name"]]).reshape(value["shape"][::-1] if value["order"] == "F" else value["shape"])
    return array.T if value["order"] == "F" else array


def _decode_estimator(value: dict[str, Any], tensors: dict[str, np.ndarray]) -> Any:
    if value["class"] not in _ALLOWED:
        raise HeadError(f"{value['class']!r} is not among the estimators that featcache reads")
    cls = _class(value["class"])
    known = set(cls._get_param_names())  # another scikit-learn may have dropped a parameter since
    params = {key: _decode(item, tensors) for key, item in value["params"].items() if key in known}
    estimator = cls(**params)
    for key, item in value["state"].items():
        setattr(estimator, key, _decode(item, tensors))
    check_state(estimator)
    return estimator


def _decode_scalar(value: dict[str, Any], tensors: dict[str, np.ndarray]) -> Any:
    dtype = np.dtype(value["dtype"])
    if dtype.kind not in "biufU":
        raise HeadError(f"expected a number or text, got a scalar of {dtype}; save the head again")
    return dtype.type(_decode(value["value"], tensors))


_DECODERS: dict[str, Callable[[dict[str, Any], dict[str, np.ndarray]], Any]] = {
    "array": _decode_array,
    "estimator": _decode_estimator,
    "text": lambda v, t: text_array(v["items"], v["dtype"]),
    "scalar": _decode_scalar,
    "float": lambda v, t: float(v["value"]),
    "tuple": lambda v, t: tuple(_decode(item, t) for item in v["items"]),
    "dict": lambda v, t: {_decode(k, t): _decode(item, t) for k, item in v["items"]},
}
