"""Write the SVG pictures of the documents: the same figures give the same bytes, readable on light and dark pages."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure  # type: ignore[import-not-found]


def save_picture(drawing: "Figure", file: Path) -> None:
    """Write a figure on a white background, without a date and with ids that do not change."""
    import matplotlib  # type: ignore[import-not-found]

    file.parent.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context({"svg.hashsalt": "trapo_lite"}):
        drawing.savefig(file, format="svg", facecolor="white", metadata={"Date": None})
