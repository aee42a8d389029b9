"""Versions of generations: those of the workspace and those that git knows, through the md5s of each committed dvc.lock.

`g1` is what lies in the workspace; `g1@REV` what dvc.lock said of it at a revision, tag or branch. A version is listed, fetched into
another folder, or brought back into the workspace; differences.py compares two.
"""

import json
import shutil
import subprocess
import tempfile
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from blip_core.config.params import load_params
from blip_core.files.atomic import new_folder
from blip_core.tables.captions import KEPT, WRITTEN, read_table
from blip_core.tables.manifest import content_hash, listed_hash
from blip_core.tables.stopped import FILE as STOPPED
from blip_core.tracking.provenance import Lock, git, maker, parse_lock, raw_data, read_lock
from blip_core.versions.cache import Cache, open_cache, run_dvc

FOLDER = "artifacts/generations"
SOURCES = ("web", "human", *WRITTEN)
VALUES = ("dvc.lock", "params.yaml", "data.dvc", "labels", "columns")  # what brings a version back, but for the code


@dataclass(frozen=True)
class Version:
    """One generation as one dvc.lock has it."""

    name: str  # g1
    md5: str  # DVC's, of its folder; "" where DVC does not know it
    size: int  # bytes
    lock: Lock
    rev: str = ""  # the commit; "" is the workspace
    tags: tuple[str, ...] = ()
    date: str = ""  # of the commit

    def __str__(self) -> str:
        return f"{self.name}@{self.tags[0] if self.tags else self.rev[:9]}" if self.rev else self.name

    @property
    def gate(self) -> str:
        """md5 of the gate file that lets this very version pass; "" when none is recorded."""
        path = f"artifacts/gates/{self.name}.json"
        made = maker(self.lock, path)
        return made.outs[path] if made and made.deps.get(f"{FOLDER}/{self.name}") == self.md5 else ""


def resolve(spec: str, root: Path) -> Version:
    """The version that `g1` or `g1@REV` names. ValueError when there is no such revision or generation."""
    name, _, wanted = spec.partition("@")
    if not wanted:
        found, where = _versions(read_lock(root)), "dvc.lock"
    else:
        rev = git(root, "rev-parse", "--verify", "--quiet", f"{wanted}^{{commit}}")
        if not rev:
            raise ValueError(f"{spec}: git knows no revision {wanted!r} here; see `blip generations`, or `git fetch --tags`")
        lock = git(root, "show", f"{rev}:./dvc.lock")
        if not lock:
            raise ValueError(f"{spec}: no dvc.lock is committed at {wanted}; a generation is found by it: `git add dvc.lock` with each")
        date, tags = git(root, "show", "-s", "--format=%cI", rev), ((wanted,) if wanted != rev[: len(wanted)] else ())
        found, where = _versions(parse_lock(lock), rev=rev, date=date, tags=tags), f"dvc.lock at {wanted}"
    version = next((v for v in found if v.name == name), None)
    if version is None:
        raise ValueError(f"{spec}: {where} has no generation {name!r}; it has {', '.join(v.name for v in found) or 'none'}")
    return version


def known(root: Path) -> list[Version]:
    """Every version, each under the first commit that has it and its tags, then those that the workspace alone has."""
    found: dict[tuple[str, str], Version] = {}
    for version in [version for commit in commits(root) for version in commit]:
        first = found.setdefault((version.name, version.md5), version)
        if version.tags and not first.tags:
            found[version.name, version.md5] = version  # the one that has a name
    for version in here(root):
        found.setdefault((version.name, version.md5), version)
    return sorted(found.values(), key=lambda v: (_number(v.name), not v.rev, v.date and datetime.fromisoformat(v.date).timestamp()))


def commits(root: Path) -> list[list[Version]]:
    """The versions of each committed dvc.lock that differs from those before it, the oldest first."""
    lines = git(root, "log", "--all", "--full-history", "--topo-order", "--reverse", "--format=%H %cI", "--", "dvc.lock").splitlines()
    dates = dict(line.split() for line in lines)
    tags = git(root, "for-each-ref", "--format=%(refname:short)", "refs/tags").splitlines()
    blobs = _blobs(root, [*dates, *tags])
    first: dict[str, str] = {}
    for rev in dates:
        if rev in blobs:
            first.setdefault(blobs[rev], rev)
    found = []
    for blob, rev in first.items():
        own = tuple(tag for tag in tags if blobs.get(tag) == blob)
        found.append(_versions(parse_lock(git(root, "cat-file", "blob", blob)), rev=rev, date=dates[rev], tags=own))
    return found


