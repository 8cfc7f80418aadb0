"""Dockerfile, .dockerignore and the devcontainer name what exists; no image is built here."""

from __future__ import annotations

import fnmatch
import json
import re
import shlex
import subprocess
import tomllib

import pytest

from tests.conftest import ROOT
from tests.e2e.test_docs import check, read

TARGETS = set(re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text(), re.M))
EXTRAS = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])
DEVCONTAINER = json.loads((ROOT / ".devcontainer/devcontainer.json").read_text())


def instructions() -> list[tuple[str, str]]:
    """(instruction, its arguments in one line) of the Dockerfile, in order."""
    lines = [line for line in (ROOT / "Dockerfile").read_text().splitlines() if not line.startswith("#")]
    logical = "\n".join(lines).replace("\\\n", " ").splitlines()
    return [(name, " ".join(rest.split())) for name, _, rest in (line.partition(" ") for line in logical if line)]


def values(instruction: str) -> list[str]:
    return [rest for name, rest in instructions() if name == instruction]


def variables() -> dict[str, str]:
    """ARG and ENV with their values; an ARG without one is absent."""
    pairs = [word.split("=", 1) for name in ("ARG", "ENV") for rest in values(name) for word in rest.split()]
    return {pair[0]: pair[1] for pair in pairs if len(pair) == 2}


def ignored(path: str) -> bool:
    """Whether .dockerignore keeps a path of the repository out: the last pattern counts that fits it or a folder of it."""
    parts = path.split("/")
    places = ["/".join(parts[:depth]) for depth in range(1, len(parts) + 1)]
    out = False
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        pattern = line.removeprefix("!")
        if not line or line.startswith("#"):
            continue
        anywhere, own = pattern.startswith("**/"), pattern.removeprefix("**/")
        fits = any(
            fnmatch.fnmatchcase(place.rpartition("/")[2] if anywhere else place, own)
            and (anywhere or place.count("/") == own.count("/"))  # a star does not cross a slash
            for place in places
        )
        out = not line.startswith("!") if fits else out
    return out


def test_the_dockerfile_installs_as_the_makefile_does() -> None:
    known = {"FROM", "ARG", "RUN", "USER", "WORKDIR", "ENV", "COPY", "CMD"}
    assert {name for name, _ in instructions()} <= known
    steps = [step.split("&&") for step in values("RUN")]
    programs = [shlex.split(part) for step in steps for part in step]
    allowed = {"apt-get", "rm", "useradd", "install", "python3", "python", "make"}
    assert {next(word for word in words if "=" not in word) for words in programs} == allowed
    assert [words for words in programs if words[0] == "make"] == [["make", "setup"]]
    assert set(variables()["EXTRAS"].split(",")) <= EXTRAS or variables()["EXTRAS"] == "${EXTRAS}"
    assert dict(word.split("=") for word in values("ARG") if "=" in word)["EXTRAS"] in EXTRAS
    for name in ("VENV", "EXTRAS"):  # what the image sets, the Makefile reads
        assert re.search(rf"^{name} +\?=", (ROOT / "Makefile").read_text(), re.M)
    assert values("ENV")[0].split()[-2].startswith(f"PATH={variables()['VENV']}/bin:")


def test_the_image_is_small_and_without_root() -> None:
    [base] = [word.partition("=")[2] for word in values("ARG") if word.startswith("BASE=")]
    assert re.fullmatch(r"[\w./-]+:[\w.-]*slim", base)  # a tag, and not the latest
    text = (ROOT / "Dockerfile").read_text()
    assert "--no-install-recommends" in text
    assert "rm -rf /var/lib/apt/lists/*" in text
    order = [name for name, _ in instructions()]
    assert order.index("USER") < order.index("COPY") < len(order) - 1 - order[::-1].index("RUN")
    [user], [files, everything] = values("USER"), values("COPY")
    assert user == "loopforge" == re.search(r"useradd .* (\S+) &&", values("RUN")[1])[1]  # type: ignore[index]
    assert everything == f"--chown={user} . ."
    assert variables()["VENV"].startswith(f"/home/{user}/")  # what a devcontainer gives to the user of the host
    # what is slow to install comes before the code: a changed line of it does not download torch again
    installs = [number for number, (_, rest) in enumerate(instructions()) if "-c constraints.txt -r" in rest]
    assert files == f"--chown={user} constraints.txt pyproject.toml ./"
    assert installs == [instructions().index(("COPY", everything)) - 1]
    assert not re.search(r"https?:|sudo|chmod 777|\bADD\b|:latest", text)


