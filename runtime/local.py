"""A function in this process: what ``Embed.local()`` gives to unit tests and notebooks.

Knows no snapshots: it runs ``load`` anew. Values go through the same codecs as in an instance, so a
test sees what a caller would; exceptions are the author's own, not yet turned into replies.
"""

import time
from collections.abc import Iterator
from typing import Any

from zerowake.runtime.errors import WrongResultCount
from zerowake.runtime.function import Context, Function, Kind
from zerowake.runtime.jsontext import parse_json


class Local:
    """A loaded and woken function. target: the object itself, or the handler."""

    def __init__(self, function: Function) -> None:
        self.function = function
        self.target: Any = function.make()
        if function.kind is not Kind.HANDLER and hasattr(self.target, "wake"):
            self.target.wake()

    def predict(self, value: Any) -> Any:
        """The answer to one input, as a caller gets it: parsed JSON, or bytes.

        value: what a caller would send, as plain data (or a dataclass, model, array that encodes to
        it). A stream returns an iterator over its items. Raises InvalidInput, BadResult,
        WrongResultCount, and whatever the author's code raises.
        """
        function = self.function
        taken = function.decode(function.body(value))
        if function.kind is Kind.BATCH:
            results = list(self.target.predict([taken]))
            if len(results) != 1:
                raise WrongResultCount(
                    f"predict returned {len(results)} results for a batch of 1 item; "
                    "return exactly one result per item, in their order"
                )
            return self._sent(results[0])
        if function.kind is Kind.STREAM:
            return self._items(self._call(taken))
        return self._sent(self._call(taken))

    __call__ = predict

    def _call(self, taken: Any) -> Any:
        function = self.function
        if function.kind is Kind.HANDLER:
            if not function.takes_context:
                return self.target(taken)
            deadline_s = time.monotonic() + function.settings.timeout_s
            return self.target(taken, Context("local", function.name, deadline_s))
        return self.target.predict(**taken) if function.several else self.target.predict(taken)

    def _items(self, items: Any) -> Iterator[Any]:
        for item in items:
            yield self._sent(item)

    def _sent(self, result: Any) -> Any:
        encoded = self.function.encode(result)
        return encoded if self.function.output.raw else parse_json(encoded)
