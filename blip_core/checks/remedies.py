"""What to do about a check that failed, by its name. Values in backticks are of params.yaml, or commands."""

MORE = "bring more pictures, or lower `{}`; `blip inspect` says what of them is set aside"
NOISE = (
    "look at the texts about the threshold, in the report. Are those just under it right? Then lower `assemble.threshold.{0}`: the "
    "report's tables of thresholds say what each would keep. Are they wrong? Then {1}, and `gate.max_noise.{0}` may rise"
)
JUDGED = (
    "people found the wrong ones: raise `assemble.threshold.{0}`, or give the filter more steps (`tune_filter.optim`); more labels "
    "(`blip review --kept --source {0}`) bring the bound nearer to the estimate"
)
REMEDIES = {
    "noise_web": NOISE.format("web", "the crawl is as noisy as that"),
    "noise_synthetic": NOISE.format("synthetic", "the captioner writes badly: give it more steps (`tune_captioner.optim`)"),
    "noise_fused": NOISE.format("fused", "what fuses them adds what is not there: take another model or prompt in `caption.writers`"),
    "degenerate_share_synthetic": "the captions loop, end too early or are all alike, as their reasons say; change the sampler in "
    "`caption.writers`, or give the captioner more steps (`tune_captioner.optim`)",
    "distinct_share_synthetic": "the captioner says the same of many images: take nucleus sampling in `caption.writers`, or give it more "
    "steps (`tune_captioner.optim`)",
    **dict.fromkeys(
        ("degenerate_share_fused", "distinct_share_fused"),
        "what fuses the texts does not do as it is told, as their reasons say: take another model, prompt or sampler in `caption.writers`",
    ),
    "coverage": "too many images keep no text: lower `assemble.threshold` (the report says what each would keep), or let the "
    "captioner write more for each image (`caption.writers`)",
    "residual_noise_web_upper": "raise `assemble.threshold.web`, so that fewer false pairs pass (the report says how many), "
    "or give the filter more steps (`tune_filter.optim`); more pairs (`score.controls_per_image`), or a person's labels "
    "(`blip review --kept --source web`), bring the bound nearer to the truth",
    **{f"judged_noise_{source}_upper": JUDGED.format(source) for source in ("web", "synthetic", "fused")},
    "controls_true": "half of the val pictures give one for each of their texts, at most `score.controls_per_image`: bring more of them "
    "(`ingest.split`), or lower `gate.min_controls`",
    "controls_false": "each held-out val picture gives some: raise `score.controls_per_image`, or lower `gate.min_controls`",
    "texts_human": "the clean set came to nothing: `blip inspect data/clean` says why",
    "texts_off_rule": "the generation is not what the rule makes of the scores: `dvc repro --force` the stage assemble of the round",
    "images_web": MORE.format("validate.min_images"),
    "images_human": MORE.format("validate.min_images"),
    "images_val": f"{MORE.format('validate.min_heldout_images')}; `ingest.split` deals a clean set anew",
    "images_test": f"{MORE.format('validate.min_heldout_images')}; `ingest.split` deals a clean set anew",
    "duplicate_share_web": "the crawl holds the same files again and again: take copies out, or raise `validate.max_duplicate`",
    "empty_share": "many texts hold no word: see what lies in the crawl with `blip inspect`, or raise `validate.max_empty`",
    "heldout_in_training": "what is held out must not be trained on: take these pictures out of one of the two, and run ingest again",
    "contract": "the tables are not as the stage left them: `dvc repro --force` the stage that makes them",
}
MISSPELT = "there is no such text: mend the value in `gate.slices`, or take it out"
SLICE = "The limits of slices stand in `gate.slices`; those that have too few texts (`gate.min_texts`) count at their worst in the whole"
TABLE = "the tables are not as the stages leave them: `blip contract FOLDER` names the rows; `dvc repro --force` the stage that makes them"


def remedy(check: str) -> str:
    """Of a check of the tables' rows there is one for all: nothing but a fault of a stage, or a hand, breaks them."""
    name, _, slice_ = check.partition("[")
    return f"{REMEDIES.get(name, MISSPELT)}. {SLICE}" if slice_ else REMEDIES.get(name, TABLE)
