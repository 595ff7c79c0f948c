"""Hygiene of forked processes: who they die with, what they inherit, what they must not share.

Linux only. Knows nothing of functions or snapshots.
"""

import contextlib
import ctypes
import fcntl
import mmap
import os
import resource
import select
import signal
import stat
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from typing import TYPE_CHECKING, Any

from zerowake.runtime import cores

if TYPE_CHECKING:
    from subprocess import Popen

F_SETSIG = 10  # <fcntl.h>; Python's fcntl does not name it on every build
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # <malloc.h>
HUGE_NBYTES = 2 << 20  # of a page, on x86-64 and mostly on arm64
PR_SET_PDEATHSIG, PR_SET_NAME, PR_SET_CHILD_SUBREAPER = 1, 15, 36  # <linux/prctl.h>
GRACE_S = 2.0  # how long a child that was asked to end may take before it is killed

# What a function's process inherits of the gateway's environment. The rest may hold secrets and
# is passed on only when it is named (``--env NAME``).
INHERITED = frozenset(
    [
        "PATH",
        "HOME",
        "USER",
        "LOGNAME",
        "SHELL",
        "LANG",
        "LANGUAGE",
        "TZ",
        "TMPDIR",
        "VIRTUAL_ENV",
        "PYTHONPATH",
        "PYTHONHOME",
        "PYTHONDONTWRITEBYTECODE",
        "PYTHONPYCACHEPREFIX",
        "LD_LIBRARY_PATH",
        "SSL_CERT_FILE",
        "SSL_CERT_DIR",
        "HF_HOME",
        "HF_HUB_OFFLINE",
        "TRANSFORMERS_OFFLINE",
        "CUDA_VISIBLE_DEVICES",
        "CUDA_HOME",
        "NVIDIA_VISIBLE_DEVICES",
        "NVIDIA_DRIVER_CAPABILITIES",
        "FUNCTION_TARGET",  # settings of functions-framework, which say how a function is called
        "FUNCTION_SIGNATURE_TYPE",
    ]
)
INHERITED_PREFIXES = ("LC_", "XDG_", "ZEROWAKE_")

# Libraries start threads of their own at import or first use, and threads do not survive a fork:
# instances set their number after the fork instead.
FIXED = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "NUMEXPR_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    # Threads of a parallel region must not spin for long for the next one. A MiniLM call of two
    # threads on two cores, and beside a process that keeps one of them busy: libgomp's default 13
    # and 90 to 180 ms, 1000 rounds 14 and 26, 3000 rounds 13 and 35, 10000 rounds 13 and 52.
    "GOMP_SPINCOUNT": "3000",
    "KMP_BLOCKTIME": "0",
    # torch.cuda.is_available() must not create a context in a process that forks.
    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
    # Only read at start, so it has to be in the environment: output must not wait in a buffer.
    "PYTHONUNBUFFERED": "1",
}


def function_environment(environ: Mapping[str, str], named: Iterable[str]) -> dict[str, str]:
    """The environment for zygotes and instances: an allow-list, what is ``named``, one thread."""
    names = INHERITED.union(named)
    kept = {k: v for k, v in environ.items() if k in names or k.startswith(INHERITED_PREFIXES)}
    return {**kept, **FIXED}


def _prctl(option: int, argument: int | bytes) -> None:
    ctypes.CDLL(None, use_errno=True).prctl(option, argument, 0, 0, 0)


PARENT = "ZEROWAKE_PARENT"  # the process that this one is to end with


def end_with_parent(environ: MutableMapping[str, str]) -> None:
    """Have the kernel end this process when the one that ``environ`` names has ended, if any.

    For work that is of no use to anybody else. The thread that has started us counts.
    """
    if (parent := environ.pop(PARENT, "")).isdigit():
        _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != int(parent):  # it went before
            os._exit(1)


def set_name(name: str) -> None:
    """Show this process as ``name`` (its first 15 bytes) in ``ps`` and ``top``."""
    _prctl(PR_SET_NAME, name.encode()[:15])


def become_subreaper() -> None:
    """Let orphans among our descendants become our children, so that their end is seen."""
    _prctl(PR_SET_CHILD_SUBREAPER, 1)


