"""Networks and losses from a file of the user's own: found and checked without running it.

The file is named by its path and known by its digest, which is part of the run's fingerprint: a run goes on only with
the very code it was started with. Only the source is read here (with `ast`): a login node answers without torch.
"""

from __future__ import annotations

import ast
import hashlib
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from gantool.config.base import Model

GIVEN = ("size", "channels", "num_classes")
"""What a network's class is always given, by keyword, beside its settings (a generator `latent_dim` too)."""


class CustomFile(Model):
    """A Python file of your own."""

    file: str
    """Path of the file, from the folder where gantool is started."""
    digest: str | None = None
    """First 16 hexadecimal digits of the file's SHA-256; null: as it is now."""

    @model_validator(mode="before")
    @classmethod
    def _fill_digest(cls, value: Any) -> Any:
        if isinstance(value, dict) and isinstance(value.get("file"), str) and value.get("digest") is None:
            return value | {"digest": digest_of_file(value["file"])}
        return value


def digest_of_file(path: str) -> str:
    """First 16 hexadecimal digits of the SHA-256 of a file; a validation error when it cannot be read."""
    try:
        return digest_of_source(Path(path).read_bytes())
    except OSError as error:
        text = f"{path}: cannot be read: {error.strerror}"
        raise _refuse(text, "the path is relative to the folder where gantool is started") from None


def digest_of_source(source: bytes) -> str:
    """First 16 hexadecimal digits of the SHA-256 of the text of a file."""
    return hashlib.sha256(source).hexdigest()[:16]


class CustomNetwork(CustomFile):
    """A network class in a file of your own, called as Class(size=, channels=, num_classes=, **settings)."""

    name: str
    """Name of the class."""
    conditional: bool = False
    """Its forward takes labels, int64 [B], after its first argument."""
    settings: dict[str, bool | int | float | str] = Field(default_factory=dict)
    """Further keyword arguments of the class."""

    @model_validator(mode="after")
    def _check_source(self) -> CustomNetwork:
        if Path(self.file).is_file() and digest_of_file(self.file) == self.digest:
            given = (*GIVEN, *(("latent_dim",) if hasattr(self, "latent_dim") else ()))
            twice = [name for name in self.settings if name in given]
            if twice:
                raise _refuse(f"settings: {twice[0]!r} is given to the class already", "take it out of settings")
            _check_class(self.file, self.name, (*given, *self.settings))
        return self


def _check_class(path: str, name: str, wanted: tuple[str, ...]) -> None:
    tree = _parse(path)
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    if name not in classes:
        raise _refuse(f"{path}: has no class {name}", f"classes there: {', '.join(classes) or 'none'}")
    starts = [n for n in classes[name].body if isinstance(n, ast.FunctionDef) and n.name == "__init__"]
    if not starts:
        return
    arguments = starts[0].args
    names = [a.arg for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)][1:]
    unknown = [word for word in wanted if word not in names]
    if unknown and arguments.kwarg is None:
        text = f"{path}: {name}.__init__ takes no argument {unknown[0]!r}"
        raise _refuse(text, f"it is called with {', '.join(wanted)}; it takes {', '.join(names)}")
    num_plain = len(arguments.posonlyargs) + len(arguments.args) - len(arguments.defaults) - 1
    needed = names[:num_plain] + [
        a.arg for a, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True) if default is None
    ]
    missing = [word for word in needed if word not in wanted]
    if missing:
        raise _refuse(f"{path}: {name}.__init__ needs {missing[0]!r}", f"add it to settings: {{{missing[0]}: ...}}")


class CustomLossFile(CustomFile):
    """A file with the functions discriminator(real, fake) and generator(real, fake) on logits."""

    @model_validator(mode="after")
    def _check_source(self) -> CustomLossFile:
        if Path(self.file).is_file() and digest_of_file(self.file) == self.digest:
            found = [node.name for node in _parse(self.file).body if isinstance(node, ast.FunctionDef)]
            missing = [name for name in ("discriminator", "generator") if name not in found]
            if missing:
                hint = "it must define discriminator(real, fake) and generator(real, fake), each a scalar tensor"
                raise _refuse(f"{self.file}: has no function {missing[0]}", hint)
        return self


def _parse(path: str) -> ast.Module:
    try:
        return ast.parse(Path(path).read_bytes())
    except (SyntaxError, ValueError) as error:
        raise _refuse(f"{path}: is not Python: {error}", "mend the file") from None


def _refuse(text: str, hint: str) -> PydanticCustomError:
    return PydanticCustomError("value_error", "{text}", {"text": text, "hint": hint})
