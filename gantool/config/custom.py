"""Networks and losses from a file of the user's own: found and checked without running it.

The file is known by its digest, which is part of the run's fingerprint: a run goes on only with the very code it was
started with. Only the source is read here (with `ast`), so that a login node answers without torch.
"""

from __future__ import annotations

import ast
import hashlib
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field, model_validator

from gantool.config.base import Model, refuse

GIVEN = ("size", "channels", "num_classes")
"""What a network's class is always given, by keyword, beside its settings (a generator `latent_dim` too)."""

_RELATIVE = "the path is relative to the config that names it, with --set to the folder where gantool is started"


def _scalar(value: Any) -> Any:
    if not isinstance(value, bool | int | float | str):
        raise refuse(f"found {value!r}, expected a number, a text, true or false", "take lists apart in your class")
    return value


class CustomFile(Model):
    """One Python file of your own."""

    file: str
    """Path of the file, from the folder of the config that names it."""
    digest: str | None = None
    """First 16 hexadecimal digits of the file's SHA-256; null: as it is now."""

    @model_validator(mode="before")
    @classmethod
    def _fill_digest(cls, value: Any) -> Any:
        if not isinstance(value, dict) or not isinstance(value.get("file"), str):
            return value
        path = str(Path(value["file"]).resolve()) if "\0" not in value["file"] else value["file"]
        return value | {"file": path, "digest": value.get("digest") or digest_of_source(_read(value["file"]))}

    def source(self) -> ast.Module | None:
        """The file as a syntax tree; None when it is no longer the file of the digest."""
        if not Path(self.file).is_file() or digest_of_source(_read(self.file)) != self.digest:
            return None
        try:
            tree = ast.parse(_read(self.file))
        except (SyntaxError, ValueError) as error:
            raise refuse(f"{self.file}: is not Python: {error}", "mend the file") from None
        for node in ast.walk(tree):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for name in (module.split(".")[0] for module in modules):
                beside = Path(self.file).parent / name
                if name and (beside.with_suffix(".py").is_file() or (beside / "__init__.py").is_file()):
                    text = f"{self.file}: line {node.lineno}: imports {name}, which lies beside it"  # type: ignore[attr-defined]
                    hint = "put all into one file, whose digest then covers it, or install the other as a package"
                    raise refuse(text, hint)
        return tree


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except (OSError, ValueError) as error:
        shown = repr(path) if not path or "\0" in path else path
        raise refuse(f"{shown}: cannot be read: {getattr(error, 'strerror', error)}", _RELATIVE) from None


def digest_of_source(source: bytes) -> str:
    """First 16 hexadecimal digits of the SHA-256 of the text of a file."""
    return hashlib.sha256(source).hexdigest()[:16]


class CustomNetwork(CustomFile):
    """A network class in a file of your own, called as Class(size=, channels=, num_classes=, **settings)."""

    name: str
    """Name of the class."""
    conditional: bool = False
    """Its forward takes labels, int64 [B], after its first argument."""
    settings: dict[str, Annotated[Any, AfterValidator(_scalar)]] = Field(default_factory=dict)
    """Further keyword arguments of the class: numbers, texts, true or false."""

    @model_validator(mode="after")
    def _check_source(self) -> CustomNetwork:
        given = (*GIVEN, *(("latent_dim",) if hasattr(self, "latent_dim") else ()))
        twice = [name for name in self.settings if name in given]
        if twice:
            raise refuse(f"settings: {twice[0]!r} is given to the class already", "take it out of settings")
        tree = self.source()
        if tree is not None:
            _check_class(tree, self.file, self.name, (*given, *self.settings))
        return self


def _check_class(tree: ast.Module, path: str, name: str, wanted: tuple[str, ...]) -> None:
    classes = {node.name: node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}
    if name not in classes:
        if name in _assigned(tree):
            return  # made in another way: it is tried when the networks are built
        raise refuse(f"{path}: has no class {name}", f"classes there: {', '.join(classes) or 'none'}")
    starts = [n for n in classes[name].body if isinstance(n, ast.FunctionDef) and n.name == "__init__"]
    if not starts:
        return
    arguments = starts[0].args
    names = [a.arg for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)][1:]
    unknown = [word for word in wanted if word not in names]
    if unknown and arguments.kwarg is None:
        text = f"{path}: {name}.__init__ takes no argument {unknown[0]!r}"
        raise refuse(text, f"it is called with {', '.join(wanted)}; it takes {', '.join(names)}")
    num_plain = len(arguments.posonlyargs) + len(arguments.args) - len(arguments.defaults) - 1
    needed = names[:num_plain] + [
        a.arg for a, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True) if default is None
    ]
    missing = [word for word in needed if word not in wanted]
    if missing:
        raise refuse(f"{path}: {name}.__init__ needs {missing[0]!r}", f"add it to settings: {{{missing[0]}: ...}}")


class CustomLossFile(CustomFile):
    """A file with the functions discriminator(real, fake) and generator(real, fake) on logits."""

    @model_validator(mode="after")
    def _check_source(self) -> CustomLossFile:
        tree = self.source()
        if tree is not None:
            found = _assigned(tree)
            missing = [name for name in ("discriminator", "generator") if name not in found]
            if missing:
                hint = "it must define discriminator(real, fake) and generator(real, fake), each a scalar tensor"
                raise refuse(f"{self.file}: has no function {missing[0]}", hint)
        return self


def _assigned(tree: ast.Module) -> set[str]:
    """Names that are defined, assigned or imported anywhere in the file."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found |= {alias.asname or alias.name for alias in node.names}
    return found
