"""From files and `--set` to a checked `RunConfig`: defaults < `extends` parents < the file < `--set`.

Errors name the file and line (or the `--set`) that wrote the offending key, all of them at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from gantool.config.document import Document, nest, parse_assignment, read_document
from gantool.config.schema import RunConfig, format_error_key, rank_problems
from gantool.errors import ConfigError, UsageError, nearest

ModelT = TypeVar("ModelT", bound=BaseModel)
UNKNOWN_KEY = "unknown key"


def load_run_config(path: Path, assignments: Sequence[str] = (), num_ranks: int = 1) -> RunConfig:
    """Read a run config; ConfigError lists everything that is wrong with it, for `num_ranks` processes."""
    document = read_run_document(path, assignments)
    return validate_run(document, num_ranks)


def read_run_document(path: Path, assignments: Sequence[str] = ()) -> Document:
    """The file at `path` with its `extends` parents beneath and the `--set` assignments on top, unchecked."""
    document = with_parents(read_document(path), path)
    if "vary" in document.tree or "base" in document.tree:
        raise UsageError(f"{path}: this is a sweep, not a run", f"start it with: gantool sweep {path}")
    return overlay(document, *map(parse_assignment, assignments))


def validate_run(document: Document, num_ranks: int = 1) -> RunConfig:
    """Check a merged document; ConfigError with the position of each problem."""
    config = validate(RunConfig, document)
    problems = rank_problems(config, num_ranks)
    if problems:
        raise ConfigError([(_locate_first(document, keys), keys[0], text, hint) for keys, text, hint in problems])
    return config


def validate(model: type[ModelT], document: Document) -> ModelT:
    """`document` as a `model`; pydantic's errors become a ConfigError with positions and hints."""
    try:
        return model.model_validate(document.tree)
    except ValidationError as error:
        items: list[dict[str, Any]] = [dict(item) for item in error.errors()]
        deeper = [item for item in items if not any(_is_parent(item["loc"], other["loc"]) for other in items)]
        found = [_problem(model, document, item) for item in deeper[:20]]
        places = list(document.where.values())  # in the order of the file
        raise ConfigError(sorted(found, key=lambda p: places.index(p[0]) if p[0] in places else -1)) from None


def overlay(base: Document, *tops: Document) -> Document:
    """`base` with `tops` merged over it key by key; a different `kind` replaces its mapping whole."""
    result = Document(base.tree, dict(base.where), base.name)
    for top in tops:
        result.tree = _merge(result.tree, top.tree)
        result.where |= top.where
    return result


def nested(overrides: dict[str, Any], source: Document, prefix: tuple[str, ...]) -> Document:
    """Overrides with dotted keys (`a.b: 1`), written at `prefix` of `source`, as a document to overlay."""
    items = (placed(dotted, value, source, (*prefix, dotted)) for dotted, value in overrides.items())
    return overlay(Document({}, {}, source.name), *items)


def placed(dotted: str, value: Any, source: Document, written: tuple[str, ...]) -> Document:
    """`value`, which stands at `written` of `source`, as the document that sets the key `dotted` to it."""
    path = tuple(dotted.split("."))
    where = {path[:end]: source.locate(written) for end in range(1, len(path) + 1)}
    where |= {path + p[len(written) :]: w for p, w in source.where.items() if p[: len(written)] == written}
    return Document(nest(path, value), where, source.name)


def with_parents(document: Document, path: Path, children: Sequence[Path] = ()) -> Document:
    """`document`, which stands in the file `path`, over the config that its `extends` names, and so on."""
    parent = document.tree.pop("extends", None)
    if parent is None:
        return document
    where = document.locate(("extends",))
    if not isinstance(parent, str):
        raise ConfigError([(where, "extends", f"found {parent!r}, expected the path of one config", None)])
    target = path.parent / parent
    chain = [*children, path]
    if target.resolve() in [p.resolve() for p in chain]:
        loop = " -> ".join(p.name for p in [*chain, target])
        text = f"the configs extend each other in a circle: {loop}"
        raise ConfigError([(where, "extends", text, "remove one 'extends'")])
    if not target.is_file():
        raise ConfigError([(where, "extends", *missing_file(target))])
    return overlay(with_parents(read_document(target), target, chain), document)


