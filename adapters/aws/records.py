"""The records of one event as calls of the function, and what their source is told of them."""

import asyncio
import json
import logging
from base64 import b64encode
from collections.abc import Callable, Iterable
from contextlib import AbstractAsyncContextManager

from zerowake.adapters.aws.events import Batch, Item, response
from zerowake.adapters.aws.messages import RESPONSE_NBYTES, Event
from zerowake.adapters.calls import AT_ONCE, json_of
from zerowake.adapters.objects import Objects
from zerowake.runtime.errors import BadRequest, PredictTimeout, QueueFull
from zerowake.runtime.gateway import problems
from zerowake.runtime.gateway.caller import Caller

log = logging.getLogger("zerowake.adapters")

FULL_S = 0.02  # pause of a record that has found the queue full


class Records:
    """Those of ``batch``, which ``event`` has brought.

    objects: gives what fetches the content that S3's events tell of.
    """

    def __init__(
        self, caller: Caller, name: str, event: Event, batch: Batch, objects: Callable[[], Objects]
    ) -> None:
        self._caller = caller
        self._info = caller.functions.find(name)
        self._event = event
        self._batch = batch
        self._objects = objects
        self._undone = dict.fromkeys(range(len(batch.items)))
        self._results: dict[int, bytes] = {}
        self._errors: list[Exception] = []
        self._stopped: dict[str, int] = {}  # the place of the first of a shard that has failed
        self._room = asyncio.Semaphore(AT_ONCE)

    async def answer(self, until: AbstractAsyncContextManager[None]) -> bytes:
        """Call the function with each record, all at once; what the source is told.

        until: the deadline, whose PredictTimeout fails what has not ended.

        Records of one group go one by one, and after the first that fails no more of it; of a shard
        nothing after it is begun any more. Raises why, where the source does not take ids, and where
        all have failed: the whole batch then comes again, even from an event source mapping that was
        not told to ReportBatchItemFailures.
        """
        items, undone = self._batch.items, self._undone
        groups: dict[str, list[int]] = {}
        for place, item in enumerate(items):
            groups.setdefault(item.group or f"\0{place}", []).append(place)
        try:
            async with until:
                await asyncio.gather(*map(self._run, groups.values()))
        except PredictTimeout as error:
            self._errors.append(error)
            log.error("invocation %s: %d records: %s", self._event.id, len(undone), error)
        if undone and (not self._batch.partial or len(undone) == len(items)):
            raise self._errors[0]
        return self._told()

    def _told(self) -> bytes:
        """The ids of those that have failed, or where the source wants them all results, as JSON."""
        if self._batch.partial:
            failed = [self._batch.items[place].id for place in self._undone]
            told = json.dumps(response(self._batch, failed)).encode()
        elif self._batch.results:
            told = b"[%b]" % b",".join(self._results[place] for place in sorted(self._results))
        else:
            told = b"null"
        if len(told) > RESPONSE_NBYTES:  # the work is done: it must not come again
            log.warning("invocation %s: %d bytes of results go lost", self._event.id, len(told))
            return b"null"
        return told

    async def _run(self, places: Iterable[int]) -> None:
        """The records of one group."""
        for place in places:
            item = self._batch.items[place]
            try:
                async with self._room:
                    if place > self._stopped.get(item.shard, place):
                        return
                    result = await self._result(item, f"{self._event.id}-{place}")
            except Exception as error:
                self._fail(place, item, error)
                return
            if self._batch.results:
                self._results[place] = result
            del self._undone[place]

    def _fail(self, place: int, item: Item, error: Exception) -> None:
        if item.shard:
            self._stopped[item.shard] = min(place, self._stopped.get(item.shard, place))
        problem = problems.describe(error, f"{self._info.name} {self._event.id}-{place}")
        which = item.id or place
        log.error("invocation %s: record %s: %s", self._event.id, which, problem["detail"])
        self._errors.append(error)

    async def _result(self, item: Item, call_id: str) -> bytes:
        """The result of one record, as JSON: bytes in base64."""
        info = self._info
        if item.problem:
            raise BadRequest(item.problem)
        body = item.body
        if item.object is not None and info.raw_input:
            body = await self._objects().content(item.object)
        while True:
            try:
                chunks = await self._caller.call(info.name, body, call_id, self._event.origin)
            except QueueFull:  # a batch may be larger than the queue; its own deadline ends this
                await asyncio.sleep(FULL_S)
                continue
            return (
                b'"%b"' % b64encode(b"".join(chunks)) if info.raw_output else json_of(info, chunks)
            )
