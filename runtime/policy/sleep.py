"""How deep a function sleeps.

Knows neither what a depth is made of nor how a function gets there, and reads no clock.
"""

from zerowake.runtime.depth import Depth


def next_depth(
    depth: Depth,
    idle_since_s: float | None,
    now_s: float,
    idle_s: float,
    floor: Depth,
    allowed: frozenset[Depth],
    minimum: int,
) -> tuple[Depth, float | None]:
    """The depth for a function that no call runs or waits for, and when to ask again.

    None instead of a time: not before something happens.

    A function without calls sinks one allowed step every ``idle_s`` seconds, counted from HOT at
    ``idle_since_s``, and rests at the deepest allowed depth not below ``floor``. It never rises
    here: only a call or a command wakes it.

    Parameters
    ----------
    depth: where the function is. A depth it was sent to by command is kept until its time.
    idle_since_s: when its last call ended or, before the first, when it was first ready; not
        moved by sinking. None while it has never been ready: nothing is put to sleep before it
        has worked once (KServe #1247, #1641: scaled to zero before ever becoming ready).
    allowed: depths this function can have: a module that cannot be forked has only HOT and COLD.
    minimum: instances that must stay alive; any at all keep the function from sinking.
    """
    if minimum > 0 or idle_since_s is None:
        return depth, None
    path = [step for step in Depth if step in allowed and step.level <= floor.level]
    for steps, deeper in enumerate(path):
        if deeper.level <= depth.level:
            continue
        due_s = idle_since_s + steps * idle_s
        if now_s < due_s:
            return depth, due_s
        depth = deeper
    return depth, None
