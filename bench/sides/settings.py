"""What every side is told on its command line; the same for all. Imports nothing beyond the standard library."""

import argparse
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One side's model and limits."""

    model_dir: Path
    threads: int
    kv_bytes: int
    max_model_len: int
    quantization: str | None


def parse_settings() -> Settings:
    """From this process's arguments."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model_dir", type=Path)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--kv-bytes", type=int, required=True)
    parser.add_argument("--max-model-len", type=int, required=True)
    parser.add_argument("--quantization")
    return Settings(**vars(parser.parse_args()))
