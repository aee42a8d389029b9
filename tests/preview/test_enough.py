"""What ingest tells of a data set that is too small for later stages, by the numbers that these will find."""

import json

from blip_core.preview.enough import lacking_after_ingest
from tests.support.small import small_params


def test_what_ingest_made_is_held_against_the_limits_of_later_stages(ingested):
    metrics = json.loads((ingested / "metrics/ingest.json").read_text())
    params = small_params()
    assert lacking_after_ingest(metrics, ingested / "heldout", params) == []
    found = json.loads((ingested / "metrics/validate.json").read_text())["controls_true"]
    strict = params.model_copy(
        update={
            "gate": params.gate.model_copy(update={"min_controls": found + 1}),
            "validate_": params.section("validate").model_copy(update={"min_images": metrics["images_train"] + 1}),
        }
    )
    train, controls = lacking_after_ingest(metrics, ingested / "heldout", strict)
    assert train == f"train: {metrics['images_train']} images with a text, validate.min_images is {metrics['images_train'] + 1}"
    assert f"gives {found} planted true pairs" in controls and f"gate.min_controls is {found + 1}" in controls
