"""Any image classifier of transformers gives its probabilities, by small random models."""

import numpy as np
import pytest
import torch
import transformers

from blip_core.screens.classifier import labels_of, load_classifier

LABELS = {0: "fine", 1: "unsafe", 2: "watermark"}


def save_classifier(folder, **settings):
    """A ViT with random weights and its processor."""
    torch.manual_seed(0)
    small = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "image_size": 16,
        "patch_size": 8,
    }
    model = transformers.ViTForImageClassification(transformers.ViTConfig(**small, id2label=LABELS, initializer_range=0.5, **settings))
    model.save_pretrained(folder)
    transformers.ViTImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(folder)
    return model.eval()


def pictures(count: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (int(rng.integers(20, 40)), 30, 3), np.uint8) for _ in range(count)]


@pytest.mark.parametrize("settings", [{}, {"problem_type": "multi_label_classification"}])
def test_scores_are_those_of_transformers_alone_and_in_batches(tmp_path, settings):
    model = save_classifier(tmp_path, **settings)
    classifier, seen = load_classifier(tmp_path, precision="fp32"), pictures(5)
    found = classifier.scores(seen)
    assert labels_of(tmp_path) == list(LABELS.values()) and found.shape == (5, 3)
    images = transformers.AutoImageProcessor.from_pretrained(tmp_path)
    with torch.no_grad():
        logits = model(**images(images=seen, input_data_format="channels_last", return_tensors="pt")).logits.double()
    expected = logits.sigmoid() if settings else logits.softmax(-1)
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-6)
    np.testing.assert_allclose(np.concatenate([classifier.scores([p]) for p in seen]), found, atol=1e-5)
    assert found.std(0).min() > 1e-4


def test_a_folder_that_is_none_is_named(tmp_path):
    with pytest.raises(ValueError, match=f"{tmp_path}: expected the folder of an image classifier of transformers"):
        labels_of(tmp_path)
    with pytest.raises(ValueError, match=f"{tmp_path}: transformers can't read this as an image classifier with its processor"):
        load_classifier(tmp_path, precision="fp32")
