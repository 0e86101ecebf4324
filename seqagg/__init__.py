"""Frame scores of a frozen classifier in, one label per song out."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

__all__ = [
    "AutoAggregator",
    "CacheError",
    "GRUAggregator",
    "HMMAggregator",
    "MILAggregator",
    "MajorityVote",
    "MeanLogOdds",
    "MeanProbability",
    "ModelFileError",
    "ParameterError",
    "SeqaggError",
    "SongError",
    "Songs",
    "SourceError",
    "StackingAggregator",
    "__version__",
    "benchmark",
    "checkpoints",
    "compare",
    "load",
    "plot_comparison",
    "plot_confusion",
    "plot_learning_curve",
    "plot_reliability",
    "plot_song",
    "read_cache",
    "write_cache",
]

_HOME = {
    "AutoAggregator": "seqagg.aggregators.auto",
    "CacheError": "seqagg.errors",
    "GRUAggregator": "seqagg.aggregators.gru",
    "HMMAggregator": "seqagg.aggregators.hmm",
    "MILAggregator": "seqagg.aggregators.mil",
    "MajorityVote": "seqagg.aggregators.averaging",
    "MeanLogOdds": "seqagg.aggregators.averaging",
    "MeanProbability": "seqagg.aggregators.averaging",
    "ModelFileError": "seqagg.errors",
    "ParameterError": "seqagg.errors",
    "SeqaggError": "seqagg.errors",
    "SongError": "seqagg.errors",
    "Songs": "seqagg.songs",
    "SourceError": "seqagg.errors",
    "StackingAggregator": "seqagg.aggregators.stacking",
    "benchmark": "seqagg.benchmark",
    "checkpoints": "seqagg.checkpoints",
    "compare": "seqagg.evaluation",
    "load": "seqagg.aggregators.saving",
    "plot_comparison": "seqagg.plots",
    "plot_confusion": "seqagg.plots",
    "plot_learning_curve": "seqagg.plots",
    "plot_reliability": "seqagg.plots",
    "plot_song": "seqagg.plots",
    "read_cache": "seqagg.cache",
    "write_cache": "seqagg.cache",
}
"""Name -> its module, imported on first use: torch and scikit-learn take seconds."""

if TYPE_CHECKING:
    from seqagg.aggregators.auto import AutoAggregator
    from seqagg.aggregators.averaging import MajorityVote, MeanLogOdds, MeanProbability
    from seqagg.aggregators.gru import GRUAggregator
    from seqagg.aggregators.hmm import HMMAggregator
    from seqagg.aggregators.mil import MILAggregator
    from seqagg.aggregators.saving import load
    from seqagg.aggregators.stacking import StackingAggregator
    from seqagg.benchmark import benchmark
    from seqagg.cache import read_cache, write_cache
    from seqagg.checkpoints import checkpoints
    from seqagg.errors import (
        CacheError,
        ModelFileError,
        ParameterError,
        SeqaggError,
        SongError,
        SourceError,
    )
    from seqagg.evaluation import compare
    from seqagg.plots import (
        plot_comparison,
        plot_confusion,
        plot_learning_curve,
        plot_reliability,
        plot_song,
    )
    from seqagg.songs import Songs

    __version__: str

else:  # hidden from type checkers, which would take any name for an export

    def __getattr__(name: str) -> Any:
        if name == "__version__":
            from importlib.metadata import version

            value: Any = version("seqagg")
        elif name in _HOME:
            value = getattr(importlib.import_module(_HOME[name]), name)
        else:
            raise AttributeError(f"module 'seqagg' has no attribute {name!r}")
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return __all__


class _Package(ModuleType):
    """Keeps `seqagg.benchmark` and others functions, whoever imports the module of that name.

    Python sets a module as an attribute of its package once it is imported, and would thereby
    turn the function into the module under a user's hands.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _HOME and isinstance(value, ModuleType):
            value = getattr(value, name)
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
