"""The examples of the library run as they stand, one after the other, with a tiny model in the place of the demo."""

import doctest
import shutil
from pathlib import Path

import platformdirs
import pytest

import iconoclast as ic
from iconoclast import library
from iconoclast.errors import DirectionError, SettingsError
from iconoclast.models.demo import demo_folder
from iconoclast.models.language_model import LanguageModel

IN_ORDER = (library.residuals, library.estimate_directions, library.make_edit, library.applied, library.search,
            library.open_run, library.export, ic.measure, ic.load_model, ic.Settings)  # fmt: skip


def test_every_function_of_the_library_has_an_example() -> None:
    assert {name for name in ic.__all__ if callable(getattr(ic, name)) and name.islower()} <= {
        each.__name__ for each in IN_ORDER
    }
    assert all(">>> " in str(each.__doc__) for each in IN_ORDER)


def test_the_examples_run(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platformdirs, "user_cache_path", lambda name: tmp_path / name)
    shutil.copytree(tiny_folder, demo_folder())
    monkeypatch.chdir(tmp_path)
    runner, names = doctest.DocTestRunner(), dict[str, object]()
    for each in (library, *IN_ORDER):
        examples = doctest.DocTestParser().get_doctest(str(each.__doc__), names, each.__name__, None, None)
        runner.run(examples, clear_globs=False)
        names = examples.globs
    assert runner.failures == 0


def test_slips_are_errors_that_list_what_is_known(tiny_lm: LanguageModel, tmp_path: Path) -> None:
    sides = [ic.PromptSet.of(["Name a river.", "Name a lake."]), ic.PromptSet.of(["Set an alarm.", "Call me a taxi."])]
    directions = ic.estimate_directions(tiny_lm, *sides, methods=["mean"])
    profile = {"attn.linear": ic.Profile.constant(1.0)}
    with pytest.raises(ValueError, match=r'no component "attn.linear".*attn.o_proj, mlp.down_proj'):
        ic.make_edit(tiny_lm, directions, profile)
    with pytest.raises(DirectionError, match=r'no estimated direction "variance".*mean'):
        ic.make_edit(tiny_lm, directions, {}, ic.DirectionSpec("hybrid"))
    with pytest.raises(SettingsError, match=r'no export format "lora".*adapter, merged, gguf'):
        ic.export(tmp_path, tmp_path / "to", format="lora")  # type: ignore[arg-type]


def test_search_is_the_function_whatever_is_imported() -> None:
    import iconoclast.search.space  # noqa: F401

    assert ic.search is library.search
