"""README.md, docs/ and recipe headers say what the program does: every command is read, the marked ones are run.

In the pages:
    ```bash        commands; those of entry scripts are composed and checked, other arguments go through their parsers;
                   `for` loops are unrolled, of a .sh the python command inside is taken
    ```console     `$ command`, then lines that its output must hold; all are run, `...` stands for anything
    ```python      must parse; after `<!-- run -->` it is executed, after `<!-- file: PATH -->` it is also installed
                   as that module for the runs of the page
    <!-- run -->   before ```bash: its pretrain.py commands are run with +debug=tiny, those of train.py with +debug=tiny_text
Tables between `<!-- table: NAME -->` and `<!-- end -->` are generated. After a change of a schema:
    python -m tests.e2e.test_docs
"""

from __future__ import annotations

import ast
import importlib
import os
import re
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hydra.errors import HydraException

from engine.errors import UsageError
from tests.conftest import ROOT, SHARED, Result, _entry, run_forked, run_script
from tests.e2e.key_tables import TABLES
from tests.e2e.recipes import ENTRIES, entry_of
from verification.docs import unrolled

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
RECIPES = sorted((ROOT / "config").glob("cfg_*.yaml"))
FENCE = re.compile(r"(?:<!-- (?P<mark>run|file: \S+) -->\n+)?```(?P<kind>\w+)\n(?P<body>.*?)^```$", re.M | re.S)
SMALL = {
    "pretrain": ("+debug=tiny", "device=cpu"),
    "train": ("+debug=tiny_text", "device=cpu"),
}
"""What makes a documented run short."""
VARIABLE = re.compile(r"[A-Za-z_]\w*=.*")


# --- reading the pages ------------------------------------------------------------------------------------------------


@dataclass
class Block:
    kind: str
    mark: str
    body: str


@dataclass
class Page:
    path: Path
    blocks: list[Block] = field(default_factory=list)


def read(path: Path) -> Page:
    text = path.read_text(encoding="utf-8")
    return Page(path, [Block(m["kind"], m["mark"] or "", m["body"]) for m in FENCE.finditer(text)])


def commands(text: str) -> list[list[str]]:
    """The words of each line that starts a program of ours; environment variables before it are dropped, loops are
    unrolled."""
    parsed = []
    for line in "\n".join(part for _, part in unrolled(text)).replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        while words and VARIABLE.fullmatch(words[0]):
            words = words[1:]
        if words and words[0].endswith(".sh"):
            words = _inside(words)
        if words and words[0] in ("python", "torchrun", "make"):
            parsed.append(words)
    return parsed


def _inside(words: list[str]) -> list[str]:
    """`./run_training.sh max_steps=5` -> the python command that the script in scripts/ ends in, and the arguments."""
    text = (ROOT / "scripts" / Path(words[0]).name).read_text(encoding="utf-8").replace("\\\n", " ")
    (line,) = re.findall(r'^ *exec "\$python" (.*) "\$@"$', text, re.M)
    return ["python", *shlex.split(line), *words[1:]]


def header_commands(recipe: Path) -> list[list[str]]:
    """The commands in the comment at the top of a recipe; remarks stand two spaces or more behind them."""
    lines = []
    for line in recipe.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        lines.append(line[1:].rstrip())
    text = "\n".join(lines).replace("\\\n", " ")
    return [
        shlex.split(re.split(r"\s{2,}\(", command)[0]) for command in re.findall(r"\b((?:python|torchrun) .*)", text)
    ]


# --- checking one command ---------------------------------------------------------------------------------------------


def check(words: list[str]) -> None:
    """Raise unless the program that the command names would accept its arguments."""
    if words[0] == "make":
        targets = set(re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text(), re.M))
        assert {word for word in words[1:] if "=" not in word} <= targets, words
        return
    words = words[1:]
    while words[0].startswith("--"):  # torchrun's own
        words = words[1:]
    if words[0] == "-m":
        module, argv = words[1], words[2:]
        if module in (
            "pytest",
            "pip",
            "tests.e2e.test_docs",
            "tests.verification.expected_losses",
            "verification.json_schema",
        ):
            return
        _parse(importlib.import_module(module).parser().parse_args, argv)
    elif entry := entry_of(words[0]):
        entry.accept(words[1:])
    else:
        assert (ROOT / words[0]).is_file(), f"there is no {words[0]}"
        module_name = words[0].removesuffix(".py").replace("/", ".")
        _parse(importlib.import_module(module_name).parse, words[1:])
        if words[0] == "scripts/launch.py" and "--" in words:
            check(words[words.index("--") + 1 :])


