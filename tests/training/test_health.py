"""Each alarm sounds on a history that has its illness, none on that of a training that learned; and what follows from one."""

import math

import numpy as np
import pytest
import torch

from blip_core.compute.distributed import device
from blip_core.config.training import LanguageConfig, OptimConfig
from blip_core.training.contrast import mean_cosine
from blip_core.training.health import ITM_CHANCE, Health, alarms, window_rows
from blip_core.training.loop import fit
from blip_core.training.objectives import CaptionObjective, PretrainObjective, word_entropy
from blip_core.weights.checkpoint import new_model
from tests.training.test_objectives import batch_of, contrast_cfg

BOUNDS = {"temperature": (0.01, 0.5)}
STEPS = 120


class SixPairs:
    """The same six pairs at every step: few enough to be learned by heart in seconds."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer

    def loader(self, start: int):
        for step in range(start, STEPS):
            yield batch_of(self.tokenizer, step=step, progress=step / STEPS)


@pytest.fixture(scope="module")
def cfg(params) -> OptimConfig:
    changes = {"steps": STEPS, "batch_size": 6, "lr": 3e-3, "log_every": 2, "checkpoint_every": 50, "health": "stop"}
    return params.pretrain.optim.model_copy(update=changes)


def train(model, objective, tokenizer, cfg, folder, report=None) -> list[dict[str, float]]:
    return fit(model, objective, SixPairs(tokenizer), cfg, name="test", folder=folder, seed=0, report=report)


@pytest.fixture(scope="module")
def good(model_cfg, tokenizer, cfg, tmp_path_factory) -> list[dict[str, float]]:
    """The history of a training that learned; `health: stop` would have ended it."""
    model = new_model(model_cfg, tokenizer, seed=0)
    objective = PretrainObjective(model, contrast_cfg(queue_size=12, hardness_ramp=1.0), LanguageConfig(label_smoothing=0.1, prompt=""))
    return train(model, objective, tokenizer, cfg, tmp_path_factory.mktemp("good"))


def names(history: list[dict[str, float]], *, warmup: int = 12, window: int = 10) -> set[str]:
    return {a.name for a in alarms(history, steps=STEPS, warmup=warmup, window=window, bounds=BOUNDS)}


def ill(history: list[dict[str, float]], **columns) -> list[dict[str, float]]:
    """The history with some columns replaced by functions of the row's number."""
    return [{**row, **{k: f(i) for k, f in columns.items()}} for i, row in enumerate(history)]


def test_a_training_that_learns_is_never_alarming(good, cfg):
    """At none of its rows, and its losses did fall."""
    assert all(not names(good[:end]) for end in range(1, len(good) + 1))
    assert good[-1]["itm"] < 0.5 and good[-1]["itc"] < 0.7 * good[-1]["itc_chance"] and good[-1]["lm"] < 0.7 * good[-1]["lm_chance"]


def noise(i: int) -> float:
    return 0.01 * math.sin(7 * i)


@pytest.mark.parametrize(
    "name,columns",
    [
        ("itm", {"itm": lambda i: 0.6365 + 0.3 * noise(i)}),
        ("itc", {"itc": lambda i: math.log(18) + noise(i), "itc_chance": lambda i: math.log(18)}),
        ("lm", {"lm": lambda i: 2.5 + 2 * 0.7**i + noise(i), "lm_chance": lambda i: 2.45}),
        ("lm_not_falling", {"lm": lambda i: 1.7 + noise(i)}),
        ("ncd", {"ncd": lambda i: math.log(2) + 0.3 * noise(i), "ncd_chance": lambda i: math.log(2)}),
        ("distil_lm_not_falling", {"distil_lm": lambda i: 0.8 + noise(i)}),
        ("temperature", {"temperature": lambda i: max(0.01, 0.07 - 0.005 * i)}),
        ("temperature", {"temperature": lambda i: min(0.5, 0.07 + 0.02 * i)}),
        ("image_collapse", {"image_cosine": lambda i: 0.999}),
        ("text_collapse", {"text_cosine": lambda i: 1.0}),
    ],
)
def test_an_illness_sounds_its_alarm_and_no_other(good, name, columns):
    assert names(ill(good, **columns)) == {name}


def test_what_passes_is_no_illness(good):
    """A bad start, in or shortly behind the warm-up; a last row by chance; a temperature that touches its bound now and then."""
    assert not names(ill(good, itm=lambda i: 0.6365 if i < 12 else 0.4, image_cosine=lambda i: 0.999 if i < 12 else 0.3))
    assert not names(ill(good, itm=lambda i: 0.6365 if i > 58 else 0.4))
    assert not names(ill(good, temperature=lambda i: 0.01 if i % 2 else 0.02))
    assert not names(ill(good[:15], itm=lambda i: 0.6365))


