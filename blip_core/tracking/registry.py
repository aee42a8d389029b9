"""Versions of the registered model in MLflow. What may become champion, and who decides, is in champion.py."""

import json
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import Timeout

from blip_core.files.atomic import new_folder
from blip_core.tracking.runs import QUIET, connect, environment, lock, safe_name, uri

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.models import Model, ModelSignature

HTTP = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "300"}  # a large upload is answered late
PROVENANCE = "provenance"  # folder of a version's run: what rebuilds it


@contextmanager
def open_registry(name: str, root: Path) -> Iterator["Registry"]:
    """The registered model `name`, for one process of this root at a time. ValueError when MLflow cannot be reached."""
    with environment(HTTP | QUIET):
        held = lock(root, "registry.lock")
        try:
            held.acquire()
        except Timeout:
            raise ValueError(
                f"{held.lock_file}: another command has been working on the registry for two minutes; wait for its end"
            ) from None
        try:
            yield Registry(*_connected(root), name, root / ".work")
        finally:
            held.release()


def _connected(root: Path) -> tuple["MlflowClient", str]:
    try:
        with lock(root):
            return connect(root)
    except Exception as e:  # MLflow wraps some errors of the network or the database and passes others on
        reason = f"{type(e).__name__}: {e}"
        raise ValueError(f"MLflow at {uri(root)} cannot be reached ({reason}); start it or mend MLFLOW_TRACKING_URI") from e


