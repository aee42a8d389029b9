"""Members of the tars that are written for others: without times or owners, so that equal contents give equal files."""

import io
import tarfile
from collections.abc import Mapping


def add_sample(tar: tarfile.TarFile, key: str, members: Mapping[str, bytes]) -> None:
    """key.ENDING of each, in their order."""
    for ending, content in members.items():
        member = tarfile.TarInfo(f"{key}.{ending}")  # a fresh one has mode 644, and 0 for time and owner
        member.size = len(content)
        tar.addfile(member, io.BytesIO(content))
