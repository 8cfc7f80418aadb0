"""How a check is written, found and run."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from verification.chain import Chain
from verification.codes import CODES
from verification.finding import BLIND, Finding, Level
from verification.source import ClassInfo

Function = Callable[[Chain], Iterable[Finding]]
QUESTIONS = (
    "Which training mode is intended (embedding or encoder)? Which ACT mode (fixed or dynamic)? Which encoder? "
    "Is this a new experiment or a reproduction?"
)


class NotApplicable(Exception):
    """Raised by a check that has nothing to look at; the text says why and becomes a SKIP."""


@dataclass(frozen=True)
class Check:
    """A function over a chain, and the codes that it judges."""

    codes: tuple[str, ...]
    function: Function
    family: str | None = None
    """Only for chains of this family; None: for all."""
    act: bool = False
    """Only for models that halt: their forward takes a batch and a carry and thinks in steps."""


@dataclass(frozen=True)
class Family:
    """What a family of models adds."""

    name: str
    dead: tuple[tuple[str, Callable[[dict[str, Any]], bool], str], ...] = ()
    """(dotted key, condition on the resolved config under which nothing reads it, the condition in words)."""
    context_calls: tuple[str, ...] = ("embed", "encode", "encoder")
    """Parts of method names that make what a model is conditioned on."""
    intent: Mapping[str, Callable[[Chain], Any]] = field(default_factory=dict)
    """Further keys of `#@ intent:` lines and the resolved value that each is compared with."""
    act: bool = True
    """Whether its models think in ACT steps, so that the checks of forward, halting and carry are about them."""
    questions: str = QUESTIONS
    """What a command without an intent is asked."""


CHECKS: list[Check] = []
FAMILIES: dict[str, Family] = {}


def check(*codes: str, family: str | None = None, act: bool = False) -> Callable[[Function], Function]:
    """Register a function that judges `codes`. It yields findings, PASS included, or raises NotApplicable.

    `act`: it is about models with adaptive computation time, `family`: about this family alone.
    """
    unknown = [code for code in codes if code not in CODES]
    if unknown:
        raise ValueError(f"codes without a row in verification/codes.py: {', '.join(unknown)}")

    def register(function: Function) -> Function:
        CHECKS.append(Check(codes, function, family, act))
        return function

    return register


def register_family(family: Family) -> None:
    """Add what is special to a family; its checks are registered with `@check(..., family=NAME)`."""
    FAMILIES[family.name] = family


def family_of(chain: Chain) -> Family:
    """The family that the script asks for, else the one that the model declares, else an empty one."""
    name = str((chain.script.requires if chain.script else {}).get("FAMILY") or declared(chain, "FAMILY") or "")
    return FAMILIES.get(name, Family(name, act=declared(chain, "ACT_MODE") is not None))


def say(code: str, level: Level | str, message: str, file: str = "", line: int = 0, fix: str = "") -> Finding:
    """A finding; where something is wrong and no fix is given, the table's."""
    row = CODES[code]
    wrong = level in ("FAIL", "WARN")
    return Finding(code, cast(Level, level), row.step, message, fix or (row.fix if wrong else ""), file, line)


def run_checks(chain: Chain) -> list[Finding]:
    """All checks on one chain, in order. One that cannot be applied says SKIP, one that breaks says so as VER900."""
    found: list[Finding] = []
    family = family_of(chain)
    own = {code for one in CHECKS if one.family == family.name for code in one.codes}
    for one in CHECKS:
        if one.family is not None and one.family != family.name:
            continue
        if one.act and not family.act:
            found += [say(code, "SKIP", "a check of models with ACT steps") for code in one.codes if code not in own]
            continue
        said: list[Finding] = []
        reason = "there was nothing to look at"
        try:
            said.extend(one.function(chain))
        except NotApplicable as error:
            reason = str(error)
        except (
            AttributeError,
            KeyError,
            IndexError,
            TypeError,
            ValueError,
            SyntaxError,
            RecursionError,
            OSError,
        ) as error:
            reason = f"{one.function.__name__} could not be carried out: {type(error).__name__}: {error}"
            said.append(say("VER900", "WARN", reason))
        done = {finding.code for finding in said}
        found += [*said, *(say(code, "SKIP", reason) for code in one.codes if code not in done)]
    wrong = {finding.code for finding in found if finding.level in ("FAIL", "WARN")}
    return [finding for finding in found if finding.level not in ("PASS", "SKIP") or finding.code not in wrong]


# --- what checks ask first --------------------------------------------------------------------------------------------


def need_script(chain: Chain) -> Any:
    """The entry script. Raises NotApplicable."""
    if chain.script is None:
        raise NotApplicable(chain.problems.get("script", "no script"))
    if not chain.script.decorators:
        raise NotApplicable(f"{chain.script.file} takes no Hydra config")
    return chain.script


def need_resolved(chain: Chain) -> dict[str, Any]:
    """The resolved config. Raises NotApplicable."""
    need_script(chain)
    if chain.resolved is None:
        problem = next(
            (chain.problems[k] for k in ("config", "compose", "resolve", "schema") if k in chain.problems), ""
        )
        raise NotApplicable(f"{BLIND}: {problem}")
    return chain.resolved


def need_model(chain: Chain) -> ClassInfo:
    """The model class. Raises NotApplicable."""
    need_resolved(chain)
    if chain.model is None or chain.model.cls is None:
        raise NotApplicable(f"the model class is not found: {chain.model.problem if chain.model else ''}")
    return chain.model.cls


def need_task(chain: Chain) -> ClassInfo:
    """The task class that the script makes. Raises NotApplicable."""
    task = need_script(chain).task
    if isinstance(task, str):
        raise NotApplicable(task)
    if task is None:
        raise NotApplicable(f"{chain.script.file if chain.script else ''} makes no class of tasks/")
    return task


def need_loss(chain: Chain) -> ClassInfo:
    """The loss class. Raises NotApplicable."""
    need_resolved(chain)
    if chain.loss is None or chain.loss.cls is None:
        raise NotApplicable(f"the loss class is not found: {chain.loss.problem if chain.loss else ''}")
    return chain.loss.cls


def declared(chain: Chain, name: str) -> Any:
    """A class variable of the model (FAMILY, DATA_MODE, ACT_MODE), None where it declares none."""
    cls = chain.model.cls if chain.model else None
    found = cls.variable(name) if cls else None
    return None if found is None or isinstance(found[0], ast.AST) else found[0]