def missing_file(target: Path) -> tuple[str, str]:
    """Message and hint for a config that is named in another one and not there."""
    near = nearest(target.name, [p.name for p in target.parent.glob("*.yaml")])
    hint = f"did you mean '{near}'?" if near else "the path is relative to the file that names it"
    return f"there is no file {target}", hint


def _merge(base: dict[str, Any], top: dict[str, Any], path: tuple[str, ...] = ()) -> dict[str, Any]:
    merged = dict(base)
    for key, value in top.items():
        old = merged.get(key)
        if isinstance(value, dict) and isinstance(old, str):
            old = {"kind": old}  # `augment: basic` below `augment: {shift: 4}`
        elif isinstance(value, str) and isinstance(old, dict) and _default_kind((*path, key)):
            value = {"kind": value}  # `augment: basic` above it
        if isinstance(value, dict) and isinstance(old, dict) and _same_kind(old, value, (*path, key)):
            value = _merge(old, value, (*path, key))
        merged[key] = value
    return merged


def _same_kind(old: dict[str, Any], new: dict[str, Any], path: tuple[str, ...]) -> bool:
    if "kind" not in new:
        return True
    return bool(old.get("kind", _default_kind(path)) == new["kind"])


def _default_kind(path: tuple[str, ...]) -> str | None:
    """The kind that a mapping at `path` of a run config has when it names none."""
    model: Any = RunConfig
    for part in path:
        field = model.model_fields.get(part) if hasattr(model, "model_fields") else None
        if field is None:
            return None
        model = type(field.default)
    found = model.model_fields.get("kind") if hasattr(model, "model_fields") else None
    return str(found.default) if found else None


def _problem(model: type[BaseModel], document: Document, item: dict[str, Any]) -> tuple[str, str, str, str | None]:
    kind, context = item["type"], item.get("ctx", {})
    if kind == "cross_field":
        keys = context["keys"]
        return (_locate_first(document, keys), keys[0], context["text"], context["hint"])
    location = _without_tags(document.tree, item["loc"], kind == "missing")
    if kind == "value_error" and not _is_there(document.tree, location):
        location = location[:-1]  # of a mapping as a whole: the last part is its union tag
    where, key = document.locate(tuple(str(part) for part in location)), format_error_key(location)
    found = item.get("input")
    if kind == "extra_forbidden":
        choices = _fields_at(model, document.tree, location[:-1])
        name = str(location[-1])
        of_runs = str(location[0]) in RunConfig.model_fields and f"{name}s" not in choices  # a sweep has `seeds`
        if of_runs and hasattr(model, "HINT_OF_RUNS"):
            return (where, key, UNKNOWN_KEY, model.HINT_OF_RUNS)
        if places := _places_of(name, model, document.tree):
            return (where, key, UNKNOWN_KEY, f"did you mean {' or '.join(places)}?")
        near = nearest(name, choices)
        hint = (f"did you mean '{near}'? " if near else "") + f"keys here: {', '.join(choices)}"
        return (where, key, UNKNOWN_KEY, hint)
    if kind == "missing":
        return (where, key, "this key is required", None)
    if kind == "union_tag_invalid" and isinstance(found, dict):
        found = found.get("kind")
    text = f"found {_show(found)}, expected {_expected(kind, context, item['msg'])}"
    if "number" in item["loc"]:
        text += ", or a ramp such as {start: 2e-4, end: 0.0}"
    if kind in ("duration", "value_error"):
        text = str(item["msg"])
    return (where, key, text, _value_hint(kind, found, context))


def _is_there(tree: Any, location: Sequence[Any]) -> bool:
    for part in location:
        if not isinstance(tree, dict | list) or (isinstance(tree, dict) and part not in tree):
            return False
        tree = tree[part]
    return True


