"""Pictures in files found by a text: ITC over all of them, ITM over the best.

What a model made of a file is kept below the work folder, by the file's place, size and time, so that the next search begins at once.
"""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from blip_core.api.capfilt import each_score
from blip_core.api.models import Model
from blip_core.api.pictures import read_each
from blip_core.capfilt.pair_scores import PairScores
from blip_core.files.atomic import new_file
from blip_core.runtime.progress import Progress

BATCH = 32  # pictures at a time
RERANKED = 32  # of the best by ITC at least


class Index:
    """The ITC features of files. `faults`: path to why it can't be read; such a file is not found by any text."""

    def __init__(self, model: Model, paths: Sequence[str], work: Path):
        self.model, self.file = model, work / "search" / f"{model.judging().identity}.npz"
        self.faults: dict[str, str] = {}
        known = self._read()
        keys = {path: _key(path) for path in paths}
        missing = [path for path, key in keys.items() if key not in known]
        if missing:
            try:
                self._add(missing, keys, known)
            finally:  # also of a search that is stopped
                self._write(known)
        self.paths = [path for path in keys if path not in self.faults]
        self.features = np.stack([known[keys[path]] for path in self.paths]) if self.paths else np.zeros((0, 0), np.float32)

    def search(self, text: str, *, count: int) -> tuple[list[str], PairScores]:
        """The best files, best first: the best by ITC in the order of ITM's log-odds plus the cosine, as `evaluate` ranks."""
        if not self.paths:
            return [], PairScores(np.zeros(0), np.zeros(0))
        itc = self.features @ self.model.text_features([text])[0]
        best = [self.paths[i] for i in np.argsort(-itc, kind="stable")[: max(count, RERANKED)]]
        each = zip(best, each_score(self.model.judging(), best, [[text]] * len(best), batch_size=BATCH), strict=True)
        scored = [(path, scores) for path, scores in each if isinstance(scores, PairScores)]  # but for a file that has gone since
        scores = PairScores(*(np.concatenate([getattr(s, name) for _, s in scored]) for name in ("itm_logit", "itc")))
        order = np.argsort(-(np.nan_to_num(scores.itm_logit) + scores.itc), kind="stable")[:count]
        return [scored[i][0] for i in order], scores.where(order)

    def _add(self, missing: list[str], keys: dict[str, str], known: dict[str, np.ndarray]) -> None:
        judge, progress, done = self.model.judging(), Progress("pictures seen", len(missing), unit="images"), 0
        for batch in read_each(missing, judge.prepare, batch_size=BATCH):
            paths = missing[done : done + len(batch)]
            readable = [(path, found) for path, found in zip(paths, batch, strict=True) if not isinstance(found, ValueError)]
            self.faults |= {path: str(found) for path, found in zip(paths, batch, strict=True) if isinstance(found, ValueError)}
            if readable:
                features = judge.image_features([found for _, found in readable]).cpu().numpy()
                known |= {keys[path]: feature for (path, _), feature in zip(readable, features, strict=True)}
            done += len(batch)
            progress.update(done)
        progress.close()

    def _read(self) -> dict[str, np.ndarray]:
        if not self.file.exists():
            return {}
        with np.load(self.file) as found:
            return dict(zip(found["keys"].tolist(), found["features"], strict=True))

    def _write(self, known: dict[str, np.ndarray]) -> None:
        if known:
            with new_file(self.file) as temporary, temporary.open("wb") as file:
                np.savez(file, keys=np.array(list(known)), features=np.stack(list(known.values())))


def _key(path: str) -> str:
    """Of a file as it is now; of one that is not there, its path."""
    try:
        about = os.stat(path)
    except OSError:
        return path
    return f"{os.path.abspath(path)} {about.st_size} {about.st_mtime_ns}"
