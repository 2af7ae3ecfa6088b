"""Manifest files: YAML documents with line numbers, as validated InferenceServices or as errors of the form file:line: field: fix.

This module must not know what is done with a service.
"""

import difflib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import yaml

from quire_cli.errors import CommandError
from quire_operator.api.inference_service import InferenceService
from quire_operator.api.validation import KINDS, InvalidResourceError, Problem, parse_resource, parse_service

Parsed = TypeVar("Parsed")

HANDLED_KIND = "InferenceService"
_OTHER_KINDS = {kind.kind: kind for kind in KINDS if kind.kind != HANDLED_KIND}
MAX_FILE_BYTES = 3 * 1024 * 1024
MAX_NODES = 100_000
_TIMESTAMP_TAG = "tag:yaml.org,2002:timestamp"


class _Loader(yaml.SafeLoader):
    """YAML as Kubernetes reads it: a date is text."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != _TIMESTAMP_TAG]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


@dataclass(frozen=True, kw_only=True)
class Document:
    """One YAML document."""

    file: Path
    data: Any
    """Plain lists, objects and scalars."""
    lines: dict[str, int]
    """Field path -> line, counted from 1; "" is the document's first."""

    @property
    def kind(self) -> str:
        """What it says of itself; "" if it does not."""
        kind = self.data.get("kind") if isinstance(self.data, dict) else None
        return "" if kind is None else str(kind)

    def line(self, path: str) -> int:
        """The line of a field, or of its nearest parent that the document has."""
        while path and path not in self.lines:
            path = path[: max(path.rfind("."), path.rfind("["), 0)]
        return self.lines.get(path, 1)

    def place(self, path: str) -> str:
        """file:line of a field."""
        return f"{self.file}:{self.line(path)}"

    def describe(self, problem: Problem) -> str:
        """The problem as one line."""
        return f"{self.place(problem.path)}: {problem}"


@dataclass(frozen=True, kw_only=True)
class LoadedService:
    """A service and where it was written."""

    service: InferenceService
    document: Document

    @property
    def folder(self) -> Path:
        """The folder that relative model sources start from."""
        return self.document.file.resolve().parent

    def error(self, *problems: Problem) -> CommandError:
        """The problems as a command's end."""
        return CommandError(*(self.document.describe(problem) for problem in problems))


@dataclass(frozen=True, kw_only=True)
class LoadedFiles:
    """All resources of some files, in order."""

    services: tuple[LoadedService, ...]
    """The InferenceServices."""
    others: tuple[Document, ...]
    """Valid ModelRoutes and Tenants."""


def load_resources(files: Sequence[Path]) -> LoadedFiles:
    """Every resource of the files, in order. Raises CommandError with all problems of all files."""
    loaded: list[LoadedService] = []
    others: list[Document] = []
    errors: list[str] = []
    for document in (document for file in files for document in read_documents(file)):
        try:
            if (kind := _OTHER_KINDS.get(document.kind)) is None:
                loaded.append(_load(document))
            else:
                _parsed(document, partial(parse_resource, kind=kind))
                others.append(document)
        except CommandError as error:
            errors += error.lines
    errors += _repeated(loaded)
    if errors:
        raise CommandError(*errors)
    if not loaded and not others:
        raise CommandError(f"{', '.join(map(str, files))}: holds no {HANDLED_KIND}")
    return LoadedFiles(services=tuple(loaded), others=tuple(others))


def read_documents(file: Path) -> list[Document]:
    """The file's documents; empty ones are left out. Raises CommandError if it cannot be read or is no YAML."""
    try:
        if file.stat().st_size > MAX_FILE_BYTES:
            raise CommandError(f"{file}: is larger than {MAX_FILE_BYTES} bytes; is it a manifest?")
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise CommandError(f"{file}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise CommandError(f"{file}: is not UTF-8 text") from None
    try:
        return list(_documents(file, text))
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise CommandError(f"{file}:{line}: is not YAML: {error.problem}") from None
    except yaml.YAMLError as error:
        raise CommandError(f"{file}: is not YAML: {' '.join(str(error).split())}") from None


def _documents(file: Path, text: str) -> Iterator[Document]:
    loader = _Loader(text)
    try:
        while loader.check_node():
            node = loader.get_node()
            assert node is not None  # check_node said so
            lines: dict[str, int] = {}
            _collect_lines(file, node, "", lines)
            data = loader.construct_document(node)
            if data is not None:
                yield Document(file=file, data=data, lines=lines)
    finally:
        loader.dispose()


def _collect_lines(file: Path, node: yaml.Node, path: str, lines: dict[str, int]) -> None:
    """Fills `lines`. Refuses a key that is written twice, which YAML readers silently drop, and documents that aliases blow up."""
    lines.setdefault(path, node.start_mark.line + 1)
    if len(lines) > MAX_NODES:
        raise CommandError(f"{file}: has more than {MAX_NODES} fields; is it a manifest?")
    if isinstance(node, yaml.MappingNode):
        for key, item in node.value:
            inner = f"{path}.{key.value}".lstrip(".")
            line = key.start_mark.line + 1
            if inner in lines and key.value != "<<":
                raise CommandError(
                    f"{file}:{line}: {inner}: is written twice (first in line {lines[inner]}); remove one"
                )
            lines[inner] = line
            _collect_lines(file, item, inner, lines)
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            _collect_lines(file, item, f"{path}[{index}]", lines)


def _load(document: Document) -> LoadedService:
    if document.kind not in ("", HANDLED_KIND):
        raise CommandError(document.describe(Problem(path="kind", message=_wrong_kind(document.kind))))
    return LoadedService(service=_parsed(document, parse_service), document=document)


def _parsed(document: Document, parse: Callable[[Any], Parsed]) -> Parsed:
    try:
        return parse(document.data)
    except InvalidResourceError as error:
        ordered = sorted(error.problems, key=lambda problem: document.line(problem.path))
        raise CommandError(*map(document.describe, ordered)) from None


def _wrong_kind(kind: str) -> str:
    known = {name.lower(): name for name in (HANDLED_KIND, *_OTHER_KINDS)}
    near = difflib.get_close_matches(kind.lower(), known, n=1)
    hint = (
        f"did you mean {known[near[0]]}?"
        if near
        else f"it handles {', '.join(known.values())}: move it to another file"
    )
    return f"{kind} is not a kind that this command knows; {hint}"


def _repeated(loaded: Sequence[LoadedService]) -> list[str]:
    """Pods and files are named after the service, and there are no namespaces here: a name may occur once."""
    first: dict[str, LoadedService] = {}
    errors = []
    for item in loaded:
        name = item.service.metadata.name
        before = first.setdefault(name, item)
        if before is not item:
            message = f"{name!r} is defined already at {before.document.place('metadata.name')}; give one another name"
            errors.append(item.document.describe(Problem(path="metadata.name", message=message)))
    return errors
