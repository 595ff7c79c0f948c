"""A function in this process: what ``Embed.local()`` gives to unit tests and notebooks.

Knows no snapshots: it runs ``load`` anew. Values go through the same codecs as in an instance, so a
test sees what a caller would; exceptions are the author's own, not yet turned into replies.
"""

import sys
import time
from collections.abc import Iterator
from typing import Any

from zerowake.runtime.call import call_batch, call_one, in_mode, inference_mode
from zerowake.runtime.function import Context, Function
from zerowake.runtime.info import Kind
from zerowake.runtime.jsontext import parse_json


class Local:
    """A loaded and woken function. target: the object itself, or the handler."""

    def __init__(self, function: Function) -> None:
        self.function = function
        self.target: Any = function.make()
        if function.kind.is_function:
            return
        if "torch" in sys.modules:  # modules take what they take in an instance
            from zerowake.snapshot.eager import accept_arrays

            accept_arrays(self.target)
        if hasattr(self.target, "wake"):
            self.target.wake()

    def predict(self, value: Any) -> Any:
        """The answer to one input, as a caller gets it: parsed JSON, or bytes.

        value: what a caller would send, as plain data (or a dataclass, model, array that encodes to
        it). A stream returns an iterator over its items. Raises InvalidInput, BadResult,
        WrongResultCount, and whatever the author's code raises.
        """
        function = self.function
        taken = function.decode(function.body(value))
        if function.kind is Kind.STREAM:
            return self._items(taken)
        with inference_mode():
            if function.kind is Kind.BATCH:
                [result] = call_batch(self.target, [taken])
            else:
                result = self._call(taken)
        return self._sent(result)

    __call__ = predict

    def _call(self, taken: Any) -> Any:
        function = self.function
        context = Context("local", function.name, time.monotonic() + function.settings.timeout_s)
        return call_one(function, self.target, taken, context)

    def _items(self, taken: Any) -> Iterator[Any]:
        yield from in_mode(map(self._sent, self._call(taken)))

    def _sent(self, result: Any) -> Any:
        encoded = self.function.encode(result)
        return encoded if self.function.output.raw else parse_json(encoded)
