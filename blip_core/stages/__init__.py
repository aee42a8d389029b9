"""The stages of the chain. One word each: module here = function = CLI verb = section of params.yaml = stage in dvc.yaml.

A stage is a function from files to files. Inputs are named for what they are, outputs start with `out`. It reads no globals
and knows neither DVC nor Prefect. The modules are imported one at a time, by the verb that needs them.

In: files of earlier stages. Out: files for later ones. Open first: the module named like the stage in dvc.yaml.
"""

STAGES = {
    "ingest": "raw image-text files into immutable shards, generation g0 and a quarantine table",
    "validate": "g0 and the held-out splits keep their contract",
    "pretrain": "train BLIP from scratch on a generation (ITC + ITM + LM)",
    "tune_captioner": "fine-tune a captioner on the clean set (LM)",
    "tune_filter": "fine-tune a filter on the clean set (ITC + ITM)",
    "calibrate": "what the filter's scores mean: P(match), by held-out pairs and what people said",
    "caption": "write synthetic captions for every image of the crawl",
    "score": "score web texts, synthetic captions and planted controls with the filter",
    "assemble": "choose among the scored candidates: the next generation",
    "gate": "let a generation pass to training, or stop",
    "describe": "tell what a round did to the texts: noise by origin, knowledge kept and lost, diversity",
    "evaluate": "retrieval and captioning on the held-out test images, and on val for decide",
    "tune_task": "tune a model for a downstream task",
    "evaluate_task": "measure it there, on held-out examples",
    "decide": "shall another round follow? What the last one brought on the held-out val images",
    "compare": "is the challenger better than the baselines, by paired tests?",
    "register": "a version in the MLflow registry; champion when it is better",
    "register_task": "a version of a task's network, tuned from the registered model",
    "report": "one page and one table of what the chain did",
}
