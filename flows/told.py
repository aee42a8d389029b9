"""A failure is told once in a run's log: by the flow, at its end. The states of the stage and of the run have it too."""

import logging
import re

from prefect import get_run_logger
from prefect.client.schemas.objects import State
from prefect.exceptions import FailedRun
from prefect.states import Failed

NOT_RUN = "NotRun"  # of a stage that waited for one that did not come to its end
_FAILED = re.compile(r"(Finished in state \w+)\(.*type=FAILED.*|(Finished in state Failed)\(.*", re.DOTALL)


def tell_once() -> None:
    """At a flow's beginning: leave out what Prefect says again of a failure, its message with each state, and a traceback of a flow that
    ended as it meant to."""
    for name in ("prefect.flow_runs", "prefect.task_runs"):
        logging.getLogger(name).addFilter(_once)


def told(state: State) -> State:
    """At its end: the failure, if it is one."""
    if state.is_failed():
        get_run_logger().error(state.message)
    return state


def not_run(missing: list[str]) -> State:
    """Of the type Failed, which alone lets Prefect come to the stages behind it: they tell the same, by name."""
    return Failed(name=NOT_RUN, message=f"waited for {', '.join(missing)}, which did not come to its end")


def _once(record: logging.LogRecord) -> bool:
    message = record.getMessage()
    if message.startswith(f"Finished in state {NOT_RUN}"):
        return False
    if record.exc_info and isinstance(record.exc_info[1], FailedRun):
        return False
    if found := _FAILED.fullmatch(message):
        record.msg, record.args = found[1] or found[2], ()
    return True
