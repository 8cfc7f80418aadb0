"""Step 5, the carry: complete, new at each step, reset row by row, stored and given back. Step 6: the sum of it all."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from verification.chain import Chain
from verification.checks.model import Forward, encoder_policy, encoding_calls, forward_of, input_policy, mode_of_body
from verification.checks.registry import NotApplicable, check, declared, need_resolved, say
from verification.checks.script import model_calls
from verification.finding import Finding
from verification.source import ClassInfo, called, calls, literal, mentions, parameters, reachable, walk

Problem = tuple[str, str, int]
FLAGS = ("halted", "needs_reset", "reset", "reset_mask")


@check("MOD440", act=True)
def persistence(chain: Chain) -> Iterator[Finding]:
    forward = forward_of(chain)
    if declared(chain, "ACT_MODE") == "fixed":
        raise NotApplicable("a fixed model begins every batch with a fresh carry")
    node, owner = forward.method(forward.train)
    task = chain.script.task if chain.script else None
    problems = [*_model_problems(chain, forward), *(_task_problems(task) if isinstance(task, ClassInfo) else ())]
    for text, file, line in dict.fromkeys(problems):
        yield say("MOD440", "FAIL", text, file, line)
    if not problems:
        where = f" and {task.name} stores it" if isinstance(task, ClassInfo) else ""
        yield say("MOD440", "PASS", f"{node.name} returns a complete new carry{where}", owner.file, node.lineno)


def _model_problems(chain: Chain, forward: Forward) -> Iterator[Problem]:
    node, owner = forward.method(forward.train)
    file = owner.file
    names = parameters(node)
    if len(names) < 3:
        yield f"{node.name} takes no carry", file, node.lineno
        return
    batch, carry = names[1], names[2]
    for call in calls(forward.node, forward.train):
        if len(call.args) + len(call.keywords) < 2 or any(
            _is_none(a) for a in [*call.args, *(k.value for k in call.keywords)]
        ):
            yield f"forward does not pass the carry to {forward.train}", forward.owner.file, call.lineno
    if not any(isinstance(n, ast.Name) and n.id == carry and isinstance(n.ctx, ast.Load) for n in walk(node)):
        yield f"{node.name} does not look at its carry: every step starts afresh", file, node.lineno
    for assign in walk(node):
        targets = assign.targets if isinstance(assign, ast.Assign) else []
        if isinstance(assign, ast.Assign) and any(isinstance(t, ast.Name) and t.id == carry for t in targets):
            text = ast.unparse(assign.value)
            if text == "None" or any(word in text for word in ("initial_carry", "empty_carry", "fresh")):
                yield f"{node.name} replaces its carry: every step starts afresh", file, assign.lineno
    yield from _returned_problems(chain, node, owner, batch, carry)
    reached = reachable(forward.cls, forward.train)
    counts = [
        n for f, _ in reached.values() for n in walk(f)
        if isinstance(n, ast.BinOp | ast.AugAssign) and isinstance(n.op, ast.Add)
        and mentions(getattr(n, "left", getattr(n, "target", None)), "steps")
    ]  # fmt: skip
    if not counts:
        yield f"{node.name} does not count its steps: no row ever reaches halt_max_steps", file, node.lineno
    for function, of in reached.values():
        yield from _reset_problems(chain, function, of)


def _is_none(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def _returned_problems(
    chain: Chain, node: ast.FunctionDef, owner: ClassInfo, batch: str, carry: str
) -> Iterator[Problem]:
    made = [call for call in calls(node) if called(call).endswith("Carry")]
    if not made:
        yield f"{node.name} returns no carry", owner.file, node.lineno
        return
    call = made[-1]
    cls = chain.repo.named_class(owner.module, call.func)
    fields = (
        [n.target.id for n in cls.node.body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)]
        if cls
        else []
    )
    given = dict(zip(fields, call.args, strict=False)) | {k.arg: k.value for k in call.keywords if k.arg}
    for name in fields:
        if name not in given:
            yield f"the returned {called(call)} lacks {name}", owner.file, call.lineno
            continue
        value = given[name]
        if isinstance(value, ast.Attribute) and isinstance(value.value, ast.Name) and value.value.id == carry:
            yield f"the returned carry keeps the old {name} ({ast.unparse(value)})", owner.file, call.lineno
        elif name in ("data", "current_data") and mentions(value, batch):
            yield (
                f"the returned carry holds the incoming batch in place of the rows' own ({ast.unparse(value)[:60]})",
                owner.file,
                call.lineno,
            )
        elif name == "halted" and _constant(node, value):
            yield f"the returned carry has a constant halted ({ast.unparse(value)[:60]})", owner.file, call.lineno


def _constant(node: ast.FunctionDef, value: ast.expr) -> bool:
    """Whether a value is made by ones_like, zeros_like, full ... here."""
    sources = [value]
    if isinstance(value, ast.Name):
        sources = [
            n.value
            for n in walk(node)
            if isinstance(n, ast.Assign) and any(isinstance(t, ast.Name) and t.id == value.id for t in n.targets)
        ][-1:]
    makers = ("ones", "zeros", "full", "ones_like", "zeros_like", "full_like")
    return any(isinstance(s, ast.Call) and called(s) in makers for s in sources)


def _reset_problems(chain: Chain, function: ast.FunctionDef, owner: ClassInfo) -> Iterator[Problem]:
    """Rows must take the fresh value where they halted and keep their own elsewhere."""
    if "carry" not in parameters(function):
        return
    for call in calls(function):
        if called(call) == function.name or not isinstance(call.func, ast.Name | ast.Attribute):
            continue
        if any(_is_none(a) for a in call.args) and called(call).startswith(("_open", "open_rows", "_reset", "reset")):
            yield (
                f"{function.name} calls {called(call)} without the carry: every step starts afresh",
                owner.file,
                call.lineno,
            )
        if "where" in called(call) and len(call.args) == 3 and mentions(call.args[0], *FLAGS):
            negated = isinstance(call.args[0], ast.UnaryOp)
            fresh, kept = (call.args[2], call.args[1]) if negated else (call.args[1], call.args[2])
            if mentions(fresh, "carry") or not mentions(kept, "carry"):
                text = f"{ast.unparse(call)[:80]}: a halted row must take the fresh value, the others keep the carry's"
                yield text, owner.file, call.lineno
            helper = owner.module.names.get(called(call))
            if isinstance(helper, ast.FunctionDef):
                yield from _helper_problems(helper, owner)
    for assign in walk(function):
        if not isinstance(assign, ast.Assign):
            continue
        for target in assign.targets:
            if (
                isinstance(target, ast.Name)
                and target.id in FLAGS
                and not mentions(assign.value, "carry", "_halting")
                and _constant(function, assign.value)
            ):
                yield f"{ast.unparse(assign)[:80]}: rows are reset whatever they did", owner.file, assign.lineno
    chooses = [c for c in calls(function) if "where" in called(c) and mentions(c, "carry")]
    resets = [
        c for c in calls(function) if ("masked_fill" in called(c) or "where" in called(c)) and mentions(c, "steps")
    ]
    if chooses and not resets:
        yield f"{function.name} does not set the steps of halted rows back to 0", owner.file, function.lineno


def _helper_problems(helper: ast.FunctionDef, owner: ClassInfo) -> Iterator[Problem]:
    names = parameters(helper)
    for call in calls(helper, "where"):
        if len(call.args) == 3 and len(names) == 3 and mentions(call.args[0], names[0]):
            order = [a.id if isinstance(a, ast.Name) else "" for a in call.args[1:]]
            negated = isinstance(call.args[0], ast.UnaryOp)
            if order == (names[1:] if negated else names[:0:-1]):
                yield f"{helper.name} chooses the wrong way round: {ast.unparse(call)[:80]}", owner.file, call.lineno


def _task_problems(task: ClassInfo) -> Iterator[Problem]:
    found = task.method("loss")
    if found is None:
        return
    function, owner = found
    stores: set[str] = set()
    stored_at = 0
    local: dict[str, list[ast.expr]] = {}  # what local names stand for
    for node in walk(function):
        if isinstance(node, ast.Assign):
            for target in node.targets:
                if isinstance(target, ast.Name):
                    local.setdefault(target.id, []).append(node.value)
    returned = {
        n for n, values in local.items() if any(isinstance(v, ast.Attribute) and v.attr == "carry" for v in values)
    }
    for node in walk(function):
        if isinstance(node, ast.Assign) and (
            (isinstance(node.value, ast.Attribute) and node.value.attr == "carry")
            or (isinstance(node.value, ast.Name) and node.value.id in returned)
        ):
            for target in node.targets:
                names = [n.attr for n in walk(target) if isinstance(n, ast.Attribute)]
                stores |= set(names)
                stored_at = node.lineno if names else stored_at
    if not stores:
        yield f"{task.name}.loss does not store output.carry: every step starts afresh", owner.file, function.lineno
        return
    for call in model_calls(function):
        arguments = [*call.args, *(k.value for k in call.keywords)]
        meant = local.get(getattr(arguments[1], "id", ""), [arguments[1]]) if len(arguments) > 1 else []
        if not any(mentions(one, *stores) for one in meant):
            given = ast.unparse(arguments[1]) if len(arguments) > 1 else "no carry"
            yield f"{task.name}.loss gives the model {given}, not the stored carry", owner.file, call.lineno
    for method in task.node.body:
        if not isinstance(method, ast.FunctionDef) or method.name in ("__init__", "load_state_dict"):
            continue
        for node in walk(method):
            if not isinstance(node, ast.Assign):
                continue
            if any(isinstance(t, ast.Attribute | ast.Subscript) and mentions(t, *stores) for t in node.targets):
                value = node.value
                empty = (
                    _is_none(value)
                    or (isinstance(value, ast.BinOp) and mentions(value, *stores) is False)
                    or literal(value, 0) in ([], [None])
                )
                if empty and not (method.name == "loss" and node.lineno == stored_at):
                    yield (
                        f"{task.name}.{method.name} clears the stored carry ({ast.unparse(node)[:60]})",
                        task.file,
                        node.lineno,
                    )


@check("SUM600", act=True)
def summary(chain: Chain) -> Iterator[Finding]:
    need_resolved(chain)
    forward = forward_of(chain)
    act, data = declared(chain, "ACT_MODE"), declared(chain, "DATA_MODE")
    done, policy = mode_of_body(forward), encoder_policy(chain)
    made = encoding_calls(chain, forward)
    stale = bool(made) and input_policy(made) == "cache_first_step"
    wanted = (chain.script.requires if chain.script else {}).get("DATA_MODE")
    modes = {entry.mode for entry in chain.data if entry.mode}
    text = f"{forward.cls.name} uses {forward.train}() with {act} halting, {data} mode, "
    text += "no encoder" if policy == "none" else f"encoder: {policy}"
    good = done == act and data == wanted and modes <= {data} and not (act == "dynamic" and stale)
    yield say("SUM600", "PASS" if good else "FAIL", text, forward.owner.file, forward.line)
