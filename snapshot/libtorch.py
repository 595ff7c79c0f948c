"""libtorch and compiled modules over their C ABI, in a process that does not import torch.

``libtorch_cpu.so`` exports a stable C interface (``aoti_torch_*``), and a module compiled by
AOTInductor exports another (``AOTInductorModelContainer*``,
https://docs.pytorch.org/docs/stable/torch.compiler_aot_inductor.html). Both are called through
ctypes. Knows no snapshot and no file but the two libraries; a wrong address, shape or dtype here
ends the process, so callers check those first (``compiled``).
"""

import ctypes
import functools
import re
from collections.abc import Iterable, Sequence
from ctypes import POINTER, byref, c_bool, c_char_p, c_int32, c_int64, c_size_t, c_void_p
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zerowake.snapshot import installed_torch
from zerowake.snapshot.errors import UnusableForm
from zerowake.snapshot.strided import ELEMENTS, Array


class LibTorch:
    """``libtorch_cpu.so``. Raises UnusableForm when it cannot be loaded or lacks a function."""

    def __init__(self, path: Path) -> None:
        try:
            # Global: compiled modules are linked against its symbols.
            self._lib = lib = ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
            self._dtypes = {name: getattr(lib, f"aoti_torch_dtype_{name}")() for name in ELEMENTS}
            self._cpu = lib.aoti_torch_device_type_cpu()
            self._from_blob = lib.aoti_torch_create_tensor_from_blob
            self._delete = lib.aoti_torch_delete_tensor_object
            self._data_ptr = lib.aoti_torch_get_data_ptr
            self._dim = lib.aoti_torch_get_dim
            self._size, self._stride = lib.aoti_torch_get_size, lib.aoti_torch_get_stride
            self._dtype = lib.aoti_torch_get_dtype
            self._set_threads = lib._ZN2at15set_num_threadsEi  # at::set_num_threads
            self._get_threads = lib._ZN2at15get_num_threadsEv
            set_grad = lib.aoti_torch_grad_mode_set_enabled
        except (OSError, AttributeError) as error:
            raise UnusableForm(
                f"libtorch at {path} cannot be used without torch: {error}"
            ) from error
        self._names = {code: name for name, code in self._dtypes.items()}
        i64s = POINTER(c_int64)
        self._from_blob.argtypes = [
            *(c_void_p, c_int64, i64s, i64s, c_int64),
            *(c_int32, c_int32, c_int32, POINTER(c_void_p)),
        ]
        self._delete.argtypes = [c_void_p]
        self._data_ptr.argtypes = [c_void_p, POINTER(c_void_p)]
        self._dim.argtypes = [c_void_p, i64s]
        self._size.argtypes = self._stride.argtypes = [c_void_p, c_int64, i64s]
        self._dtype.argtypes = [c_void_p, POINTER(c_int32)]
        self._set_threads.argtypes, self._set_threads.restype = [ctypes.c_int], None
        self._get_threads.restype = ctypes.c_int
        set_grad.argtypes, set_grad.restype = [c_bool], None
        set_grad(False)

    def set_threads(self, count: int) -> None:
        if self._get_threads() != count:
            self._set_threads(count)

    def run_once(self) -> None:
        """Multiply two small matrices on this thread: the first time sets the math library up."""
        multiply = getattr(self._lib, "aoti_torch_cpu_mm_out", None)
        if multiply is None:
            return
        size = 64
        memory = (ctypes.c_float * (size * size))()
        matrix = Array(ctypes.addressof(memory), "float32", (size, size), (size, 1), memory)
        out, left, right = (Owned(self, self.handle(matrix), memory) for _ in range(3))
        multiply.argtypes = [c_void_p, c_void_p, c_void_p]
        multiply(out._handle, left._handle, right._handle)

    def handle(self, array: Array) -> int:
        """A new tensor handle around memory that stays its owner's."""
        ndim = len(array.shape)
        sizes, strides = (c_int64 * ndim)(*array.shape), (c_int64 * ndim)(*array.strides)
        handle, dtype = c_void_p(), self._dtypes[array.dtype]
        _check(
            self._from_blob(
                array.address, ndim, sizes, strides, 0, dtype, self._cpu, 0, byref(handle)
            ),
            "a tensor cannot be made",
        )
        assert handle.value is not None
        return handle.value

    def last_error(self) -> str:
        """What the last function that failed on this thread said; nothing where torch does not tell."""
        if (read := getattr(self._lib, "torch_exception_get_what_without_backtrace", None)) is None:
            return ""
        read.restype = c_char_p
        return (read() or b"").decode(errors="replace").strip()

    def delete(self, handle: int) -> None:
        self._delete(handle)

    def array(self, handle: int, owner: Any) -> Array:
        """What lies behind a handle; ``owner`` is who deletes it."""
        number, code, address = c_int64(), c_int32(), c_void_p()
        _check(self._dim(handle, byref(number)), "a tensor has no rank")
        ndim = number.value

        def each(read: Any) -> Iterable[int]:
            for place in range(ndim):
                _check(read(handle, place, byref(number)), "a tensor has no size")
                yield number.value

        shape, strides = tuple(each(self._size)), tuple(each(self._stride))
        _check(self._dtype(handle, byref(code)), "a tensor has no dtype")
        _check(self._data_ptr(handle, byref(address)), "a tensor has no memory")
        return Array(address.value or 0, self._names[code.value], shape, strides, owner)


class Owned:
    """A tensor handle of ours: deleted with this object, and ``others`` kept alive until then."""

    __slots__ = ("_handle", "_lib", "others")

    def __init__(self, lib: LibTorch, handle: int, others: Any) -> None:
        self._lib, self._handle, self.others = lib, handle, others

    def __del__(self) -> None:
        self._lib.delete(self._handle)


