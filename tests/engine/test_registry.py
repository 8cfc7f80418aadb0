"""Names resolve under our packages only, say what exists, and do not hide a module's own import error."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from engine import registry
from engine.errors import UsageError
from engine.registry import build_config, resolve

FILES = {
    "fakes/__init__.py": "from fakes.heads import Head\n",
    "fakes/heads.py": "import json\nfrom pathlib import Path\nclass Head: ...\nclass Other: ...\nclass _Hidden: ...\nclass Judge:\n    def begin(self): ...\nvalue = 3\n",
    "fakes/broken.py": "import no_such_library\n",
    "fakes/deep/__init__.py": "",
    "fakes/deep/nest.py": "class Net: ...\n",
}


@pytest.fixture(autouse=True)
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(registry, "SLOTS", ("fakes", "models"))
    monkeypatch.setattr(registry, "ROOT", tmp_path)
    yield
    for name in [name for name in sys.modules if name.split(".")[0] == "fakes"]:
        del sys.modules[name]


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("heads@Head", "fakes.heads.Head"),
        ("fakes@Head", "fakes.heads.Head"),
        ("fakes.heads@Other", "fakes.heads.Other"),
        ("deep.nest@Net", "fakes.deep.nest.Net"),
    ],
)
def test_both_forms_of_a_name(name: str, target: str) -> None:
    cls = resolve(name, "fakes")
    assert f"{cls.__module__}.{cls.__name__}" == target


def test_a_class_of_another_slot_is_refused() -> None:
    with pytest.raises(UsageError, match=r"is a class of fakes/, expected one of models/"):
        resolve("fakes@Head", "models")


def test_a_class_that_is_only_imported_or_a_helper_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="no class Path"):
        resolve("heads@Path", "fakes")
    monkeypatch.setitem(registry.CONTRACTS, "fakes", ("begin",))
    with pytest.raises(UsageError, match=r"has no begin\(\), .*: choose one of Judge"):
        resolve("heads@Head", "fakes")
    assert resolve("heads@Judge", "fakes").__name__ == "Judge"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("head@Head", ["no module fakes.head:", "did you mean 'heads'"]),
        ("deep.nets@Net", ["no module fakes.deep.nets", "did you mean 'deep.nest'"]),
        ("heads.more@X", ["no module fakes.heads.more"]),
        ("heads@Haed", ["no class Haed", "did you mean 'Head'"]),
        ("heads@_Nothing", ["no class _Nothing", "Head, Judge, Other"]),
        ("heads@value", ["no class value"]),
        ("os@PathLike", ["no module fakes.os"]),
        ("heads", ["'heads' is not of the form module@Class"]),
        ("@Head", ["module@Class"]),
        ("../heads@Head", ["module@Class"]),
        ("heads@Head@x", ["module@Class"]),
    ],
)
def test_a_wrong_name_lists_what_exists(name: str, words: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        resolve(name, "fakes", "arch.name")
    text = str(caught.value)
    assert text.startswith("arch.name: ")
    assert "\n" not in text
    assert all(word in text for word in words), text


def test_an_import_error_inside_the_module_is_unchanged() -> None:
    with pytest.raises(ModuleNotFoundError, match="no_such_library"):
        resolve("broken@Any", "fakes")


@dataclass(kw_only=True)
class HeadConfig:
    width: int = 1


class Configured:
    Config = HeadConfig


class Bare:
    pass


def test_build_config() -> None:
    assert build_config(Configured, {"name": "x@Y", "width": 2}, "arch").width == 2
    with pytest.raises(UsageError, match=r"arch\.widht.*did you mean 'arch\.width'"):
        build_config(Configured, {"name": "x@Y", "widht": 2}, "arch")
    assert build_config(Bare, {"name": "x@Y"}, "arch") is None
    with pytest.raises(UsageError, match="arch: Bare takes no keys, got width"):
        build_config(Bare, {"name": "x@Y", "width": 2}, "arch")


def test_a_package_of_the_same_name_elsewhere_is_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The working directory may be on sys.path, and beside a downloaded checkpoint may lie a folder losses/."""
    monkeypatch.setattr(registry, "ROOT", tmp_path / "project")
    with pytest.raises(UsageError, match="rename what shadows it"):
        resolve("heads@Head", "fakes")
    assert "fakes" not in sys.modules


@pytest.mark.parametrize("name", ["heads@Path", "heads@partial"])
def test_what_a_module_imports_is_no_class_of_ours(tmp_path: Path, name: str) -> None:
    (tmp_path / "fakes/heads.py").write_text(
        "from functools import partial\nfrom pathlib import Path\nclass Head: ...\n"
    )
    with pytest.raises(UsageError, match="no class"):
        resolve(name, "fakes")


@pytest.mark.parametrize(
    "name", ["os", "checkpoints.payload", "payload", "", "../pretrain", "tasks.language_model.args"]
)
def test_only_entry_scripts_are_imported_as_such(name: str) -> None:
    with pytest.raises(UsageError, match="expected an entry script"):
        registry.family_of(name, "manifest.json: entry")


def test_the_closed_list_holds_every_entry_script() -> None:
    root = Path(__file__).resolve().parents[2]
    scripts = {path.stem for path in root.glob("*.py") if "@hydra.main" in path.read_text()}
    folders = {path.parent.name for path in root.glob("tasks/*/family.py")}
    assert registry.FAMILIES.keys() == scripts
    assert set(registry.FAMILIES.values()) == folders
