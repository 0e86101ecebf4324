"""``python -m seqagg`` is ``seqagg``: the command line as a process of its own."""

from __future__ import annotations

import gc
import io
import sys
from importlib import import_module
from types import FrameType, ModuleType
from typing import Any


class _Later(ModuleType):
    """A module that is imported once somebody asks for something in it."""

    def __getattr__(self, name: str) -> Any:
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return getattr(import_module(self.__name__), name)


def import_later(name: str) -> None:
    """Have a module imported when something in it is used, instead of when it is imported."""
    if name not in sys.modules:
        sys.modules[name] = _Later(name)


class _WithoutPandas:
    """As if scikit-learn and Arrow had no pandas, which they import where it is.

    No command uses it, and it takes a quarter of the time of a short one. PyTorch may look for it.
    """

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        """Find no module; refuse pandas to those that do without it."""
        if name == "pandas" and _importer() in ("sklearn", "pyarrow", "seqagg"):
            raise ModuleNotFoundError("no command uses pandas", name=name)


def _importer() -> str:
    """Package that asks for a module; Arrow's compiled half does so in the name of its caller."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None and frame.f_globals.get("__name__", "").startswith("importlib."):
        frame = frame.f_back
    return "" if frame is None else str(frame.f_globals.get("__name__")).partition(".")[0]


def run() -> None:
    """Run the command line, start it fast and look for garbage seldom.

    What is imported stays. To look for garbage among it while it comes, and once more when Python
    ends, takes a third of the time of a short command.
    """
    gc.set_threshold(20_000, 50)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # what a terminal cannot show is spelled out
            stream.reconfigure(errors="backslashreplace")
    # scikit-learn imports them, which takes longer than all the rest.
    for name in ("scipy.stats", "scipy.optimize"):
        import_later(name)
    without = _WithoutPandas()
    sys.meta_path.insert(0, without)
    try:
        from seqagg.cli import main

        main(prog_name="seqagg")
    except KeyboardInterrupt:  # before there was anybody to catch it
        print("seqagg: interrupted", file=sys.stderr)
        sys.exit(130)
    finally:
        sys.meta_path.remove(without)
        gc.freeze()


if __name__ == "__main__":
    run()