def _parse(parser: Callable[..., object], argv: list[str]) -> None:
    try:
        parser(argv)
    except SystemExit as end:
        if end.code:
            raise UsageError(f"exit code {end.code}: {shlex.join(argv)}") from None


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_every_command_is_accepted(page: Path) -> None:
    for block in read(page).blocks:
        if block.kind == "bash":
            for words in commands(block.body):
                try:
                    check(words)
                except (Exception, SystemExit) as error:
                    pytest.fail(f"{page.name}: {shlex.join(words)}\n{type(error).__name__}: {error}")


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_recipes_are_described_and_their_headers_hold(recipe: Path) -> None:
    assert recipe.stem in (ROOT / "docs/recipes.md").read_text(), f"docs/recipes.md does not mention {recipe.stem}"
    header = header_commands(recipe)
    script = max((f"{entry}.py" for entry in ENTRIES if recipe.stem.startswith(f"cfg_{entry}")), key=len)
    assert any(script in words for words in header), "the header has no command"
    for words in header:
        check(words)


@pytest.mark.parametrize(
    "line",
    [
        "python pretrain.py lrr=3",
        "python train.py --learning_rat=3",
        "python train.py --init_from=gpt5",
        "python train.py arch.n_head=5",
        "python train.py --optimizer adamw optimizer.optoins.eps=1",
        "python pretrain.py +arch.L_cyles=4",
        "python pretrain.py --config-name=cfg_nope",
        "torchrun --nproc-per-node=4 pretrain.py --no-such-flag",
        "python -m dataset.build_sudoku_dataset --num-trian 3",
        "python scripts/evaluate.py checkpoints/x --stepz 3",
        "python scripts/nothing.py",
        "make nothing",
    ],
)
def test_a_wrong_command_is_noticed(line: str) -> None:
    with pytest.raises((UsageError, HydraException, AssertionError)):
        check(commands(line)[0])


def test_the_guide_of_language_models_is_accepted_word_for_word() -> None:
    """Every command of the user's guide, with names in place of <your_dataset>."""
    guide = SHARED / "guides/train_lm.md"
    if not guide.exists():
        pytest.skip(f"the guide is not here: {guide}")
    names = {"your_dataset": "shakespeare", "dataset1": "shakespeare_char", "dataset2": "stdlib_char"}
    text = re.sub(r"<(\w+)>", lambda match: names.get(match[1], "mine"), guide.read_text())
    listed = commands("\n".join(line.strip() for line in text.splitlines()))
    assert len(listed) == 5
    for words in listed:
        check(words)


# --- running what is marked -------------------------------------------------------------------------------------------


def _with_files(files: dict[str, str], work: Callable[..., None], *arguments: object) -> None:
    """`work` in this (forked) process, with the page's files as further modules of our packages."""
    for name, text in files.items():
        target = Path("page") / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
        package = importlib.import_module(Path(name).parent.as_posix().replace("/", "."))
        package.__path__.append(str(target.parent.resolve()))
    work(*arguments)


def _exec(source: str) -> None:
    exec(compile(source, "<page>", "exec"), {"__name__": "__page__"})


