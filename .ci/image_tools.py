"""What `.ci/images` needs beyond a shell: the machine's pip settings for use inside a build, and a look into a finished image.

Runs with the system's Python and its standard library. It must not know docker, podman or buildah.
"""

import argparse
import ast
import configparser
import json
import sys
import tarfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO
from urllib.parse import unquote, urlsplit

BUILD_CA_FILE = "/etc/quire-build/ca.crt"
"""Where the Dockerfiles mount the machine's certificate authorities."""
PUBLIC_HOSTS = frozenset({"pypi.org", "files.pythonhosted.org", "download.pytorch.org"})
_KEPT = (
    "index-url",
    "extra-index-url",
    "find-links",
    "no-index",
    "trusted-host",
    "proxy",
    "timeout",
    "default-timeout",
)
_MAX_SEARCHED_BYTES = 1 << 20
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class PipSettings:
    """A machine's pip settings as a build uses them."""

    options: Mapping[str, str]
    """For the [global] section of a pip.conf; the certificate file is the one inside the build."""
    folders: tuple[str, ...]
    """Local folders that the settings name, to be mounted at the same path."""
    ca_file: str | None
    """The machine's certificate authorities."""
    forbidden: tuple[str, ...]
    """Texts that no finished image may hold: hosts and folders of this machine's settings."""


def parse_listing(listing: str) -> dict[str, str]:
    """Options of `pip config list`, without their sections; those from the environment win, as in pip."""
    found: dict[str, str] = {}
    for line in sorted(listing.splitlines(), key=lambda line: line.startswith(":env:")):
        name, separator, quoted = line.partition("=")
        section, _, option = name.rpartition(".")
        if separator and section.strip(":") in {"global", "env", "install"}:
            found[option] = str(ast.literal_eval(quoted))
    return found


def settings_for_build(options: Mapping[str, str], ca_bundle: str) -> PipSettings:
    """What of the machine's `options` goes into a build; `ca_bundle` stands in where they name no certificate file."""
    ca_file = options.get("cert") or ca_bundle
    kept = {option: options[option] for option in _KEPT if options.get(option)}
    places = " ".join(kept.get(option, "") for option in ("index-url", "extra-index-url")).split()
    folders = [_index_folder(path) for path in map(_local_path, places) if path]
    folders += [path for path in map(_local_path, kept.get("find-links", "").split()) if path]
    present = tuple(folder for folder in dict.fromkeys(folders) if Path(folder).exists())
    places += kept.get("find-links", "").split() + kept.get("proxy", "").split()
    hosts = {host for host in map(_host, places) if host}
    if ca_file:
        kept["cert"] = BUILD_CA_FILE
    return PipSettings(
        options=kept, folders=present, ca_file=ca_file or None, forbidden=(*sorted(hosts), *present, BUILD_CA_FILE)
    )


def pip_conf(options: Mapping[str, str]) -> str:
    """A pip.conf with `options`."""
    lines = [f"{option} = {' '.join(value.split())}" for option, value in options.items()]
    return "\n".join(["[global]", *lines, ""]) if lines else ""


def has_torch_wheel(folders: Iterable[str], version: str) -> bool:
    """Whether one of `folders` holds PyTorch's build for CPUs."""
    return any(next(Path(folder).glob(f"torch-{version}+cpu-*.whl"), None) for folder in folders)


def _local_path(place: str) -> str:
    if place.startswith("file://"):
        return unquote(urlsplit(place).path).rstrip("/")
    return place.rstrip("/") if place.startswith("/") else ""


def _host(place: str) -> str:
    """Host and port of a private place; nothing for public ones and for names that any text may hold, such as localhost."""
    host = urlsplit(place).netloc.rpartition("@")[2]
    is_telling = ":" in host or ("." in host and not host.startswith("127."))
    return host if is_telling and host not in PUBLIC_HOSTS else ""


def _index_folder(path: str) -> str:
    """The folder to mount for a local index: its parent, because an index's links lead to files beside it."""
    parent = str(Path(path).parent)
    return path if parent == "/" else parent


class _CountingReader:
    """Reads a layer as tarfile does, and counts what it takes plain and compressed."""

    def __init__(self, source: IO[bytes]) -> None:
        self._source = source
        self._compressor = zlib.compressobj(6, zlib.DEFLATED, 31)
        self.plain_bytes = 0
        self.compressed_bytes = 0

    def read(self, size: int = -1) -> bytes:
        """The next `size` bytes."""
        chunk = self._source.read(size)
        self.plain_bytes += len(chunk)
        self.compressed_bytes += len(self._compressor.compress(chunk))
        return chunk

    def finish(self) -> None:
        """Reads what follows the last member and closes the compressed stream."""
        while self.read(_CHUNK_BYTES):
            pass
        self.compressed_bytes += len(self._compressor.flush())