def here(root: Path) -> list[Version]:
    """The workspace's: by dvc.lock, and folders that it does not name."""
    versions = _versions(read_lock(root))
    named = {v.name for v in versions}
    folders = [path.parent for path in (root / FOLDER).glob("[!_]*/manifest.json") if path.parent.name not in named]
    return [*versions, *(Version(f.name, "", sum(p.stat().st_size for p in f.iterdir()), {}) for f in sorted(folders))]


def files_of(version: Version, cache: Cache, root: Path) -> dict[str, Path] | None:
    """Its files by name; None when they are not on this machine."""
    if version.md5:
        return cache.files(version.md5)
    return {path.name: path for path in (root / FOLDER / version.name).iterdir()}


def fetched(version: Version, cache: Cache, root: Path) -> dict[str, Path]:
    """The same, from DVC's remote if need be. ValueError when neither has them."""
    if version.md5 and cache.fetch([version.md5]):
        made = f"where it was made, check out {version.rev[:9]} and `dvc push`" if version.rev else "`dvc push` where it was made"
        raise ValueError(f"{version}: its files are neither in DVC's cache {cache.place} nor in its remote; {made}, or reproduce it there")
    files = files_of(version, cache, root)
    assert files is not None  # they have just been fetched
    if STOPPED in files:
        raise ValueError(f"{version}: was not made, for the rounds stopped before it: {json.loads(files[STOPPED].read_text())['stopped']}")
    return files


def get(spec: str, out: Path, root: Path) -> Version:
    """Write a version to a new folder, which appears by rename."""
    if out.exists():
        raise ValueError(f"{out}: exists already; name a new folder with --out")
    version = resolve(spec, root)
    with open_cache(root) as cache:
        files = fetched(version, cache, root)
        with new_folder(out) as temporary:
            for name, path in files.items():
                (temporary / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, temporary / name)
            if content_hash(temporary) != listed_hash(temporary):
                raise ValueError(f"{version}: a file in DVC's cache {cache.place} is damaged: remove the cache's copy and `dvc fetch` it")
    return version


def kept_by_source(files: dict[str, Path]) -> dict[str, int]:
    """How many texts of each source a model may train on: by the manifest, or counted where that does not tell."""
    counts = json.loads(files["manifest.json"].read_text()).get("counts", {})
    if {"kept_web", "kept_synthetic", "texts_human"} <= counts.keys():
        return {"web": counts["kept_web"], "human": counts["texts_human"], **{s: counts.get(f"kept_{s}", 0) for s in WRITTEN}}
    found: Counter[str] = Counter()
    for name, path in files.items():
        if name.endswith(".parquet"):
            groups = read_table(path, ["source", "reason"]).group_by(["source", "reason"]).aggregate([([], "count_all")])
            found.update({row["source"]: row["count_all"] for row in groups.to_pylist() if row["reason"] == KEPT})
    return {source: found[source] for source in SOURCES}


def describe(root: Path) -> list[dict[str, Any]]:
    """A row for each known version. `kept` is None when its files are not on this machine; `gate` says where it was not made at all."""
    rows, present = [], {(v.name, v.md5) for v in here(root)}
    with open_cache(root) as cache:
        for version in known(root):
            files = files_of(version, cache, root)
            made = not files or STOPPED not in files
            row: dict[str, Any] = {
                "version": str(version),
                "generation": version.name,
                "date": version.date,
                "rev": version.rev,
                "tags": list(version.tags),
            }
            row |= {
                "md5": version.md5,
                "bytes": version.size,
                "gate": "not run" if not made else "passed" if version.gate else "",
                "kept": dict.fromkeys(SOURCES, 0) if not made else kept_by_source(files) if files else None,
            }
            rows.append({**row, "workspace": (version.name, version.md5) in present})
    return rows


def rollback(spec: str, root: Path, *, code: bool = False) -> str:
    """Bring a committed version back into the workspace, with all that made it, and tell what was done.

    dvc.lock, params.yaml, data.dvc, labels/ and columns/ become those of the revision (`code`: every file that git tracks), staged and not
    committed, and DVC checks out the data that they name. Nothing is touched unless all of it is at hand; what fails half way is undone.
    """
    version = resolve(spec, root)
    if not version.rev:
        raise ValueError(f"{spec}: this is the workspace's own; name a revision, as {spec}@REV (`blip generations` lists them)")
    paths = ["."] if code else git(root, "ls-tree", "--name-only", version.rev, "--", *VALUES).splitlines()
    if changed := _must(root, "status", "--porcelain", "--", *(["."] if code else VALUES)):
        raise ValueError(f"{spec}: these have changes that are not committed and would be lost; commit or stash them first:\n{changed}")
    if not code:
        _check_params(version, root)
    _fetch_all(version, root)
    run_dvc(root, "status", "--json")  # fails while a stage runs, which `dvc checkout` would pull the data from under
    try:
        _restore(version.rev, paths, root)
    except BaseException as e:
        with suppress(ValueError):  # what stopped the one checkout may stop the other; it touches nothing then
            _restore("HEAD", paths, root)
        if isinstance(e, ValueError):
            raise ValueError(f"{spec}: not brought back, the workspace is as it was: {e}") from e
        raise
    return _told(version, paths, root)


