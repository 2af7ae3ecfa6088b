"""Puts bench/ on the path: its commands run from the tree and are not part of the package."""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "bench"))
