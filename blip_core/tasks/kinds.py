"""The tasks that there are, by `kind` in params.yaml."""

from typing import Any

from blip_core.tasks.task import Task
from blip_core.tasks.vqa import VqaTask

KINDS: dict[str, Task[Any]] = {"vqa": VqaTask()}