class Registry:
    """Versions of one registered model. Unlike a StageRun it raises what MLflow raises."""

    def __init__(self, client: "MlflowClient", experiment: str, name: str, work: Path):
        self._client, self._experiment, self.name, self._work = client, experiment, name, work

    def versions(self) -> list["ModelVersion"]:
        """All of them, the oldest first."""
        return sorted(self._client.search_model_versions(f"name = '{self.name}'"), key=lambda v: int(v.version))

    def find(self, tag: str, value: str) -> "ModelVersion | None":
        """The newest version with this tag."""
        found = self._client.search_model_versions(f"name = '{self.name}' and tags.`{tag}` = '{value}'")
        return max(found, key=lambda v: int(v.version), default=None)

    def version(self, number: str | int) -> "ModelVersion":
        """ValueError when there is no such version."""
        known = {str(version.version): version for version in self.versions()}
        if str(number) not in known:
            raise ValueError(f"{self.name}: no version {number}; {', '.join(known) or 'none'} is registered")
        return known[str(number)]

    def aliases(self) -> dict[str, str]:
        """Alias to version; empty before anything is registered."""
        known = self._client.search_registered_models(f"name = '{self.name}'")
        return {alias: str(number) for model in known for alias, number in model.aliases.items()}

    def at(self, alias: str) -> "ModelVersion | None":
        """The version that an alias points to."""
        number = self.aliases().get(alias)
        return self._client.get_model_version(self.name, number) if number else None

    def point(self, alias: str, version: "ModelVersion") -> None:
        self._client.set_registered_model_alias(self.name, alias, version.version)

    def unpoint(self, alias: str) -> None:
        self._client.delete_registered_model_alias(self.name, alias)

    def tag(self, version: "ModelVersion", tags: dict[str, str]) -> None:
        for key, value in tags.items():
            self._client.set_model_version_tag(self.name, version.version, safe_name(key), value)

    def untag(self, version: "ModelVersion", key: str) -> None:
        self._client.delete_model_version_tag(self.name, version.version, key)

    def describe(self, version: "ModelVersion", text: str) -> None:
        self._client.update_model_version(self.name, version.version, text)

    def describe_all(self, text: str) -> None:
        self._client.update_registered_model(self.name, text)

    def add(self, *, tags: dict[str, str], files: dict[str, str], **package: Any) -> "ModelVersion":
        """A new version with a run of its own, in the pass that it belongs to; the model itself hangs on the run that trained it.

        `files`: name to text of what rebuilds it. `package`: what mlflow.pyfunc.save_model takes, and for its signature `params`: each
        name that a request may set, with its default. Without a `python_model` the `artifacts` are kept, and nothing serves them.
        """
        known = self._client.search_runs([self._experiment], f"tags.pass = '{tags.get('chain', '')}'", max_results=1)
        below = {"mlflow.parentRunId": known[0].info.run_id} if known else {}
        title = f"{self.name}-{tags['model_hash']}"
        run_id = self._client.create_run(self._experiment, tags=tags | below, run_name=title).info.run_id
        try:
            for name, text in files.items():
                self._client.log_text(run_id, text, f"{PROVENANCE}/{name}")
            model_id, source = self._upload(run_id, tags, package)
            if not self._client.search_registered_models(f"name = '{self.name}'"):
                self._client.create_registered_model(self.name)
            # tags come with the version, so that `find` sees it whole or not at all
            tags = {**tags, "model_id": model_id}
            version = self._client.create_model_version(self.name, source, run_id, tags=tags, model_id=model_id)
            # so that MLflow's pages lead from the model to its version, as mlflow.register_model does
            versions = json.dumps([{"name": self.name, "version": version.version}])
            self._client.set_logged_model_tags(model_id, {"mlflow.modelVersions": versions})
        except BaseException:
            self._client.set_terminated(run_id, "FAILED")
            raise
        self._client.set_terminated(run_id)
        return version

    def close_runs(self, identity: str) -> None:
        """End the runs of registrations of this model that were killed, which MLflow would show as RUNNING for ever."""
        running = f"tags.model_hash = '{identity}' and attributes.status = 'RUNNING'"
        kept = {version.run_id for version in self.versions()}
        for run in self._client.search_runs([self._experiment], running):
            if "stage" in run.data.tags:  # the training itself
                continue
            self._client.set_terminated(run.info.run_id, "FINISHED" if run.info.run_id in kept else "KILLED")

    def _upload(self, run_id: str, tags: dict[str, str], package: dict[str, Any]) -> tuple[str, str]:
        """Pack the model and send it. The id that MLflow gives it, and where it lies."""
        import mlflow
        from mlflow.entities import LoggedModelOutput
        from mlflow.models import Model

        training = self._training(tags["model_hash"]) or run_id
        logged = self._client.create_logged_model(self._experiment, self.name, training, tags, model_type="image-text")
        model_id, place = logged.model_id, logged.artifact_location
        about = Model(artifact_path=place, run_id=training, model_uuid=model_id, model_id=model_id)
        with tempfile.TemporaryDirectory(dir=self._work) as folder:
            if "python_model" in package:
                taken = signature(package.pop("params"))
                mlflow.pyfunc.save_model(f"{folder}/model", mlflow_model=about, signature=taken, **package)
            else:
                _save_plain(Path(folder) / "model", about, **package)
            self._client.log_model_artifacts(model_id, f"{folder}/model")
        self._client.finalize_logged_model(model_id, "READY")
        self._client.log_outputs(training, [LoggedModelOutput(model_id, step=0)])
        return model_id, place

    def _training(self, identity: str) -> str | None:
        """The run that trained this model; None where it was tracked elsewhere."""
        trained = f"tags.stage != '' and tags.model_hash = '{identity}'"
        found = self._client.search_runs([self._experiment], trained, order_by=["attributes.start_time DESC"], max_results=1)
        return found[0].info.run_id if found else None

    def record(self, version: "ModelVersion", folders: dict[str, Path], *, metrics: dict[str, float]) -> None:
        """Keep what was measured with a version: its folders by name as artifacts of the version's run, for later paired tests."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        for name, folder in folders.items():
            self._client.log_artifacts(version.run_id, str(folder), name)
        values = [Metric(safe_name(k), v, now, 0, model_id=version.tags.get("model_id")) for k, v in metrics.items()]
        self._client.log_batch(version.run_id, metrics=values)

    def metrics(self, version: "ModelVersion") -> dict[str, float]:
        return dict(self._client.get_run(version.run_id).data.metrics) if version.run_id else {}

    def runs(self, chain: str) -> dict[str, str]:
        """Of each stage of one pass through the chain, the id of the last run that ended well, by the run's name."""
        found = self._client.search_runs([self._experiment], f"tags.chain = '{chain}'", order_by=["attributes.start_time ASC"])
        return {run.info.run_name: run.info.run_id for run in found if "stage" in run.data.tags and run.info.status == "FINISHED"}

    def kept(self, version: "ModelVersion", name: str, folder: Path) -> Path | None:
        """A folder of the version's run, `evaluation` or PROVENANCE, copied into `folder`; None when the version has none."""
        if not version.run_id or not self._client.list_artifacts(version.run_id, name):
            return None
        return Path(self._client.download_artifacts(version.run_id, name, str(folder)))

    def model(self, version: "ModelVersion", folder: Path) -> Path:
        """The model folder as it was registered, at `folder`/NAME-VERSION-HASH: another registry counts its versions from 1 as well.

        ValueError where something else registered the version."""
        import mlflow

        if (identity := version.tags.get("model_hash")) is None:
            raise ValueError(
                f"models:/{self.name}/{version.version}: has no tag model_hash, so `register` did not make it; expected one of its versions"
            )
        out = folder / f"{self.name}-{version.version}-{identity}"
        if not out.exists():
            with new_folder(out) as temporary, tempfile.TemporaryDirectory(dir=self._work) as fetched:
                artifacts = mlflow.artifacts.download_artifacts(artifact_uri=f"{version.source}/artifacts", dst_path=fetched)
                (found,) = Path(artifacts).glob("*/config.json")
                shutil.copytree(found.parent, temporary, dirs_exist_ok=True)
        return out

    def code(self, version: "ModelVersion", folder: Path) -> Path:
        """The package blip_core as it was packed with the version, copied into `folder`."""
        import mlflow

        return Path(mlflow.artifacts.download_artifacts(artifact_uri=f"{version.source}/code/blip_core", dst_path=str(folder)))


