"""Pictures of a generation found by a text: ITC over all of them, ITM over the best.

The embeddings are made once, in parts of some hundred pictures, and kept below the work folder under all that decides them; whoever
starts again goes on where they ended. A search covers what is there so far.
"""

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc

from blip_core.compute.ahead import read_ahead
from blip_core.compute.pixels import read_resized
from blip_core.compute.precision import resolved
from blip_core.compute.work import run_folder
from blip_core.files.atomic import new_file
from blip_core.runtime.progress import Progress
from blip_core.serving.service import Service
from blip_core.tables.captions import KEPT, each_table, read_table
from blip_core.tables.manifest import listed_hash
from blip_core.tables.shards import ShardImages
from blip_core.weights.checkpoint import model_hash

PART = 500  # pictures of which the embeddings are one file
BATCH = 16  # pictures at a time, between which others may use the model

Place = tuple[str, str]  # shard and key


class PictureIndex:
    """The pictures of a generation, kept and dropped texts alike."""

    def __init__(self, service: Service, model: Path, generation: Path, shards: Path, work: Path):
        about = {"model": model_hash(model), "generation": listed_hash(generation), "shards": listed_hash(shards)}
        self.service, self.generation, self.images = service, generation, ShardImages(shards)
        self.folder = run_folder(work, "search", precision=resolved(service.settings.precision), size=PART, **about)
        self.places = list(_places(generation))
        self.features = np.zeros((len(self.places), service.model.cfg.embed_dim), np.float32)
        self.done = 0
        self.fault = ""  # why it stopped before all were done

    def build(self, stop: threading.Event) -> None:
        """Embed what is not embedded yet, part by part, until all is done or `stop` is set."""
        parts = range(0, len(self.places), PART)
        progress = Progress("search index", len(self.places), unit="images")
        for start in parts:
            path, end = self.folder / f"{start:09d}.npy", min(start + PART, len(self.places))
            if not path.exists():
                features = self._embed(self.places[start:end], stop)
                if stop.is_set():
                    break
                with new_file(path) as temporary, temporary.open("wb") as file:
                    np.save(file, features)
            self.features[start:end] = np.load(path)
            self.done = end
            progress.update(end)
        progress.close()

    def search(self, text: str, *, count: int, rerank: int) -> list[dict[str, Any]]:
        """The best pictures, best first: the `rerank` best by ITC, `count` at least, in the order of ITM's log-odds plus the cosine, as
        `evaluate` ranks."""
        service, size = self.service, self.service.model.image_size
        done = self.done
        if not done:
            return []
        with service.lock:
            itc = self.features[:done] @ service.text_features([text])[0]
        best = np.argsort(-itc, kind="stable")[: max(count, rerank)]
        pictures = [read_resized(self.images, shard, key, size) for shard, key in (self.places[i] for i in best)]
        with service.lock:
            scores = service.scores(pictures, [text] * len(best))
        order = np.argsort(-(scores.itm_logit + scores.itc), kind="stable")[:count]
        answers = service.as_answers(scores)
        return [{**self._about(self.places[best[i]]), **answers[i]} for i in order]

    def picture(self, shard: str, key: str) -> bytes:
        """The stored file. ValueError when there is none."""
        return self.images.bytes(shard, key)

    def _embed(self, places: list[Place], stop: threading.Event) -> np.ndarray:
        size, found = self.service.model.image_size, []
        batches = [places[start : start + BATCH] for start in range(0, len(places), BATCH)]
        for _, pictures in read_ahead(lambda place: read_resized(self.images, *place, size), batches):
            if stop.is_set():
                break
            with self.service.lock:
                found.append(self.service.image_features(pictures))
            time.sleep(0.005)  # a lock is not fair: whoever waits for it gets it now
        return np.concatenate(found) if found else self.features[:0]

    def _about(self, place: Place) -> dict[str, Any]:
        """What the generation says of a picture."""
        shard, key = place
        table = read_table(self.generation / f"{shard}.parquet", ["key", "text", "source", "reason"])
        rows = table.filter(pc.equal(table["key"], key)).to_pylist()
        texts = [{"text": row["text"], "source": row["source"]} for row in rows if row["reason"] == KEPT]
        return {"shard": shard, "key": key, "texts": texts}


def _places(generation: Path) -> Iterator[Place]:
    for table in each_table(generation, ["key"]):
        shard = table["shard"][0].as_py() if table.num_rows else ""
        yield from ((shard, key) for key in table["key"].unique().to_pylist())
