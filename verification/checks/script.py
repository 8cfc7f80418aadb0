"""Step 2: the entry script and its task. The script only wires; the loop is the task's and the model's."""

from __future__ import annotations

import ast
import functools
import io
import re
import tokenize
from collections.abc import Iterator

from verification.chain import Chain
from verification.checks.job import bad_suffix
from verification.checks.registry import (
    NotApplicable,
    check,
    declared,
    need_model,
    need_resolved,
    need_script,
    need_task,
    say,
)
from verification.finding import Finding
from verification.source import ancestors, called, calls, mentions, parents_of, walk

CREATE = ("create_model", "create_model_encoder")
RESOLVE = ("resolve", "read_arch", "load_model_class")
STEP_COUNTS = ("num_act_steps", "act_steps", "n_act_steps", "halt_max_steps")
OTHER_MODE = {
    "dynamic": re.compile(
        r"fixed (number of )?(act )?steps|num_act_steps|cached? in (the )?carry|once when (the |a )?sample starts", re.I
    ),
    "fixed": re.compile(r"dynamic halting|carry persists|halts? when", re.I),
}
WRONG_NAMES = {"dynamic": re.compile(r"online|fixed"), "fixed": re.compile(r"original|dynamic")}


@check("SCR110")
def decorator(chain: Chain) -> Iterator[Finding]:
    if chain.script is None:
        raise NotApplicable(chain.problems.get("script", "no script"))
    script = chain.script
    if not script.decorators:
        if "/" in script.file:
            raise NotApplicable(f"{script.file} takes no Hydra config")
        yield say("SCR110", "FAIL", f"{script.file} has no @hydra.main", script.file, 1)
        return
    if len(script.decorators) > 1:
        yield say(
            "SCR110",
            "FAIL",
            f"{script.file} has {len(script.decorators)} @hydra.main",
            script.file,
            script.decorators[1].lineno,
        )
        return
    folder = chain.repo.root / script.config_path
    if not folder.is_dir():
        yield say(
            "SCR110", "FAIL", f"config_path={script.config_path!r} is no folder", script.file, script.decorator_line
        )
    elif not script.config_name or not (folder / f"{script.config_name}.yaml").is_file():
        text = f"the decorator's config_name={script.config_name!r} does not exist in {script.config_path}/"
        yield say("SCR110", "FAIL", text, script.file, script.decorator_line)
    else:
        yield say("SCR110", "PASS", f"@hydra.main names {script.config_name}", script.file, script.decorator_line)


@check("SCR111")
def config_is_the_scripts(chain: Chain) -> Iterator[Finding]:
    script = need_script(chain)
    config = need_resolved(chain)
    belongs = config.get("script")
    file, line = chain.key_line("script")
    if belongs and str(belongs).removesuffix(".py") != script.stem:
        text = f"config {chain.config_name} is for {belongs}, the command runs {script.file}"
        yield say("SCR111", "FAIL", text, file or chain.config_file, line)
    elif chain.config_name == script.config_name:
        yield say(
            "SCR111", "PASS", f"config {chain.config_name} is the decorator's", script.file, script.decorator_line
        )
    elif belongs:
        text = f"config {chain.config_name} declares script: {belongs} (the decorator's is {script.config_name})"
        yield say("SCR111", "PASS", text, file, line)
    elif chain.composed and any(name == script.config_name for name, _, _ in chain.composed.defaults):
        yield say(
            "SCR111", "INFO", f"config {chain.config_name} is derived from {script.config_name}", chain.config_file
        )
    else:
        text = (
            f"config {chain.config_name} neither declares `script: {script.file}` nor derives from {script.config_name}"
        )
        yield say("SCR111", "FAIL", text, chain.config_file, 0, f"put base/{script.stem} into its defaults list")


@check("SCR112")
def model_is_the_scripts(chain: Chain) -> Iterator[Finding]:
    script = need_script(chain)
    if not script.requires:
        text = f"{script.family.file} states no FAMILY and DATA_MODE (requires=...)"
        yield say("SCR112", "FAIL", text, script.family.file, 0, "declare requires= in the family's Family")
        return
    cls = need_model(chain)
    for key, wanted in script.requires.items():
        if key not in ("FAMILY", "DATA_MODE", "ACT_MODE"):
            continue
        actual = declared(chain, key)
        good = actual in wanted if isinstance(wanted, list | tuple) else actual == wanted
        found = cls.variable(key)
        place = (found[1].file, found[2]) if found else (cls.file, cls.line)
        text = f"{cls.name} declares {key}={actual!r}, {script.file} works with {wanted!r}"
        yield say("SCR112", "PASS" if good else "FAIL", text, *place)


