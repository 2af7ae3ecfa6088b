"""Docker archives and a Dockerfile reader for these tests."""

import io
import json
import shlex
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Instruction:
    """One instruction of a Dockerfile: its name and the rest, continuation lines joined."""

    name: str
    rest: str

    @property
    def words(self) -> list[str]:
        return shlex.split(self.rest)


def read_dockerfile(path: Path) -> list[Instruction]:
    lines = [line for line in path.read_text().splitlines() if line.strip() and not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [Instruction(*line.split(maxsplit=1)) for line in joined.splitlines()]


def stages(instructions: list[Instruction]) -> list[list[Instruction]]:
    """What follows each FROM, the FROM included."""
    found: list[list[Instruction]] = []
    for instruction in instructions:
        if instruction.name == "FROM":
            found.append([])
        if found:
            found[-1].append(instruction)
    return found


def write_archive(
    path: Path, layers: list[Mapping[str, bytes]], *, user: str = "65532:65532", env: list[str] | None = None
) -> Path:
    """An image as `docker save` writes it; each layer maps names to contents."""
    config = {"config": {"User": user, "Env": env or []}}
    with tarfile.open(path, "w") as outer:
        names = [f"{number}.tar" for number in range(len(layers))]
        for name, files in zip(names, layers, strict=True):
            inner = io.BytesIO()
            with tarfile.open(fileobj=inner, mode="w") as layer:
                for file, content in files.items():
                    _add(layer, file, content)
            _add(outer, name, inner.getvalue())
        _add(outer, "config.json", json.dumps(config).encode())
        _add(outer, "manifest.json", json.dumps([{"Config": "config.json", "Layers": names}]).encode())
    return path


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    archive.addfile(entry, io.BytesIO(content))
