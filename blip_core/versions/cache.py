"""What DVC keeps: the files behind an md5 of dvc.lock, in its cache or fetched from its remote. The home of DVC in this package.

The remote is that of the workspace as it is now: an old revision may have been committed before there was one.
"""

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dvc.repo import Repo

FOLDER = ".dir"  # how the md5 of a folder ends


@contextmanager
def open_cache(root: Path) -> Iterator["Cache"]:
    """DVC's cache of the project at `root`. ValueError where there is none."""
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        repo = Repo(str(root))
    except DvcException as e:
        raise ValueError(f"{root}: DVC can't open the project ({e}); run from its root, where .dvc lies") from None
    with repo:
        yield Cache(repo)


class Cache:
    """Files by md5. They belong to DVC: read them, never write."""

    def __init__(self, repo: "Repo"):
        self._repo = repo

    @property
    def place(self) -> Path:
        return Path(self._repo.cache.local.path).parents[1]

    def path(self, md5: str) -> Path:
        """Where the object lies, or would."""
        return Path(self._repo.cache.local.oid_to_path(md5))

    def files(self, md5: str) -> dict[str, Path] | None:
        """The files of a folder by their name in it, or of a file by ""; None where any of them is not in the cache."""
        if not self.path(md5).exists():
            return None
        found = {name: self.path(entry) for name, entry in self._listed(md5).items()}
        return found if all(path.exists() for path in found.values()) else None

    def fetch(self, md5s: Iterable[str]) -> list[str]:
        """Get from the remote what the cache lacks. Returns the md5s that neither has.

        ValueError when something is lacking and there is no remote, or it can't be reached.
        """
        md5s = list(dict.fromkeys(md5s))
        self._pull([md5 for md5 in md5s if not self.path(md5).exists()])
        present = [md5 for md5 in md5s if self.path(md5).exists()]
        parts = {md5: set(self._listed(md5).values()) for md5 in present}
        self._pull([part for own in parts.values() for part in own if not self.path(part).exists()])
        return [md5 for md5 in md5s if self.files(md5) is None]

    def outputs(self) -> dict[str, str]:
        """The outputs that DVC keeps of the graph as it stands in the workspace, with their md5; "" where it has made none."""
        return {out.def_path: out.hash_info.value or "" for out in self._repo.index.outs if out.use_cache}

    def uncached(self, rev: str) -> set[str]:
        """The outputs that DVC did not keep at a revision, by its dvc.yaml."""
        with self._repo.switch(rev):
            return {out.def_path for out in self._repo.index.outs if not out.use_cache}

    def _listed(self, md5: str) -> dict[str, str]:
        if not md5.endswith(FOLDER):
            return {"": md5}
        return {entry["relpath"]: entry["md5"] for entry in json.loads(self.path(md5).read_text())}

    def _pull(self, md5s: list[str]) -> None:
        if not md5s:
            return
        from dvc.config import NoRemoteError
        from dvc_data.hashfile.hash_info import HashInfo

        for name in ("dvc", "dvc_data", "dvc_objects"):  # a traceback for each missing md5; the caller says what they are
            logging.getLogger(name).setLevel(logging.CRITICAL)
        try:
            self._repo.cloud.pull([HashInfo("md5", md5) for md5 in md5s])
        except NoRemoteError:
            advice = "`dvc remote add -d NAME URL` names where it was pushed to"
            raise ValueError(f"{len(md5s)} files are not in DVC's cache {self.place}, and no remote is set: {advice}") from None
        except Exception as e:  # of the network, the remote's own library or DVC: each has errors of its own
            reason = f"{type(e).__name__}: {e}"
            raise ValueError(f"{len(md5s)} files are not in DVC's cache, and its remote can't give them ({reason}); see `dvc pull`") from e


def resolved(root: Path, folder: Path, stages: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The stages of a dvc.yaml as they are under the values of `folder`/params.yaml: one for each key of a foreach, every ${} filled in.

    ValueError names the entry that has no value.
    """
    from dvc.exceptions import DvcException
    from dvc.parsing import DataResolver
    from dvc.repo import Repo

    try:
        with Repo(str(root)) as repo:
            return DataResolver(repo, str(folder.resolve()), stages).resolve()["stages"]
    except DvcException as e:
        raise ValueError(f"{folder / 'params.yaml'}: the stages of dvc.yaml don't fit these values: {e}") from None


def run_dvc(root: Path, *args: str, show: bool = False, unset: tuple[str, ...] = ()) -> str:
    """What a command of DVC prints; with `show` the user sees it instead. ValueError says why it failed."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])  # `python` of dvc.yaml is this one
    env = {k: v for k, v in os.environ.items() if k not in unset} | {"PATH": path, "DVC_NO_ANALYTICS": "1"}
    command = [sys.executable, "-m", "dvc", *args]
    done = subprocess.run(command, cwd=root, env=env, text=True, stdin=subprocess.DEVNULL, capture_output=not show)
    if done.returncode:
        told = "see above" if show else (done.stderr.strip() or done.stdout.strip())
        raise ValueError(f"dvc {' '.join(args)} failed in {root}: {told}")
    return done.stdout or ""
