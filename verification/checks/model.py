"""Step 5: the model's source. Methods are read, also those of its bases, and never run."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass

from verification.chain import Chain
from verification.checks.registry import (
    NotApplicable,
    check,
    declared,
    family_of,
    need_model,
    say,
)
from verification.finding import Finding
from verification.source import ClassInfo, ancestors, called, calls, mentions, parameters, parents_of, reachable, walk

MODULES = ("nn.Module", "torch.nn.Module", "Module")
ONLINE, DYNAMIC = ("online", "fixed"), ("original", "dynamic")
NO_GRAD = ("no_grad", "inference_mode")
RESETS = ("halted", "needs_reset", "reset", "reset_indices", "reset_mask", "steps", "carry", "is_first")


@dataclass(frozen=True)
class Forward:
    """The two methods that forward chooses between."""

    cls: ClassInfo
    node: ast.FunctionDef
    owner: ClassInfo
    train: str = ""
    evaluate: str = ""
    line: int = 0

    def method(self, name: str) -> tuple[ast.FunctionDef, ClassInfo]:
        """A method of the class. Raises NotApplicable."""
        found = self.cls.method(name) if name else None
        if found is None:
            raise NotApplicable(f"{self.cls.name} has no method {name or '_forward_train_*'}")
        return found


def forward_of(chain: Chain) -> Forward:
    """forward of the model with what it calls in training and in evaluation. Raises NotApplicable."""
    cls = need_model(chain)
    found = cls.method("forward")
    if found is None:
        raise NotApplicable(f"{cls.name} has no forward")
    node, owner = found
    train = evaluate = ""
    line = node.lineno
    for branch in walk(node):
        if isinstance(branch, ast.If | ast.IfExp) and mentions(branch.test, "training"):
            body = branch.body if isinstance(branch.body, list) else [branch.body]
            orelse = branch.orelse if isinstance(branch.orelse, list) else [branch.orelse]
            inside = _self_call(body)
            outside = _self_call(orelse) or _self_call(
                [n for n in node.body if n is not branch and n.lineno > branch.lineno]
            )
            negated = isinstance(branch.test, ast.UnaryOp) and isinstance(branch.test.op, ast.Not)
            train, evaluate = (outside, inside) if negated else (inside, outside)
            line = branch.lineno
            break
    return Forward(cls, node, owner, train, evaluate, line)


def _self_call(nodes: list[ast.stmt] | list[ast.expr]) -> str:
    for node in nodes:
        for call in calls(node):
            if (
                isinstance(call.func, ast.Attribute)
                and isinstance(call.func.value, ast.Name)
                and call.func.value.id == "self"
            ):
                return call.func.attr
    return ""


@check("MOD410", act=True)
def is_a_model(chain: Chain) -> Iterator[Finding]:
    cls = need_model(chain)
    problems = []
    if not cls.all_foreign & set(MODULES):
        problems.append(f"{cls.name} is no nn.Module (its bases: {', '.join(sorted(cls.all_foreign)) or 'none'})")
    found = cls.method("forward")
    if found is None:
        problems.append(f"{cls.name} has no forward")
    elif parameters(found[0])[1:3] != ["batch", "carry"]:
        problems.append(
            f"{cls.name}.forward takes ({', '.join(parameters(found[0])[1:])}), expected (batch, carry=None)"
        )
    elif not found[0].args.defaults:
        problems.append(f"{cls.name}.forward demands a carry: a run begins without one")
    for text in problems:
        yield say("MOD410", "FAIL", text, cls.file, cls.line)
    if not problems:
        yield say("MOD410", "PASS", f"class {cls.name} with forward(batch, carry=None)", cls.file, cls.line)


@check("MOD420", act=True)
def branches(chain: Chain) -> Iterator[Finding]:
    forward = forward_of(chain)
    place = (forward.owner.file, forward.line)
    if not forward.train or not forward.evaluate:
        yield say(
            "MOD420", "FAIL", f"{forward.cls.name}.forward does not branch on self.training into two methods", *place
        )
    elif not forward.train.startswith("_forward_train") or not forward.evaluate.startswith("_forward_eval"):
        text = f"forward calls {forward.train} in training and {forward.evaluate} in evaluation"
        yield say("MOD420", "FAIL", f"{text}: expected _forward_train_* and _forward_eval*", *place)
    else:
        text = f"training {forward.train}, evaluation {forward.evaluate}"
        yield say("MOD420", "PASS", text, *place)


def mode_of_name(name: str) -> str:
    """fixed or dynamic by the guide's names, "" for another one."""
    words = name.removeprefix("_forward_train").strip("_").split("_")
    return "fixed" if set(words) & set(ONLINE) else "dynamic" if set(words) & set(DYNAMIC) else ""


