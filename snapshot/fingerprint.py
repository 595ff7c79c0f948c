"""What compiled code depends on: the processor's features, torch's version, the device, threads.

Names the directory of a compiled form (docs/format.md, section 8). The device is always the CPU, for
libraries are made for no other; what a function compiles itself, for a GPU too, lies in caches whose
own keys name the device. Knows no snapshot.
"""

import functools
import hashlib
import json
import os

from zerowake.snapshot import installed_torch
from zerowake.snapshot.errors import UnusableForm

THREADS = "any"  # compiled code divides its work by those there are when it runs: see ``products``


def fingerprint() -> dict[str, str]:
    """This machine's. Raises UnusableForm without torch."""
    return {
        "machine": os.uname().machine,
        "cpu": _cpu(),
        "torch": _torch(),
        "device": "cpu",
        "threads": THREADS,
    }


def fingerprint_id() -> str:
    """The first 16 hexadecimal digits of its SHA-256. Raises UnusableForm without torch."""
    return hashlib.sha256(json.dumps(fingerprint(), sort_keys=True).encode()).hexdigest()[:16]


@functools.cache
def _cpu() -> str:
    """A digest of the features that the kernel reports: code for more of them would crash."""
    with open("/proc/cpuinfo") as file:
        flags = next((line for line in file if line.startswith(("flags", "Features"))), "")
    features = " ".join(sorted(flags.partition(":")[2].split()))
    return hashlib.sha256(features.encode()).hexdigest()[:16]


@functools.cache
def _torch() -> str:
    if (found := installed_torch.version()) is None:
        raise UnusableForm("torch is not installed, or does not say its version")
    return found
