"""A resumed training equals an unbroken one bit for bit; damaged checkpoints are passed over; a bad loss stops before harm."""

import logging
import math
from itertools import pairwise

import pytest
import torch

from blip_core.compute.work import run_folder
from blip_core.tables.shards import ShardImages
from blip_core.tokenizer.folders import load_tokenizer
from blip_core.training.batches import Batches, Rows, batch_shares
from blip_core.training.loop import backward, fit, learning_rate, parallel, parameter_groups
from blip_core.training.objectives import PretrainObjective
from blip_core.weights.checkpoint import load_checkpoint, load_model, model_hash, new_model, read_checkpoint, save_checkpoint, save_model
from tests.support.trainings import Stopped, Training


@pytest.fixture
def training(ingested, params):
    """A function that trains from scratch in a folder, maybe stopped behind a step, and returns model, objective and history."""

    def train(folder, *, stop_at=None, steps=12):
        cfg = params.pretrain.optim.model_copy(update={"steps": steps})
        table = Rows.of(ingested / "generations/g0", ["human", "web"])
        tokenizer = load_tokenizer(ingested / "tokenizer.json")
        text = params.model.text.model_copy(update={"dropout": 0.1})  # so that forgotten randomness would show
        model = new_model(params.model.model_copy(update={"text": text}), tokenizer, seed=0)
        shares = batch_shares(table, human=0.4, synthetic=0.2)
        batches = Batches(table, ShardImages(ingested / "shards"), tokenizer, shares=shares, cfg=cfg, image_size=48, prompt="", seed=0)
        objective = PretrainObjective(model, params.pretrain.contrast, params.pretrain.language)
        if stop_at is not None:
            batches = Stopped(batches, stop_at)
        history = fit(model, objective, batches, cfg, name="test", folder=folder, seed=0, report=None)
        return model, objective, history

    return train


def equal(a, b) -> bool:
    first, second = a.state_dict(), b.state_dict()
    return first.keys() == second.keys() and all(
        torch.equal(v, second[k]) if isinstance(v, torch.Tensor) else v == second[k] for k, v in first.items()
    )


@pytest.mark.parametrize("stop_at", [3, 7, 11])
def test_a_resumed_run_equals_an_unbroken_one(training, tmp_path, stop_at):
    """Weights, momentum twin, queue, temperature and history, with dropout on; stopped before and behind a checkpoint (every 5 steps)."""
    model, objective, history = training(tmp_path / "whole")
    with pytest.raises(InterruptedError):
        training(tmp_path / "broken", stop_at=stop_at)
    again, objective_again, history_again = training(tmp_path / "broken")
    assert equal(model, again) and equal(objective, objective_again) and history == history_again