class _Pair(ctypes.Structure):
    _fields_ = (("name", c_char_p), ("handle", c_void_p))


@dataclass(frozen=True, slots=True)
class Constant:
    """A weight that a compiled module wants. fqn: the module's name for it, ``layer.weight``."""

    name: bytes
    fqn: str
    dtype: str


class Library:
    """A compiled module's library, its constants not yet bound. Not to be called by two threads."""

    def __init__(self, path: Path | str, torch: LibTorch, name: str = "") -> None:
        """name: what errors call it, where its path says nothing."""
        self._torch = torch
        self._kept: list[Owned] = []
        self._container = c_void_p()
        try:
            self._lib = lib = ctypes.CDLL(str(path))
            self._delete = lib.AOTInductorModelContainerDelete
            self._error = lib.AOTInductorGetLastError
            self._run = lib.AOTInductorModelContainerRun
            create = lib.AOTInductorModelContainerCreateWithDevice
            self._checked(create(byref(self._container), c_size_t(1), b"cpu", None), "load")
            self.inputs = self._number(lib.AOTInductorModelContainerGetNumInputs)
            self.outputs = self._number(lib.AOTInductorModelContainerGetNumOutputs)
            self.constants = [self._constant(place) for place in range(self._constants())]
        except (OSError, AttributeError) as error:
            raise UnusableForm(
                f"the compiled library {name or path} cannot be loaded: {error}"
            ) from error
        self._run.argtypes = [
            *(c_void_p, POINTER(c_void_p), c_size_t, POINTER(c_void_p), c_size_t),
            *(c_void_p, c_void_p),
        ]

    def __del__(self) -> None:
        if self._container:  # before ``_kept``, whose memory it uses
            self._delete(self._container)

    def bind(self, arrays: Sequence[Array]) -> None:
        """Give each of ``constants`` its memory, which is used where it lies; its owner is kept."""
        for array in arrays:
            self._kept.append(Owned(self._torch, self._torch.handle(array), array.owner))
        pairs = (_Pair * len(arrays))(
            *(
                _Pair(constant.name, kept._handle)
                for constant, kept in zip(self.constants, self._kept, strict=True)
            )
        )
        bind = self._lib.AOTInductorModelContainerUpdateUserManagedConstantBufferPairs
        bind.argtypes = [c_void_p, POINTER(_Pair), c_size_t, c_bool, c_bool]
        self._checked(bind(self._container, pairs, len(arrays), False, True), "bind its weights")

    def run(self, arrays: Sequence[Array]) -> list[Array]:
        """One forward pass. Raises RuntimeError with the library's own message.

        Shapes and dtypes are taken at their word.
        """
        # Run takes the handles over, whether it succeeds or not.
        given = (c_void_p * self.inputs)(*(self._torch.handle(array) for array in arrays))
        found = (c_void_p * self.outputs)()
        failed = self._run(self._container, given, self.inputs, found, self.outputs, None, None)
        if failed:
            raise RuntimeError(in_words(self._message(), self._torch.last_error()))
        # A result that is returned twice has one handle, and one that is a weight its memory.
        owned = {handle: Owned(self._torch, handle or 0, (self, arrays)) for handle in {*found}}
        return [self._torch.array(handle or 0, owned[handle]) for handle in found]

    def _constants(self) -> int:
        return self._number(self._lib.AOTInductorModelContainerGetNumConstants)

    def _constant(self, place: int) -> Constant:
        lib, name, fqn, code = self._lib, c_char_p(), c_char_p(), c_int32()
        at = c_size_t(place)
        container = self._container
        for read, found in (
            (lib.AOTInductorModelContainerGetConstantName, name),
            (lib.AOTInductorModelContainerGetConstantOriginalFQN, fqn),
            (lib.AOTInductorModelContainerGetConstantDtype, code),
        ):
            self._checked(read(container, at, byref(found)), "name its weights")
        dtype = self._torch._names.get(code.value, f"dtype {code.value}")
        return Constant(name.value or b"", (fqn.value or b"").decode(), dtype)

    def _number(self, read: Any) -> int:
        number = c_size_t()
        self._checked(read(self._container, byref(number)), "count")
        return number.value

    def _checked(self, failed: int, what: str) -> None:
        if failed:
            raise UnusableForm(f"the compiled library cannot {what}: {self._message()}")

    def _message(self) -> str:
        text = c_char_p()
        self._error(byref(text))
        return (text.value or b"no reason given").decode(errors="replace").strip()


def in_words(message: str, torch_says: str) -> str:
    """A library's message about a function of libtorch that has failed, in torch's own words.

    As it comes it is the line of generated code, and where that lay on the machine that compiled it.
    """
    called = re.fullmatch(r"(\w+)\(.*\) API call failed at .*, line \d+", message, re.DOTALL)
    return f"{torch_says or 'it failed'} ({called[1]})" if called else message


def _check(failed: int, what: str) -> None:
    if failed:
        raise RuntimeError(f"libtorch: {what}")


@functools.cache
def libtorch() -> LibTorch:
    """This process's libtorch, loaded at the first call (0.1 s); torch itself is not imported.

    Raises UnusableForm without one.
    """
    if (path := installed_torch.library()) is None:
        raise UnusableForm("torch is not installed")
    return LibTorch(Path(path))


def loaded() -> LibTorch | None:
    """This process's libtorch if something has loaded it: functions without tensors run without it."""
    return libtorch() if libtorch.cache_info().currsize else None