def _restore(rev: str, paths: list[str], root: Path) -> None:
    """Files of git, then the data that they name. Outputs that this dvc.lock does not know stay as they are, as do those of which DVC kept
    no copy then."""
    _must(root, "restore", f"--source={rev}", "--staged", "--worktree", "--", *paths)
    with open_cache(root) as cache:
        named, unkept = cache.outputs(), cache.uncached(rev)
    run_dvc(root, "checkout", *(path for path, md5 in named.items() if md5 and path not in unkept))


def _must(root: Path, *args: str) -> str:
    """What git prints; ValueError where it fails, since nothing may be overwritten on a guess."""
    done = subprocess.run(["git", *args], cwd=root, capture_output=True, text=True)
    if done.returncode:
        raise ValueError(f"git {args[0]} failed in {root}: {done.stderr.strip()}")
    return done.stdout.rstrip()


def _told(version: Version, paths: list[str], root: Path) -> str:
    folder, names = f"{FOLDER}/{version.name}", "every file of git" if paths == ["."] else ", ".join(paths)
    lines = [f"{folder} is {version} again: {names} as of {version.rev[:9]} (staged, not committed), and the data that they name"]
    out_of_date = list(json.loads(run_dvc(root, "status", "--json")))
    if out_of_date:
        lines.append(f"the code or else has changed since: `dvc repro` would run {len(out_of_date)} stages anew: {', '.join(out_of_date)};")
        lines.append("  `dvc repro -s STAGE` runs one on what lies here now, and --code brings the code back as well")
    if not version.gate:
        lines.append("its gate is not recorded as passed: nothing trains on it before `dvc repro` of its gate")
    lines.append(f'keep it:  git commit -m "Roll back to {version}"')
    lines.append(f"undo it:  git restore --source=HEAD --staged --worktree -- {' '.join(paths)} && dvc checkout")
    return "\n".join(lines)


def _check_params(version: Version, root: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "params.yaml"
        path.write_text(git(root, "show", f"{version.rev}:./params.yaml"))
        try:
            load_params(path)
        except ValueError as e:
            told = str(e).replace(str(path), "params.yaml")
            raise ValueError(f"{version}: its values do not fit the code as it is now; --code brings the code back too:\n{told}") from None


def _fetch_all(version: Version, root: Path) -> None:
    """All that the revision's dvc.lock and data.dvc name, into the cache."""
    named = {path: md5 for made in version.lock.values() for path, md5 in made.outs.items()}
    named |= raw_data(git(root, "show", f"{version.rev}:./data.dvc"))
    with open_cache(root) as cache:
        unkept = cache.uncached(version.rev)
        kept = {path: md5 for path, md5 in named.items() if path not in unkept}
        lacking = set(cache.fetch(kept.values()))
    if lacking:
        paths = [path for path, md5 in kept.items() if md5 in lacking]
        shown = ", ".join(paths[:5]) + (", …" if len(paths) > 5 else "")
        raise ValueError(
            f"{version}: {len(paths)} outputs are neither in DVC's cache nor in its remote ({shown}); `dvc push` where they are"
        )


def _versions(lock: Lock, **of: Any) -> list[Version]:
    found = []
    for made in lock.values():
        for path, md5 in made.outs.items():
            folder, _, name = path.rpartition("/")
            if folder == FOLDER:
                found.append(Version(name, md5, made.sizes[path], lock, **of))
    return found


def _blobs(root: Path, names: list[str]) -> dict[str, str]:
    """Git's id of dvc.lock at each of these revisions, where it has one."""
    asked = "".join(f"{name}:./dvc.lock\n" for name in names)
    done = subprocess.run(["git", "cat-file", "--batch-check"], cwd=root, input=asked, capture_output=True, text=True)
    ids = [line.split()[0] if " blob " in line else "" for line in done.stdout.splitlines()]
    return {name: blob for name, blob in zip(names, ids, strict=False) if blob}


def _number(name: str) -> tuple[int, str]:
    """g10 after g9."""
    return (int(name[1:]) if name[1:].isdigit() else 0), name
