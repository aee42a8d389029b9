"""A resumed training equals an unbroken one bit for bit; damaged checkpoints are passed over; a bad loss stops before harm."""

import pytest
import torch

from blip_core.checkpoint import load_checkpoint, load_model, model_hash, new_model, save_checkpoint, save_model
from blip_core.data import Batches, Rows, batch_shares
from blip_core.objectives import PretrainObjective
from blip_core.shards import ShardImages
from blip_core.tokenizer import Tokenizer
from blip_core.train import fit, learning_rate, parameter_groups, run_folder


@pytest.fixture
def training(ingested, params):
    """A function that trains from scratch in a folder, maybe stopped behind a step, and returns model, objective and history."""

    def train(folder, *, stop_at=None, steps=12):
        cfg = params.pretrain.optim.model_copy(update={"steps": steps})
        table = Rows.of(ingested / "generations/g0", ["human", "web"])
        tokenizer = Tokenizer.load(ingested / "vocab.txt")
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


class Stopped:
    """Batches that end in an exception, as a killed process would."""

    def __init__(self, batches: Batches, step: int):
        self.batches, self.step = batches, step

    def loader(self, start: int):
        for batch in self.batches.loader(start):
            if batch.step == self.step:
                raise InterruptedError
            yield batch


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


def test_two_checkpoints_are_kept(tmp_path):
    for step in range(1, 6):
        save_checkpoint({"step": step}, tmp_path, step)
    assert sorted(p.name for p in tmp_path.glob("*.pt")) == ["step-00000004.pt", "step-00000005.pt"]
    assert not list(tmp_path.glob("_tmp*"))


def test_what_decides_the_result_names_the_folder(tmp_path):
    first = run_folder(tmp_path, "pretrain", lr=1e-3, data="abc")
    assert first == run_folder(tmp_path, "pretrain", data="abc", lr=1e-3)
    assert first != run_folder(tmp_path, "pretrain", lr=1e-3, data="abd") != run_folder(tmp_path, "pretrain", lr=2e-3, data="abc")


def test_a_loss_that_is_not_finite_stops_before_the_optimizer_moves(training, tmp_path, monkeypatch):
    seen = {}

    def spoilt(self, model, batch):
        seen["weights"] = [p.detach().clone() for p in model.parameters()]
        seen["model"] = model
        return {"itc": next(model.parameters()).sum() * float("nan")}

    monkeypatch.setattr(PretrainObjective, "forward", spoilt)
    with pytest.raises(FloatingPointError, match="step 0.*itc nan"):
        training(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(seen["weights"], seen["model"].parameters(), strict=True))


def test_the_rate_warms_up_then_falls_by_cosine(params):
    cfg = params.pretrain.optim.model_copy(update={"steps": 1000, "lr": 1.0, "min_lr": 0.1, "warmup": 0.1})
    rates = [learning_rate(s, cfg) for s in range(1000)]
    assert rates[0] == pytest.approx(0.01) and max(rates) == pytest.approx(1.0) and rates[99] == pytest.approx(1.0)
    assert rates[550] == pytest.approx(0.55) and rates[-1] == pytest.approx(0.1, abs=1e-4)
    assert all(a >= b for a, b in zip(rates[100:], rates[101:], strict=False))


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
