"""Serverless functions for models that cost nothing asleep and answer as if they had never slept.

The front door for authors; ``import zerowake`` does no work and loads neither torch nor numpy. The
house: ``zerowake.snapshot`` (freeze, restore, store), ``zerowake.runtime`` (gateway, zygote,
instance, policy), ``zerowake.adapters`` (platforms). Arrows go down: adapters, runtime, snapshot.
"""

from zerowake.runtime.errors import InvalidInput
from zerowake.runtime.function import Context, function
from zerowake.runtime.settings import Batch
from zerowake.snapshot.errors import ZerowakeError

__version__ = "0.1.0"

__all__ = ["Batch", "Context", "InvalidInput", "ZerowakeError", "__version__", "function"]
