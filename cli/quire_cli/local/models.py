"""Where a service's model is on this machine: what the model fetcher does on a cluster, without fetching.

This module must not read the model; the worker checks its files.
"""

from pathlib import Path

from quire_operator.api.inference_service import InferenceService
from quire_operator.api.model_uri import ModelUri, parse_model_uri
from quire_operator.api.validation import InvalidResourceError, Problem

_PATH = "spec.model.uri"


def resolve_model(service: InferenceService, manifest_folder: Path, hf_cache: Path) -> Path:
    """The folder with the model's files. Raises InvalidResourceError that says what to do if there is none."""
    source = parse_model_uri(service.spec.model.uri)
    match source.scheme:
        case "file":
            return _complete(manifest_folder / source.path, "names")
        case "hf":
            return _from_hf_cache(source, service.spec.model.revision, hf_cache)
    raise _problem(
        f"{source.scheme}:// needs a cluster; name a local folder with file://./folder, or a downloaded hf:// model"
    )


def _from_hf_cache(source: ModelUri, revision: str | None, hf_cache: Path) -> Path:
    """Follows refs/<branch> to snapshots/<commit>, the layout of huggingface_hub's cache."""
    repository = hf_cache / f"models--{source.path.replace('/', '--')}"
    wanted = revision or "main"
    command = f"`hf download {source.path}{f' --revision {revision}' if revision else ''}`"
    reference = repository / "refs" / wanted
    commit = reference.read_text(encoding="ascii").strip() if reference.is_file() else wanted
    snapshot = repository / "snapshots" / commit
    if not snapshot.is_dir():
        raise _problem(f"{source.path} ({wanted}) is not in the Hugging Face cache {hf_cache}; get it with {command}")
    return _complete(snapshot, f"the cached download (repeat {command}?) is")


def _complete(folder: Path, what: str) -> Path:
    if not folder.is_dir():
        raise _problem(f"{what} {folder}, which is not a folder; put the model there, or correct the path")
    if not (folder / "config.json").is_file():
        raise _problem(f"{what} {folder}, which has no config.json; it must be a model in Hugging Face format")
    return folder.resolve()


def _problem(message: str) -> InvalidResourceError:
    return InvalidResourceError([Problem(path=_PATH, message=message)])
