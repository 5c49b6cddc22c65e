"""compare() and what stands on it: heads x shots x seeds on the same splits, with intervals that one can believe."""

from .comparing import EvalProtocol, compare
from .forecasting import Forecast, forecast

__all__ = ["EvalProtocol", "Forecast", "compare", "forecast"]
