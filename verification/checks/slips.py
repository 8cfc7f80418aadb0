"""Second looks for slips that the main checks' questions do not cover. They speak only where something is wrong."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from verification.chain import Chain
from verification.checks.model import encoding_calls, forward_of, no_grad_decorator
from verification.checks.registry import NotApplicable, check, declared, need_model, need_script, need_task, say
from verification.checks.script import CREATE, model_calls
from verification.finding import Finding
from verification.source import ClassInfo, ancestors, called, calls, literal, mentions, parameters, parents_of, walk

MAKERS = ("ones", "zeros", "full", "ones_like", "zeros_like", "full_like", "initial", "initial_carry")
HEADS = ("logits", "q_values", "lm_head", "q_head")


@check()
def decorator_config_is_for_this_script(chain: Chain) -> Iterator[Finding]:
    """The config of @hydra.main, also where the job names another one."""
    script = need_script(chain)
    text = chain.repo.text(f"{script.config_path}/{script.config_name}.yaml") or ""
    match = re.search(r"^script:\s*(\S+)", text, re.MULTILINE)
    if match and match[1].removesuffix(".py") not in (script.stem, "null"):
        said = f"@hydra.main names {script.config_name}, which is for {match[1]}"
        yield say("SCR111", "FAIL", said, script.file, script.decorator_line)


@check()
def model_comes_from_the_registry(chain: Chain) -> Iterator[Finding]:
    """`resolve` is called for the slot "models", not only for the loss."""
    script = need_script(chain)
    names, pending = set(), [name for name in CREATE if script.function(name)]
    while pending:
        function = script.function(pending.pop())
        if function is not None and function.name not in names:
            names.add(function.name)
            pending += [called(call) for call in calls(function)]
    made = [call for name in names for call in calls(script.function(name), "resolve")]
    slots = [literal(argument) for call in made for argument in [*call.args, *(k.value for k in call.keywords)]]
    if made and "models" not in slots:
        text = "no resolve(..., 'models') where the model is made: arch.name has no effect"
        yield say("SCR120", "FAIL", text, script.file, made[0].lineno)


@check(act=True)
def training_method_exists(chain: Chain) -> Iterator[Finding]:
    """What forward calls is there."""
    forward = forward_of(chain)
    for name in (forward.train, forward.evaluate):
        if name and forward.cls.method(name) is None:
            text = f"forward calls {name}, which {forward.cls.name} does not have"
            yield say("MOD420", "FAIL", text, forward.owner.file, forward.line)


@check()
def task_trains(chain: Chain) -> Iterator[Finding]:
    """The task sets training mode after evaluations, and calls the model with gradients."""
    task = need_task(chain)
    methods = [node for cls in task.mro for node in cls.node.body if isinstance(node, ast.FunctionDef)]
    evaluates = [call for method in methods for call in calls(method, "eval")]
    if evaluates and not any(calls(method, "train") for method in methods):
        text = f"{task.name} calls .eval() and never .train(): training goes on in evaluation mode"
        yield say("MOD420", "FAIL", text, task.file, evaluates[0].lineno)
    found = task.method("loss")
    if found is None:
        return
    function, owner = found
    if no_grad_decorator(function):
        yield say(
            "MOD432", "FAIL", f"{task.name}.loss is under no_grad: nothing is trained", owner.file, function.lineno
        )
    parents = parents_of(function)
    for call in model_calls(function):
        if any(
            isinstance(a, ast.With) and any(_no_grad(i.context_expr) for i in a.items) for a in ancestors(call, parents)
        ):
            text = f"{task.name}.loss calls the model under no_grad: nothing is trained"
            yield say("MOD432", "FAIL", text, owner.file, call.lineno)


def _no_grad(expression: ast.expr) -> bool:
    return mentions(expression, "no_grad", "inference_mode")


@check(act=True)
def carry_is_what_was_computed(chain: Chain) -> Iterator[Finding]:
    """Values of the returned carry: new ones, without a graph, of the rows' own examples."""
    forward = forward_of(chain)
    if declared(chain, "ACT_MODE") != "dynamic":
        raise NotApplicable("only a dynamic model hands on its carry")
    node, owner = forward.method(forward.train)
    batch = [*parameters(node), "", "batch"][1] or "batch"
    for call, function, of in encoding_calls(chain, forward):
        if function is node and any(mentions(argument, batch) for argument in call.args):
            text = f"{ast.unparse(call)} encodes the incoming batch, the labels are those of the rows' own examples"
            yield say("MOD441", "FAIL", text, of.file, call.lineno)
    made = [call for call in calls(node) if called(call).endswith("Carry")]
    cls = chain.repo.named_class(owner.module, made[-1].func) if made else None
    if cls is None:
        return
    fields = [n.target.id for n in cls.node.body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)]
    given = dict(zip(fields, made[-1].args, strict=False)) | {k.arg: k.value for k in made[-1].keywords if k.arg}
    for name, value in given.items():
        where = (owner.file, made[-1].lineno)
        if name in ("data", "current_data") and mentions(value, batch):
            text = f"labels of the returned carry are those of the incoming batch ({ast.unparse(value)[:60]})"
            yield say("MOD441", "FAIL", text, *where)
        elif name != "halted" and isinstance(value, ast.Call) and called(value) in MAKERS:
            text = f"the returned carry has a fresh {name} ({ast.unparse(value)[:60]}): no step builds on the last"
            yield say("MOD440", "FAIL", text, *where)
        elif name == "latents" and isinstance(value, ast.Name) and not _detached(node, value.id):
            text = f"the returned {name} keep their graph: gradients of all earlier steps, or an error at the second"
            yield say("MOD440", "FAIL", text, *where)


