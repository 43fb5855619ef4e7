"""Strict YAML: one mapping with the file and line of every key. The only file that knows yaml.

Differences from plain YAML 1.1: duplicate keys, tabs and non-text keys are errors, `1e-4` is a number, only
true/false are booleans (`no`, `on` and `off` stay texts), no octal or base-60 numbers, no dates.
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from gantool import container
from gantool.errors import ConfigError, UsageError

_log = logging.getLogger(__name__)

Path_ = tuple[str, ...]


@dataclass
class Document:
    """A mapping and, for the path of each key in it, where it was written (`file:line`, or `--set a.b=c`)."""

    tree: dict[str, Any]
    where: dict[Path_, str] = field(default_factory=dict)
    name: str = ""

    def locate(self, path: Path_) -> str:
        """Where the key at `path`, or else its nearest parent, was written."""
        for end in range(len(path), -1, -1):
            if path[:end] in self.where:
                return self.where[path[:end]]
        return self.name


class _StrictLoader(yaml.SafeLoader):
    pass


_StrictLoader.yaml_implicit_resolvers = {}
_FLOAT = r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("int", r"[-+]?[0-9]+", "-+0123456789"),
    ("float", _FLOAT, "-+0123456789."),
):
    _StrictLoader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), list(_first))


def read_document(path: Path) -> Document:
    """Parse the YAML file at `path`; ConfigError with file and line when it is not one strict mapping."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        near = sorted(p.name for p in path.parent.glob("*.yaml"))[:12] if path.parent.is_dir() else []
        hint = f"configs in {path.parent}: {', '.join(near)}" if near else "check the path"
        raise UsageError(f"{path}: there is no such file", container.if_absent(path, hint)) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read as text: {error}", "give a YAML file in UTF-8") from None
    _log.info("read %s", path)
    document = parse_document(text, str(path))
    _anchor(document.tree, path.parent)
    return document


def _anchor(tree: Any, folder: Path) -> None:
    """Make the paths of code of the user's own (`file`, or an override `loss.file`) absolute; they are relative to the
    file that names them."""
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
        if isinstance(value, dict | list):
            _anchor(value, folder)
        elif isinstance(value, str) and str(key).split(".")[-1] == "file":
            tree[key] = str((folder / Path(value).expanduser()).resolve()) if value and "\0" not in value else value


def parse_document(text: str, name: str) -> Document:
    """Parse YAML `text`; `name` stands for the file in messages."""
    try:
        node = yaml.compose(text, Loader=_StrictLoader)
    except yaml.YAMLError as error:
        raise ConfigError([_syntax_problem(error, text, name)]) from None
    if node is None:
        raise ConfigError([(name, "", "the file is empty", "write at least one key, for example 'steps: 10000'")])
    if not isinstance(node, yaml.MappingNode):
        raise ConfigError([(f"{name}:{node.start_mark.line + 1}", "", "found no mapping", "write 'key: value' lines")])
    document = Document({}, {}, name)
    document.tree = _construct(node, (), document, lambda mark: f"{name}:{mark.line + 1}")
    return document


def parse_assignment(text: str) -> Document:
    """Parse one `--set a.b=value`; the value is YAML."""
    name = f"--set {text}"
    key, equals, value = text.partition("=")
    if not equals or not all(key.strip().split(".")):
        raise ConfigError([(name, "", "expected key=value", "for example --set generator.width=32")])
    try:
        node = yaml.compose(value, Loader=_StrictLoader) if value.strip() else None
    except yaml.YAMLError:
        text = f"found {value!r}, which is not a YAML value"
        raise ConfigError([(name, key, text, "quote it for the shell")]) from None
    document = Document({}, {}, name)
    path = tuple(key.strip().split("."))
    document.tree = nest(path, None if node is None else _construct(node, path, document, lambda mark: name))
    document.where.update({path[:end]: name for end in range(1, len(path) + 1)})
    return document


def nest(path: Path_, value: Any) -> dict[str, Any]:
    """{'a': {'b': value}} for the path ('a', 'b')."""
    for part in reversed(path):
        value = {part: value}
    assert isinstance(value, dict)
    return value


def dump_yaml(tree: Any) -> str:
    """`tree` (plain data) as YAML text that `parse_document` reads back to the same values."""
    return yaml.dump(tree, Dumper=_StrictDumper, sort_keys=False, allow_unicode=True, width=120)


class _StrictDumper(yaml.SafeDumper):
    def represent_str(self, data: str) -> yaml.ScalarNode:
        """Escape what has no glyph: plain and single-quoted scalars fold some line breaks (U+0085) into spaces."""
        return self.represent_scalar("tag:yaml.org,2002:str", data, style=None if data.isprintable() else '"')


_StrictDumper.add_representer(str, _StrictDumper.represent_str)
# Quote what either resolver would not read as text ('1e-4' and 'no' alike), so that other YAML readers agree too.
_StrictDumper.yaml_implicit_resolvers = {
    first: [
        pair for loader in (yaml.SafeDumper, _StrictLoader) for pair in loader.yaml_implicit_resolvers.get(first, [])
    ]
    for first in {**yaml.SafeDumper.yaml_implicit_resolvers, **_StrictLoader.yaml_implicit_resolvers}
}


def _construct(node: yaml.Node, path: Path_, document: Document, mark: Any) -> Any:
    if len(path) > 50:
        raise ConfigError([(mark(node.start_mark), path[0], "nested too deep: an anchor contains itself", None)])
    if isinstance(node, yaml.MappingNode):
        mapping: dict[str, Any] = {}
        for key_node, value_node in node.value:
            here, key = mark(key_node.start_mark), key_node.value
            if not isinstance(key_node, yaml.ScalarNode):
                raise ConfigError([(here, ".".join(path), "a key must be a plain text", None)])
            at = (*path, key)
            if key in mapping:
                text = f"the key is written twice (first at {document.where[at]})"
                raise ConfigError([(here, ".".join(at), text, "keep one of the two")])
            document.where[at] = here
            mapping[key] = _construct(value_node, at, document, mark)
        return mapping
    if isinstance(node, yaml.SequenceNode):
        items = []
        for index, item in enumerate(node.value):
            at = (*path, str(index))
            document.where[at] = mark(item.start_mark)
            items.append(_construct(item, at, document, mark))
        return items
    return _scalar(node, mark(node.start_mark), path)


def _scalar(node: yaml.Node, here: str, path: Path_) -> Any:
    kind, text = node.tag.removeprefix("tag:yaml.org,2002:"), str(node.value)
    if kind == "str":
        return text
    if kind == "bool":
        return text.lower() == "true"
    if kind == "null":
        return None
    try:
        if kind == "int":
            return int(text)
        if kind == "float":
            return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
    except ValueError:
        pass
    raise ConfigError([(here, ".".join(path), f"found {text!r} with the tag {node.tag!r}", "remove the tag")])


def _syntax_problem(error: yaml.YAMLError, text: str, name: str) -> tuple[str, str, str, str | None]:
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        return (name, "", f"not valid YAML: {error}", None)
    lines = text.splitlines()
    line = lines[mark.line] if mark.line < len(lines) else ""
    where = f"{name}:{mark.line + 1}"
    if "\t" in line[: mark.column + 1] or "\t" in line[: len(line) - len(line.lstrip())]:
        return (where, "", "a tab is used for indentation", "YAML wants spaces: replace each tab by two spaces")
    problem = getattr(error, "problem", None) or "not valid YAML"
    return (where, "", f"not valid YAML: {problem} (column {mark.column + 1})", "check colons, quotes and indentation")
