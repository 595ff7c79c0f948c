"""Objects into a skeleton: what ``load`` has left, taken apart into nodes, leaves and assets."""

import sys
from dataclasses import dataclass

from zerowake.snapshot.errors import FreezeError
from zerowake.snapshot.skeleton import Skeleton
from zerowake.snapshot.walker import Leaf, Walker


@dataclass(slots=True, eq=False)
class Parts:
    """``leaves``: their nodes are the skeleton's, still without place; ``assets``: bytes by path."""

    skeleton: Skeleton
    leaves: list[Leaf]
    assets: dict[str, bytes]


def dismantle(root: object, own: frozenset[str]) -> Parts:
    """What ``root`` is made of. ``own``: the modules of the author's code.

    Raises FreezeError naming the attribute's path, its type and the remedy.
    """
    walker = _walker(own)
    try:
        value = walker.value(root, "self")
    except RecursionError:
        raise FreezeError(
            "objects are nested too deep to freeze; keep them in a flat list"
        ) from None
    early = sorted(ref[0] for ref in walker.early.values())
    skeleton = Skeleton(value, walker.nodes, early, walker.names)
    return Parts(skeleton, walker.leaves, walker.assets)


def _walker(own: frozenset[str]) -> Walker:
    if not {"torch", "numpy"} & sys.modules.keys():  # then no object can be of theirs
        return Walker(own)
    from zerowake.snapshot.tensor_walker import TensorWalker

    return TensorWalker(own)