def test_a_damaged_checkpoint_is_passed_over(tmp_path, caplog):
    for step in (5, 10):
        save_checkpoint({"step": step, "weights": torch.arange(1000)}, tmp_path, step)
    newest = tmp_path / "step-00000010.pt"
    newest.write_bytes(newest.read_bytes()[:-100])
    assert load_checkpoint(tmp_path)["step"] == 5 and "damaged" in caplog.text
    flipped = bytearray((tmp_path / "step-00000005.pt").read_bytes())
    flipped[len(flipped) // 2] ^= 1
    (tmp_path / "step-00000005.pt").write_bytes(flipped)
    assert load_checkpoint(tmp_path) is None


def test_ctrl_c_while_a_checkpoint_is_written_leaves_no_half_of_it(tmp_path):
    class Interrupting:
        def __reduce__(self):
            raise KeyboardInterrupt

    save_checkpoint({"step": 5}, tmp_path, 5)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint({"step": 10, "weights": torch.zeros(10), "last": Interrupting()}, tmp_path, 10)
    assert load_checkpoint(tmp_path)["step"] == 5
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000005.pt", "step-00000005.sha256"]


def test_a_checkpoint_of_another_model_is_a_clear_error(ingested, tmp_path):
    Training(ingested).fit(tmp_path, stop_at=7)
    with pytest.raises(ValueError, match="step-00000005.pt: other code wrote it.*delete .* to start fresh"):
        Training(ingested, kind="caption").fit(tmp_path)


def test_two_checkpoints_are_kept(tmp_path):
    for step in range(1, 6):
        save_checkpoint({"step": step}, tmp_path, step)
    assert sorted(p.name for p in tmp_path.glob("*.pt")) == ["step-00000004.pt", "step-00000005.pt"]
    assert not list(tmp_path.glob("_tmp*"))


def test_what_decides_the_result_names_the_folder(tmp_path):
    first = run_folder(tmp_path, "pretrain", lr=1e-3, data="abc")
    assert first == run_folder(tmp_path, "pretrain", data="abc", lr=1e-3)
    assert first != run_folder(tmp_path, "pretrain", lr=1e-3, data="abd") != run_folder(tmp_path, "pretrain", lr=2e-3, data="abc")


def test_a_changed_setting_or_input_starts_fresh_and_says_what_changed(tmp_path, caplog):
    """Settings that decide no number change nothing: `health: stop` may become `warn` and the training goes on."""
    caplog.set_level(logging.INFO)
    optim = {"lr": 0.1, "health": "stop", "workers": 0, "checkpoint_every": 5, "timeout": 60}
    first = run_folder(tmp_path, "pretrain-g0", cfg={"optim": optim}, data="abc")
    indifferent = {**optim, "health": "warn", "workers": 2, "checkpoint_every": 7, "timeout": 9}
    assert first == run_folder(tmp_path, "pretrain-g0", cfg={"optim": indifferent}, data="abc")
    run_folder(tmp_path, "pretrain-g1", cfg={"optim": optim}, data="xyz")
    assert not caplog.text
    assert first != run_folder(tmp_path, "pretrain-g0", cfg={"optim": {**optim, "lr": 0.2}}, data="abd")
    (line,) = caplog.messages
    assert line.startswith("pretrain-g0: config or input changed (cfg.optim.lr 0.1 -> 0.2, data abc -> abd): starting fresh")
    assert str(first) in line


def test_fresh_and_resumed_are_said(ingested, tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="blip_core")
    Training(ingested).fit(tmp_path, stop_at=7)
    assert "starting fresh" in caplog.text and "resumed at" not in caplog.text
    Training(ingested).fit(tmp_path)
    assert f"resumed at step 5 from {tmp_path / 'step-00000005.pt'}" in caplog.text


def test_a_loss_that_is_not_finite_stops_before_the_optimizer_moves(training, tmp_path, monkeypatch):
    seen = {}

    def spoilt(self, model, batch):
        seen["weights"] = [p.detach().clone() for p in model.parameters()]
        seen["model"] = model
        return {"itc": next(model.parameters()).sum() * float("nan")}

    monkeypatch.setattr(PretrainObjective, "forward", spoilt)
    with pytest.raises(FloatingPointError, match="step 0.*itc nan.*Images of the batch: (web|train)-") as e:
        training(tmp_path)
    assert len(str(e.value).split("Images of the batch: ")[1].split()) == 16
    assert all(torch.equal(a, b) for a, b in zip(seen["weights"], seen["model"].parameters(), strict=True))


def test_a_gradient_that_is_not_finite_stops_too(training, tmp_path, monkeypatch):
    """A finite loss whose derivative is not: sqrt at 0. Clipping would spread it to all weights."""
    seen = {}

    def spoilt(self, model, batch):
        seen["weights"], seen["model"] = [p.detach().clone() for p in model.parameters()], model
        return {"itc": (model.match_head.bias * 0).sum().sqrt() + 0 * model.vit.cls.sum()}

    monkeypatch.setattr(PretrainObjective, "forward", spoilt)
    with pytest.raises(FloatingPointError, match=r"step 0: not finite: gradient norm nan \(itc 0\)"):
        training(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(seen["weights"], seen["model"].parameters(), strict=True))


def largest_difference(a: dict, b: dict) -> float:
    assert a.keys() == b.keys()
    return max(float((a[k] - b[k]).detach().abs().max()) for k in a)


def test_lm_in_micro_batches_equals_one_batch(ingested):
    """Loss and gradients, though the micro-batches hold unequally many tokens: a plain mean of their means differs."""
    whole, parts = (Training(ingested, kind="caption", accumulate=n).gradients(1)["steps"][0] for n in (1, 4))
    assert parts["losses"]["lm"] == pytest.approx(whole["losses"]["lm"], abs=1e-5)
    assert largest_difference(parts["gradients"], whole["gradients"]) < 1e-5
    one, four = (Training(ingested, accumulate=n).gradients(1)["steps"][0]["losses"]["lm"] for n in (1, 4))
    assert four == pytest.approx(one, abs=1e-5)  # among other losses too
    training = Training(ingested, kind="caption", accumulate=4)
    stepper = parallel(training.model, training.objective)
    means = [float(stepper(training.batches[i])["lm"].detach()) for i in range(4)]
    assert sum(means) / 4 != pytest.approx(whole["losses"]["lm"], abs=1e-4)


def test_itm_and_itc_in_micro_batches_are_means_over_them_with_one_queue_and_one_twin(ingested):
    """What is the same as in one batch: queue and twin behind the step. What is not: negatives come from the micro-batch."""
    whole, parts = Training(ingested), Training(ingested, accumulate=2)
    for training in (whole, parts):
        with torch.no_grad():
            for parameter in training.objective.contrast.twin.parameters():
                parameter.mul_(0.9)  # so that moving it twice would show
    seen_whole, seen = whole.gradients(1), parts.gradients(1)
    for key, queue in seen["queue"].items():
        torch.testing.assert_close(queue, seen_whole["queue"][key], atol=1e-5, rtol=0)
    twins = [dict(t.objective.contrast.twin.named_parameters()) for t in (whole, parts)]
    moved = {k: (0.9 + (1 - whole.objective.contrast.cfg.momentum) * 0.1) * v for k, v in whole.model.named_parameters() if k in twins[0]}
    assert largest_difference(*twins) == 0 and largest_difference(twins[0], moved) < 1e-5
    assert parts.objective.vitals(parts.batches[1])["itc_chance"] == pytest.approx(math.log(16))  # the last saw the whole batch
    fresh = Training(ingested, accumulate=2)
    fresh.objective.contrast.twin.load_state_dict(parts.objective.contrast.twin.state_dict())
    stepper = parallel(fresh.model, fresh.objective)
    halves = [{k: float(v.detach()) for k, v in stepper(fresh.batches[i]).items()} for i in range(2)]
    for name in ("itc", "itm"):
        assert seen["steps"][0]["losses"][name] == pytest.approx((halves[0][name] + halves[1][name]) / 2, abs=1e-5)
        assert halves[0][name] != halves[1][name]


@pytest.mark.parametrize("accumulate", [1, 4])
def test_the_twin_moves_once_in_a_step(ingested, tmp_path, accumulate):
    """Step 0 finds it equal to the model; step 1 takes it (1 - momentum) of the way to the model of then."""
    training = Training(ingested, accumulate=accumulate, checkpoint_every=1, lr=1e-2)
    before = {k: v.detach().clone() for k, v in training.objective.contrast.twin.named_parameters()}
    training.fit(tmp_path, stop_at=2)
    then = read_checkpoint(tmp_path / "step-00000001.pt")["model"]
    expected = {k: v + (1 - training.objective.contrast.cfg.momentum) * (then[k] - v) for k, v in before.items()}
    assert largest_difference(dict(training.objective.contrast.twin.named_parameters()), expected) < 1e-6
    assert largest_difference(before, expected) > 1e-4


def test_a_resumed_run_in_micro_batches_equals_an_unbroken_one(ingested, tmp_path):
    whole = Training(ingested, accumulate=4).fit(tmp_path / "whole")
    Training(ingested, accumulate=4).fit(tmp_path / "broken", stop_at=7)
    again = Training(ingested, accumulate=4).fit(tmp_path / "broken")
    assert whole["history"] == again["history"] and all(torch.equal(v, again["model"][k]) for k, v in whole["model"].items())


def test_recomputing_the_last_blocks_changes_no_gradient(ingested, params):
    """With stochastic depth, whose draws must repeat; the blocks run twice, the twin's never."""
    seen = []
    for recompute in (0, 2, 9):
        training = Training(ingested)
        cfg = params.model.vision.model_copy(update={"depth": 3, "drop_path": 0.5})
        training.model = new_model(params.model.model_copy(update={"vision": cfg}), training.batches.tokenizer, seed=0)
        training.objective = PretrainObjective(training.model, params.pretrain.contrast, params.pretrain.language)
        stepper, runs = parallel(training.model, training.objective, recompute=recompute), [0, 0]
        training.model.vit.blocks[1].register_forward_pre_hook(lambda *_, runs=runs: runs.__setitem__(0, runs[0] + 1))
        training.objective.contrast.twin.vit.blocks[1].register_forward_pre_hook(lambda *_, runs=runs: runs.__setitem__(1, runs[1] + 1))
        torch.manual_seed(0)
        backward(stepper, [training.batches[0]], precision="fp32")
        seen.append({n: p.grad for n, p in training.model.named_parameters()})
        assert runs == [2 if recompute else 1, 1]
    assert largest_difference(seen[0], seen[1]) == largest_difference(seen[0], seen[2]) == 0


def test_the_rate_falls_in_steps_counted_from_the_end_of_the_warm_up(params):
    """The paper's 0.85 per epoch, and a warm-up longer than an epoch, which the public code would cut."""
    changes = {"steps": 1000, "lr": 1.0, "min_lr": 0.3, "warmup": 0.3, "schedule": "step", "decay_rate": 0.85, "decay_every": 100}
    cfg = params.pretrain.optim.model_copy(update=changes)
    rates = [learning_rate(s, cfg) for s in range(1000)]
    assert rates[:300] == pytest.approx([(s + 1) / 300 for s in range(300)])
    assert [rates[s] for s in (300, 399, 400, 499, 500, 999)] == pytest.approx([1, 1, 0.85, 0.85, 0.85**2, 0.85**6])
    low = cfg.model_copy(update={"min_lr": 0.8})
    assert learning_rate(999, low) == 0.8 and learning_rate(400, low) == 0.85


def test_the_rate_warms_up_then_falls_by_cosine(params):
    cfg = params.pretrain.optim.model_copy(update={"steps": 1000, "lr": 1.0, "min_lr": 0.1, "warmup": 0.1})
    rates = [learning_rate(s, cfg) for s in range(1000)]
    assert rates[0] == pytest.approx(0.01) and max(rates) == pytest.approx(1.0) and rates[99] == pytest.approx(1.0)
    assert rates[550] == pytest.approx(0.55) and rates[-1] == pytest.approx(0.1, abs=1e-4)
    assert all(a >= b for a, b in pairwise(rates[100:]))


def test_norms_biases_positions_and_temperature_do_not_decay(model, params):
    objective = PretrainObjective(model, params.pretrain.contrast, None)
    decayed, plain = parameter_groups(model, objective, 0.05)
    names = {id(p): n for n, p in [*model.named_parameters(), *objective.named_parameters()]}
    assert {names[id(p)].rsplit(".", 1)[-1] for p in decayed["params"]} == {"weight"}
    assert not any("norm" in names[id(p)] for p in decayed["params"])
    assert {"vit.positions", "vit.cls", "contrast.temperature", "med.head_bias"} <= {names[id(p)] for p in plain["params"]}
    trained = [p for p in [*model.parameters(), *objective.parameters()] if p.requires_grad]
    assert len(decayed["params"]) + len(plain["params"]) == len(trained)


def test_a_model_folder_gives_the_model_back(model, tokenizer, tmp_path):
    save_model(model, tokenizer, tmp_path / "m", prompt="a picture of ", max_tokens=20)
    again, vocabulary = load_model(tmp_path / "m")
    assert equal(model, again) and vocabulary.vocab == tokenizer.vocab and not again.training
    first = model_hash(tmp_path / "m")
    with torch.no_grad():
        model.match_head.bias.add_(1e-3)
    save_model(model, tokenizer, tmp_path / "m", prompt="a picture of ", max_tokens=20)
    assert model_hash(tmp_path / "m") != first


def test_a_truncated_model_is_a_clear_error(model, tokenizer, tmp_path):
    save_model(model, tokenizer, tmp_path / "m", prompt="", max_tokens=20)
    weights = tmp_path / "m/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(ValueError, match="model.safetensors: does not load"):
        load_model(tmp_path / "m")
    with pytest.raises(ValueError, match="no config.json, so this is no model folder"):
        load_model(tmp_path)
