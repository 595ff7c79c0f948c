"""How deep a function can sleep. A name for each depth, nothing else."""

from enum import StrEnum


class Depth(StrEnum):
    """From awake to nothing of its own in memory. ``level``: 0 is awake, then deeper by one."""

    HOT = "hot"
    PREWARMED = "prewarmed"
    ZYGOTE = "zygote"
    COLD = "cold"

    level: int  # asked for several times in each call

    def __new__(cls, value: str) -> "Depth":
        depth = str.__new__(cls, value)
        depth._value_ = value
        depth.level = len(cls.__members__)
        return depth
