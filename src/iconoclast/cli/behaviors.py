"""`behaviors list`, `show`, `check` and `new`: packs of behaviours."""

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from typer import Argument, Context

from iconoclast.cli.arguments import AsJsonOption, ConfigOption
from iconoclast.cli.console import print_json, print_table, say, shown_progress
from iconoclast.cli.flags import CommandWithOptions, SettingsCommand, loaded_settings
from iconoclast.errors import SettingsError
from iconoclast.reports.text import plain

if TYPE_CHECKING:
    from iconoclast.config.packs import Pack, Role
    from iconoclast.runs.behavior_check import BehaviorCheck
    from iconoclast.vocabulary import Split

behaviors_app = typer.Typer(help="List, show, check and begin behaviours: packs of plain files.", rich_markup_mode=None)
PackArgument = Annotated[str, Argument(metavar="NAME", help="Name of a pack, or the path of its folder or file.")]


@behaviors_app.command("list", cls=CommandWithOptions)
def list_packs(as_json: AsJsonOption = False) -> None:
    """List the packs that are built in or installed."""
    from iconoclast.config.packs import known_packs, load_pack

    packs = [(name, load_pack(name)) for name in known_packs()]
    if as_json:
        print_json([{**pack.document(), "name": name} for name, pack in packs])
        return
    table = Table("Name", "Fit · select · report", "What it is")
    for name, pack in packs:
        table.add_row(plain(name), _counts(pack), plain(pack.description))
    print_table(table)


@behaviors_app.command("show", cls=CommandWithOptions)
def show(name: PackArgument, as_json: AsJsonOption = False) -> None:
    """Show a pack: what it is, what marks it, its first prompts, and the settings that it stands for."""
    from iconoclast.config.packs import ROLES, SPLITS, load_pack

    pack = load_pack(name)
    if as_json:
        print_json({**pack.document(), "settings": pack.as_settings()})
        return
    say(pack.name, pack.description, *(f"Success: {pack.success}" for _ in [0] if pack.success))
    say(f"Licence: {pack.licence or 'not said'}. Source: {pack.source or 'not said'}.")
    for kind, marks in (("Phrases", pack.markers), ("Patterns", pack.patterns), ("Rules", pack.rules)):
        if marks:
            say(f"{kind}: {', '.join(marks)}")
    say(*(f"Setting {plain(name)}: {plain(str(value))}" for name, value in pack.settings.items()))
    scores = (text for name in ("constraints", "objectives") for text in pack.settings.get(name, []))
    if any(".py:" in text for text in (*pack.rules, *scores)):
        say("This pack has Python functions, which are run with the responses. Read them first.")
    for role in ROLES:
        for split in SPLITS:
            _show_prompts(pack, role, split)


@behaviors_app.command("check", cls=SettingsCommand)
def check_pack(ctx: Context, name: PackArgument, config: ConfigOption = None, as_json: AsJsonOption = False) -> None:
    """Say whether a model (--model) shows the behaviour, where it is to be seen, and what else sets its prompts apart."""
    from iconoclast.runs.behavior_check import check
    from iconoclast.runs.workbench import Workbench

    settings = loaded_settings(ctx, config, behavior=name).settings
    if settings.model is None:
        raise SettingsError("No model is named. Give it with --model.")
    with shown_progress() as progress, Workbench.open(settings, progress=progress) as bench:
        found = check(bench, progress)
    if as_json:
        print_json({"behavior": name, "model": settings.model, **found.document()})
        return
    _print_check(found)


@behaviors_app.command("new", cls=CommandWithOptions)
def new(
    folder: Annotated[Path, Argument(metavar="FOLDER", help="Folder for the new pack.")], as_json: AsJsonOption = False
) -> None:
    """Begin a pack: a folder with a file that says what it is, and two files of prompts to replace with yours."""
    from importlib.resources import files

    from iconoclast.config.packs import PACK_FILE
    from iconoclast.files import write_whole

    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise SettingsError(f"{folder} is there already. Give a folder that does not exist.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingsError(f"{folder} cannot be made: {error.strerror}. Give another folder.") from None
    start = files("iconoclast.behaviors") / "new"
    for name in (PACK_FILE, "target.txt", "benign.txt"):
        write_whole(folder / name, (start / name).read_bytes())
    say(f"Wrote {folder / PACK_FILE}, target.txt and benign.txt. Put your own texts into them, then:")
    say(f"iconoclast behaviors check {folder} --model MODEL", f"iconoclast run MODEL --behavior {folder}")
    if as_json:
        print_json({"pack": str(folder)})


def _show_prompts(pack: "Pack", role: "Role", split: "Split") -> None:
    """Show where a prompt set is and how it begins; what is not on this machine's disk is not read."""
    from pydantic import ValidationError

    from iconoclast.config.packs import BUILTIN, PACK, PackError
    from iconoclast.config.schema import PromptSource
    from iconoclast.documents import first_problem
    from iconoclast.prompts import PromptSet, load_prompts

    if (given := pack.prompts_of(role, split)) is None:
        say(f"{role}, {split}: none")
        return
    try:
        source = PromptSource(**given)
    except ValidationError as error:
        raise PackError(f"The pack {pack.place}, {role}, {split}: {first_problem(error)}.") from None
    here = source.dataset.startswith((BUILTIN, PACK)) or Path(source.dataset).is_file()
    prompts = load_prompts(source) if here else PromptSet((), "")
    say(f"{role}, {split}: {f'{len(prompts)} from ' * here}{source.dataset} {source.split}")
    say(*(f"  {plain(prompt.text)}" for prompt in prompts.prompts[:2]))
    axes = Counter(axis for prompt in prompts for axis in prompt.axes)
    say(*(f"  of {plain(axis)}: {count}" for axis, count in axes.items()))


def _counts(pack: "Pack") -> str:
    texts = pack.texts("target")
    return " · ".join(str(len(some)) for some in texts.values()) or "files"


def _print_check(found: "BehaviorCheck") -> None:
    say(
        f"Shown on {found.target.with_interval} of the target select prompts, and on {found.benign.with_interval} of the "
        f"benign ones. Broken: {found.broken}."
    )
    table = Table(
        "Layer", "Told apart", "Shuffled labels", "Effect size", title="Fit prompts, by a cross-validated linear probe"
    )
    for number, layer in enumerate(found.layers):
        table.add_row(str(number), f"{layer.accuracy:.0%}", f"{layer.shuffled:.0%}", f"{layer.effect:.1f}")
    print_table(table)
    say(
        f"Without the model: length has an effect size of {found.length:+.1f}, the first word tells {found.first_word:.0%} "
        f"apart, the words {found.words.accuracy:.0%} (shuffled {found.words.shuffled:.0%})."
    )
    say(*(f"WARNING: {warning}" for warning in found.warnings()))
    for prompt, response in found.examples:
        say(f"> {prompt}", f"  {' '.join(response.split())[:200]}")
