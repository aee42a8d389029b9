"""register is killed between any two of its calls to MLflow: nothing is promoted that should not be, and running it again ends the same."""

import pytest

from blip_core.tracking.registry import open_registry
from tests.stages.test_register import aliases, client, register_again, registered, root  # noqa: F401

WRITES = ("create_", "set_", "log_", "update_", "delete_", "finalize_")


class Killed(BaseException):
    """The process is gone: it writes nothing more, not even in its `finally`."""


def die_at(monkeypatch, number: int) -> list[str]:
    """From the write of this number on MLflow hears nothing more; returns the list that the writes are noted in."""
    from mlflow import MlflowClient

    made: list[str] = []

    def dying(name, real):
        def call(self, *args, **kwargs):
            made.append(name)
            if len(made) > number:
                raise Killed(name)
            return real(self, *args, **kwargs)

        return call

    for name in [n for n in vars(MlflowClient) if n.startswith(WRITES)]:
        monkeypatch.setattr(MlflowClient, name, dying(name, getattr(MlflowClient, name)))
    return made


def state(root) -> dict:  # noqa: F811
    """All that decides, without times and ids."""
    with open_registry("blip", root) as registry:
        versions = registry.versions()
    plain = [{k: v for k, v in version.tags.items() if k != "model_id" and not k.startswith("champion.")} for version in versions]
    moves = [sum(k.startswith("champion.") for k in version.tags) for version in versions]
    running = client(root).search_runs(["1"], "attributes.status = 'RUNNING'")
    return {"aliases": aliases(root), "tags": plain, "moves": moves, "running": len(running)}


@pytest.fixture(scope="module")
def unbroken():
    """Filled by the first test."""
    return {}


def test_the_unbroken_run(root, monkeypatch, unbroken):  # noqa: F811
    registered("first")
    made = die_at(monkeypatch, 10**6)
    assert registered("second")["promoted"]
    unbroken |= {"writes": list(made), "state": state(root)}
    assert made.count("set_registered_model_alias") == 2
    assert unbroken["state"]["running"] == 0 and unbroken["state"]["aliases"] == {"champion": 2, "challenger": 2}


@pytest.mark.parametrize("moment", ["package", "version", "tags", "evaluation", "challenger", "test", "record", "champion", "description"])
def test_killed_at(root, monkeypatch, unbroken, moment):  # noqa: F811
    writes = unbroken["writes"]
    aliases_at = [i for i, name in enumerate(writes) if name == "set_registered_model_alias"]
    number = {
        "package": writes.index("log_model_artifacts"),
        "version": writes.index("create_model_version"),
        "tags": writes.index("create_model_version") + 1,
        "evaluation": writes.index("log_artifacts"),
        "challenger": aliases_at[0],
        "test": aliases_at[0] + 1,
        "record": aliases_at[1] - 1,
        "champion": aliases_at[1],
        "description": aliases_at[1] + 1,
    }[moment]
    registered("first")
    with monkeypatch.context() as broken:
        die_at(broken, number)
        with pytest.raises(Killed):
            registered("second")
    assert aliases(root)["champion"] == (2 if moment == "description" else 1)
    register_again()
    assert state(root) == unbroken["state"]
