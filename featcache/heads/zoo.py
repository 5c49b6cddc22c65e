"""The named heads: what each is, when it is good, what is tuned, and how it is built."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import Normalizer, StandardScaler

from ..errors import HeadError
from ..softmax import SoftmaxClassifier
from . import fold_paths, paths
from .closed_forms import CentroidClassifier, LDAClassifier, SimpleShotClassifier
from .estimators import ShrunkScaler
from .kernel import NystroemClassifier
from .many import TorchMLPClassifier
from .margin import GaussianSVC, SquaredHingeSVC
from .neighbors import CosineKNeighborsClassifier

__all__ = ["HEADS", "HeadInfo", "head_info", "make_head"]


@dataclass(frozen=True)
class HeadInfo:
    """One named head.

    Parameters
    ----------
    name : str
        What to write in ``fit(name, …)``.
    summary : str
        What it is.
    good_for : str
        When it is good.
    build : callable
        (random_state, params) → unfitted Pipeline.
    param : str, default=""
        The setting that is tuned; "" when there is none.
    grid : tuple, default=()
        Its values, in the order in which they are tried (from strong to weak regularisation where that applies).
    default : object, default=None
        Its value where nothing can be tuned: with one row per class.
    path : callable, default=None
        A function of `paths` that tries the whole grid on one fold at once.
    fold_path : callable, default=None
        A function of `fold_paths` that tries the whole grid on all folds at once.
    patience : int, default=0
        Stop after so many values in a row below the best; 0 tries all.
    linear : bool, default=False
        Whether `linear_form` can write it as one affine map of the raw codes.
    """

    name: str
    summary: str
    good_for: str
    build: Callable[[int, Mapping[str, Any]], Any]
    param: str = ""
    grid: tuple[Any, ...] = ()
    default: Any = None
    path: Callable[..., paths.Path] | None = None
    fold_path: Callable[..., fold_paths.FoldPath] | None = None
    patience: int = 0
    linear: bool = False


def _standardised(step: str, head: Any) -> Pipeline:
    return Pipeline([("scale", ShrunkScaler()), (step, head)])


def _logreg(random_state: int, params: Mapping[str, Any]) -> Pipeline:
    """Our solver, or one of scikit-learn's where it is named."""
    if params.get("solver", "auto") != "auto":
        return _standardised("logreg", LogisticRegression(**{"max_iter": 1000, **params}))
    return _standardised("logreg", SoftmaxClassifier(**{k: v for k, v in params.items() if k != "solver"}))


def _svm(random_state: int, params: Mapping[str, Any]) -> Pipeline:
    defaults = {"max_iter": 20_000, "dual": "auto", "random_state": random_state}
    return _standardised("svm", SquaredHingeSVC(**{**defaults, **params}))


def _svm_rbf(random_state: int, params: Mapping[str, Any]) -> Pipeline:
    # It draws nothing here, yet without a seed it would advance NumPy's global random state.
    return _standardised("svm", GaussianSVC(**{"random_state": random_state, **params}))


def _softmax(random_state: int, params: Mapping[str, Any]) -> Pipeline:
    return _standardised("softmax", SoftmaxClassifier(**params))


def _ridge(random_state: int, params: Mapping[str, Any]) -> Pipeline:
    return _standardised("ridge", RidgeClassifier(**params))


def _lda(random_state: int, params: Mapping[str, Any]) -> Pipeline:
    return _standardised("lda", LDAClassifier(**{"keep_sums": False, **params}))


def _knn(random_state: int, params: Mapping[str, Any]) -> Pipeline:
    return Pipeline([("centre", StandardScaler(with_std=False)), ("knn", CosineKNeighborsClassifier(**params))])


def _centroid(random_state: int, params: Mapping[str, Any]) -> Pipeline:
    steps = [("centre", StandardScaler(with_std=False)), ("norm", Normalizer())]
    return Pipeline([*steps, ("centroid", CentroidClassifier(**params))])


def _simpleshot(random_state: int, params: Mapping[str, Any]) -> Pipeline:
    return Pipeline([("simpleshot", SimpleShotClassifier(**params))])


def _mlp(random_state: int, params: Mapping[str, Any]) -> Pipeline:
    return Pipeline([("mlp", TorchMLPClassifier(**{"random_state": random_state, **params}))])


def _nystroem(random_state: int, params: Mapping[str, Any]) -> Pipeline:
    return _standardised("nystroem", NystroemClassifier(**{"random_state": random_state, **params}))


def _ensemble(random_state: int, params: Mapping[str, Any]) -> Any:
    from .ensemble import EnsembleClassifier

    return EnsembleClassifier(**{"random_state": random_state, **params})


def _searched(random_state: int, params: Mapping[str, Any]) -> Any:
    from .searching import SearchedHead

    return SearchedHead(**{"random_state": random_state, **params})


def _auto(random_state: int, params: Mapping[str, Any]) -> Any:
    from .auto import AutoClassifier

    return AutoClassifier(**{"random_state": random_state, **params})


_C = tuple(10.0**e for e in range(-5, 3))

