#!/usr/bin/env bash
# llama.cpp's convert_hf_to_gguf.py, as the sdist of llama-cpp-python 0.3.16 carries it, on a Llama that transformers 5.23.0 has saved:
# the GGUF file has another base of rotary positions than the model, and nothing is said.
#
# Expected: llama.rope.freq_base = 500000, the rope_theta of config.json. Seen: with transformers 4.57.6, which the converter's
# requirements allow (>=4.45.1,<5.0.0), 10000 is written; with transformers 5.23.0 the key is missing, and readers then take 10000.
# The file loads everywhere, and its answers get worse the longer the text is.
# The reason: transformers 5 saves rope_theta inside rope_parameters. The converter asks transformers for the configuration and looks
# for rope_theta beside it, where version 4 puts its default and version 5 puts nothing.
# The converter in the sdist of 0.3.36 writes 500000 with both.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
python="$folder/venv/bin/python"
"$python" -m pip install --quiet torch==2.13.0
"$python" -m pip install --quiet transformers==5.23.0 sentencepiece==0.2.1 mistral-common==1.13.1
for version in 0.3.16 0.3.36; do
    "$python" -m pip download --quiet --no-deps --no-binary llama-cpp-python "llama-cpp-python==$version" --dest "$folder"
    mkdir "$folder/$version"
    tar -xzf "$folder/llama_cpp_python-$version.tar.gz" -C "$folder/$version" --strip-components=1
done
"$python" - "$folder/model" <<'PYTHON'
import sys
from pathlib import Path

import sentencepiece
from transformers import LlamaConfig, LlamaForCausalLM

folder = Path(sys.argv[1])
rope = {"rope_type": "default", "rope_theta": 500000.0}
LlamaForCausalLM(
    LlamaConfig(
        vocab_size=64, hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, rope_parameters=rope,
    )
).save_pretrained(folder)
text = folder / "text.txt"
text.write_text("\n".join(f"the quick brown fox number {i} jumps over a lazy dog" for i in range(200)))
sentencepiece.SentencePieceTrainer.train(
    input=str(text), model_prefix=str(folder / "tokenizer"), vocab_size=64, model_type="bpe", minloglevel=2
)
PYTHON
converted() { # version of llama-cpp-python → the base in the file
    local source="$folder/$1/vendor/llama.cpp"
    "$python" "$source/convert_hf_to_gguf.py" "$folder/model" --outfile "$folder/model.gguf" >"$folder/log" 2>&1 || { cat "$folder/log"; exit 1; }
    PYTHONPATH="$source/gguf-py" "$python" -c "
import gguf, sys
field = gguf.GGUFReader(sys.argv[1]).fields.get('llama.rope.freq_base')
print('missing' if field is None else field.contents())" "$folder/model.gguf"
}
for transformers in 5.23.0 4.57.6; do
    "$python" -m pip install --quiet "transformers==$transformers"
    for version in 0.3.16 0.3.36; do
        found=$(converted "$version")
        echo "converter of llama-cpp-python $version, transformers $transformers: rope base $found"
        case "$version $transformers" in
        "0.3.16 5.23.0") test "$found" = missing ;;
        "0.3.16 4.57.6") test "$found" = 10000.0 ;;
        *) test "$found" = 500000.0 ;;
        esac
    done
done
