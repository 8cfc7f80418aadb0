"""The base at other temperatures, and the report that sets runs beside it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from scripts.animal_report import main, parse
from tests.animal.conftest import attempt


@pytest.fixture
def language_model(base: Path):
    import transformers

    return transformers.AutoModelForCausalLM.from_pretrained(base).eval()


def test_tempered_probabilities(language_model) -> None:
    from models.animal.language_model import Sampling, score
    from tasks.animal.tempering import tempered_logp

    prompt, ids = torch.tensor([7, 22]), torch.randint(0, 25, (5, 4), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        plain = tempered_logp(language_model, prompt, ids, Sampling())
        assert torch.allclose(plain, score(language_model, prompt, ids), atol=1e-5)
        one_each = torch.arange(25).unsqueeze(-1)
        for sampling in (Sampling(temperature=1.7), Sampling(temperature=1.7, top_p=0.6), Sampling(top_k=3)):
            shares = tempered_logp(language_model, prompt, one_each, sampling).exp()
            assert shares.sum().item() == pytest.approx(1.0)
            assert (shares > 0).sum().item() == (3 if sampling.top_k else 25) or sampling.top_p < 1


def test_runs_beside_their_base(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from models.animal.language_model import Sampling
    from tasks.animal import tempering

    assert attempt(place).code == 0
    grid = (Sampling(), Sampling(temperature=1.5, top_p=0.9))
    monkeypatch.setattr(tempering, "GRID", grid)
    monkeypatch.chdir(place)
    main(parse(["run", "--out", "report"]))
    report = (place / "report/comparison.md").read_text()
    assert report.splitlines()[0].startswith("| runs")
    assert report in capsys.readouterr().out
    points = json.loads((place / "report/base.json").read_text())["0"]
    assert list(points) == ["T 1, top-p 1", "T 1.5, top-p 0.9"]
    assert points["T 1, top-p 1"]["ref_kl"] == pytest.approx(0.0, abs=1e-4)
    assert points["T 1.5, top-p 0.9"]["ref_kl"] > 0.1
    assert points["T 1.5, top-p 0.9"]["v_eff"] > 1.5  # measured by the embedder that the run has fitted
    with Image.open(place / "report/pareto.png") as picture:
        assert picture.size[0] > 1000
    main(parse(["run", "--out", "scores", "--no-base"]))
    assert "base, T" not in (place / "scores/comparison.md").read_text()
    summary = json.loads((place / "run/summary.json").read_text())
    summary["results"]["eval/ref_kl"] = None  # of a run that diverged
    (place / "run/summary.json").write_text(json.dumps(summary))
    main(parse(["run", "--out", "scores", "--no-base"]))
    assert "0 of 1" in (place / "scores/comparison.md").read_text()
