"""configs/ of an installation: its configurations and prompts are inside the package."""

from importlib.resources import files
from pathlib import Path

CONFIGS = Path("configs")


def here_or_installed(path: str | Path) -> Path:
    """The path as it is; where this folder has no configs/, one that begins with it leads to what was installed."""
    path = Path(path)
    if path.parts[:1] == CONFIGS.parts and not CONFIGS.exists():
        return Path(str(files("salmonn"))) / path
    return path