def mode_of_body(forward: Forward) -> str:
    """fixed or dynamic by what the training method does, "" where neither is recognised."""
    node, _ = forward.method(forward.train)
    for loop in walk(node):
        counts = isinstance(loop, ast.For) and mentions(
            loop.iter, "num_act_steps", "act_steps", "halt_max_steps", "max_steps"
        )
        if counts and calls(loop):
            return "fixed"
    reached = reachable(forward.cls, forward.train)
    chooses = any(
        mentions(call, "halted", "needs_reset") and ("where" in called(call) or "masked_fill" in called(call))
        for function, _ in reached.values()
        for call in calls(function)
    )
    returns = any("Carry" in called(call) for function, _ in reached.values() for call in calls(function))
    return "dynamic" if chooses and returns else ""


@check("MOD421", act=True)
def mode(chain: Chain) -> Iterator[Finding]:
    forward = forward_of(chain)
    node, owner = forward.method(forward.train)
    claims = {
        "declared": declared(chain, "ACT_MODE"),
        "named": mode_of_name(forward.train),
        "done": mode_of_body(forward),
    }
    text = f"{forward.cls.name}: ACT_MODE={claims['declared']}, "
    text += f"{forward.train} is named {claims['named'] or 'after no mode'}, "
    text += f"its body is {claims['done'] or 'of no known form'}"
    said = {claim for claim in claims.values() if claim}
    if claims["declared"] not in ("dynamic", "fixed"):
        yield say("MOD421", "FAIL", f"{text}: ACT_MODE must be dynamic or fixed", forward.cls.file, forward.cls.line)
    elif len(said) > 1 or not claims["done"]:
        yield say("MOD421", "FAIL", text, owner.file, node.lineno)
    elif not claims["named"]:
        yield say("MOD421", "WARN", text, owner.file, node.lineno)
    else:
        yield say("MOD421", "PASS", text, owner.file, node.lineno)


# --- encoding ---------------------------------------------------------------------------------------------------------


def encoding_calls(chain: Chain, forward: Forward) -> list[tuple[ast.Call, ast.FunctionDef, ClassInfo]]:
    """Calls in the training method (and in what it calls on self) that encode the input or its context."""
    names = family_of(chain).context_calls
    found = []
    for function, owner in reachable(forward.cls, forward.train).values():
        for call in calls(function):
            name = called(call).lower().strip("_")
            if any(name == part or name.startswith(f"{part}_") or name.endswith(f"_{part}") for part in names):
                found.append((call, function, owner))
    return found


def cached(call: ast.Call, function: ast.FunctionDef) -> str:
    """How a call depends on the carry: the condition or index as text, "" where it is made at every step."""
    for around in ancestors(call, parents_of(function)):
        if isinstance(around, ast.If | ast.IfExp | ast.While) and mentions(around.test, *RESETS):
            return f"if {ast.unparse(around.test)}"
        if (
            isinstance(around, ast.Call)
            and "where" in called(around)
            and around is not call
            and mentions(around, "carry")
        ):
            return ast.unparse(around)[:60]
    for node in walk(call):
        if isinstance(node, ast.Subscript) and mentions(node.slice, *RESETS):
            return ast.unparse(node)
    return ""


