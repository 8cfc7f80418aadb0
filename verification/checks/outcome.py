"""Step 5, what comes out: the labels of the loss, evaluation, and who is trained."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from verification.chain import Chain
from verification.checks.model import forward_of, is_no_grad, no_grad_decorator
from verification.checks.registry import NotApplicable, check, need_loss, need_model, need_task, say
from verification.finding import Finding
from verification.source import ClassInfo, called, calls, mentions, reachable, walk


@check("MOD441", act=True)
def labels(chain: Chain) -> Iterator[Finding]:
    loss = need_loss(chain)
    problems = []
    seen = 0
    reached = reachable(loss, "forward")
    for function, owner in reached.values():
        for node in walk(function):
            if (
                isinstance(node, ast.Subscript)
                and isinstance(node.slice, ast.Constant)
                and node.slice.value == "labels"
            ):
                seen += 1
                if not mentions(node.value, "carry", "current_data"):
                    problems.append(
                        (
                            f"{owner.name} takes labels from {ast.unparse(node.value)}, not from the carry",
                            owner.file,
                            node.lineno,
                        )
                    )
    task = chain.script.task if chain.script else None
    if isinstance(task, ClassInfo) and (found := task.method("loss")):
        for call in calls(found[0], "loss_head"):
            arguments = [*call.args, *(k.value for k in call.keywords)]
            if any(mentions(a, "batch", "micro_batch", "labels") for a in arguments):
                problems.append((f"{task.name}.loss gives the incoming batch to the loss", found[1].file, call.lineno))
    for text, file, line in problems:
        yield say("MOD441", "FAIL", text, file, line)
    if not seen and not problems:
        raise NotApplicable(f"{loss.name}.forward reads no ['labels']")
    if not problems:
        yield say("MOD441", "PASS", f"{loss.name} takes labels from the carry", loss.file, loss.line)


@check("MOD450", act=True)
def evaluation(chain: Chain) -> Iterator[Finding]:
    forward = forward_of(chain)
    node, owner = forward.method(forward.evaluate)
    reached = reachable(forward.cls, forward.evaluate)
    problems = []
    loops = [
        n
        for n in walk(node)
        if isinstance(n, ast.For) and mentions(n.iter, "halt_max_steps", "num_act_steps", "max_steps", "steps")
    ]
    if not loops:
        problems.append(
            (
                f"{node.name} has no loop over the maximum number of steps: evaluation is shallower than training",
                owner.file,
                node.lineno,
            )
        )
    if not no_grad_decorator(node) and not any(
        is_no_grad(i.context_expr) for w in walk(node) if isinstance(w, ast.With) for i in w.items
    ):
        problems.append((f"{node.name} is not under no_grad", owner.file, node.lineno))
    for function, of in reached.values():
        for call in calls(function):
            if called(call) in (
                "rand",
                "randn",
                "rand_like",
                "randn_like",
                "bernoulli",
                "randint",
                "multinomial",
                "sample",
                "rsample",
            ):
                problems.append(
                    (f"{function.name} draws random numbers in evaluation ({called(call)})", of.file, call.lineno)
                )
        if mentions(function, "halt_exploration_prob"):
            problems.append((f"{function.name} explores in evaluation", of.file, function.lineno))
    for text, file, line in problems:
        yield say("MOD450", "WARN", text, file, line)
    if not problems:
        yield say(
            "MOD450", "PASS", f"{node.name}: the full depth for every row, nothing random", owner.file, node.lineno
        )


@check("MOD460", family="recursive_reasoning")
def groups(chain: Chain) -> Iterator[Finding]:
    need_model(chain)
    task = need_task(chain)
    function = task.module.names.get("param_groups")
    script = chain.script
    if not isinstance(function, ast.FunctionDef) or script is None or not calls(script.build.tree, "param_groups"):
        raise NotApplicable(f"{task.module.file} has no function param_groups that the script calls")
    wanted = {"the network": ("named_parameters", "parameters"), "the puzzle embedding": ("puzzle_emb",)}
    missing = [what for what, names in wanted.items() if not mentions(function, *names)]
    made = calls(function, "ParamGroup")
    for what in missing:
        yield say("MOD460", "FAIL", f"param_groups gives {what} to no optimizer", task.file, function.lineno)
    if len(made) < 2 and not missing:
        yield say(
            "MOD460", "FAIL", f"param_groups makes {len(made)} group(s), expected two", task.file, function.lineno
        )
    elif not missing:
        yield say("MOD460", "PASS", "groups: the network and the puzzle embedding", task.file, function.lineno)
