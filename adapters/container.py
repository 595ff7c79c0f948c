"""A plain HTTP container: listens where PORT says, and ends on SIGTERM. What most platforms run."""

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

from zerowake.adapters.port import Capabilities
from zerowake.runtime.config import ServeConfig
from zerowake.runtime.errors import ConfigError
from zerowake.runtime.gateway.http import HttpIngress


class Container(HttpIngress):
    """``zerowake serve`` without its sleep, for one function."""

    capabilities: ClassVar[Capabilities] = Capabilities("HTTP container", "push")

    @staticmethod
    def configure(environ: Mapping[str, str], config: ServeConfig) -> ServeConfig:
        return replace(config, host="0.0.0.0", port=port(environ, "PORT", 8080))

    def __init__(self, environ: Mapping[str, str], config: ServeConfig) -> None:
        super().__init__(config)

    def report_init_error(self, error: BaseException) -> None:
        """Nobody to tell: the exit code and the log do it."""


def port(environ: Mapping[str, str], name: str, default: int) -> int:
    """The port that a variable names. Raises ConfigError."""
    text = environ.get(name, str(default))
    if not text.isdecimal() or not 0 <= int(text) <= 65535:
        raise ConfigError(f"{name} is {text!r:.40}; it must be a port number, 0 to 65535")
    return int(text)
