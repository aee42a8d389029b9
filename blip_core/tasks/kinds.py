"""The tasks that there are, by `kind` in params.yaml."""

from typing import Any

from blip_core.tasks.caption import CaptionTask
from blip_core.tasks.classify import ClassifyTask
from blip_core.tasks.nlvr import NlvrTask
from blip_core.tasks.retrieval import RetrievalTask
from blip_core.tasks.task import Task
from blip_core.tasks.video_qa import VideoQaTask
from blip_core.tasks.video_retrieval import VideoRetrievalTask
from blip_core.tasks.vqa import VqaTask

KINDS: dict[str, Task[Any]] = {
    "vqa": VqaTask(),
    "classify": ClassifyTask(),
    "nlvr": NlvrTask(),
    "retrieval": RetrievalTask(),
    "caption": CaptionTask(),
    "video_retrieval": VideoRetrievalTask(),
    "video_qa": VideoQaTask(),
}
