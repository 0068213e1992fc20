"""Arrays of golden data: a zip of .npy files, each of which is what a table describes before its data is read."""

from __future__ import annotations

import io
import math
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from edge_attn.bundle.archive import DAMAGED
from edge_attn.errors import BundleError

SUFFIX = ".npy"
HEADER = re.compile(
    rb"\x93NUMPY\x01\x00..\{'descr': '([^']{2,4})', 'fortran_order': False, 'shape': \((\d+,|\d+(?:, \d+)+)?\), \} *\n",
    re.DOTALL,
)
"""Header of a .npy file as numpy writes it. No parser runs on it, so that no header can exhaust one."""
MAX_HEADER = 256
"""Maximum size of a header in bytes; numpy pads it to a multiple of 64."""


@dataclass(frozen=True)
class ArraySpec:
    """Expected dtype, shape and range of one array."""

    dtype: str
    """Name of the dtype: float32, int32 or bool."""
    shape: tuple[int, ...]
    minimum: float = -math.inf
    maximum: float = math.inf
    finite: bool = True
    """False if NaN and infinities are values of the reference, which a comparison judges."""

    def __str__(self) -> str:
        return f"{self.dtype} {self.shape}"

    def fault(self, values: np.ndarray) -> str:
        """Return what is wrong with the values of an array, or an empty text."""
        if not values.size:
            return ""
        if self.finite and not np.isfinite(values).all():
            return "contains NaN or infinity"
        outside = (values < self.minimum) | (values > self.maximum)
        if outside.any():
            return f"contains {values[outside][0]}, expected {self.minimum:g} to {self.maximum:g}"
        return ""


def pack(arrays: Mapping[str, np.ndarray]) -> bytes:
    """Return arrays as the content of a compressed .npz file."""
    data = io.BytesIO()
    np.savez_compressed(data, **arrays)  # type: ignore[arg-type]  # its stubs take the names for options
    return data.getvalue()


def unpack(data: bytes, expected: Mapping[str, ArraySpec], where: str) -> dict[str, np.ndarray]:
    """Return the arrays in the content of an .npz file.

    Nothing is allocated for an array before its header and size are the expected ones.

    Args:
        data: content of the file.
        expected: dtype, shape and range of each array by name.
        where: name of the file in error messages.

    Raises:
        BundleError: the file is damaged, or an array is missing, not expected, or not as expected.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = {item.filename.removesuffix(SUFFIX): item for item in archive.infolist()}
            if len(members) != len(archive.infolist()):
                raise BundleError(f"{where}: an array is there twice")
            for name in [*expected, *members]:
                if name not in members:
                    raise BundleError(f"{where}: the array {name} is missing; export the bundle again")
                if name not in expected:
                    raise BundleError(f"{where}: the array {name!r} belongs to no output of this bundle's graphs")
            arrays = {name: _read(archive, members[name], spec, where) for name, spec in expected.items()}
    except (*DAMAGED, OSError) as error:
        raise BundleError(f"{where} cannot be read: {error}") from error
    for name, spec in expected.items():
        if fault := spec.fault(arrays[name]):
            raise BundleError(f"{where}: the array {name} {fault}; export the bundle again")
    return arrays


def _read(archive: zipfile.ZipFile, item: zipfile.ZipInfo, spec: ArraySpec, where: str) -> np.ndarray:
    """Return one array.

    Raises:
        BundleError: its header or its size is not the expected one.
    """
    if item.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise BundleError(f"{where}: {item.filename} is compressed in a way that bundles do not use")
    with archive.open(item) as file:
        header = HEADER.match(file.read(MAX_HEADER))
    if header is None:
        raise BundleError(f"{where}: {item.filename} has no header of a plain array")
    dtype, shape = header[1].decode("latin-1"), tuple(int(size) for size in re.findall(rb"\d+", header[2] or b""))
    if dtype != np.dtype(spec.dtype).str or shape != spec.shape:
        raise BundleError(
            f"{where}: the array {item.filename.removesuffix(SUFFIX)} is {dtype} {shape}, expected {spec}"
        )
    size = math.prod(shape) * np.dtype(spec.dtype).itemsize
    if item.file_size != header.end() + size:
        raise BundleError(f"{where}: {item.filename} has {item.file_size} bytes, expected {header.end() + size}")
    return np.frombuffer(archive.read(item), np.dtype(spec.dtype), offset=header.end()).reshape(shape)
