"""The fields that the sources gave, as an exported data set has them: of each picture, under names that are free there."""

from pathlib import Path
from typing import Any

from blip_core.export.formats import COLUMNS
from blip_core.metadata.fields import KEY, free_name
from blip_core.metadata.folder import field_types, metadata_of

# what one of the formats writes itself, so that a field has one name in all of them, and what our readers take for a split
_TAKEN = {*"split set subset text caption captions candidates image image_id file_name width height sha256 id identity".split()}
_TAKEN |= {*COLUMNS, *(f"caption_{name}" for name in COLUMNS)}


class SourceFields:
    """Of a metadata folder; a project whose ingest is older has none, and no fields. `types`: by the exported name."""

    def __init__(self, folder: Path):
        self.folder = folder
        found = field_types(folder) if folder.exists() else {}
        self.names = {name: free_name(name, _TAKEN) for name in found}
        self.types = {self.names[name]: kind for name, kind in found.items()}

    def of(self, shard: str, keys: list[str]) -> dict[str, dict[str, Any]]:
        """The fields of each of these pictures by key; None where the source has none."""
        if not self.names:
            return {key: {} for key in keys}
        table = metadata_of(self.folder, shard, keys)
        rows = table.drop_columns([KEY]).rename_columns([self.names[name] for name in table.column_names if name != KEY]).to_pylist()
        return dict(zip(keys, rows, strict=True))
