"""The model as MLflow serves it: captions, match scores and embeddings. MLflow runs this file by path and ships blip_core beside it.

Input: rows with `image` (a JPEG, PNG, WebP or GIF file as base64 text), `text`, or both, as the task wants; `params` choose the task and
how captions are made (blip_core/serving/options.py, and the model's signature). Output: one dict a row. It is not for importing.

A program of one's own may also give bytes, a PIL image or an array, or name a file by its path. A scoring server takes no paths,
whatever its clients send: they are files of the server; and it fetches URLs only from hosts that its environment names
(blip_core/serving/urls.py).
"""

import os
from pathlib import Path

import mlflow
from mlflow.exceptions import MlflowException


class Served(mlflow.pyfunc.PythonModel):
    _skip_type_hint_validation = True  # of MLflow: it would warn at each load, though the model's signature checks the input

    def load_context(self, context):
        """Read the model folder; settings come from the stages that made and measured the model."""
        from blip_core.serving.options import Settings
        from blip_core.serving.service import open_service

        self.service = open_service(Path(context.artifacts["model"]), Settings(**context.model_config))

    def predict(self, context, model_input, params=None):
        """Answers in the order of the rows. MlflowException, which a server passes on as 400, names what can't be done, and the row."""
        from blip_core.serving.options import BadRequest, choose
        from blip_core.serving.rows import read_rows

        params = dict(params or {})
        paths = params.pop("allow_path", True) and "_MLFLOW_IS_IN_SERVING_ENVIRONMENT" not in os.environ
        try:
            options = choose(params, self.service.settings)
            rows = read_rows(*columns(model_input), options.task, self.service.settings, paths=paths)
            return self.service.answer(rows, options)
        except BadRequest as e:
            raise MlflowException.invalid_parameter_value(str(e)) from None


def columns(table):
    """What stands in the columns image and text, None where there is nothing. MLflow makes one row of {"image": [...]}."""
    lists = [name for name in ("image", "text") if name in table and table[name].map(lambda value: isinstance(value, list)).any()]
    try:
        table = table.explode(lists) if lists and len(table) == 1 else table
    except ValueError:
        lengths = " and ".join(f"{len(table[name][0])} of {name}" for name in lists)
        raise MlflowException.invalid_parameter_value(f"{lengths}: expected equally many, a row each") from None
    return [list(table[name]) if name in table else [None] * len(table) for name in ("image", "text")]


mlflow.models.set_model(Served())