def test_the_chance_levels_are_what_knowing_nothing_costs(model, tokenizer):
    """Equal logits give them: ITM with one true pair in three, ITC over all candidates, LM by word frequencies."""
    logits, labels = torch.log(torch.tensor([2 / 3, 1 / 3])).expand(3, 2), torch.tensor([1, 0, 0])
    assert ITM_CHANCE == pytest.approx(float(torch.nn.functional.cross_entropy(logits, labels)))
    objective = PretrainObjective(model, contrast_cfg(queue_size=12, alpha=0.0), None)
    batch = batch_of(tokenizer)
    with torch.no_grad():
        objective.contrast.temperature.fill_(1e6)  # all similarities alike
    for candidates in (6, 12, 18):
        new = range(candidates, candidates + 6)
        losses = objective(model, batch_of(tokenizer, images=list(new), texts=[f"a {'ball ' * i}" for i in new]))
        assert float(losses["itc"].detach()) == pytest.approx(math.log(candidates), abs=1e-4)
        assert objective.vitals(batch)["itc_chance"] == pytest.approx(math.log(candidates))
    counts = torch.unique(torch.cat([row[mask][1:] for row, mask in zip(batch.ids, batch.mask, strict=True)]), return_counts=True)[1]
    share = counts / counts.sum()
    assert word_entropy(batch) == pytest.approx(-float((share * share.log()).sum()), abs=1e-5)


def test_mean_cosine_leaves_out_a_row_with_itself():
    features = torch.nn.functional.normalize(torch.randn(7, 5, generator=torch.Generator().manual_seed(0)), dim=-1)
    cosines = features @ features.T
    assert mean_cosine(features) == pytest.approx(float(cosines[~torch.eye(7, dtype=torch.bool)].mean()), abs=1e-6)
    assert mean_cosine(features[:1].expand(9, -1)) == pytest.approx(1.0, abs=1e-5)


def synthetic(rows: int, log_every: int = 10, *, sigma: float, seed: int, **losses) -> list[dict[str, float]]:
    """A history of so many rows: each loss as a function of the share of the training that is done, with noise."""
    draw, done = np.random.default_rng(seed), np.arange(1, rows + 1) / rows
    columns = {name: loss(done) + draw.normal(0, 0 if name.endswith("_chance") else sigma, rows) for name, loss in losses.items()}
    return [{"step": (i + 1) * log_every, **{name: float(values[i]) for name, values in columns.items()}} for i in range(rows)]


def sounded(history: list[dict[str, float]], cfg: OptimConfig) -> dict[str, float]:
    """Each alarm of a training, looked for at every row, with the share of the training that was done."""
    steps, found = int(history[-1]["step"]), {}
    cfg = cfg.model_copy(update={"steps": steps, "log_every": int(history[0]["step"])})
    for end in range(1, len(history) + 1):
        options = {"steps": steps, "warmup": round(cfg.warmup * steps), "window": window_rows(cfg), "bounds": {}}
        for alarm in alarms(history[:end], **options):
            found.setdefault(alarm.name, end / len(history))
    return found


@pytest.mark.parametrize("rows", [16, 32, 60, 200])
@pytest.mark.parametrize("sigma", [0.003, 0.03, 0.1, 0.3])
@pytest.mark.parametrize(
    "falling",
    [
        lambda t: 5.45 - 2.4 * t,
        lambda t: 5.45 - 1.0 * t,
        lambda t: 5.45 - 0.6 * t,
        lambda t: np.where(t < 0.44, 5.45 - 1.02 * t / 0.44, 4.43 - 1.5 * (t - 0.44)),
    ],
    ids=["fast", "slowly", "very slowly", "as it was seen"],
)
def test_a_loss_that_falls_however_slowly_in_whatever_noise_never_rests(cfg, rows, sigma, falling):
    """All of it above the loss of knowing word frequencies alone."""
    for seed in range(8):
        history = synthetic(rows, sigma=sigma, seed=seed, lm=falling, lm_chance=lambda t: 2.0 + 0 * t)
        assert not sounded(history, cfg), (seed, history[-1])


@pytest.mark.parametrize("rows,sigma,latest", [(32, 0.01, 0.5), (32, 0.03, 0.8), (60, 0.03, 0.7), (200, 0.03, 0.45), (400, 0.1, 0.7)])
@pytest.mark.parametrize("resting", [lambda t: 5.2 + 0 * t, lambda t: 5.2 + 3 * np.exp(-60 * t)], ids=["at once", "after a fall"])
def test_a_loss_that_rests_is_told_in_time_the_later_the_noisier(cfg, rows, sigma, latest, resting):
    for seed in range(8):
        history = synthetic(rows, sigma=sigma, seed=seed, lm=resting, lm_chance=lambda t: 5.18 + 0 * t)
        assert sounded(history, cfg).get("lm", 1.0) <= latest, seed


def test_matching_that_rests_at_its_chance_is_told_and_one_that_leaves_it_slowly_is_not(cfg):
    for seed in range(12):
        assert sounded(synthetic(60, sigma=0.002, seed=seed, itm=lambda t: ITM_CHANCE + 0 * t), cfg)["itm"] <= 0.4
        assert not sounded(synthetic(60, sigma=0.02, seed=seed, itm=lambda t: ITM_CHANCE + 0.05 - 0.1 * t), cfg)


