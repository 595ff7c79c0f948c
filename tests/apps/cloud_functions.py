"""Functions as people have written them for Google's functions-framework; none knows zerowake.

Each writes what it was given to ``function_output.json``, as those do that the framework's own
conformance tests call.
"""

import base64
import glob
import json
import os
import time

import flask
import functions_framework

ABOUT_THE_CONNECTION = ("Host", "Function-Execution-Id")


class Refused(Exception):
    pass


def put_down(told):
    with open("function_output.json", "w") as file:
        json.dump(told, file)


@functions_framework.errorhandler(Refused)
def refused(error):
    return f"refused: {error}", 418


@functions_framework.http
def on_request(request):
    """Answers as the path says, and writes down the request."""
    put_down(
        {
            "method": request.method,
            "url": request.url,
            "path": request.path,
            "args": request.args.to_dict(flat=False),
            "form": request.form.to_dict(flat=False),
            "headers": sorted(h for h in request.headers if h[0] not in ABOUT_THE_CONNECTION),
            "cookies": request.cookies,
            "body": base64.b64encode(request.get_data()).decode(),
            "client": request.remote_addr,
            "target": os.environ["FUNCTION_TARGET"],
            "signature": os.environ["FUNCTION_SIGNATURE_TYPE"],
        }
    )
    given = request.get_json(silent=True)
    if isinstance(given, dict) and "status" in given:
        return f"as told: {given['status']}", given["status"]
    match request.path:
        case "/tuple":
            return "made", 201, {"X-Made": "yes", "Connection": "close"}
        case "/cookies":
            reply = flask.make_response("baked")
            reply.set_cookie("a", "1")
            reply.set_cookie("b", "2", httponly=True)
            return reply
        case "/abort":
            flask.abort(404)
        case "/raise":
            raise ValueError("it is broken")
        case "/refuse":
            raise Refused("not today")
        case "/exit":
            raise SystemExit(3)
        case "/redirect":
            return flask.redirect("/elsewhere?x=1")
        case "/binary":
            return flask.Response(bytes(range(256)), mimetype="application/octet-stream")
        case "/unicode/é":
            return "Grüße, \U0001f600"
        case "/nothing":
            return "", 204
        case "/unchanged":
            return "", 304, {"ETag": '"1"'}
        case "/stream":
            return flask.Response(iter(["a", "b", "c"]), mimetype="text/plain")
        case "/json":
            return {"json": request.args.get("x"), "é": None}
        case "/meet":
            open(f"met-{request.query_string.decode()}", "w").close()
            while len(glob.glob("met-*")) < 3:
                time.sleep(0.01)
            return "met"
    return f"{request.method} {request.path}"


@functions_framework.http
def helloWorld(request):
    put_down(request.get_data(as_text=True))
    return "OK"


@functions_framework.cloud_event
def on_cloud_event(event):
    put_down({"attributes": dict(event.get_attributes()), "data": event.get_data()})


def on_event(data, context):
    told = {
        "eventId": context.event_id,
        "timestamp": context.timestamp,
        "eventType": context.event_type,
        "resource": context.resource,
    }
    put_down({"data": data, "context": told})


class Raw:
    def __init__(self, value):
        self.value = value

    @staticmethod
    def from_dict(value):
        return Raw(value)

    def to_dict(self):
        return self.value


@functions_framework.typed(Raw)
def on_value(value):
    put_down(value.value)
    return Raw({"got": value.value})


def undecorated(request):
    put_down(request.get_data(as_text=True))
    return request.args.get("x", "-")
