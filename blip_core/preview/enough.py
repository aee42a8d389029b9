"""Whether there is enough of a data set for what comes later: told at once, though `validate` and `gate` decide."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from blip_core.config.params import Params
from blip_core.tables.heldout import num_true_controls


@dataclass(frozen=True)
class Least:
    """What validate and gate will ask for."""

    images: int  # of the crawl, and of the clean set's train
    heldout: int  # images of val, and of test
    controls: int  # true pairs that score plants
    per_image: int  # of these

    @classmethod
    def of(cls, params: Params) -> "Least":
        limits = params.section("validate")
        return cls(limits.min_images, limits.min_heldout_images, params.gate.min_controls, params.score.controls_per_image)

    def lacking(self, images: Mapping[str, float], *, controls: float | None = None) -> list[str]:
        """What is too few, a line each. `images` by part, web, train, val and test; `controls`: true pairs, where val is among them."""
        least = {"web": self.images, "train": self.images, "val": self.heldout, "test": self.heldout}
        limits = {"web": "min_images", "train": "min_images", "val": "min_heldout_images", "test": "min_heldout_images"}
        lines = [
            f"{part}: {count:.0f} images with a text, validate.{limits[part]} is {least[part]}"
            for part, count in images.items()
            if count < least[part]
        ]
        if controls is not None and controls < self.controls:
            lines.append(
                f"val: half of it gives {controls:.0f} planted true pairs at score.controls_per_image {self.per_image}, "
                f"gate.min_controls is {self.controls}"
            )
        return lines


def lacking_after_ingest(metrics: Mapping[str, float], heldout: Path, params: Params) -> list[str]:
    """The same of what ingest has made; `metrics` are its own."""
    least = Least.of(params)
    images = {part: metrics[f"images_{part}"] for part in ("web", "train", "val", "test")}
    return least.lacking(images, controls=num_true_controls(heldout, least.per_image))
