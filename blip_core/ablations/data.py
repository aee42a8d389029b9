"""The data of an ablation's clone: the sample world, drawn anew for each seed, or the project's own data, the same for all."""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from blip_core.config.reading import read_values
from blip_core.files.atomic import new_file
from blip_core.tracking.provenance import raw_data
from blip_core.versions.cache import open_cache, run_dvc

DRAWN = ".work/sample.yaml"  # in a clone: what its data was drawn by
Call = Callable[[list[str], Path], None]


def own_data(root: Path) -> dict[str, str]:
    """Path to md5 of the project's own data as data.dvc has it; empty where the data is the sample's, or none lies there.

    ValueError where the data is the project's own and DVC does not track it as it is."""
    if not (root / "data").exists() or (root / "data/truth.parquet").exists():
        return {}
    tracked = root / "data.dvc"
    if not tracked.exists() or run_dvc(root, "status", "--json", "data.dvc").strip() != "{}":
        raise ValueError(f"{root / 'data'}: arms run on the data that DVC keeps, and it does not keep this as it is; `dvc add data` first")
    return raw_data(tracked.read_text())


def take_data(clone: Path, root: Path, sample: dict[str, Any], own: dict[str, str], call: Call) -> None:
    """Put the data of an arm's runs into the clone; what is there already stays."""
    if own:
        _take_own(clone, root, own)
    elif not (clone / DRAWN).exists() or read_values(clone / DRAWN) != sample:
        (clone / DRAWN).unlink(missing_ok=True)  # so that it never tells of data that is half there
        shutil.rmtree(clone / "data", ignore_errors=True)
        call([sys.executable, "-m", "blip_core", "sample", "--out", "data"], clone)
        run_dvc(clone, "add", "--quiet", "data")
        with new_file(clone / DRAWN) as temporary:
            temporary.write_text(yaml.safe_dump(sample, sort_keys=False))


def _take_own(clone: Path, root: Path, own: dict[str, str]) -> None:
    """From the project's cache, which the clone shares: data of any size is not copied where the disk can link."""
    with open_cache(root) as cache:
        if lacking := cache.fetch(own.values()):
            raise ValueError(f"{root / 'data.dvc'}: {', '.join(lacking)} is neither in DVC's cache nor in its remote; `dvc add data` again")
        place = cache.place.resolve()
    (clone / DRAWN).unlink(missing_ok=True)
    shutil.copy(root / "data.dvc", clone / "data.dvc")
    run_dvc(clone, "config", "--local", "cache.dir", str(place))
    run_dvc(clone, "checkout", "--force", "data.dvc")
