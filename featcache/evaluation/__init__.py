"""compare() and what stands on it: heads x shots x seeds on the same splits, with intervals that one can believe.

`protocol` (what is done, as data), `draws` (which rows train and are tested), `running` (a head on a draw), `memory`
(results looked up), `metrics` (what is measured, and each row's part in it), `intervals` (how sure it is), `cells`
(rows and pairs of a Result), `notes`, `comparing`, `evaluating` (one head, closely),
`forecasting` (a learning curve carried on) by `power_laws`.
"""

from .comparing import compare, named_sets
from .evaluating import Evaluation, evaluate
from .forecasting import Forecast, forecast
from .protocol import EvalProtocol

__all__ = ["EvalProtocol", "Evaluation", "Forecast", "compare", "evaluate", "forecast", "named_sets"]