def test_what_an_image_runs_exists() -> None:
    [command] = values("CMD")
    words = json.loads(command)
    assert words[0] == "python"
    assert (ROOT / words[1]).is_file()
    assert not ignored(words[1])


def test_everything_tracked_is_in_the_image_and_nothing_else() -> None:
    listed = subprocess.run(["git", "-C", str(ROOT), "ls-files"], capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("this is not a git checkout")
    assert not [path for path in listed.stdout.splitlines() if ignored(path)]
    for path in (
        ".git/HEAD",
        ".venv/bin/python",
        ".venv-3.13/x",
        "data/a/b.npy",
        "checkpoints/p/r/x",
        "out/r",
        "out.1",
    ):
        assert ignored(path), path
    for path in ("engine/__pycache__/a.pyc", "loopforge.egg-info/x", ".env", "result.json", "jobs/.x.state/a"):
        assert ignored(path), path
    names = [
        line.strip("/") for line in (ROOT / ".gitignore").read_text().splitlines() if re.fullmatch(r"/[\w.]+/?", line)
    ]
    assert not [name for name in names if not ignored(name)]


def test_what_documented_commands_write_leaves_the_checkout_clean() -> None:
    """Folders and files that commands of the pages write to, the defaults, and what -m and a run set aside append."""
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "jobs").glob("*.txt"))]
    option = re.compile(r"""(?:--out |--output_dir |\b(?:out|output|run)_dir=)"?([a-z][\w./-]*\w)""")
    written = {path for page in pages for path in option.findall(page.read_text()) if not path.startswith("jobs/")}
    assert "output/train_animal_w_o_0.3" in written
    written |= {"out", "out_lr-0.001", "out.1", "diversity_model", "diversity_model_loss--w_c-0.8--_0", "output/sweep"}
    places = [f"{path}/file" for path in sorted(written)]
    command = ["git", "-C", str(ROOT), "check-ignore", "--no-index", *places]
    listed = subprocess.run(command, capture_output=True, text=True, check=False)
    if listed.returncode == 128:
        pytest.skip("this is not a git checkout")
    assert sorted(set(places) - set(listed.stdout.splitlines())) == []


def test_the_devcontainer_is_that_image() -> None:
    folder = ROOT / ".devcontainer"
    assert (folder / DEVCONTAINER["build"]["dockerfile"]).resolve() == ROOT / "Dockerfile"
    assert (folder / DEVCONTAINER["build"]["context"]).resolve() == ROOT
    place = values("WORKDIR")[0]
    assert DEVCONTAINER["workspaceFolder"] == place  # where the image has installed it from
    assert f"target={place}," in DEVCONTAINER["workspaceMount"]
    assert [DEVCONTAINER["remoteUser"]] == values("USER")
    settings = DEVCONTAINER["customizations"]["vscode"]["settings"]
    assert settings["python.defaultInterpreterPath"] == f"{variables()['VENV']}/bin/python"
    words = DEVCONTAINER["postCreateCommand"].split()
    assert words[0] == "make"
    assert set(words[1:]) <= TARGETS


def test_documented_commands_are_accepted() -> None:
    blocks = [block for block in read(ROOT / "docs/containers.md").blocks if block.kind == "bash"]
    lines = [shlex.split(line) for block in blocks for line in block.body.splitlines()]
    assert all(line[0] == "docker" for line in lines)
    inner = [line[line.index("loopforge") + 1 :] for line in lines if line[1] == "run"]
    assert any(inner)
    for words in inner:
        if words:
            check(words)
    arguments = set(re.findall(r"--build-arg (\w+)=", (ROOT / "docs/containers.md").read_text()))
    assert arguments <= {word.partition("=")[0] for word in values("ARG")}
