"""A plain HTTP container: listens where PORT says, and ends on SIGTERM. What most platforms run."""

from typing import ClassVar

from zerowake.adapters.port import Capabilities
from zerowake.adapters.push import CLOUD_EVENTS, MID_STREAM, PORT, STREAMING, Push


class Container(Push):
    """``zerowake serve`` without its sleep, for one function; Azure Container Apps among others."""

    capabilities: ClassVar[Capabilities] = Capabilities(
        platform="HTTP container",
        shape="push",
        streaming=STREAMING,
        mid_stream_error=MID_STREAM,
        events=CLOUD_EVENTS,
        port=PORT,
    )
