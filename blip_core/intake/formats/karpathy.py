"""Karpathy's splits: dataset_coco.json, dataset_flickr30k.json, dataset_flickr8k.json, and RSICD in the same schema."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from blip_core.intake.formats import files, named_split
from blip_core.intake.formats.files import Entry, FileUnit, read
from blip_core.metadata.fields import Fields, beside, joined
from blip_core.tables.shards import KEY

__all__ = ["EXPECTS", "read", "recognises", "units"]

EXPECTS = "dataset_*.json with {images: [{filename, sentences: [{raw}], split, imgid or cocoid, filepath?}]}, and the images beside it"


def recognises(path: Path) -> bool:
    return bool(_lists(path))


def units(path: Path) -> list[FileUnit]:
    lists = _lists(path)
    root = path if path.is_dir() else path.parent
    found, folder = [], files.image_folder(root)
    for file in lists:
        images = files.listed(file, files.load_json(file), "images")
        prefix = f"{file.stem}-" if len(lists) > 1 else ""  # ids count from 0 in each list
        entries = [e for i, image in enumerate(images) for e in _entries(image, f"{file.name}:images[{i}]", prefix, folder)]
        found += files.slices(root, file.name, entries, of=file)
    return found


def _lists(path: Path) -> list[Path]:
    return [p for p in files.json_files(path) if files.head_holds(p, "sentences")]


def _entries(image: object, where: str, prefix: str, folders: tuple[str, ...]) -> Iterator[Entry]:
    """The image with its sentences, and an entry for each sentence that holds none."""
    image = image if isinstance(image, dict) else {}
    filename, sentences = image.get("filename"), image.get("sentences")
    number = image.get("cocoid", image.get("imgid"))
    split = named_split(str(image.get("split")))
    fault: tuple[str, ...] = ()
    if not isinstance(filename, str) or not isinstance(sentences, list) or number is None:
        fault = ("bad_row", f"expected filename, sentences and imgid or cocoid, got the fields {sorted(map(str, image))}")
    elif split is None:
        fault = ("unknown_split", f"split {image.get('split')!r}, expected train, restval, val or test")
    stem = str(filename).rpartition(".")[0]
    given = sentences if isinstance(sentences, list) else []
    texts = [_text(sentence) for sentence in given]
    yield Entry(
        key=stem if KEY.fullmatch(stem) else f"{prefix}{number}",
        paths=_paths(image.get("filepath"), str(filename), folders),
        texts=tuple(text for text in texts if text is not None),
        image_id=f"{prefix}{number}",
        split=split,
        where=where,
        fault=fault,
        fields=_fields(image, given),
    )
    for i, text in enumerate(texts):
        if text is None:
            bad = ("bad_row", f"expected a sentence with raw or tokens, got {given[i]!r:.100}")
            yield Entry("", (), (), None, split, f"{where}.sentences[{i}]", bad)


def _fields(image: dict[str, Any], sentences: list[Any]) -> Fields:
    """Those of the image, and those of its sentences but the text, with sentence_ before them."""
    told = joined(beside({f"sentence_{n}": v for n, v in s.items() if n != "raw"}, ()) for s in sentences if isinstance(s, dict))
    return beside({**image, **told.values}, ("sentences",))


def _paths(folder: object, filename: str, folders: tuple[str, ...]) -> tuple[str, ...]:
    named = files.places(f"{folder}/{filename}", ".") if isinstance(folder, str) else ()
    return tuple(dict.fromkeys((*named, *files.places(filename, "images", ".", *folders))))


def _text(sentence: object) -> str | None:
    """As it was written; the words of it where only those are given. None for what is no sentence."""
    if not isinstance(sentence, dict):
        return sentence if isinstance(sentence, str) else None
    if isinstance(sentence.get("raw"), str):
        return sentence["raw"]
    tokens = sentence.get("tokens")
    return " ".join(map(str, tokens)) if isinstance(tokens, list) else None
