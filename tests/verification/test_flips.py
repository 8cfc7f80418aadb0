"""Every key of the recipes does something: a planted dead key is found, and no shipped one is dead without a reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from engine.errors import UsageError
from tests.conftest import ROOT, run_script
from verification import flips as module
from verification.flips import (
    REASONS,
    Flip,
    as_table,
    counts,
    first_recipes,
    flips,
    flips_of,
    keys_of,
    tiny_recipe,
)
from verification.probes import changes
from verification.probes.instance import Tiny
from verification.static import recipes

RECIPE = ROOT / "config/cfg_feedforward_train.yaml"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return tiny_recipe(RECIPE, tmp_path_factory.mktemp("flips") / "data")


def some(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    monkeypatch.setattr(module, "keys_of", lambda tiny: {key: keys_of(tiny)[key] for key in names})


def test_what_a_key_changes(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    some(monkeypatch, "seed", "learning_rate", "arch.n_layer", "device", "active_dataset", "checkpoint_dir")
    by_key = {flip.key: flip for flip in flips(tiny)}
    assert {"data", "weights", "evaluation"} <= set(by_key["seed"].changed)
    assert "weights" in by_key["learning_rate"].changed
    assert "gradient" not in by_key["learning_rate"].changed
    assert by_key["arch.n_layer"].changed[0] == "shapes"
    assert by_key["device"].reason == "not the experiment: device: the same run continues on another machine"
    assert by_key["active_dataset"].tried == ["short with another datasets and epochs"]
    assert "data" in by_key["active_dataset"].changed
    assert by_key["checkpoint_dir"].reason == REASONS["checkpoint_*"]
    assert not any(flip.faulty for flip in by_key.values())
    assert counts([*by_key.values()]) == (
        "6 keys, 4 change something, 2 have a reason not to, 0 could not be tried, 0 fail, 0 dead"
    )


def test_only_a_value_that_is_refused_is_passed_over(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    some(monkeypatch, "weight_decay", "beta1")
    plain = changes.aspects

    def broken(tiny: Tiny, settings: dict[str, Any]) -> dict[str, Any]:
        if "weight_decay" in settings:
            raise RuntimeError("size mismatch")
        if "beta1" in settings:
            raise UsageError("beta1: expected another one")
        return plain(tiny, settings)

    monkeypatch.setattr(changes, "aspects", broken)
    crashing, refused = flips(tiny)
    assert crashing.faulty
    assert "FAILS with another value: RuntimeError: size mismatch" in as_table([crashing])
    assert refused.untried
    assert "NOT TRIED: beta1: expected another one" in as_table([refused])
    assert "0 change something, 0 have a reason not to, 1 could not be tried, 1 fail, 0 dead" in counts(
        [crashing, refused]
    )


def test_a_planted_dead_key_is_found(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    some(monkeypatch, "weight_decay")
    plain = changes.aspects
    monkeypatch.setattr(changes, "aspects", lambda tiny, settings: plain(tiny, {}))
    (flip,) = flips(tiny)
    assert flip.dead
    assert "DEAD: " in as_table([flip])
    assert str(float(flip.value) / 2) in as_table([flip])


def test_the_command_refuses_what_is_no_recipe() -> None:
    refused = run_script("scripts/dead_keys", "cfg_pretrian")
    assert refused.code == 2
    assert refused.output == "error: there is no recipe cfg_pretrian: did you mean 'cfg_pretrain'?\n"


def test_one_recipe_for_each_script_and_kind_of_model() -> None:
    scripts = {path.stem.split("_")[1] for path in first_recipes()}
    assert scripts == {"pretrain", "train", "feedforward", "feedbackward"}


def flips_here(recipe: Path, folder: Path) -> list[Flip]:
    """Those of `recipe`, none where its libraries are not installed."""
    try:
        return flips_of(recipe, folder / recipe.stem)
    except ImportError:
        return []


@pytest.mark.slow
@pytest.mark.parametrize("recipe", recipes(ROOT), ids=lambda recipe: recipe.stem)
def test_no_key_of_a_recipe_is_dead(recipe: Path, tmp_path: Path) -> None:
    faulty = [flip for flip in flips_here(recipe, tmp_path) if flip.faulty]
    assert not faulty, as_table(faulty)


@pytest.mark.slow
def test_every_reason_is_needed(tmp_path: Path) -> None:
    """Of what the tests above have found and remembered."""
    used = {flip.reason for recipe in recipes(ROOT) for flip in flips_here(recipe, tmp_path)}
    assert not set(REASONS.values()) - used