def test_collapsed_features_are_told_early_and_what_to_look_at(cfg):
    """A sixth of the training at the latest, of few rows as of many; but not while they part."""
    apart, alike = lambda t: 0.5 + 0 * t, lambda t: 0.995 + 0 * t
    for rows in (32, 60, 400):
        for name, other in (("text", "image"), ("image", "text")):
            history = synthetic(rows, sigma=1e-4, seed=rows, **{f"{name}_cosine": alike, f"{other}_cosine": apart})
            assert sounded(history, cfg) == {f"{name}_collapse": pytest.approx(0.14, abs=0.06)}
    parting = synthetic(32, sigma=1e-4, seed=0, image_cosine=lambda t: 0.5 + 0.5 * np.exp(-0.3 * t), text_cosine=apart)
    assert not sounded(parting, cfg)
    parted = [{**row, "image_cosine": 0.5} for row in history[:1]]
    (alarm,) = alarms(parted + history[1:60], steps=4000, warmup=400, window=40, bounds={})
    assert "image features have collapsed" in alarm.message and "queue_size and momentum" in alarm.message


def test_features_that_do_not_part_in_the_first_tenth_are_told_at_its_end_with_the_value_to_change(cfg):
    apart, alike = lambda t: 0.5 + 0 * t, lambda t: 0.999 + 0 * t
    drawn = dict(image_cosine=lambda t: 0.999 - 0.4 * np.exp(-200 * t), text_cosine=apart)
    nothing, costly = (lambda t: 4.85 + 0 * t), (lambda t: 4.85 + np.exp(-200 * t))
    for columns, itc, name, value in (
        (dict(image_cosine=apart, text_cosine=alike), nothing, "text", "model.init.weight"),
        (drawn, costly, "image", "contrast.temperature"),
        (drawn, lambda t: 4.6 - t, "image", "contrast.queue_size to 0"),
    ):
        history = synthetic(100, sigma=1e-4, seed=0, **columns, itc=itc, itc_chance=nothing)
        assert sounded(history, cfg)[f"{name}_collapse"] == 0.1
        (alarm,) = alarms(history[:10], steps=1000, warmup=100, window=10, bounds={})
        assert value in alarm.message


class Run:
    """What a tracked run offers: a `log` to call and a `tag` beside it."""

    def __init__(self):
        self.metrics, self.tags = [], {}

    def log(self, metrics, step=None):
        self.metrics.append((step, metrics))

    def tag(self, key, value):
        self.tags[key] = value


def test_a_real_training_that_learns_nothing_is_told_once_to_log_metrics_and_tag(model, tokenizer, cfg, tmp_path, caplog):
    """A learning rate of nothing: LM does not fall."""
    run = Run()
    cfg = cfg.model_copy(update={"lr": 1e-12, "min_lr": 0.0, "health": "warn"})
    train(model, CaptionObjective(LanguageConfig(label_smoothing=0.1, prompt="")), tokenizer, cfg, tmp_path, run.log)
    assert caplog.text.count("LM does not fall") == 1
    assert [(step, m) for step, m in run.metrics if "alarm_lm_not_falling" in m] == [(32, {"alarm_lm_not_falling": 1.0})]
    assert run.tags["alarm_lm_not_falling"].startswith("step 32: LM does not fall")


def test_a_training_that_goes_on_tells_its_alarms_to_the_new_run_but_counts_none_twice(model, tokenizer, cfg, tmp_path, caplog):
    cfg = cfg.model_copy(update={"lr": 1e-12, "min_lr": 0.0, "health": "warn"})
    runs = [Run(), Run()]
    for run in runs:  # the second from the checkpoint of step 100
        train(model, CaptionObjective(LanguageConfig(label_smoothing=0.1, prompt="")), tokenizer, cfg, tmp_path, run.log)
    assert min(step for step, _ in runs[1].metrics) == 102 and not any("alarm_lm_not_falling" in m for _, m in runs[1].metrics)
    assert runs[1].tags == runs[0].tags and caplog.text.count("step 32: LM does not fall") == 2


def test_health_stop_ends_the_training_and_off_says_nothing(model, tokenizer, cfg, tmp_path, caplog):
    objective = CaptionObjective(LanguageConfig(label_smoothing=0.1, prompt=""))
    still = cfg.model_copy(update={"lr": 1e-12, "min_lr": 0.0})
    with pytest.raises(ValueError, match="step 32: .*health: stop"):
        train(model, objective, tokenizer, still, tmp_path / "stop")
    train(model, objective, tokenizer, still.model_copy(update={"health": "off"}), tmp_path / "off", (run := Run()).log)
    assert "LM" not in caplog.text and len(run.metrics) == 60 and not run.tags


def test_an_alarm_needs_a_tenth_of_the_training_but_no_more_than_100_rows(cfg):
    def rows(steps: int, log_every: int) -> int:
        return window_rows(cfg.model_copy(update={"steps": steps, "log_every": log_every}))

    assert (rows(500, 10), rows(20_000, 50), rows(300_000, 50)) == (10, 40, 100)
    assert Health(cfg, {}, None, []).warmup == 12 and device().type in ("cpu", "cuda")