@dataclass(frozen=True, kw_only=True)
class ImageReport:
    """What a look into an image found."""

    plain_bytes: int
    compressed_bytes: int
    """With each layer compressed by gzip, as a registry holds it."""
    user: str
    problems: tuple[str, ...]


def inspect_image(archive: Path, forbidden: Sequence[str]) -> ImageReport:
    """Look into a docker-archive: sizes, user, and what must not be in it (pip settings, `forbidden` texts in small files)."""
    plain = compressed = 0
    problems: list[str] = []
    needles = [text.encode() for text in forbidden]
    with tarfile.open(archive) as outer:
        entry = json.load(_member(outer, "manifest.json"))[0]
        config = json.load(_member(outer, entry["Config"]))
        for name in entry["Layers"]:
            reader = _CountingReader(_member(outer, name))
            problems += _layer_problems(reader, needles)
            reader.finish()
            plain += reader.plain_bytes
            compressed += reader.compressed_bytes
    problems += [f"the image's configuration holds {text!r}" for text in forbidden if text in json.dumps(config)]
    user = config.get("config", {}).get("User", "")
    if not user.partition(":")[0].isdigit() or user.partition(":")[0] == "0":
        problems.append(f"it runs as {user or 'root'}, not as a numbered user")
    return ImageReport(plain_bytes=plain, compressed_bytes=compressed, user=user, problems=tuple(problems))


def _member(archive: tarfile.TarFile, name: str) -> IO[bytes]:
    found = archive.extractfile(name)
    if found is None:
        raise ValueError(f"{name} of the archive is not a file")
    return found


def _layer_problems(reader: _CountingReader, needles: Sequence[bytes]) -> Iterator[str]:
    with tarfile.open(fileobj=reader, mode="r|") as layer:  # type: ignore[call-overload]
        for entry in layer:
            name = Path(entry.name).name
            if name in {"pip.conf", ".netrc", ".pypirc"}:
                yield f"it holds /{entry.name}"
            if entry.isfile() and entry.size <= _MAX_SEARCHED_BYTES and needles:
                content = _read(layer, entry)
                yield from (f"/{entry.name} holds {needle.decode()!r}" for needle in needles if needle in content)


def _read(layer: tarfile.TarFile, entry: tarfile.TarInfo) -> bytes:
    found = layer.extractfile(entry)
    return found.read() if found else b""


def _pip_settings(args: argparse.Namespace) -> int:
    settings = settings_for_build(parse_listing(args.listing.read_text()), args.ca_bundle)
    text = pip_conf(settings.options)
    configparser.RawConfigParser().read_string(text)
    args.write.touch(mode=0o600)
    args.write.write_text(text)
    lines = [f"folder {folder}" for folder in settings.folders]
    lines += [f"forbidden {text}" for text in settings.forbidden]
    lines += [f"ca {settings.ca_file}"] if settings.ca_file else []
    lines += ["torch local"] if has_torch_wheel(settings.folders, args.torch) else []
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    return 0


def _inspect(args: argparse.Namespace) -> int:
    report = inspect_image(args.archive, args.forbidden.read_text().split())
    problems = list(report.problems)
    megabytes = report.compressed_bytes / 1e6
    if args.max_compressed_mb and megabytes > args.max_compressed_mb:
        problems.append(f"it takes {megabytes:.0f} MB compressed; {args.max_compressed_mb} MB are allowed")
    sys.stdout.write(
        f"    {megabytes:.0f} MB compressed, {report.plain_bytes / 1e6:.0f} MB plain, user {report.user}\n"
    )
    sys.stderr.write("".join(f"error: {problem}\n" for problem in problems))
    return 1 if problems else 0


def main() -> int:
    """Command line of this file."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(required=True)
    pip = commands.add_parser("pip-settings")
    pip.add_argument("--listing", type=Path, required=True, help="output of `pip config list`")
    pip.add_argument("--write", type=Path, required=True, help="the pip.conf for builds")
    pip.add_argument("--ca-bundle", default="", help="certificate authorities where pip's settings name none")
    pip.add_argument("--torch", default="", help="version of PyTorch to look for in local folders")
    pip.set_defaults(run=_pip_settings)
    look = commands.add_parser("inspect")
    look.add_argument("archive", type=Path)
    look.add_argument("--forbidden", type=Path, required=True, help="file with texts that must not be in the image")
    look.add_argument("--max-compressed-mb", type=int, default=0)
    look.set_defaults(run=_inspect)
    args = parser.parse_args()
    return int(args.run(args))


if __name__ == "__main__":
    sys.exit(main())