def _save_plain(folder: Path, about: "Model", artifacts: dict[str, str], code_paths: list[str]) -> None:
    """The layout of a served model, without what serves it."""
    for name, path in artifacts.items():
        shutil.copytree(path, folder / "artifacts" / name)
    for path in code_paths:
        shutil.copytree(path, folder / "code" / Path(path).name, ignore=shutil.ignore_patterns("__pycache__"))
    about.save(str(folder / "MLmodel"))


def fetch_model(uri: str, root: Path, folder: Path) -> Path:
    """The model folder of models:/NAME/VERSION or models:/NAME@ALIAS, copied below `folder` once. ValueError when there is none."""
    found = re.fullmatch(r"models:/([^/@]+)(?:/(\d+)|@([\w.-]+))", uri)
    if not found:
        raise ValueError(f"{uri!r}: expected models:/NAME/VERSION or models:/NAME@ALIAS")
    name, number, alias = found.groups()
    with open_registry(name, root) as registry:
        version = registry.version(number) if number else registry.at(alias)
        if version is None:
            raise ValueError(f"{uri}: no version of {name} has the alias {alias!r}; known are {sorted(registry.aliases())}")
        return registry.model(version, folder)


def signature(params: dict[str, str | int | float | bool]) -> "ModelSignature":
    """Of mlflow/serve.py. All columns are optional, as each task reads and answers other ones."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema
    from mlflow.types.schema import AnyType, Array

    kinds = {str: "string", bool: "boolean", int: "long", float: "double"}
    numbers = Array("double")
    inputs = {"image": "string", "text": "string"}
    outputs = {"captions": Array("string"), "itm": "double", "itc": "double", "match": "double"}
    outputs |= {"image_embedding": numbers, "text_embedding": numbers, "answer": "string", "maps": AnyType()}
    return ModelSignature(
        inputs=Schema([ColSpec(kind, name, required=False) for name, kind in inputs.items()]),
        outputs=Schema([ColSpec(kind, name, required=False) for name, kind in outputs.items()]),
        params=ParamSchema([ParamSpec(name, kinds[type(default)], default) for name, default in params.items()]),
    )