def _is_parent(location: tuple[Any, ...], other: tuple[Any, ...]) -> bool:
    return len(location) < len(other) and other[: len(location)] == location


def _locate_first(document: Document, keys: Sequence[str]) -> str:
    paths = [tuple(key.split(".")) for key in keys]
    written = [path for path in paths if path in document.where]
    return document.locate((written or paths)[0])


def _show(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "nothing"}[value]
    if isinstance(value, str):
        return f"the text {value!r}"
    return "a mapping" if isinstance(value, dict) else f"{value!r}"


_EXPECTED = {
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "a text",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a kind or a mapping",
    "list_type": "a list",
    "tuple_type": "a list",
    "greater_than": "more than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "literal_error": "one of {expected}",
    "union_tag_invalid": "a kind out of {expected_tags}",
    "string_pattern_mismatch": "a text like {pattern}",
    "too_short": "at least {min_length} entries",
}


def _expected(kind: str, context: dict[str, Any], message: str) -> str:
    return _EXPECTED[kind].format(**context) if kind in _EXPECTED else message[:1].lower() + message[1:]


def _value_hint(kind: str, found: Any, context: dict[str, Any]) -> str | None:
    if "hint" in context:
        return str(context["hint"])
    if kind == "duration" and isinstance(found, str) and found.strip().isdigit():
        return "remove the quotes"
    if kind == "bool_type":
        return "write true or false" if isinstance(found, str) else None
    if kind == "int_type" and isinstance(found, float) and found.is_integer():
        return f"write {int(found)}"
    if kind in ("int_type", "float_type") and isinstance(found, str):
        return "remove the quotes" if found.replace(".", "", 1).isdigit() else "write a number"
    if kind in ("literal_error", "union_tag_invalid"):
        choices = str(context.get("expected") or context.get("expected_tags")).replace("'", "").replace(" or ", ", ")
        near = nearest(str(found), [c.strip() for c in choices.split(",")])
        return f"did you mean '{near}'?" if near else None
    return None


def _without_tags(tree: Any, location: Sequence[Any], missing: bool = False) -> tuple[Any, ...]:
    """Drop the union tags that pydantic puts between and after the keys of a location; the last part of a `missing` one
    is a key that is not there."""
    kept: list[Any] = []
    for position, part in enumerate(location):
        if kept and (not isinstance(tree, dict | list) or (isinstance(tree, list) and not isinstance(part, int))):
            return (*kept, location[-1]) if missing else tuple(kept)
        in_list = isinstance(tree, list) and isinstance(part, int) and part < len(tree)
        if in_list or (isinstance(tree, dict) and part in tree):
            tree = tree[part]
        elif position + 1 < len(location) and position > 0:
            continue
        kept.append(part)
    return tuple(kept)


def _places_of(name: str, model: type[BaseModel], tree: Any, path: tuple[str, ...] = ()) -> list[str]:
    """The places in a document where `name` is a key, quoted: none where there are more than three, as of `kind`."""
    keys = _fields_at(model, tree, path)
    found = [f"'{format_error_key((*path, name))}'"] if name in keys else []
    for key in keys:
        found += _places_of(name, model, tree, (*path, key))
    return found if len(found) <= 3 or path else []


def _fields_at(model: Any, tree: Any, location: Sequence[Any]) -> list[str]:
    """The keys that may stand at `location`, following the `kind` that `tree` names there."""
    for part in location:
        field = model.model_fields.get(part)
        if field is None:
            return []
        tree = tree.get(part) if isinstance(tree, dict) else None
        options = [field.annotation, *get_args(field.annotation)]
        models = [o for o in options if isinstance(o, type) and issubclass(o, BaseModel)]
        models += [o for union in options for o in get_args(union) if isinstance(o, type) and issubclass(o, BaseModel)]
        kind = tree.get("kind") if isinstance(tree, dict) else tree
        same = [m for m in models if "kind" in m.model_fields and m.model_fields["kind"].default == kind]
        model = (same or models or [BaseModel])[0]
    return [field.alias or name for name, field in model.model_fields.items()]
