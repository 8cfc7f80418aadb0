"""Job files: what is read from them, and that every byte of a command survives a change of state."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from engine.errors import UsageError
from launcher.children import process_alive, start_time
from launcher.jobs import command_job, find, parse_text, read
from launcher.ledger import HOST, Ledger

AWKWARD = [
    "python a.py run_name=plain",
    "python a.py 'run_name=\"a,b\"' x='#1 & more' # not a comment | grep y > z",
    'A=1 B="two words" python a.py --note "it\'s" run_name=env',
    "python a.py note=schön→ run_name=uni\u2028code\x0b",
    r"python a.py back\\slash sed\&s/a/b/ $HOME ~ * run_name=sed",
    "python a.py data/[12] ids=[4711] run_name=brackets [77]",
    "python a.py trailing\\ ",
    "python a.py\ttab  run_name=blanks   ",
]


def test_the_parts_of_a_file() -> None:
    jobs, problems = parse_text(
        "# a section\n\n# why\n#@ id: SF1\n#@ intent: mode=embedding act=dynamic\n#@ intent: purpose='a new one'\n"
        "[ ] X=1 torchrun a.py run_name=r\n\n[-] python b.py [4711@node-1.cluster]\n[-] python c.py [12]\n[x] python d.py\n"
        "#[ ] python commented.py\n[!] python e.py --run-name e\n#@ intent: id=SF2 mode=encoder\n[ ] python f.py\n"
    )
    assert problems == []
    assert [job.state for job in jobs] == ["todo", "running", "running", "done", "failed", "todo"]
    assert [job.id for job in jobs] == ["SF1", "L9", "L10", "L11", "e", "SF2"]
    first = jobs[0]
    assert first.intent == {"mode": "embedding", "act": "dynamic", "purpose": "a new one"}
    assert (first.comments, first.env, first.argv) == (("why",), {"X": "1"}, ("torchrun", "a.py", "run_name=r"))
    assert (first.run_name, first.line_number) == ("r", 7)
    assert jobs[1].owner == (4711, "node-1.cluster")
    assert jobs[2].owner == (12, None)
    assert (jobs[1].intent, jobs[5].intent) == ({}, {"mode": "encoder"})
    assert jobs[4].comments == ("[ ] python commented.py",)


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("[ ]python a.py", 1, "'[ ] '"),
        ("ok\n", 1, "'ok'"),
        ("# c\n[X] python a.py", 2, "[X]"),
        ("#@ intent mode=x\n[ ] python a.py", 1, "expected '#@ intent"),
        ("#@ intent: mode\n[ ] python a.py", 1, "'mode' is not key=value"),
        ("[ ] python a.py\n#@ id: lost\n", 2, "without a job"),
        ("#@ intnet: mode=x\n[ ] python a.py", 1, "did you mean 'intent'?"),
    ],
)
def test_lines_that_say_nothing_are_problems(text: str, line: int, words: str) -> None:
    problems = parse_text(text)[1]
    assert problems
    assert problems[0][0] == line
    assert words in problems[0][1]


def test_unbalanced_quotes_and_empty_commands_are_errors_of_the_job() -> None:
    jobs, problems = parse_text("[ ] python 'a.py\n[ ] A=1\n")
    assert problems == []
    assert "no closing quotation" in (jobs[0].error or "")
    assert jobs[1].error == "there is no command"


def test_an_owner_is_read_only_from_a_running_line() -> None:
    jobs = parse_text("[ ] python a.py [12@h]\n[x] python a.py [12@h]\n[-] python a.py [12@h] [13@h]\n")[0]
    assert [job.command for job in jobs] == ["python a.py [12@h]"] * 3
    assert [job.owner for job in jobs] == [None, None, (13, "h")]


@pytest.mark.parametrize(
    "word", ["run_name=r", "+run_name=r", "++run_name=r", "--run_name=r", "--run-name r", "'run_name=\"r\"'"]
)
def test_every_way_to_name_a_run(word: str) -> None:
    job = command_job(f"python a.py my_run_name=no {word} x=1")
    assert (job.run_name, job.id) == ("r", "r")


def test_a_bare_name_is_found_in_jobs(tmp_path: Path) -> None:
    (tmp_path / "jobs").mkdir()
    there = tmp_path / "jobs" / "jobs-trm.txt"
    there.write_text("")
    for name in ("jobs-trm.txt", "jobs-trm", "trm"):
        assert find(name, [tmp_path]) == there
    assert find(str(there)) == there
    with pytest.raises(UsageError, match=r"did you mean 'jobs-trm\.txt'"):
        find("jobs-tmr.txt", [tmp_path])
    with pytest.raises(UsageError, match="is a folder"):
        read(tmp_path)


def test_keys_tell_jobs_apart_and_do_not_depend_on_the_line() -> None:
    keys = {command_job(command).key for command in AWKWARD}
    assert len(keys) == len(AWKWARD)
    assert all("/" not in key and " " not in key for key in keys)
    assert command_job("python a.py run_name=../x").key.startswith("_x-"), "neither a hidden file nor another folder"
    assert command_job(AWKWARD[0], line_number=3).key == command_job(AWKWARD[0], line_number=9).key


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_every_byte_survives_claim_and_release(tmp_path: Path, ending: str) -> None:
    path = tmp_path / "jobs-a.txt"
    head = "\ufeff# Überschrift  " + ending + "[x]  python two blanks" + ending * 2
    body = [f"[ ] {command}" for command in AWKWARD]
    original = (head + ending.join(body)).encode() + b" raw=\xff\xfe"  # no newline at the end, and no UTF-8 either
    path.write_bytes(original)
    path.chmod(0o664)
    ledger = Ledger(path)
    for number in range(len(AWKWARD)):
        claim = ledger.claim(lambda job: True)
        assert claim is not None
        assert claim.job.command.encode("utf-8", "surrogateescape").startswith(AWKWARD[number].encode())
        marked = f"[{os.getpid()}@{HOST}]".encode()
        assert path.read_bytes().replace(b" " + marked, b"").replace(b"[-]", b"[ ]", 1) == original
        assert path.read_bytes().count(marked) == 1
        assert ledger.release(claim, "done")
        original = original.replace(b"[ ]", b"[x]", 1)
        assert path.read_bytes() == original
    assert ledger.claim(lambda job: True) is None
    assert path.stat().st_mode & 0o777 == 0o664


def test_release_finds_its_line_after_an_edit(tmp_path: Path) -> None:
    path = tmp_path / "jobs-a.txt"
    path.write_text("[ ] python a.py\n[ ] python b.py\n")
    ledger = Ledger(path)
    claim = ledger.claim(lambda job: True)
    assert claim is not None
    path.write_text("# new\n[ ] python c.py\n" + path.read_text())
    assert ledger.release(claim, "failed")
    assert path.read_text() == "# new\n[ ] python c.py\n[!] python a.py\n[ ] python b.py\n"
    claim = ledger.claim(lambda job: "b.py" in job.command)
    assert claim is not None
    path.write_text("[ ] python c.py\n")
    assert not ledger.release(claim, "done")
    assert path.read_text() == "[ ] python c.py\n"


def test_a_mark_reset_by_hand_does_not_start_the_job_again(tmp_path: Path) -> None:
    path = tmp_path / "jobs-a.txt"
    path.write_text("[ ] python a.py\n")
    claim = Ledger(path).claim(lambda job: True)
    assert claim is not None
    path.write_text("[ ] python a.py\n")
    assert Ledger(path).claim(lambda job: True) is None
    assert Ledger(path).release(claim, "done")
    assert path.read_text() == "[x] python a.py\n"


def test_whose_running_mark_is_stale(tmp_path: Path) -> None:
    path = tmp_path / "jobs-a.txt"
    dead = os.fork()
    if dead == 0:
        os._exit(0)
    os.waitid(os.P_PID, dead, os.WEXITED | os.WNOWAIT)  # a zombie for now: nobody has waited for it
    ledger = Ledger(path)
    for owner, taken in [
        (f" [{dead}@{HOST}]", True),
        (f" [{dead}]", True),
        (f" [{os.getpid()}@{HOST}]", False),
        (f" [{dead}@elsewhere]", False),
        ("", False),
    ]:
        path.write_text(f"[-] python a.py{owner}\n")
        claim = ledger.claim(lambda job: True)
        assert (claim is not None) == taken, owner
        if claim is not None:
            ledger.release(claim, "todo")
    os.waitpid(dead, 0)
    path.write_text(f"[-] python a.py [{dead}@elsewhere]\n")
    claim = ledger.claim(lambda job: True, hosts=frozenset({"elsewhere"}))
    assert claim is not None
    ledger.release(claim, "todo")
    assert path.read_text() == "[ ] python a.py\n"


def test_a_process_number_used_again_is_not_the_runner(tmp_path: Path) -> None:
    started = start_time(os.getpid())
    if started is None:
        pytest.skip("no /proc on this system")
    assert process_alive(os.getpid(), started)
    assert not process_alive(os.getpid(), "1")


def test_a_linked_job_file_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "real.txt").write_text("[ ] python a.py\n")
    (tmp_path / "jobs-a.txt").symlink_to("real.txt")
    ledger = Ledger(tmp_path / "jobs-a.txt")
    claim = ledger.claim(lambda job: True)
    assert claim is not None
    ledger.release(claim, "done")
    assert (tmp_path / "jobs-a.txt").is_symlink()
    assert read(tmp_path / "real.txt").jobs[0].state == "done"
