"""Functions written for functions-framework: that package itself makes a WSGI app of each.

https://github.com/GoogleCloudPlatform/functions-framework-python. It is imported here and nowhere
else, and only for a function that is one of its. Knows no flask, no snapshot and no request.
"""

import importlib
import importlib.util
import inspect
import os
import sys
import types
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from zerowake.runtime.errors import DeclarationError

if TYPE_CHECKING:
    from zerowake.runtime.wsgi import WSGIApp

PACKAGE = "functions_framework"
SIGNATURE = "FUNCTION_SIGNATURE_TYPE"  # its setting for a function without a decorator
SOURCE = Path(os.path.realpath(__file__)).with_name("framework_source.py")
INSTALL = "pip install functions-framework"
HINT = (
    f"or a decorator of {PACKAGE}, or set {SIGNATURE} to http, cloudevent or event (these need "
    f"{INSTALL})"
)
SIGNATURES = ("http", "cloudevent", "event", "typed")  # typed: it sets this itself


class _Wanted(NamedTuple):
    module: str
    attribute: str


class _NotOne(Exception):
    """What was asked for is none of its functions."""


_wanted: list[_Wanted] = []  # what is being loaded; the package can only be told a file


def looks_like_one(module: str, environ: Mapping[str, str]) -> bool:
    """Whether to import ``module`` by ``load``, judged before anything of it runs.

    An author's error handlers (``functions_framework.errorhandler``) are registered with the app
    while the module is imported, so the app must be there by then.
    """
    if SIGNATURE in environ:
        return True
    spec = importlib.util.find_spec(module)
    get_source = getattr(spec and spec.loader, "get_source", None)
    return get_source is not None and PACKAGE in (get_source(module) or "")


def is_registered(attribute: str) -> bool:
    """Whether one of its decorators was on a function of this name. It tells nobody in public."""
    return attribute in registered()


def registered() -> Collection[str]:
    """The names of all functions that have one of its decorators, in any module."""
    registry: Any = sys.modules.get(f"{PACKAGE}._function_registry")
    names: Collection[str] = getattr(registry, "REGISTRY_MAP", ())
    return names


def load(module: str, attribute: str) -> "WSGIApp | None":
    """Import ``module`` and have an app made of its function; None where it is none, or cannot be one
    because the package is not installed.

    Raises what the import of the module raises, and DeclarationError for an async function and for
    a signature type that there is not.
    """
    try:
        framework = importlib.import_module(PACKAGE)
    except ImportError:
        return None
    _wanted.append(_Wanted(module, attribute))
    try:
        app: WSGIApp = framework.create_app(attribute, str(SOURCE))
    except _NotOne:
        return None
    finally:
        _wanted.pop()
    return app


def hand_over(namespace: dict[str, Any]) -> None:
    """Called by ``SOURCE`` when the package runs it: the author's function becomes its global.

    So the module that is imported is the one that everybody else imports, and it runs once.
    """
    sys.modules.pop(namespace["__name__"], None)
    if sys.path[-1] == str(SOURCE.parent):  # the package has put it there, for siblings of SOURCE
        sys.path.pop()
    module, attribute = _wanted[-1]
    found = getattr(importlib.import_module(module), attribute, None)
    if (
        not isinstance(found, types.FunctionType)
        or hasattr(found, "__zerowake__")
        or not (is_registered(attribute) or SIGNATURE in os.environ)
    ):
        raise _NotOne
    # It looks at the variable only where there is no decorator; a mistake in it is one everywhere.
    if (signature := os.environ.get(SIGNATURE)) and signature not in SIGNATURES:
        raise DeclarationError(
            f"{SIGNATURE} is {signature!r:.40}; it is one of {', '.join(SIGNATURES)}, and a function "
            "with a decorator does without"
        )
    if inspect.iscoroutinefunction(inspect.unwrap(found)):
        raise DeclarationError(
            f"{attribute} is an async function; write `def {attribute}` and take the decorator from "
            f"{PACKAGE}, not from {PACKAGE}.aio"
        )
    namespace[attribute] = found