AWAITED: set[int] = set()
"""Children that somebody in this process waits for: those it has started, and adopted ones."""


def reap_orphans() -> None:
    """Reap processes that have become our children because their parents have ended.

    An author's subprocess, say, whose instance has ended before it: nobody else waits for those.
    """
    for tid in os.listdir("/proc/self/task"):
        try:
            with open(f"/proc/self/task/{tid}/children") as file:
                children = set(map(int, file.read().split()))
        except OSError:  # the thread has ended: another one has its children now
            continue
        for pid in children - AWAITED:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)


def end_group(child: "Popen[Any]") -> None:
    """End a child that leads a group of its own, and all of that group.

    It is asked first, and killed where native code does not let the question through.
    """
    import subprocess  # instances do without it

    def send(signum: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signum)

    send(signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(GRACE_S)
    send(signal.SIGKILL)
    child.wait()


def raise_descriptor_limit() -> None:
    """Allow as many descriptors as the system lets us have: each caller needs one."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def ignore_terminal_signals() -> None:
    """SIGINT and SIGTERM are for the gateway, which drains and then ends us.

    Handlers instead of SIG_IGN: they do not survive an exec, so an author's subprocesses end as
    they should.
    """
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, lambda _signum, _frame: None)


def die_with(alive_fd: int) -> None:
    """Have the kernel kill this process when the last writer of the ``alive_fd`` pipe is gone.

    The signal is raised by the kernel (O_ASYNC with F_SETSIG), so it needs no thread and works while
    the process is stuck in native code. The pipe is opened anew because the owner of the signal
    belongs to the open file description, which forks share.
    """
    fd = os.open(f"/proc/self/fd/{alive_fd}", os.O_RDONLY | os.O_NONBLOCK)
    fcntl.fcntl(fd, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(fd, F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_ASYNC)
    if select.select([fd], [], [], 0)[0]:  # the writer went before the signal was armed
        os.kill(os.getpid(), signal.SIGKILL)


def _open_descriptors() -> dict[int, int]:
    """Every open descriptor with its ``st_mode``."""
    modes = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            modes[int(name)] = os.fstat(int(name)).st_mode
        except OSError:
            continue  # the listing's own descriptor
    return modes


def close_descriptors(keep: Iterable[int]) -> None:
    """Close the sockets, pipes and event descriptors that a fork inherited, but for ``keep``.

    Files and devices that the function's module has opened are its own business.

    A sibling's socket or pipe end that stays open here would keep that sibling's peer from ever
    seeing its end of file.
    """
    keep = {0, 1, 2, *keep}
    for fd, mode in _open_descriptors().items():
        own = stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_ISCHR(mode)
        if fd not in keep and not own:
            os.close(fd)


def sockets() -> frozenset[int]:
    """The descriptors of this process that are sockets or pipes."""
    modes = _open_descriptors().items()
    return frozenset(fd for fd, mode in modes if stat.S_ISSOCK(mode) or stat.S_ISFIFO(mode))


def unforkable_reason(what: str, sockets_before: frozenset[int]) -> str | None:
    """Why this process must not be forked from after ``what``: threads, or sockets opened since."""
    found = []
    threads = os.listdir("/proc/self/task")
    if len(threads) > 1:
        names = sorted({_comm(tid) for tid in threads if int(tid) != os.getpid()})
        found.append(f"{len(threads) - 1} running thread(s) ({', '.join(names)})")
    if new := sockets() - sockets_before:
        found.append(f"{len(new)} open socket(s) or pipe(s)")
    if not found:
        return None
    return (
        f"{what} leaves {' and '.join(found)}, which a fork does not survive; "
        "open them in wake() to let the function sleep at zygote or prewarmed"
    )


def _comm(tid: str) -> str:
    try:
        with open(f"/proc/self/task/{tid}/comm") as file:
            return file.read().strip()
    except OSError:
        return "?"


def reseed() -> None:
    """Give this fork random numbers of its own: Python's, numpy's and torch's, where loaded."""
    import random  # the gateway does without it

    random.seed()
    if (numpy := sys.modules.get("numpy")) is not None:
        numpy.random.seed()
    if (torch := sys.modules.get("torch")) is not None:
        torch.seed()


def set_threads(count: int | None, sharers: int = 1) -> None:
    """Let torch, or libtorch without it, compute with ``count`` threads where it is loaded.

    None: one for each core that it may keep busy, divided among the ``sharers`` processes that
    compute now.
    """
    torch, module = sys.modules.get("torch"), sys.modules.get("zerowake.snapshot.libtorch")
    if torch is None and module is None:
        return
    count = count or max(1, cores.usable() // sharers)
    if torch is not None:
        if torch.get_num_threads() != count:
            torch.set_num_threads(count)
    elif module is not None and (libtorch := module.loaded()) is not None:
        libtorch.set_threads(count)


def leave(code: int) -> int:
    """``code``, for ``sys.exit``; where that would wait for an author's threads, end here and now."""
    waits = (t for t in threading.enumerate() if not t.daemon and t is not threading.main_thread())
    if any(waits):
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError):  # nobody reads it any more
                stream.flush()
        os._exit(code)
    return code


@contextlib.contextmanager
def spread_threads() -> Iterator[None]:
    """Keep the other threads of this process off the core that this one runs on, for a while.

    Threads that have slept wake up where they were woken from, all on one core, and it takes the
    scheduler up to 20 ms to part them.
    """
    allowed = os.sched_getaffinity(0)
    here = ctypes.CDLL(None).sched_getcpu()
    others = [int(tid) for tid in os.listdir("/proc/self/task") if int(tid) != os.getpid()]
    if allowed == {here} or not others:
        yield
        return
    _bind(others, allowed - {here})
    try:
        yield
    finally:
        _bind(others, allowed)


def _bind(tids: Iterable[int], allowed: set[int]) -> None:
    for tid in tids:
        with contextlib.suppress(OSError):  # it has ended
            os.sched_setaffinity(tid, allowed)


def make_room(nbytes: int) -> None:
    """Have the heap (glibc's) grow by ``nbytes``, in huge pages.

    For a restore in a fork, where each page of the heap is a fault of 1.5 us: MiniLM's took 2500 of
    them less and 5 ms less, and no more memory. Where there are no huge pages only the faults stay.
    """
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt"):
        return
    libc.sbrk.argtypes, libc.sbrk.restype = [ctypes.c_ssize_t], ctypes.c_void_p
    libc.malloc.argtypes, libc.malloc.restype = [ctypes.c_size_t], ctypes.c_void_p
    libc.free.argtypes = [ctypes.c_void_p]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    # Where glibc's own rule ends once large blocks have come and gone: in the heap, and kept there.
    libc.mallopt(M_MMAP_THRESHOLD, 32 << 20)
    libc.mallopt(M_TRIM_THRESHOLD, 64 << 20)
    start = -(-libc.sbrk(0) // HUGE_NBYTES) * HUGE_NBYTES
    libc.free(libc.malloc(nbytes))
    end = libc.sbrk(0) // HUGE_NBYTES * HUGE_NBYTES
    if start < end:  # not if there was room
        libc.madvise(start, end - start, mmap.MADV_HUGEPAGE)


def trim_heap() -> None:
    """Give freed memory back to the system (glibc's ``malloc_trim``; elsewhere nothing)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def exit_reason(status: int) -> str:
    """A wait status in words: "exit code 3" or "killed by SIGSEGV"."""
    return code_reason(os.waitstatus_to_exitcode(status))


def code_reason(code: int) -> str:
    """As ``exit_reason``, of a return code as ``subprocess`` has it: negative for a signal."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"


def private_nbytes(pid: int) -> int | None:
    """Unique set size plus page tables of a process, in bytes; None when it is gone."""
    try:
        with open(f"/proc/{pid}/smaps_rollup") as file:
            private = sum(int(line.split()[1]) for line in file if line.startswith("Private_"))
        with open(f"/proc/{pid}/status") as file:
            tables = sum(int(line.split()[1]) for line in file if line.startswith("VmPTE"))
    except (OSError, ValueError):
        return None
    return (private + tables) << 10
