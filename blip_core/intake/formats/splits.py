"""Lists of image names that tell a split, as Flickr8k has them: Flickr_8k.trainImages.txt, devImages.txt, testImages.txt."""

from pathlib import Path

from blip_core.intake.formats import split_of_name
from blip_core.intake.formats.columns import is_image_name

_MOST_BYTES = 64 << 20


def split_lists(folder: Path) -> dict[Path, list[tuple[str, str]]]:
    """The `*.txt` lists of the folder whose names speak of a split, each with name and split of its images."""
    found: dict[Path, list[tuple[str, str]]] = {}
    for path in sorted(folder.glob("*mages*.txt")):
        if (split := _split_of(path)) and path.is_file() and path.stat().st_size <= _MOST_BYTES:
            names = [name.strip() for name in path.read_bytes().decode("utf-8", "surrogateescape").split("\n")]
            if own := [(name, split) for name in names if is_image_name(name)]:  # else it is told as a file that nobody read
                found[path] = own
    return found


def _split_of(path: Path) -> str | None:
    return split_of_name(path.stem.replace("Images", " images").replace("_images", " images"))