def _run_entry(files: dict[str, str], script: str, argv: list[str], cwd: Path) -> Result:
    return run_forked(_with_files, files, _entry, script.removesuffix(".py"), argv, cwd=cwd)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, tiny_data: Path) -> Path:
    """A folder in which the documented run `checkpoints/demo/sudoku_4x4` exists, tiny."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "data").symlink_to(tiny_data)
    argv = ["--config-name=cfg_pretrain_sudoku_4x4", "+debug=tiny", "device=cpu", "project_name=demo"]
    done = run_script("pretrain", *argv, "run_name=sudoku_4x4", cwd=folder)
    assert done.code == 0, done.output
    return folder


def _fits(want: str, shown: str) -> bool:
    return shown.startswith(want[:-3]) if want.endswith("...") else shown == want


def _console(block: Block, files: dict[str, str], cwd: Path) -> None:
    pieces = re.split(r"^\$ ", block.body, flags=re.M)[1:]
    for piece in pieces:
        line, _, expected = piece.replace("\\\n", " ").partition("\n")
        words = shlex.split(line, comments=True)
        assert entry_of(words[1]), f"a console block runs an entry script, not {line}"
        result = _run_entry(files, words[1], words[2:], cwd)
        printed = {" ".join(shown.split()) for shown in result.output.splitlines()}
        required = [" ".join(want.split()) for want in expected.splitlines() if want.strip() not in ("", "...")]
        missing = [want for want in required if not any(_fits(want, shown) for shown in printed)]
        assert not missing, f"$ {line}\nthe page says:\n" + "\n".join(missing) + f"\nprinted was:\n{result.output}"
        assert "Traceback" not in result.output
        assert (result.code == 0) != any(want.startswith("error") for want in required), result.output


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_what_is_marked_runs(page: Path, site: Path, tmp_path: Path) -> None:
    (tmp_path / "data").symlink_to(site / "data")
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/demo").symlink_to(site / "checkpoints/demo")
    blocks = read(page).blocks
    files = {block.mark.split()[1]: block.body for block in blocks if block.mark.startswith("file:")}
    for block in blocks:
        if block.kind == "python":
            ast.parse(block.body)
            if block.mark == "run":
                result = run_forked(_with_files, files, _exec, block.body, cwd=tmp_path)
                assert result.code == 0, f"{page.name}:\n{block.body}\n{result.output}"
        elif block.kind == "console":
            _console(block, files, tmp_path)
        elif block.kind == "bash" and block.mark == "run":
            for words in commands(block.body):
                if entry := entry_of(words[1]):
                    small = [word for word in SMALL[entry.name] if word not in words]
                    result = _run_entry(files, words[1], [*words[2:], *small], tmp_path)
                else:
                    result = run_script(words[1].removesuffix(".py"), *words[2:], cwd=tmp_path)
                assert result.code == 0, f"{shlex.join(words)}\n{result.output}"


# --- links and tables -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_relative_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        place = (page.parent / file) if file else page
        assert place.exists(), f"{page.name} links to {target}"
        if anchor and place.suffix == ".md":
            heads = re.findall(r"^#+ (.*)$", place.read_text(), re.M)
            known = {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}
            assert anchor in known, f"{page.name} links to {target}"


def test_paths_that_pages_name_exist() -> None:
    pattern = re.compile(
        r"`((?:engine|models|losses|tasks|dataset|evaluators|scripts|config|tests)/[\w/.]+\.(?:py|yaml))`"
    )
    shown = {b.mark.split()[1] for page in PAGES for b in read(page).blocks if b.mark.startswith("file:")}
    named = {name for page in PAGES for name in pattern.findall(page.read_text())} - shown
    assert named
    assert not [name for name in sorted(named) if not (ROOT / name).is_file()]


def test_the_readme_names_every_script_package_and_page() -> None:
    text = (ROOT / "README.md").read_text()
    packages = [f"`{path.parent.name}/`" for path in ROOT.glob("*/__init__.py")]
    scripts = [f"`scripts/{path.name}`" for path in (ROOT / "scripts").glob("*.*") if path.name != "__init__.py"]
    pages = [path.relative_to(ROOT).as_posix() for path in PAGES[1:]]
    assert not [name for name in (*packages, *scripts, *pages) if name not in text]


TABLE = re.compile(r"(<!-- table: ([\w ]+) -->\n).*?(<!-- end -->)", re.S)


def generated(text: str) -> str:
    return TABLE.sub(lambda m: f"{m[1]}{TABLES[m[2]]()}\n{m[3]}" if m[2] in TABLES else m[0], text)


def test_tables_match_the_schemas() -> None:
    # Tables of other names belong to other generators (verification.md has the codes').
    held = [name for page in PAGES for _, name, _ in TABLE.findall(page.read_text()) if name in TABLES]
    assert sorted(held) == sorted(TABLES)
    for page in PAGES:
        text = page.read_text()
        assert text == generated(text), f"{page.name} is stale: python -m tests.e2e.test_docs"


def test_a_stale_table_is_noticed() -> None:
    text = (ROOT / "docs/config.md").read_text()
    assert generated(text.replace("| `lr` |", "| `lrr` |")) == text
    assert text != text.replace("| `lr` |", "| `lrr` |")


if __name__ == "__main__":
    os.chdir(ROOT)
    for page in PAGES:
        old = page.read_text(encoding="utf-8")
        if (new := generated(old)) != old:
            page.write_text(new, encoding="utf-8")
            sys.stdout.write(f"{page.relative_to(ROOT)}: tables written\n")
