"""A script that quantises a GGUF file by llama.cpp's library: LIBRARY FILE TO TYPE, the type as its number in llama.h.

It runs as a process of its own, because the library ends the process where it cannot go on.
"""

import ctypes
import os
import sys


class Parameters(ctypes.Structure):
    """llama_model_quantize_params, of which all versions begin with these two, and with more room than any of them takes."""

    _fields_ = (("threads", ctypes.c_int32), ("kind", ctypes.c_int32), ("rest", ctypes.c_char * 1016))


def quantize(library: str, file: str, to: str, kind: int) -> int:
    """Return what the library does: 0 for success."""
    llama = ctypes.CDLL(library)
    llama.llama_model_quantize_default_params.restype = Parameters
    llama.llama_model_quantize.restype = ctypes.c_uint32
    llama.llama_backend_init()
    parameters = llama.llama_model_quantize_default_params()
    parameters.kind = kind
    return int(llama.llama_model_quantize(os.fsencode(file), os.fsencode(to), ctypes.byref(parameters)))


if __name__ == "__main__":
    of, source, target, number = sys.argv[1:]
    sys.exit(quantize(of, source, target, int(number)))
