"""Serverless functions for models that cost nothing asleep and answer as if they had never slept.

The front door for authors; ``import zerowake`` does no work and loads neither torch nor numpy. The
house: ``zerowake.snapshot`` (freeze, restore, store), ``zerowake.runtime`` (gateway, zygote,
instance, policy), ``zerowake.adapters`` (platforms). Arrows go down: adapters, runtime, snapshot.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zerowake.runtime.errors import InvalidInput
    from zerowake.runtime.function import Context, function
    from zerowake.runtime.settings import Batch
    from zerowake.snapshot.errors import ZerowakeError

__version__ = "0.1.0"

__all__ = ["Batch", "Context", "InvalidInput", "ZerowakeError", "__version__", "function"]

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        """Exports are imported when used: ``python -m zerowake`` cleans its path before that."""
        from importlib import import_module

        homes = {
            "Batch": "runtime.settings",
            "Context": "runtime.function",
            "InvalidInput": "runtime.errors",
            "ZerowakeError": "snapshot.errors",
            "function": "runtime.function",
        }
        if name not in homes:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f"{__name__}.{homes[name]}"), name)
