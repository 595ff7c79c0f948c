"""The smallest function: it needs no model and no torch."""

from zerowake import function


@function(examples=[{"hello": "world"}])
def echo(event: dict, context) -> dict:  # type: ignore[type-arg, no-untyped-def]
    return {"you_sent": event, "invocation": context.invocation_id}
