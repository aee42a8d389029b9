"""The captioner as MLflow serves it. MLflow runs this file by path and ships blip_core beside it; importing it from elsewhere is not meant.

Input: one column, `image`, each row an image file (JPEG, PNG, WebP, GIF) as base64 text, or a path where the model is loaded in a program
of one's own. A scoring server takes no paths, whatever its clients send: they are files of the server. Output: one caption a row.
"""

import base64
import binascii
import hashlib
import os
from pathlib import Path

import mlflow
from mlflow.exceptions import MlflowException


class Captioner(mlflow.pyfunc.PythonModel):
    _skip_type_hint_validation = True  # of MLflow: it would warn at each load, though the model's signature checks the input

    def load_context(self, context):
        """Read the model folder; settings come from the stages that made and measured the model."""
        from blip_core.checkpoint import load_model
        from blip_core.config import ImageLimits, SamplerConfig
        from blip_core.distributed import device

        self.model, self.tokenizer = load_model(Path(context.artifacts["model"]))
        self.model.to(device())
        settings = context.model_config
        self.sampler, self.limits = SamplerConfig(**settings["sampler"]), ImageLimits(**settings["images"])
        self.storage = {name: settings[name] for name in ("short_side", "quality", "format")}
        self.prompt, self.precision = settings["prompt"], settings["precision"]
        self.batch_size, self.seed = settings["batch_size"], settings["seed"]

    def predict(self, context, model_input, params=None):
        """Captions in the order of the rows. MlflowException, which a server passes on, names the row of an image that can't be read."""
        from blip_core.capfilt import caption_images

        paths = (params or {}).get("allow_path", True) and "_MLFLOW_IS_IN_SERVING_ENVIRONMENT" not in os.environ
        values = model_input.iloc[:, 0].explode()  # MLflow makes one row of {"image": [...]}
        files = [image_bytes(value, row, paths) for row, value in enumerate(values)]
        images = [self._decode(data, row) for row, data in enumerate(files)]
        keys = [hashlib.sha256(data).hexdigest()[:16] for data in files]  # a caption does not depend on its neighbours
        captions = []
        for start in range(0, len(images), self.batch_size):
            part = slice(start, start + self.batch_size)
            batch = (images[part], keys[part], self.sampler)
            captions += caption_images(self.model, self.tokenizer, *batch, seed=self.seed, prompt=self.prompt, precision=self.precision)
        return [candidates[0] for candidates in captions]

    def _decode(self, data, row):
        """Pixels as the model saw them in training: what ingest stores of this file."""
        from blip_core.images import admit, decode_rgb
        from blip_core.rejected import Rejected

        try:
            return decode_rgb(admit(data, self.limits, **self.storage).data)
        except Rejected as e:
            raise MlflowException.invalid_parameter_value(f"image {row}: {e}") from None


def image_bytes(value, row, paths):
    """The file that a value of the column holds or, where paths are allowed, names."""
    try:
        if paths and os.path.isfile(value):
            return Path(value).read_bytes()
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError, TypeError):
        expected = "base64 text, or the path of a file" if paths else "base64 text; paths are not taken here"
        message = f"image {row}: expected an image file as {expected}; got {str(value)[:80]!r}"
        raise MlflowException.invalid_parameter_value(message) from None


mlflow.models.set_model(Captioner())
