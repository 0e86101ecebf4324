"""The table of aggregators: a new method is one file and one line here."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from seqagg.errors import ParameterError

if TYPE_CHECKING:
    from seqagg.aggregators.base import Aggregator

AGGREGATORS: dict[str, str] = {
    "majority": "seqagg.aggregators.averaging:MajorityVote",
    "mean": "seqagg.aggregators.averaging:MeanProbability",
    "logodds": "seqagg.aggregators.averaging:MeanLogOdds",
    "hmm": "seqagg.aggregators.hmm:HMMAggregator",
    "gru": "seqagg.aggregators.gru:GRUAggregator",
    "stack": "seqagg.aggregators.stacking:StackingAggregator",
    "mil": "seqagg.aggregators.mil:MILAggregator",
    "auto": "seqagg.aggregators.auto:AutoAggregator",
}
"""Name of a method -> where its class is. Imported on first use: torch alone takes seconds."""


def aggregator_class(name: str) -> type[Aggregator]:
    """Class of the method of that name.

    Raises
    ------
    ParameterError
        Lists the names there are.
    """
    if name not in AGGREGATORS:
        raise ParameterError(f"no method {name!r}; there are {', '.join(AGGREGATORS)}")
    module, _, attribute = AGGREGATORS[name].partition(":")
    found: type[Aggregator] = getattr(importlib.import_module(module), attribute)
    return found


def make_aggregator(name: str, **parameters: Any) -> Aggregator:
    """Make the aggregator of that name, with some parameters set."""
    cls = aggregator_class(name)
    known = cls._get_param_names()
    unknown = sorted(set(parameters) - set(known))
    if unknown:
        raise ParameterError(
            f"method {name!r} has no parameter {', '.join(unknown)}; it has {', '.join(known)}"
        )
    return cls(**parameters)