#: name → HeadInfo, in the order of the tables.
HEADS: dict[str, HeadInfo] = {
    info.name: info
    for info in (
        HeadInfo(
            "logreg",
            "multinomial logistic regression with L2 penalty",
            "10 rows per class and more; gives probabilities",
            _logreg,
            param="C",
            grid=_C,
            default=1e-2,
            fold_path=fold_paths.logistic_fold_path,
            patience=2,
            linear=True,
        ),
        HeadInfo(
            "svm",
            "linear support vector machine, one class against the rest",
            "10 rows per class and more",
            _svm,
            param="C",
            grid=tuple(10.0**e for e in range(-6, 1)),
            default=1e-3,
            fold_path=fold_paths.hinge_fold_path,
            patience=2,
            linear=True,
        ),
        HeadInfo(
            "svm-rbf",
            "support vector machine with a Gaussian kernel",
            "when a linear head underfits; up to about 10,000 rows",
            _svm_rbf,
            param="C",
            grid=(0.1, 1.0, 10.0, 100.0, 1000.0),
            default=10.0,
            path=paths.rbf_path,
            patience=2,
        ),
        HeadInfo(
            "softmax",
            "the same model as logreg, under the name of the layer it becomes",
            "10 rows per class and more; gives probabilities",
            _softmax,
            param="C",
            grid=_C,
            default=1e-2,
            fold_path=fold_paths.logistic_fold_path,
            patience=2,
            linear=True,
        ),
        HeadInfo(
            "ridge",
            "least squares on ±1 targets, alpha by exact leave-one-out",
            "few to many rows; the fastest tuned head",
            _ridge,
            param="alpha",
            grid=tuple(10.0 ** (e / 2) for e in range(12, -3, -1)),
            default=1e3,
            path=paths.ridge_path,
            linear=True,
        ),
        HeadInfo(
            "lda",
            "linear discriminant analysis with a shrunken covariance",
            "2 to 50 rows per class; nothing to tune",
            _lda,
            linear=True,
        ),
        HeadInfo(
            "knn",
            "vote of the nearest rows by cosine of the centred codes, weighted by similarity; k and temperature by "
            "leave-one-out",
            "a sanity check, and classes made of several clusters",
            _knn,
        ),
        HeadInfo(
            "centroid",
            "nearest class mean after centring and L2-normalisation (SimpleShot)",
            "1 or 2 rows per class; nothing to tune",
            _centroid,
        ),
        HeadInfo(
            "simpleshot",
            "class means of unit codes in units of the rows' spread, from sums: new rows update it exactly",
            "1 or 2 rows per class; nothing to tune",
            _simpleshot,
        ),
        HeadInfo(
            "nystroem",
            "ridge on a Gaussian kernel's Nyström features, width and alpha by leave-one-out",
            "when a linear head underfits, for any number of rows",
            _nystroem,
        ),
        HeadInfo(
            "mlp",
            "one hidden layer with dropout, trained in torch",
            "20 rows per class and more",
            _mlp,
        ),
        HeadInfo(
            "searched",
            "ridge behind a searched preprocessing: power, norm and scale together with alpha",
            "codes of which you do not know what they need",
            _searched,
        ),
        HeadInfo(
            "ensemble",
            "calibrated mean of ridge, logreg and lda, weighted on held-out training rows",
            "calibrated probabilities",
            _ensemble,
        ),
        HeadInfo(
            "auto",
            "a calibrated ensemble chosen by the rows per class, weighted on held-out training rows",
            "when you do not want to choose; with one row per class it is simpleshot",
            _auto,
        ),
    )
}


def head_info(name: str) -> HeadInfo:
    """Return the entry of a named head, or raise HeadError with the names there are."""
    if name not in HEADS:
        raise HeadError(f"head: expected one of {', '.join(HEADS)} or a scikit-learn estimator, got {name!r}")
    return HEADS[name]


def make_head(name: str, *, random_state: int = 0, **params: Any) -> Any:
    """Build an unfitted head: an ordinary scikit-learn Pipeline with its standardisation inside.

    Parameters
    ----------
    name : str
        A key of `HEADS`.
    random_state : int, default=0
        For the heads that draw random numbers.
    **params
        Settings of the last step, e.g. ``C=0.1``, ``alpha=10.0``, ``n_neighbors=5``, ``class_weight="balanced"``.
        The tuned setting has a fixed default that `fit` uses only where nothing can be tuned.

    Returns
    -------
    sklearn.pipeline.Pipeline (for "auto", "ensemble" and "searched" the estimator itself)
        With `fit`, `predict` and so on, ready for GridSearchCV or cross_val_score.

    Raises
    ------
    HeadError
        Unknown name, or a setting that the head does not have.

    Examples
    --------
    >>> make_head("logreg", C=0.1)["logreg"].C
    0.1
    """
    info = head_info(name)
    if info.param:
        params = {info.param: info.default, **params}
    try:
        return info.build(random_state, params)
    except TypeError as error:
        raise HeadError(f"head {name!r}: {error}; see the settings of the last step of make_head({name!r})") from None
