"""Parts of libraries that Lightning imports without using, loaded when somebody does use them.

Lightning takes two base classes of torchmetrics, whose package imports torchvision, scipy and, where it is installed,
transformers; and one name of torch's compiler, to ask whether a module was compiled. Both together take longer than all
that a command needs.
"""

from __future__ import annotations

import importlib.util
import logging
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType
from typing import Any

METRICS = "torchmetrics"
# What of torchmetrics can be had without its `__init__`, and where.
BASE_CLASSES = {"Metric": "torchmetrics.metric", "MetricCollection": "torchmetrics.collections"}
COMPILER = "torch._dynamo"
_loading = threading.RLock()


def load_lightning() -> None:
    """Import Lightning without what it does not use. Where it was imported before, nothing is left to save."""
    defer_metrics()
    with without_compiler():
        importlib.import_module("pytorch_lightning")


class _Metrics(ModuleType):
    """torchmetrics before its `__init__` has run, which is when anything but its base classes is asked for."""

    def __getattr__(self, name: str) -> Any:
        spec = self.__spec__
        assert spec is not None and spec.loader is not None
        with _loading:
            # Whoever looks through all modules asks for such names (warnings, inspect, pickle) and means none.
            if name.startswith("__") and name != "__all__":
                raise AttributeError(f"module {METRICS!r} has no attribute {name!r}")
            if type(self) is _Metrics and name in BASE_CLASSES:
                # First, because the two import each other in this order only.
                importlib.import_module("torchmetrics.utilities")
                return getattr(importlib.import_module(BASE_CLASSES[name]), name)
            if type(self) is _Metrics:
                self.__class__ = ModuleType  # type: ignore[assignment]
                spec.loader.exec_module(self)
            return getattr(self, name)


def defer_metrics() -> None:
    """From now on `import torchmetrics` is free, and so are its base classes; all else of it is as ever."""
    spec = importlib.util.find_spec(METRICS) if METRICS not in sys.modules else None
    if spec is None:
        return
    module = importlib.util.module_from_spec(spec)
    module.__class__ = _Metrics
    # What its modules ask of their package while they are imported.
    module.__dict__["_logger"] = logging.getLogger(METRICS)
    try:
        module.__dict__["__version__"] = version(METRICS)
    except PackageNotFoundError:
        return
    sys.modules[METRICS] = module


class _AskedOfTheCompiler(type):
    def __instancecheck__(cls, instance: object) -> bool:
        compiler = sys.modules.get(COMPILER)
        # Nothing was compiled by what is not there.
        return compiler is not None and isinstance(instance, compiler.OptimizedModule)


class OptimizedModule(metaclass=_AskedOfTheCompiler):
    """Stands for what `torch.compile` makes of a module, in `isinstance`."""


class _Compiler(ModuleType):
    """torch's compiler for those who only ask whether something was compiled; all else of it loads it."""

    OptimizedModule = OptimizedModule

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(f"module {COMPILER!r} has no attribute {name!r}")
        if sys.modules.get(COMPILER) is self:
            del sys.modules[COMPILER]
        return getattr(importlib.import_module(COMPILER), name)


@contextmanager
def without_compiler() -> Iterator[None]:
    """What is imported in here and only asks whether modules were compiled does not load torch's compiler for it."""
    if COMPILER in sys.modules:
        yield
        return
    import torch._compile

    stand_in = sys.modules[COMPILER] = _Compiler(COMPILER)
    # torch's own way to keep a function from being compiled, which loads the compiler when that is first called.
    if later := getattr(torch._compile, "_disable_dynamo", None):
        stand_in.__dict__["disable"] = lambda function, recursive=True, reason=None: later(function, recursive)
    try:
        yield
    finally:
        if sys.modules.get(COMPILER) is stand_in:
            del sys.modules[COMPILER]
