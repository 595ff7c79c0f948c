"""Arrays as other libraries offer them, for tests and for bench/memcheck_calls.py."""

from typing import Any


class Only:
    """Offers nothing but DLPack. old: as before version 1.0, with no word of versions."""

    def __init__(self, value: Any, old: bool = False) -> None:
        self.value, self.old = value, old

    def __dlpack_device__(self) -> Any:
        return self.value.__dlpack_device__()

    def __dlpack__(self, **options: Any) -> Any:
        if self.old and options:
            raise TypeError("unexpected keyword argument")
        return self.value.__dlpack__(**options)
