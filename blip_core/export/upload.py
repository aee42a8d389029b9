"""An export in S3: each file whole or not at all, verified, its manifest last."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

from blip_core.config.intake import RemoteConfig
from blip_core.remote.storage import Storage

_LAST = "manifest.json"  # who finds it, finds all


def upload(folder: Path, url: str, cfg: RemoteConfig) -> int:
    """Make each file of the export an object below `url`; returns how many were sent. After a break it goes on with those that lack.

    ValueError when other objects lie there: they would mix."""
    storage, base = Storage(cfg), f"{url.rstrip('/')}/"
    files = {p.relative_to(folder).as_posix(): p for p in sorted(folder.rglob("*")) if p.is_file()}
    there = {stored.url.removeprefix(base): stored for stored in storage.find(base)}
    others = [n for n, stored in there.items() if n not in files or not storage.holds(stored, files[n])]
    if others:
        raise ValueError(f"{base}: holds {len(others)} objects that are not of {folder}, as {others[0]!r}; name an empty prefix")
    todo = [name for name in files if name not in there and name != _LAST]
    with ThreadPoolExecutor(cfg.connections) as pool, tqdm(total=len(todo), desc=base, unit="file", disable=None) as bar:
        try:
            for future in [pool.submit(storage.upload, files[name], base + name) for name in todo]:
                future.result()
                bar.update()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
    if _LAST not in there:
        storage.upload(files[_LAST], base + _LAST)
        todo.append(_LAST)
    return len(todo)
