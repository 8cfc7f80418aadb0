"""Translates the documented flag style (`--key value`) into Hydra's overrides (`key=value`), by each key's type.

    --lr 1e-4 --lr=1e-4      lr=1e-4                     --use_wandb           use_wandb=true (--no-…: false)
    --data_paths a b         data_paths=[a,b]            --config f.json       its leaves, before the rest
    --prompt "a, b"          prompt='a, b'               +key=value            ++key=value (not groups)

A script whose schema names a CONFIG_FILE reads that file if the command has neither --config nor --config-name and
does not resume a run. DONE_ANYWAY lists keys with values that such a file may have although they change nothing.

Prefixes of flags are not accepted. Hydra's own flags pass through and come first: argparse wants the overrides in one
piece. A leading `~` in values that Hydra reads itself is expanded here; in a key of ours it is kept, and expanded where
the path is opened.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Literal, get_args, get_origin

from hydra.core.override_parser.types import Quote, QuotedString

from engine.cli.keys import Key, describe, hint_for, is_list, is_union, keys_of
from engine.errors import UsageError
from engine.io import did_you_mean, user_path
from engine.reading import Unreadable, read_json, reason_of

HYDRA_SWITCHES = frozenset(
    ["--multirun", "-m", "--run", "-r", "--resolve", "--version", "--hydra-help", "--shell-completion", "-sc"]
)
HYDRA_VALUED = frozenset(
    ["--config-name", "-cn", "--config-path", "-cp", "--config-dir", "-cd", "--cfg", "-c", "--package", "-p"]
)
UNDERSCORED = {"--" + flag[2:].replace("-", "_"): flag for flag in HYDRA_SWITCHES | HYDRA_VALUED if "-" in flag[2:]}
INFO = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")
SHOWN = ("job", "hydra", "all")  # by --cfg
TRUE, FALSE = frozenset(("true", "1", "yes", "on")), frozenset(("false", "0", "no", "off"))
NUMBER = re.compile(r"[+-]?(\d[\d_]*\.?\d*|\.\d+)([eE][+-]?\d+)?|[+-]?inf|nan")
# text that Hydra's grammar reads as the same text without quotes
PLAIN = re.compile(r"[./]*[A-Za-z_][\w./-]*", re.ASCII)
# text that Hydra reads as a value where the name of a group's option is expected
NO_OPTION = re.compile(rf"|true|false|null|{NUMBER.pattern}", re.IGNORECASE)
# text that seems to need no quotes, but that Hydra's grammar cannot read: ~/data, Übung
UNREAD = re.compile(r"~?[\w./-]*")
KEYWORDS = frozenset(("true", "false", "null", "none", "inf", "nan"))
# a home folder that Hydra would not expand: at the start of a value, of a list item, of a file:// URL
HOME = re.compile(r"(?:^|(?<=[\[,'\"=])|(?<=file://))~(?=/|$)")
BARE_HOME = re.compile(r"(?:(?<=[=\[,])|(?<=, ))(?:FILE:)?~[^,\[\]'\"]*(?=[,\]]|$)")
OVERRIDE = re.compile(r"(~|\+{0,2})([A-Za-z_][\w./@:$-]*)(=.*)?", re.DOTALL)


@dataclass(frozen=True)
class Groups:
    """Config groups (folders under config/) with their options, and what the recipe selects and sets."""

    options: Mapping[str, list[str]] = field(default_factory=dict)
    selected: frozenset[str] = frozenset()
    """Groups of its defaults list."""
    set_keys: frozenset[str] | None = None
    """Dotted keys that its files set; None if unknown."""


def translate(
    argv: list[str],
    schema: type,
    *,
    groups: Groups | None = None,
    aliases: Mapping[str, str] | None = None,
    typed: dict[str, str] | None = None,
) -> tuple[list[str], list[str]]:
    """(Hydra's own flags, overrides) of a command line in either style, or in both; Hydra takes them in this order.

    `aliases` maps an old key, or the leading part of a dotted one, to the key it means. `typed` collects key -> its
    spelling in the command, if that differs.
    Raises: UsageError for unknown flags, missing values, stray words and unreadable JSON files.
    """
    return _Translator(list(argv), schema, groups or Groups(), aliases or {}, {} if typed is None else typed).run()


def spelled(argv: Sequence[str]) -> list[str]:
    """The words with Hydra's own flags as Hydra spells them: --config_name=x is --config-name=x."""
    return [UNDERSCORED.get(name := word.partition("=")[0], name) + word[len(name) :] for word in argv]


def quote(text: str) -> str:
    """`text` in Hydra's own quotes if Hydra would read the bare text as something else."""
    if PLAIN.fullmatch(text) and text.lower() not in KEYWORDS:
        return text
    return QuotedString(text, Quote.single).with_quotes()


def render(value: Any) -> str:
    """A JSON value in Hydra's grammar. Raises: UsageError for a mapping key that the grammar cannot write."""
    if isinstance(value, Mapping):
        for key in value:
            if not PLAIN.fullmatch(key):
                raise UsageError(f"key {key!r} cannot be an override: use letters, digits, _ and -")
        return "{" + ",".join(f"{key}:{render(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(render, value)) + "]"
    return quote(value) if isinstance(value, str) else json.dumps(value)


class _Translator:
    def __init__(
        self, argv: list[str], schema: type, groups: Groups, aliases: Mapping[str, str], typed: dict[str, str]
    ) -> None:
        self.words, self.schema, self.groups, self.aliases, self.typed = argv, schema, groups, aliases, typed
        self.keys = keys_of(schema)
        blocks: Mapping[str, type] = getattr(schema, "NESTED_SCHEMAS", {})
        self.blocks = {f"{root}.{inner}": key for root, kind in blocks.items() for inner, key in keys_of(kind).items()}
        self.lists = {name: key for name, key in self.blocks.items() if is_list(key.kind)}
        self.sections = {old[: dot.start()] for old in aliases for dot in re.finditer(r"\.", old)}
        self.done_anyway: Mapping[str, Sequence[Any]] = getattr(schema, "DONE_ANYWAY", {})
        self.multirun = bool({"-m", "--multirun"} & set(argv))
        self.hydra: list[str] = []
        self.from_json: list[str] = []
        self.overrides: list[str] = []

    def run(self) -> tuple[list[str], list[str]]:
        default_file = getattr(self.schema, "CONFIG_FILE", None)
        while self.words:
            word = self.words.pop(0)
            name, equals, value = word.partition("=")
            if word in HYDRA_SWITCHES:
                self.hydra.append(word)
            elif name in HYDRA_VALUED:
                value = value if equals else self._value(word)
                if name in ("--cfg", "-c") and value not in SHOWN:
                    raise UsageError(f"{name} {value}: {did_you_mean(value, SHOWN)}")
                value = str(user_path(value)) if value.startswith("~") else value
                default_file = None if name in ("--config-name", "-cn") else default_file
                self.hydra += [f"{name}={value}"] if equals else [word, value]
            elif name in ("--info", "-i"):
                if equals and value not in INFO:
                    raise UsageError(f"{word}: {did_you_mean(value, INFO)}")
                follows = bool(self.words) and self.words[0] in INFO
                self.hydra.append(word if equals else f"--info={self.words.pop(0) if follows else 'all'}")
            elif name == "--config":
                default_file = None
                self._json(value if equals else self._value(word))
            elif word.startswith("--") and len(word) > 2:
                self._flag(name[2:], value if equals else None)
            elif OVERRIDE.fullmatch(word) and ("=" in word or word.startswith("~")):
                self.overrides.append(self._override(word))
            else:
                kind = "flag" if word.startswith("-") else "word"
                raise UsageError(f"unexpected {kind} '{word}': write key=value or --key value (see --help)")
        if default_file is not None and not any(word.lstrip("+").lower() == "resume=true" for word in self.overrides):
            self._json(default_file)
        return self.hydra, self.from_json + self.overrides

    def _override(self, word: str) -> str:
        """A word in Hydra's style: only aliases, quotes and the `+` signs change."""
        sign, name, rest = OVERRIDE.fullmatch(word).groups(default="")  # type: ignore[union-attr]
        bare, at, package = name.partition("@")
        spelt, bare = bare, self._aliased(bare)
        if self._section_of(spelt) is not None and self._resolved(spelt) is None:
            raise UsageError(f"unknown key '{spelt}': {self._suggest(spelt)}")
        self._note(bare, spelt)
        if bare.startswith("hydra."):
            rest = HOME.sub(str(user_path("~")), rest)
        else:
            rest = _home_quoted(rest)
        if bare != spelt and bare in self.keys and is_list(self.keys[bare].kind) and not rest.startswith("=["):
            values = rest[1:].split(",") if self.multirun else [rest[1:]]  # the old key took one value
            rest = "=" + ",".join(f"[{value}]" for value in values)
        if bare not in self.groups.options:
            sign = "++" if sign == "+" else sign
        elif rest and sign != "+" and NO_OPTION.fullmatch(rest[1:]) and rest[1:] not in self.groups.options[bare]:
            raise UsageError(f"there is no {bare}={rest[1:]}: {did_you_mean(rest[1:], self.groups.options[bare])}")
        elif sign in ("", "+") and not at:  # Hydra wants + if, and only if, the defaults list lacks the group
            sign = "" if bare in self.groups.selected or rest.startswith("={") else "+"
        if sign == "" and self._only_declared(bare):
            sign = "++"
        value = rest[1:]
        if UNREAD.fullmatch(value) and (value.startswith("~") or not value.isascii()) and bare in self.keys:
            rest = "=" + quote(value)
        return sign + bare + at + package + rest

    def _only_declared(self, name: str) -> bool:
        """Whether a key of the schema is set by no file of the recipe: Hydra then needs `++`, the user should not."""
        declared = name in self.keys or name in self.blocks
        return declared and self.groups.set_keys is not None and name not in self.groups.set_keys

    def _plain(self, name: str, value: str) -> str:
        return f"{'++' if self._only_declared(name) else ''}{name}={value}"

    def _flag(self, spelt: str, value: str | None) -> None:
        name, negated = self._resolved(spelt), re.match(r"no[-_](.+)", spelt)
        if name is None and negated and self._bare_ok(positive := self._resolved(negated[1])):
            if value is not None:
                raise UsageError(f"--{spelt} takes no value: write --{spelt} or {negated[1]}={value}")
            self._note(str(positive), negated[1])
            self.overrides.append(self._plain(str(positive), "false"))
            return
        if name is None:
            raise UsageError(f"unknown flag --{spelt}: {self._suggest(spelt)}")
        self._note(name, spelt)
        key = self.keys.get(name, self.lists.get(name))
        if key is not None and is_list(key.kind):
            values = self._swallow(f"--{spelt}") if value is None else [value]
            self.overrides.append(self._plain(name, self._list(key, values)))
            return
        value = self._value_of(name, key, spelt) if value is None else value
        if name in self.groups.options and not value.startswith("{"):
            self.overrides.append(self._override(f"{name}={value}"))
        else:
            value = HOME.sub(str(user_path("~")), value) if name.startswith("hydra.") else value
            self.overrides.append(self._plain(name, self._typed(key, value, spelt)))

    def _value_of(self, name: str, key: Key | None, spelt: str) -> str:
        """The next word if it is the flag's value; "true" for a switch."""
        word = self.words[0] if self.words else ""
        ends = not self.words or self._ends_list(word)
        if not self._bare_ok(name) or (key is None and not ends):
            return self._value(f"--{spelt}")
        if key is None:  # in a block without declared types, a flag without a value is a switch
            return "true"
        if self._is_choice(key, word):
            return self.words.pop(0)
        if word and "=" not in word and not ends:  # neither its value nor the next flag or override
            raise UsageError(f"--{spelt}: expected {describe(key.kind)}, got '{word}'")
        return "true"

    def _typed(self, key: Key | None, text: str, spelt: str) -> str:
        kind = None if key is None else key.kind
        if key is not None and key.optional and text in ("null", "None"):
            return "null"
        if key is not None and key.takes_bare_flag:
            if text.lower() in TRUE | FALSE:
                return "true" if text.lower() in TRUE else "false"
            if kind is bool:
                raise UsageError(f"--{spelt}: expected true or false, got '{text}'")
            return quote(text)
        if self.multirun and "," in text and kind is not str and all(_bare(kind, part) for part in text.split(",")):
            return text  # a sweep over numbers or choices
        return text if _bare(kind, text) else quote(text)

    def _list(self, key: Key, values: list[str]) -> str:
        if len(values) == 1 and (values[0].startswith("[") or (key.optional and values[0] == "null")):
            return _home_quoted(values[0])
        item = (*get_args(key.kind), None)[0]
        if len(values) == 1 and item in (int, float):
            values = values[0].split(",")
        return "[" + ",".join(self._typed(Key(key.name, item, False, None, ""), v, key.name) for v in values) + "]"

    def _json(self, path: str) -> None:
        """Flatten a nested JSON file. Unknown keys are refused here, where the file can be named."""
        try:
            data = read_json(user_path(path), unique=True)
        except (OSError, Unreadable) as error:
            raise UsageError(f"--config {path} {reason_of(error)}") from error
        if not isinstance(data, dict):
            raise UsageError(f"--config {path}: expected one object {{...}} of keys at the top")
        try:
            self._flatten(data, "")
        except UsageError as error:
            raise UsageError(f"--config {path}: {error}") from error

    def _flatten(self, block: Mapping[str, Any], prefix: str) -> None:
        for key, value in block.items():
            spelt = f"{prefix}{key}"
            if any(fnmatchcase(spelt, known) and value in values for known, values in self.done_anyway.items()):
                continue
            name = self._resolved(spelt)
            section = name is None and spelt in self.sections  # it only groups keys
            option = name in self.groups.options and isinstance(value, str)
            if not (isinstance(value, Mapping) or option) and (section or self._is_declared_block(name)):
                raise UsageError(f"{spelt}: expected a block {{...}} of keys, got {json.dumps(value)}")
            if section:
                self._flatten(value, f"{spelt}.")
                continue
            if name is None:
                raise UsageError(f"unknown key '{spelt}': {self._suggest(spelt)}")
            self._note(name, spelt)
            if option:
                self.from_json.append(self._override(f"{name}={value}"))
            elif isinstance(value, Mapping) and value and all(re.fullmatch(r"[A-Za-z_][\w-]*", k) for k in value):
                self._flatten(value, f"{spelt}.")
            else:
                self.from_json.append(f"++{name}={render(value)}")

    def _resolved(self, spelt: str) -> str | None:
        """The key that a flag means: itself, else with dashes as underscores, else None."""
        for name in (spelt, spelt.replace("-", "_")):
            name = self._aliased(name)
            if name in self.keys or name in self.groups.options or name.startswith("hydra.") or self._is_open(name):
                return name
        return None

    def _is_open(self, name: str) -> bool:
        """Whether `name` is in a block of undeclared keys (arch.hidden_size); those of a group have no dashes."""
        root, dot, inner = name.partition(".")
        if name in self.keys or not dot or ("-" in inner and root in self.groups.options):
            return False
        return _is_block(self.keys[root].kind) if root in self.keys else root in self.groups.options

    def _is_declared_block(self, name: str | None) -> bool:
        """Whether a key is declared to be a block, or is in a block of blocks (datasets.gsm8k)."""
        key, outer = self.keys.get(name or ""), self.keys.get((name or "").rpartition(".")[0])
        kinds = (key.kind,) if key else get_args(outer.kind)[1:] if outer else ()
        return any(describe(kind) == "block of keys" for kind in kinds) and not (key and key.optional)

    def _note(self, name: str, spelt: str) -> None:
        """Record the spelling of a key; the last one counts. One with dashes is shown in messages as a flag."""
        self.typed.pop(name, None)
        if spelt != name:
            self.typed[name] = spelt if "-" not in spelt else f"--{spelt}"

    def _aliased(self, name: str) -> str:
        for old in sorted(self.aliases, key=len, reverse=True):
            if name == old or name.startswith(f"{old}."):
                return self.aliases[old] + name[len(old) :]
        return name

    def _bare_ok(self, name: str | None) -> bool:
        return name is not None and (self.keys[name].takes_bare_flag if name in self.keys else self._is_open(name))

    def _is_choice(self, key: Key, word: str) -> bool:
        choices = {str(c) for c in get_args(key.kind)} if get_origin(key.kind) is Literal else set()
        return word.lower() in TRUE | FALSE | choices | ({"null"} if key.optional else set())

    def _swallow(self, flag: str) -> list[str]:
        """The words of a list flag: up to the next flag or override of a known key, at least one."""
        values = [self._value(flag)]
        while self.words and not self._ends_list(self.words[0]):
            values.append(self.words.pop(0))
        return values

    def _ends_list(self, word: str) -> bool:
        match = OVERRIDE.fullmatch(word)
        known = match and match[3] is not None and (match[1] or self._resolved(match[2].partition("@")[0]))
        return self._is_flag(word) or word.startswith("~") or bool(known)

    def _value(self, flag: str) -> str:
        if not self.words or self._is_flag(self.words[0]):
            raise UsageError(f"{flag} needs a value: write {flag} VALUE, or {flag}=--VALUE")
        return self.words.pop(0)

    def _is_flag(self, word: str) -> bool:
        return word.startswith("--") or word in HYDRA_SWITCHES | HYDRA_VALUED | {"-h", "-i"}

    def _section_of(self, name: str) -> str | None:
        """The section that `name` is, or is a key of."""
        return next((part for part in (name, name.rpartition(".")[0]) if part in self.sections), None)

    def _suggest(self, spelt: str) -> str:
        hydra = [flag[2:] for flag in HYDRA_SWITCHES | HYDRA_VALUED if flag.startswith("--")]
        known = [*self.keys, *self.groups.options, *self.aliases, *self.sections, *hydra, "config", "info", "help"]
        name = spelt.replace("-", "_")
        if hint := hint_for(self.schema, name.removeprefix("no_")):
            return hint
        if section := self._section_of(name):
            return did_you_mean(name, [old for old in self.aliases if old.startswith(f"{section}.")])
        # the block's name may be misspelt
        hints = (did_you_mean(part, known) for part in (name, name.partition(".")[0]))
        return next((hint for hint in hints if hint.startswith("did you mean")), "--help lists every key")


def _is_block(kind: Any) -> bool:
    return describe(kind) in ("block of keys", "any")


def _home_quoted(text: str) -> str:
    """A value with items that begin with `~` quoted: Hydra's grammar does not allow a bare `~`."""
    return BARE_HOME.sub(lambda match: quote(match[0]), text)


def _bare(kind: Any, text: str) -> bool:
    """Whether `text` needs no quotes: numbers, words, and lists if the type is not text."""
    if kind is str or (get_origin(kind) is Literal and all(isinstance(c, str) for c in get_args(kind))):
        return quote(text) == text
    if kind in (int, float):
        return bool(NUMBER.fullmatch(text))
    free = kind is None or is_union(kind) or _is_block(kind) or get_origin(kind) is Literal
    return bool(NUMBER.fullmatch(text)) or (
        free and (text.lower() in ("true", "false", "null") or text[:1] in ("[", "{") or quote(text) == text)
    )
