"""How many pictures each screen of pictures would take, for `inspect`: those of the parameters, and others that are a place to begin."""

from collections import Counter, defaultdict

import numpy as np

from blip_core.config.screens import PicturesConfig, PictureScreen
from blip_core.metadata.fields import Fields
from blip_core.screens.classifier import Classifier, labels_of, load_classifier
from blip_core.screens.fields import Judge, Outcome, rule
from blip_core.screens.measures import SUGGESTED, measure


class PictureFindings:
    """Counts over pictures; a classifier sees its batches as they fill."""

    def __init__(self, cfg: PicturesConfig):
        self.cfg, self.pictures = cfg, 0
        named = {screen.name for screen in cfg.screens}
        self.screens = [*cfg.screens, *(screen for screen in SUGGESTED if screen.name not in named)]
        self._judges = {screen.name: Judge(screen) for screen in self.screens}
        self.outcomes: dict[str, Counter[Outcome]] = defaultdict(Counter)
        self._classifiers: dict[str, tuple[Classifier, list[str]]] = {}
        self._waiting: dict[str, list[np.ndarray]] = defaultdict(list)

    def add(self, fields: Fields, pixels_HW3: np.ndarray) -> None:
        self.pictures += 1
        values = {**fields.values, **measure(pixels_HW3)}
        for screen in self.screens:
            if not screen.field.startswith(tuple(f"{name}_" for name in self.cfg.classifiers)):
                self.outcomes[screen.name][self._judges[screen.name](values.get(screen.field))] += 1
        for name, own in self.cfg.classifiers.items():
            self._waiting[name].append(pixels_HW3)
            if len(self._waiting[name]) == own.batch_size:
                self._classify(name)

    def flush(self) -> None:
        for name in [name for name, waiting in self._waiting.items() if waiting]:
            self._classify(name)

    def lines(self) -> list[str]:
        lines = [f"pictures     would be hit, of {self.pictures} of a crawl, where ingest.pictures.screens turns these on:"]
        return lines + [f"  {self.outcomes[screen.name]['hit']:6d}  {self._told(screen)}" for screen in self.screens]

    def _told(self, screen: PictureScreen) -> str:
        found = self.outcomes[screen.name]
        counts = (found["missing"], "without it"), (found["mistyped"], "of another type")
        unknown = ", ".join(f"{count} {words}" for count, words in counts if count)
        return f"{screen.name}: {screen.field} {rule(screen)}" + (f" ({unknown})" if unknown else "")

    def _classify(self, name: str) -> None:
        own = self.cfg.classifiers[name]
        if name not in self._classifiers:
            self._classifiers[name] = load_classifier(own.model, precision=own.precision), labels_of(own.model)
        classifier, labels = self._classifiers[name]
        for scores in classifier.scores(self._waiting.pop(name)).tolist():
            values = {f"{name}_{label}": score for label, score in zip(labels, scores, strict=True)}
            for screen in self.screens:
                if screen.field.startswith(f"{name}_"):
                    self.outcomes[screen.name][self._judges[screen.name](values.get(screen.field))] += 1
