"""A handler that answers with what it is told of its call."""

from dataclasses import asdict
from typing import Any

from zerowake import Context, function


@function(examples=[1])
def told(event: Any, context: Context) -> dict[str, str]:
    return asdict(context.origin)