@check("SCR120")
def wiring(chain: Chain) -> Iterator[Finding]:
    script = need_script(chain)
    problems = list(_wiring_problems(chain))
    for text, line in problems:
        yield say("SCR120", "FAIL", text, script.file, line)
    if not problems:
        yield say("SCR120", "PASS", "config, then model by name, then run", script.file, script.launch.lineno)


def _wiring_problems(chain: Chain) -> Iterator[tuple[str, int]]:
    script = need_script(chain)
    launch = script.launch
    loads = calls(launch, "load_synced_config")
    runs = calls(launch, "run", *CREATE)
    if not loads:
        yield (
            "launch does not call load_synced_config: the config is neither checked nor the same on all ranks",
            launch.lineno,
        )
    elif runs and runs[0].lineno < loads[0].lineno:
        yield f"{called(runs[0])} comes before load_synced_config", runs[0].lineno
    if not runs:
        yield "launch calls neither run nor create_model", launch.lineno
    for call in [*loads, *calls(script.module.tree, "run", "main")]:
        for keyword in call.keywords:
            value = getattr(keyword.value, "value", None)
            if keyword.arg == "entry" and isinstance(value, str) and value != script.stem:
                yield f"entry={value!r} is not this script's name ({script.stem})", call.lineno
    makers = [name for name in CREATE if script.function(name)]
    if not makers:
        yield f"there is no {' or '.join(CREATE)}: the contract's name for making the model", 1
        return
    builders = [f for f in script.build.tree.body if isinstance(f, ast.FunctionDef) and f.name not in makers]
    if not any(calls(function, *makers) for function in builders):
        yield f"nothing calls {makers[0]}", script.function(makers[0]).lineno
    for maker in makers:
        reached = _called_functions(chain, maker)
        if not any(calls(function, *RESOLVE) for function in reached):
            yield f"{maker} does not resolve arch.name through the registry", script.function(maker).lineno
        for function in reached:
            for call in calls(function):
                found = chain.repo.named_class(script.build, call.func)
                local = _local_class(function, call)
                if (found and found.module.name.startswith("models.")) or local:
                    yield f"{maker} makes {called(call)} itself: arch.name has no effect", call.lineno


def _local_class(function: ast.FunctionDef, call: ast.Call) -> bool:
    """Whether a call makes a class that the function itself imports from models/."""
    for node in walk(function):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("models."):
            return any((a.asname or a.name) == called(call) for a in node.names)
    return False


def _called_functions(chain: Chain, name: str) -> list[ast.FunctionDef]:
    """A function of the script and those of the script that it calls, directly or not."""
    script = need_script(chain)
    found: dict[str, ast.FunctionDef] = {}
    pending = [name]
    while pending:
        current = pending.pop()
        function = script.function(current)
        if function is not None and current not in found:
            found[current] = function
            pending += [called(call) for call in calls(function)]
    return list(found.values())


@check("SCR121")
def data_classes(chain: Chain) -> Iterator[Finding]:
    script = need_script(chain)
    wanted = script.requires.get("DATA_MODE")
    if wanted is None:
        raise NotApplicable(f"{script.file} states no DATA_MODE (SCR112)")
    declaring = [(cls, line, found) for cls, line in script.data_classes if (found := cls.variable("DATA_MODE"))]
    if not declaring:
        names = ", ".join(sorted({cls.name for cls, _ in script.data_classes})) or "no class of dataset/"
        raise NotApplicable(f"{names} declares no DATA_MODE: the data sets say it themselves (DAT510)")
    for cls, line, found in declaring:
        text = f"{script.file} loads {cls.name} of DATA_MODE={found[0]!r}, and works with {wanted!r}"
        yield say("SCR121", "PASS" if found[0] == wanted else "FAIL", text, script.build.file, line)


# --- the loop ---------------------------------------------------------------------------------------------------------


def model_calls(function: ast.AST) -> list[ast.Call]:
    """Calls of the trained module: self.module(...), self.model(...), model(...)."""
    return [call for call in calls(function, "module", "model") if not isinstance(call.func, ast.Call)]


