"""Files that come with the program: links in a clone, to where people look for them, and copies in a wheel."""

from pathlib import Path

CONFIGS = Path(__file__).parent / "configs"
"""Settings by name: demo.yaml and others."""
DEMO_SAM = Path(__file__).parent / "sam_demo.pth"
"""Weights of the demo's SAM."""


def find_demo_sam(folder: Path) -> Path:
    """The demo's SAM in `folder`, or the one that comes with the program; neither need be there."""
    own = Path(folder) / DEMO_SAM.name
    return own if own.is_file() else DEMO_SAM
