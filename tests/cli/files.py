"""Files that a running command follows."""

from pathlib import Path


def put(file: Path, text: str) -> None:
    """Replaces the file as a whole: who looks just then finds what was there or what is, never an empty file."""
    beside = file.with_name(f".{file.name}.next")
    beside.write_text(text)
    beside.replace(file)