@check("SCR130")
def loop_form(chain: Chain) -> Iterator[Finding]:
    task = need_task(chain)
    mode = declared(chain, "ACT_MODE")
    found = task.method("loss")
    if found is None:
        raise NotApplicable(f"{task.name} has no method loss")
    function, owner = found
    if mode is None:
        need_model(chain)
        raise NotApplicable("the model declares no ACT_MODE")
    parents = parents_of(function)
    made = model_calls(function)
    if not made:
        yield say("SCR130", "FAIL", f"{task.name}.loss does not call self.module", owner.file, function.lineno)
        return
    looped = [c for c in made if any(isinstance(a, ast.For | ast.While) for a in ancestors(c, parents))]
    stored = any(
        isinstance(node, ast.Assign)
        and mentions(node.value, "carry")
        and any(mentions(t, "self") for t in node.targets)
        for node in walk(function)
    )
    form = "fixed" if looped else "dynamic" if stored else "none"
    words = {
        "fixed": "the model is called in a loop over one batch",
        "dynamic": "one call for each step, the carry is stored",
        "none": "one call for each step, and the returned carry is not stored: every step starts afresh",
    }[form]
    level = "PASS" if form == mode and len(made) == 1 + (form == "fixed") * (len(made) - 1) else "FAIL"
    yield say("SCR130", level, f"{task.name}.loss: {words}; the model is {mode}", owner.file, made[0].lineno)


@check("SCR131")
def function_names(chain: Chain) -> Iterator[Finding]:
    task, mode = need_task(chain), declared(chain, "ACT_MODE")
    pattern = WRONG_NAMES.get(str(mode))
    if pattern is None:
        raise NotApplicable("the model declares no ACT_MODE")
    script = need_script(chain)
    functions = [(n, script.build.file) for n in walk(script.build.tree) if isinstance(n, ast.FunctionDef)]
    functions += [(n, cls.file) for cls in task.mro for n in cls.node.body if isinstance(n, ast.FunctionDef)]
    wrong = [(n, file) for n, file in functions if "train" in n.name and pattern.search(n.name)]
    for node, file in wrong:
        yield say("SCR131", "WARN", f"{node.name} is named after another mode than {mode}", file, node.lineno)
    if not wrong:
        yield say("SCR131", "PASS", f"no training function is named after another mode than {mode}", script.file)


def chain_modules(chain: Chain) -> list[str]:
    """Files that a reviewer reads: script, task, model and their bases."""
    files = [chain.script.file, chain.script.build.file] if chain.script else []
    for cls in (chain.script.task if chain.script else None, chain.model.cls if chain.model else None):
        if cls is not None and not isinstance(cls, str):
            files += [one.file for one in cls.mro]
    return list(dict.fromkeys(files))


@functools.lru_cache(maxsize=256)
def prose(text: str) -> tuple[tuple[str, int], ...]:
    """Comments and docstrings with their lines."""
    return tuple(_prose(text))


def _prose(text: str) -> Iterator[tuple[str, int]]:
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            yield token.string, token.start[0]
        elif token.type == tokenize.STRING and token.string.lstrip("rRbBuU")[:3] in ('"""', "'''"):
            for offset, line in enumerate(token.string.splitlines()):
                yield line, token.start[0] + offset


@check("SCR140")
def comments(chain: Chain) -> Iterator[Finding]:
    mode = declared(chain, "ACT_MODE")
    pattern = OTHER_MODE.get(str(mode))
    if pattern is None:
        raise NotApplicable("the model declares no ACT_MODE")
    wrong = [
        (file, line, match[0])
        for file in chain_modules(chain)
        for text, line in prose(chain.repo.text(file) or "")
        if (match := pattern.search(text))
    ]
    for file, line, words in wrong:
        yield say("SCR140", "WARN", f"a comment says '{words}', the model is {mode}", file, line)
    if not wrong:
        yield say(
            "SCR140",
            "PASS",
            f"no comment of another mode in {len(chain_modules(chain))} files",
            need_script(chain).file,
        )


@check("SCR141")
def swallowed_errors(chain: Chain) -> Iterator[Finding]:
    script, wrong = need_script(chain), False
    for file in chain_modules(chain):
        module = chain.repo.module(file.removesuffix(".py").replace("/", "."))
        for node in walk(module.tree) if module else ():
            if not isinstance(node, ast.ExceptHandler):
                continue
            broad = node.type is None or (
                isinstance(node.type, ast.Name) and node.type.id in ("Exception", "BaseException")
            )
            if broad and not any(isinstance(inner, ast.Raise) for inner in walk(node)):
                wrong = True
                yield say("SCR141", "WARN", "an `except` that swallows every error", file, node.lineno)
    if not wrong:
        yield say("SCR141", "PASS", "no error is swallowed", script.file)
    imported = {
        m.name for m in chain.repo.closure(script.module.name, ("models", "losses", "evaluators", "dataset", "tasks"))
    }
    for name in sorted(imported):
        if bad_suffix(name):
            yield say("JOB011", "FAIL", f"{script.file} imports {name}, a backup copy", script.file)
