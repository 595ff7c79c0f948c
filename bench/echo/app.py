"""Nothing but the runtime's own cost."""

from typing import Any

from zerowake import function


@function(examples=[{"text": "hello"}])
def echo(value: Any) -> Any:
    return value
