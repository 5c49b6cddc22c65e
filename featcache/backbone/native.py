"""Calls a compiled package's code without the interpreter's lock, so that each core can run a chunk of its own.

PyTorch's own loader keeps that lock while the package computes. Its library has a plain C interface, stable for what
one version of PyTorch both compiled and loads (the version is part of a package's key), and foreign calls give the lock
back. The child that compiles a package makes the first call, so what would crash here has crashed there.
"""

from __future__ import annotations

import ctypes
import tempfile
import weakref
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

__all__ = ["NativeCall"]


class NativeCall:
    """The model in a package as a function of one tensor.

    Parameters
    ----------
    package : Path
        The package; verified by the caller.
    instances : int
        Calls that may run at once.

    Raises
    ------
    RuntimeError, OSError, AttributeError
        Where this version of PyTorch makes packages of another kind.
    """

    def __init__(self, package: Path, instances: int) -> None:
        self._tensors = torch._C._aoti
        self._library = library = _opened(package)
        self._handle = handle = ctypes.c_void_p()
        _check(library.AOTInductorModelContainerCreateWithDevice(
            ctypes.byref(handle), ctypes.c_size_t(instances), b"cpu", None
        ))  # fmt: skip
        weakref.finalize(self, library.AOTInductorModelContainerDelete, handle).atexit = False
        count = ctypes.c_size_t()
        _check(library.AOTInductorModelContainerGetNumOutputs(handle, ctypes.byref(count)))
        self._outputs = count.value
        self._run = library.AOTInductorModelContainerRun
        pointers, number, opaque = ctypes.POINTER(ctypes.c_void_p), ctypes.c_size_t, ctypes.c_void_p
        self._run.argtypes = [opaque, pointers, number, pointers, number, opaque, opaque]

    def __call__(self, x: Tensor) -> list[Tensor]:
        """Run the model."""
        # The model takes over its inputs' handles and gives handles of new tensors.
        given = (ctypes.c_void_p * 1)(_pointer(self._tensors.unsafe_alloc_void_ptr_from_tensor(x), None))
        found = (ctypes.c_void_p * self._outputs)()
        _check(self._run(self._handle, given, 1, found, self._outputs, None, None))
        return [self._tensors.alloc_tensor_by_stealing_from_void_ptr(_capsule(pointer)) for pointer in found]


def _opened(package: Path) -> ctypes.CDLL:
    with zipfile.ZipFile(package) as archive, tempfile.TemporaryDirectory() as folder:
        names = [name for name in archive.namelist() if name.endswith(".so")]
        if len(names) != 1 or any(name.endswith((".blob", ".bin")) for name in archive.namelist()):
            raise RuntimeError("the package's weights lie outside its code")
        path = Path(folder) / "model.so"
        path.write_bytes(archive.read(names[0]))
        return ctypes.CDLL(str(path))  # stays mapped when the file is gone


def _check(status: int) -> None:
    if status:
        raise RuntimeError("the package's code refused")


_api: Any = ctypes.pythonapi
_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(("PyCapsule_GetPointer", _api))
_new_capsule = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)(
    ("PyCapsule_New", _api)
)


def _capsule(pointer: int | None) -> Any:
    return _new_capsule(pointer, None, None)