def _assigned(node: ast.AST) -> Iterator[tuple[set[str], ast.Assign]]:
    for assign in walk(node):
        if isinstance(assign, ast.Assign):
            names = {n.id for t in assign.targets for n in walk(t) if isinstance(n, ast.Name)}
            yield names, assign


def _detached(node: ast.FunctionDef, name: str) -> bool:
    return no_grad_decorator(node) or any(name in names and calls(a.value, "detach") for names, a in _assigned(node))


@check(act=True)
def heads_see_the_gradient(chain: Chain) -> Iterator[Finding]:
    """Nothing is detached between the recursion and the output heads."""
    forward = forward_of(chain)
    node, owner = forward.method(forward.train)
    for names, assign in _assigned(node):
        if not calls(assign.value, "detach") or not mentions(assign.value, *names):
            continue
        late = [c for c in calls(node, *HEADS) if c.lineno > assign.lineno and any(mentions(a, *names) for a in c.args)]
        if late:
            text = f"{', '.join(sorted(names))} is detached before {called(late[0])} reads it: only the heads learn"
            yield say("MOD432", "FAIL", text, owner.file, assign.lineno)


@check(act=True)
def evaluation_takes_all_steps(chain: Chain) -> Iterator[Finding]:
    """No early end of the loop over the steps."""
    forward = forward_of(chain)
    node, owner = forward.method(forward.evaluate)
    for loop in walk(node):
        if isinstance(loop, ast.For | ast.While):
            for inner in walk(loop):
                if isinstance(inner, ast.Break | ast.Return):
                    text = f"{node.name} may leave its loop early: the depth depends on the batch"
                    yield say("MOD450", "WARN", text, owner.file, inner.lineno)


@check()
def no_parameter_is_left_out(chain: Chain) -> Iterator[Finding]:
    """The optimizer groups are not filtered by name."""
    need_model(chain)
    task: ClassInfo = need_task(chain)
    function = task.module.names.get("param_groups")
    if not isinstance(function, ast.FunctionDef):
        return
    for node in walk(function):
        if isinstance(node, ast.comprehension) and node.ifs and calls(node.iter, "named_parameters", "parameters"):
            text = f"param_groups leaves parameters out ({ast.unparse(node.ifs[0])[:60]}): they are never trained"
            yield say("MOD460", "FAIL", text, task.file, node.iter.lineno)
    table = [assign for names, assign in _assigned(function) if "table" in names]
    if table and all(isinstance(a.value, ast.Constant) and a.value.value is None for a in table):
        yield say("MOD460", "FAIL", "param_groups drops the puzzle embedding", task.file, table[0].lineno)