def kept_context(function: ast.FunctionDef, call: ast.Call) -> str:
    """A later statement that replaces the fresh encoding by one from the carry, "" for none."""
    names = assigned_names(function, call)
    for node in walk(function):
        if isinstance(node, ast.Assign) and node.lineno > call.lineno and any(_names(t) & names for t in node.targets):
            chosen = mentions(node.value, "carry") and mentions(node.value, *RESETS)
            if chosen:
                return ast.unparse(node)[:80]
    return ""


def assigned_names(function: ast.FunctionDef, call: ast.Call) -> set[str]:
    """Variables that get the value of a call directly (also through a unary method such as .detach())."""
    found: set[str] = set()
    for node in walk(function):
        if isinstance(node, ast.Assign) and any(inner is call for inner in walk(node.value)):
            for target in node.targets:
                found |= _names(target)
    return found


def _names(target: ast.AST) -> set[str]:
    return {node.id for node in walk(target) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}


def encoder_policy(chain: Chain) -> str:
    """reencode, cache_first_step or none, as found in the training method: an embedding layer is no encoder."""
    made = encoding_calls(chain, forward_of(chain))
    if not any("encode" in called(call).lower() for call, _, _ in made):
        return "none"
    return input_policy(made)


def input_policy(made: list[tuple[ast.Call, ast.FunctionDef, ClassInfo]]) -> str:
    """reencode or cache_first_step: whether every step makes its own embedding or encoding."""
    return "cache_first_step" if any(cached(c, f) or kept_context(f, c) for c, f, _ in made) else "reencode"


@check("MOD430", "MOD431", act=True)
def encoding(chain: Chain) -> Iterator[Finding]:
    forward = forward_of(chain)
    forward.method(forward.train)
    made = encoding_calls(chain, forward)
    claim = declared(chain, "ENCODER_POLICY")
    if not made:
        text = f"{forward.train} encodes no input (looked for {', '.join(family_of(chain).context_calls)})"
        yield say("MOD430", "FAIL", text, forward.owner.file, forward.line)
        return
    policy, act = encoder_policy(chain), declared(chain, "ACT_MODE")
    call, function, owner = made[0]
    for one, inside, of in made:
        reason = cached(one, inside) or kept_context(inside, one)
        if reason:
            call, function, owner = one, inside, of
            level = "FAIL" if act == "dynamic" else "PASS"
            yield say(
                "MOD431",
                level,
                f"{called(one)} is not called at every step ({reason}); the model is {act}",
                of.file,
                one.lineno,
            )
    if claim is not None and claim != policy:
        yield say("MOD430", "FAIL", f"ENCODER_POLICY={claim!r}, the code does {policy}", owner.file, call.lineno)
    else:
        text = f"{ast.unparse(call)} in {function.name}" + (": no encoder" if policy == "none" else f": {policy}")
        yield say("MOD430", "PASS", text, owner.file, call.lineno)
    if input_policy(made) == "reencode":
        yield say(
            "MOD431",
            "PASS" if act == "dynamic" else "WARN",
            f"encoded at every step; the model is {act}",
            owner.file,
            call.lineno,
        )


@check("MOD432", act=True)
def gradient(chain: Chain) -> Iterator[Finding]:
    forward = forward_of(chain)
    node, owner = forward.method(forward.train)
    problems = list(_gradient_problems(chain, forward))
    for text, file, line in dict.fromkeys(problems):
        yield say("MOD432", "FAIL", text, file, line)
    if not problems:
        yield say("MOD432", "PASS", "the encoding and the recursion keep their gradient", owner.file, node.lineno)


