"""Writes the tables of docs/adapters.md anew from what the adapters say: python docs/adapters_table.py."""

from pathlib import Path

from zerowake.adapters import KNOWN, find
from zerowake.adapters.port import Capabilities

PAGE = Path(__file__).with_name("adapters.md")
BEGIN, END = "<!-- made by docs/adapters_table.py -->", "<!-- end -->"


def render() -> str:
    """Two tables: how an adapter is chosen and called, and what the platform allows."""
    known = {name: find({}, name).capabilities for name in KNOWN}
    calls = [
        ["adapter", "platform", "chosen by", "calls", "events", "streams", "error in mid-stream"]
    ]
    limits = [
        ["adapter", "at a time", "request", "timeout", "start", "drain", "port", "model at", "more"]
    ]
    for name, can in known.items():
        events = ", ".join(can.events) or "-"
        called = f"`{name}`"
        streams = [can.streaming or "-", can.mid_stream_error or "-"]
        calls.append([called, can.platform, _chosen(name), can.shape, events, *streams])
        limits.append([called, *_limits(can)])
    return f"{_table(calls)}\n\n{_table(limits)}"


def page(text: str) -> str:
    """The page ``text`` with its tables as they have to be."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{render()}\n\n{END}{after}"


def _chosen(name: str) -> str:
    known = KNOWN[name]
    marks = [f"`{mark}`" for mark in known.marks]
    if known.argument:
        marks.append(f"the argument `{known.argument}`")
    if known.folder:
        marks.append(f"`{known.folder}`")
    where = {True: " in a pod", False: " outside of a pod", None: ""}[known.pod]
    return " or ".join(marks) + where or "nothing else"


def _limits(can: Capabilities) -> list[str]:
    size = "-" if can.request_nbytes is None else f"{can.request_nbytes / 2**20:.3g} MiB"
    start = "-" if can.start_s is None else f"{can.start_s:g} s"
    more = [can.hooks, "" if can.cancel else "is not told of callers that leave"]
    more.append("items of a batch fail alone" if can.partial_batch else "")
    model = f"`{can.model}`" if can.model else "-"
    port = f"`{can.port.variable}`, else {can.port.default}" if can.port else "-"
    told = [can.concurrency, size, can.timeout or "-", start, f"{can.drain_s:g} s", port, model]
    return [*told, "; ".join(filter(None, more)) or "-"]


def _table(rows: list[list[str]]) -> str:
    head, *body = (f"| {' | '.join(row)} |" for row in rows)
    return "\n".join([head, "|---" * len(rows[0]) + "|", *body])


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text("utf-8")), "utf-8")
