"""Any image classifier of transformers: of each picture a number for each label, NSFW or watermark as the folder has learnt it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from blip_core.compute.distributed import device
from blip_core.compute.precision import autocast
from blip_core.weights.folders import FAULTS, LOCAL, read_model


@dataclass(frozen=True)
class Classifier:
    model: Any
    images: Any  # the image processor
    precision: str

    @torch.inference_mode()
    def scores(self, pictures: list[np.ndarray]) -> np.ndarray:
        """float64 [pictures, labels] of pictures uint8 H x W x 3: P(label), each by itself where the model was trained so."""
        inputs = self.images(images=pictures, input_data_format="channels_last", return_tensors="pt").to(device())
        with autocast(self.precision):
            logits = self.model(**inputs).logits.double()
        alone = self.model.config.problem_type == "multi_label_classification"
        return (logits.sigmoid() if alone else logits.softmax(-1)).cpu().numpy()


def labels_of(folder: Path) -> list[str]:
    """In the order of the scores. ValueError when transformers can't read the folder's settings."""
    from transformers import AutoConfig

    try:
        names = AutoConfig.from_pretrained(folder, **LOCAL).id2label
    except FAULTS as e:
        raise ValueError(f"{folder}: expected the folder of an image classifier of transformers ({e})") from None
    return [names[i] for i in range(len(names))]


def load_classifier(folder: Path, *, precision: str) -> Classifier:
    """On this process's device. ValueError when transformers can't read it as an image classifier with its processor."""
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    try:
        model = read_model(AutoModelForImageClassification, folder, precision="fp32")
        images = AutoImageProcessor.from_pretrained(folder, **LOCAL)
    except FAULTS as e:
        raise ValueError(f"{folder}: transformers can't read this as an image classifier with its processor ({e})") from None
    return Classifier(model, images, precision)
