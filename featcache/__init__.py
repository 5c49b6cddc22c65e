"""Run a frozen pretrained backbone once over your images, keep the CNN codes, train and compare heads in seconds.

Public names are loaded when they are first used: ``import featcache`` imports neither torch nor scikit-learn.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_WHERE = {
    "Audit": "hygiene",
    "Advice": "advice",
    "Backbone": "backbone",
    "Bundle": "handoff",
    "CodesDataset": "store",
    "EvalProtocol": "evaluation",
    "Evaluation": "evaluation",
    "FeatcacheError": "errors",
    "FeatureSet": "features",
    "FeatureStore": "store",
    "FittedHead": "heads",
    "Forecast": "evaluation",
    "ImageSource": "sources",
    "Preprocess": "preprocess",
    "Ranking": "ranking",
    "Result": "reporting",
    "SoftmaxClassifier": "softmax",
    "Suggestions": "labelling",
    "Verifier": "verification",
    "assemble": "handoff",
    "audit": "hygiene",
    "advise": "advice",
    "backbone_of_module": "handoff",
    "compare": "evaluation",
    "evaluate": "evaluation",
    "export": "handoff",
    "extract": "extraction",
    "fit": "heads",
    "forecast": "evaluation",
    "load_bundle": "handoff",
    "plan": "extraction",
    "predict": "handoff",
    "predict_iter": "handoff",
    "rank": "ranking",
    "read_features": "exchange",
    "save_bundle": "handoff",
    "suggest": "labelling",
    "report": "evidence",
    "to_module": "handoff",
    "verify": "verification",
}

__all__ = sorted([*_WHERE, "__version__"])

if TYPE_CHECKING:
    from .advice import Advice as Advice
    from .advice import advise as advise
    from .backbone import Backbone as Backbone
    from .errors import FeatcacheError as FeatcacheError
    from .evaluation import EvalProtocol as EvalProtocol
    from .evaluation import Evaluation as Evaluation
    from .evaluation import Forecast as Forecast
    from .evaluation import compare as compare
    from .evaluation import evaluate as evaluate
    from .evaluation import forecast as forecast
    from .evidence import report as report
    from .exchange import read_features as read_features
    from .extraction import extract as extract
    from .extraction import plan as plan
    from .features import FeatureSet as FeatureSet
    from .handoff import Bundle as Bundle
    from .handoff import assemble as assemble
    from .handoff import backbone_of_module as backbone_of_module
    from .handoff import export as export
    from .handoff import load_bundle as load_bundle
    from .handoff import predict as predict
    from .handoff import predict_iter as predict_iter
    from .handoff import save_bundle as save_bundle
    from .handoff import to_module as to_module
    from .heads import FittedHead as FittedHead
    from .heads import fit as fit
    from .hygiene import Audit as Audit
    from .hygiene import audit as audit
    from .labelling import Suggestions as Suggestions
    from .labelling import suggest as suggest
    from .preprocess import Preprocess as Preprocess
    from .ranking import Ranking as Ranking
    from .ranking import rank as rank
    from .reporting import Result as Result
    from .softmax import SoftmaxClassifier as SoftmaxClassifier
    from .sources import ImageSource as ImageSource
    from .store import CodesDataset as CodesDataset
    from .store import FeatureStore as FeatureStore
    from .verification import Verifier as Verifier
    from .verification import verify as verify


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(importlib.import_module(f".{_WHERE[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
