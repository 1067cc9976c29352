"""Pickled weights, opened only when the user allows it: torch's weights_only loader over a memory map, no other.

torch is imported here and nowhere else on the conversion path. Source: torch 2.13.0, serialization.py.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence

import numpy as np

from qbridge.findings.extras import imported
from qbridge.findings.finding import Findings
from qbridge.ir.dtypes import Array, DType
from qbridge.source.storage import File
from qbridge.source.stored import StoredTensor


def read_pickles(files: Sequence[File], findings: Findings) -> tuple[dict[str, StoredTensor], dict[str, Array]]:
    """Every tensor of the pickled shards, and its bytes as uint8 views of the memory map.

    Findings: QB004 for a file that the loader refuses, QB005 for a tensor in two shards.
    """
    found: dict[str, StoredTensor] = {}
    memory: dict[str, Array] = {}
    for file in files:
        for key, (dtype, shape, data) in _read(file, findings).items():
            if key in found:
                findings.add("QB005", key, (f"it is in {found[key].file.name} and in {file.name}",))
            found[key] = StoredTensor(key, file, dtype, shape, 0, data.nbytes)
            memory[key] = data
    return found, memory


def _read(file: File, findings: Findings) -> Mapping[str, tuple[DType, tuple[int, ...], Array]]:
    torch = imported("torch", "torch", "pickled weights are read by its weights_only loader")
    from qbridge.ir.torch_tensors import dtype_of

    path = file.path
    if path is None:
        findings.add("QB004", file.name, ("pickled weights are read from a folder of this machine alone",))
        return {}
    try:
        loaded = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        if not isinstance(loaded, dict) or not all(isinstance(value, torch.Tensor) for value in loaded.values()):
            raise ValueError("it is not a dictionary of tensors")
        return {
            str(key): (
                dtype_of(value.dtype),
                tuple(value.shape),
                value.detach().contiguous().reshape(-1).view(torch.uint8).numpy().view(np.uint8),
            )
            for key, value in loaded.items()
        }
    except (RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as fault:
        findings.add("QB004", file.name, (str(fault).splitlines()[0],))
        return {}
