"""Lists of image names that tell a split, as Flickr8k has them: Flickr_8k.trainImages.txt, devImages.txt, testImages.txt."""

from pathlib import Path

from blip_core.intake.formats import split_of_name
from blip_core.intake.formats.columns import is_image_name

_MOST_BYTES = 64 << 20


def split_lists(folder: Path) -> tuple[tuple[str, str], ...]:
    """Name and split of each image in the `*.txt` lists of the folder whose names speak of a split."""
    found: dict[str, str] = {}
    for path in sorted(folder.glob("*mages*.txt")):
        if (split := _split_of(path)) and path.is_file() and path.stat().st_size <= _MOST_BYTES:
            names = path.read_bytes().decode("utf-8", "surrogateescape").split("\n")
            found |= {name.strip(): split for name in names if is_image_name(name.strip())}
    return tuple(found.items())


def _split_of(path: Path) -> str | None:
    return split_of_name(path.stem.replace("Images", " images").replace("_images", " images"))
