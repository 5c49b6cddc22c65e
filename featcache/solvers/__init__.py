"""The mathematics behind the heads: solvers on plain arrays, which know neither estimators nor stores."""

from __future__ import annotations
