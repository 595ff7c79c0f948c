"""Which device to restore to, and whether this process has kept away from the GPU.

Makes no CUDA context: a process that has asked here can still fork children that use CUDA.
"""

import contextlib
import ctypes
import os
from pathlib import Path

import torch

from zerowake.snapshot.errors import DeviceError


def resolve_device(requested: str) -> str:
    """ "auto", "cpu" or "cuda" to the device to use: "cpu" or "cuda".

    Asks NVML, not CUDA, as PYTORCH_NVML_BASED_CUDA_CHECK=1 would: a process that called this may
    still fork children that use CUDA. "auto" is "cpu" where no GPU is visible; "cuda" is then a
    DeviceError, as is any other name.
    """
    if requested == "cpu":
        return "cpu"
    if requested not in ("auto", "cuda"):
        raise DeviceError(f"device {requested!r} is not known; use auto, cpu or cuda")
    if torch.version.cuda is None:
        cause = f"torch {torch.__version__} is built without CUDA"
        remedy = "install a CUDA build of torch"
    elif _visible_gpus() == 0:
        cause = "no GPU is visible to this process"
        remedy = "check nvidia-smi, the driver and CUDA_VISIBLE_DEVICES"
    else:
        return "cuda"
    if requested == "auto":
        return "cpu"
    raise DeviceError(f"device cuda was asked for, but {cause}; {remedy}, or use --device cpu")


def _visible_gpus() -> int:
    if _holds_context():
        return torch.cuda.device_count()
    count = torch.cuda.device_count()  # through NVML while CUDA is not initialised
    with contextlib.suppress(OSError):  # torch leaves NVML open, and with it /dev/nvidiactl
        ctypes.CDLL("libnvidia-ml.so.1").nvmlShutdown()
    return count


def _holds_context() -> bool:
    return bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]


def assert_cuda_untouched(descriptors: Path = Path("/proc/self/fd")) -> None:
    """Raises DeviceError when this process has used a GPU: its forked children could not.

    For a zygote, before each fork. ``descriptors``: the directory of this process's open files.
    """
    held = ["an initialised CUDA context"] if _holds_context() else []
    for entry in descriptors.iterdir():
        with contextlib.suppress(OSError):  # closed meanwhile, such as the one that lists them
            target = os.readlink(entry)
            if target.startswith("/dev/nvidia"):
                held.append(target)
    if held:
        raise DeviceError(
            f"this process has touched CUDA ({', '.join(sorted(held))}), so forked children could "
            "not use it; move what uses the GPU from import time into load, wake or predict"
        )
