"""What the command knows of the machine and the user who started it, read once in `__main__`.

This module must not read the environment itself.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Host:
    """The surroundings of one run of the command."""

    environ: Mapping[str, str]
    """The environment variables."""
    python: Path
    """The interpreter that runs the command; the other console scripts lie beside it."""

    @property
    def home(self) -> Path:
        """The user's home folder."""
        return Path(self.environ.get("HOME", "/"))

    @property
    def user_cache(self) -> Path:
        """Where caches that outlive a run are kept."""
        return Path(self.environ.get("XDG_CACHE_HOME") or self.home / ".cache")

    @property
    def hf_cache(self) -> Path:
        """The folder that Hugging Face's tools download into."""
        if "HF_HUB_CACHE" in self.environ:
            return Path(self.environ["HF_HUB_CACHE"])
        return Path(self.environ.get("HF_HOME") or self.user_cache / "huggingface") / "hub"

    def script(self, name: str) -> Path:
        """The console script of this installation."""
        return self.python.parent / name