def _gradient_problems(chain: Chain, forward: Forward) -> Iterator[tuple[str, str, int]]:
    for function, owner in reachable(forward.cls, forward.train).values():
        if function.name == forward.train and no_grad_decorator(function):
            yield f"{function.name} is decorated with no_grad: nothing is trained", owner.file, function.lineno
    for call, function, owner in encoding_calls(chain, forward):
        parents = parents_of(function)
        name = called(call)
        for around in ancestors(call, parents):
            if isinstance(around, ast.With) and any(is_no_grad(item.context_expr) for item in around.items):
                yield f"{name} is called under no_grad", owner.file, call.lineno
            if isinstance(around, ast.Call) and called(around) == "detach" and isinstance(around.func, ast.Attribute):
                yield f"the result of {name} is detached", owner.file, around.lineno
        names = assigned_names(function, call)
        for other in calls(function, "detach"):
            base = other.func.value if isinstance(other.func, ast.Attribute) else None
            flows = _flows_on(function, other, names)
            if isinstance(base, ast.Name) and base.id in names and other.lineno >= call.lineno and flows:
                yield f"{base.id}, the result of {name}, is detached", owner.file, other.lineno
        if no_grad_decorator(function):
            yield f"{function.name}, which calls {name}, is under no_grad", owner.file, function.lineno
        yield from _inner_problems(chain, forward, call)
    main, owner = forward.method(forward.train)
    parents = parents_of(main)
    for call in calls(main, "recur", "inner", "logits"):
        for around in ancestors(call, parents):
            if isinstance(around, ast.With) and any(is_no_grad(item.context_expr) for item in around.items):
                yield f"{called(call)} is called under no_grad in training", owner.file, call.lineno


def _flows_on(function: ast.FunctionDef, detached: ast.Call, names: set[str]) -> bool:
    """Whether a detached value goes on into the computation, rather than into a metric beside it."""
    users = ("recur", "inner", "logits", "q_values")
    for around in ancestors(detached, parents_of(function)):
        if isinstance(around, ast.Call) and called(around) in users:
            return True
        if isinstance(around, ast.Assign):
            targets = {
                n.id
                for t in around.targets
                for n in walk(t)
                if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)
            }
            later = [c for c in calls(function, *users) if c.lineno > around.lineno]
            return bool(targets & names) or any(mentions(a, *targets) for c in later for a in c.args if targets)
    return False


def inner_class(chain: Chain, cls: ClassInfo) -> ClassInfo | None:
    """The class of what a constructor stores as `inner`."""
    for owner in cls.mro:
        for node in walk(owner.node):
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call):
                made = node.value.func
                own = isinstance(made, ast.Attribute) and ast.unparse(made.value) == "self"
                variable = cls.variable(made.attr) if own and isinstance(made, ast.Attribute) else None
                module = owner.module
                if variable is not None and isinstance(variable[0], ast.expr):  # self.Inner(...)
                    made, module = variable[0], variable[1].module
                for target in node.targets:
                    name = target.attr if isinstance(target, ast.Attribute) else getattr(target, "id", "")
                    if name == "inner" and (found := chain.repo.named_class(module, made)):
                        return found
    return None


def _inner_problems(chain: Chain, forward: Forward, call: ast.Call) -> Iterator[tuple[str, str, int]]:
    inner = inner_class(chain, forward.cls)
    found = inner.method(called(call)) if inner else None
    if found is None:
        return
    function, owner = found
    if no_grad_decorator(function):
        yield f"{owner.name}.{function.name} is under no_grad", owner.file, function.lineno
    for node in walk(function):
        if isinstance(node, ast.With) and any(is_no_grad(item.context_expr) for item in node.items):
            yield f"{owner.name}.{function.name} works under no_grad", owner.file, node.lineno
        if isinstance(node, ast.Call) and called(node) == "detach":
            yield f"{owner.name}.{function.name} detaches {ast.unparse(node)[:60]}", owner.file, node.lineno


def no_grad_decorator(function: ast.FunctionDef) -> bool:
    """Whether a function is decorated with no_grad."""
    return any(is_no_grad(decorator) for decorator in function.decorator_list)


def is_no_grad(expression: ast.expr) -> bool:
    """Whether an expression (a decorator, a with item) switches gradients off."""
    return mentions(expression, *NO_GRAD)
