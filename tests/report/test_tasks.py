"""The table of tasks: a row for each metric, a column for each model, slices below."""

from blip_core.files.content import write_json
from blip_core.report.page import as_text
from blip_core.report.tasks import read_tasks, tasks_section
from blip_core.tables.stopped import write_stopped
from tests.support.small import small_params

TASKS = {
    "asked": {"kind": "vqa", "optim": {"steps": 6, "batch_size": 8}, "measure": {"slices": ["type"]}},
    "shapes": {"kind": "classify"},
}


def measured(name: str, value: float, **further) -> dict:
    values = {name: value, f"{name}_low": value - 0.1, f"{name}_high": value + 0.1}
    return {"examples": 1200, "set_aside": 0, "of": "x", "draws": {name: [value]}, **values, **further}


def test_models_stand_side_by_side_with_intervals_and_slices_below(tmp_path):
    params = small_params(tasks=TASKS)
    sliced = {"accuracy[type=count]": 0.25, "accuracy[type=count]_low": 0.2, "accuracy[type=count]_high": 0.3}
    folder = tmp_path / "metrics/models"
    for model, value in (("g0", 0.5), ("human", 0.625)):
        more = sliced | {"accuracy[type=count]_examples": 7, "set_aside": 3}
        write_json(measured("accuracy", value, **more), folder / model / "task-asked.json")
    write_json(measured("top1", 0.75), folder / "human/task-shapes.json")
    write_stopped("no gain", folder / "g1/task-asked.json")
    text = as_text("t", [tasks_section(read_tasks(tmp_path, params), params)])
    rows = [line.split() for line in text.splitlines()]
    assert ["task", "metric", "examples", "g0", "human"] in rows and ["asked", "accuracy", "1,200", "50.0%", "62.5%"] in rows
    assert ["shapes", "top1", "1,200", "n/a", "75.0%"] in rows and ["[40.0,", "60.0]", "[52.5,", "72.5]"] in rows
    assert ["asked", "accuracy[type=count]", "7", "25.0%", "25.0%"] in rows
    text = " ".join(text.split())
    assert "Asked is of kind vqa; shapes is of kind classify." in text and "3 examples of asked could not be used." in text
