"""What classifiers say of the crawl's pictures, as fields beside those of their source; kept by pictures and model (stored.py)."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
from tqdm import tqdm

from blip_core.config.screens import ClassifierConfig, PicturesConfig
from blip_core.intake.stored import digest, picture, remove_unused
from blip_core.intake.units import fields_path
from blip_core.screens.classifier import labels_of, load_classifier
from blip_core.tables.captions import read_table, write_table
from blip_core.tables.shards import index_path, read_index
from blip_core.weights.hashes import folder_hash

Shard = tuple[Path, str]  # folder of its unit, and its stem


def classify(shards: list[Shard], cfg: PicturesConfig, kept: Path) -> None:
    """Add to each staged shard's fields NAME_LABEL for each label. `kept`: the folder of the scores; what no shard used is removed.

    ValueError when a folder is no image classifier, or a screen names a label that it has not."""
    used: set[Path] = set()
    for name, own in cfg.classifiers.items():
        labels = labels_of(own.model)
        _check_labels(name, labels, cfg)
        used |= {_add(shard, name, path) for shard, path in _scored(shards, name, own, labels, kept)}
    remove_unused(kept, used)


def _check_labels(name: str, labels: list[str], cfg: PicturesConfig) -> None:
    for screen in cfg.screens:
        if screen.field.startswith(f"{name}_") and screen.field.removeprefix(f"{name}_") not in labels:
            raise ValueError(
                f"ingest.pictures: the screen {screen.name} wants {screen.field}; the labels of {name} are {', '.join(labels)}"
            )


def _scored(shards: list[Shard], name: str, cfg: ClassifierConfig, labels: list[str], kept: Path) -> Iterator[tuple[Shard, Path]]:
    """Each shard with the table of its scores, which the model makes where none is kept."""
    identity, classifier = folder_hash(cfg.model), None
    for folder, stem in tqdm(shards, desc=name, unit="shard", disable=None):
        index = read_index(index_path(folder, stem))
        path = kept / f"{digest(index, f'{identity} {cfg.precision}')}.parquet"
        if not path.exists():
            classifier = classifier or load_classifier(cfg.model, precision=cfg.precision)
            scores = np.concatenate([classifier.scores(own) for own in _batches(folder / f"{stem}.tar", index, cfg.batch_size)])
            write_table(pa.table({label: scores[:, i] for i, label in enumerate(labels)}), path)
        yield (folder, stem), path


def _batches(tar: Path, index: pa.Table, batch_size: int) -> Iterator[list[np.ndarray]]:
    with tar.open("rb") as file:
        places = list(zip(index["offset"].to_pylist(), index["size"].to_pylist(), strict=True))
        for start in range(0, len(places), batch_size):
            yield [picture(file, *place) for place in places[start : start + batch_size]]


def _add(shard: Shard, name: str, scores: Path) -> Path:
    """What stands there already, of a run that was killed, is replaced."""
    path, found = fields_path(*shard), read_table(scores)
    columns = {f"{name}_{label}": found[label] for label in found.column_names}
    table = read_table(path)
    table = table.drop_columns([own for own in columns if own in table.column_names])
    for own, column in columns.items():
        table = table.append_column(own, column)
    write_table(table, path)
    return scores
