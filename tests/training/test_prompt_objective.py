"""Stage 2 of BLIP-2: what a frozen language model of any kind teaches its soft prompt."""

import pytest
import torch

from blip_core.config.training import LanguageConfig
from blip_core.model.blip2 import Prompter
from blip_core.training.loop import backward, make_optimizer, parallel
from blip_core.training.prompt_objective import PromptBatch, PromptObjective, cut_words
from blip_core.weights.language import load_language
from tests.support.blip2s import LANGUAGE, language_folder
from tests.support.plain_qformer import tiny_qformer
from tests.support.small import small_params

TEXTS = ["a red ball on the grass", "a star", "there is a green box"]


@pytest.fixture(params=LANGUAGE)
def said(request, tmp_path):
    return load_language(language_folder(request.param, tmp_path), precision="fp32")


def batch_of(said, start: str, texts=TEXTS) -> PromptBatch:
    words = said.words([start] * len(texts), texts, max_tokens=20)
    features = torch.randn(len(texts), 7, 20, generator=torch.Generator().manual_seed(0))
    return PromptBatch(features=features, **vars(words), step=0, progress=0.0, seed=0)


def prompter(tokenizer, said) -> Prompter:
    torch.manual_seed(0)
    return Prompter(tiny_qformer(tokenizer), said.width)


@pytest.mark.parametrize("start", ["", "a photo of "])
def test_the_loss_is_that_of_each_text_alone_behind_its_soft_prompt(said, start, tokenizer):
    """Each token of the text and its end, none of the prompt; by the model's own words, one text at a time."""
    model, batch = prompter(tokenizer, said), batch_of(said, start)
    found = PromptObjective(said, LanguageConfig(label_smoothing=0.1, prompt=start))(model, batch)
    logs, embed = [], said.model.get_input_embeddings()
    for soft, text in zip(model(batch.features), TEXTS, strict=True):
        own = said.tokenizer(f"{start}{text}" if not said.reads else text, add_special_tokens=False)["input_ids"] + [said.end]
        given = len(said.tokenizer(start.strip(), add_special_tokens=False)["input_ids"])
        if said.reads:
            read = torch.cat([soft, embed(torch.tensor(said.tokenizer(start.strip())["input_ids"], dtype=torch.long))])[None]
            written = torch.tensor([[said.model.config.decoder_start_token_id, *own[:-1]]])
            rows, own = said.model(inputs_embeds=read, decoder_input_ids=written).logits[0], torch.tensor(own)
        else:
            rows = said.model(inputs_embeds=torch.cat([soft, embed(torch.tensor(own))])[None]).logits[0, len(soft) - 1 + given : -1]
            own = torch.tensor(own[given:])
        logs += [0.9 * row[token] + 0.1 * row.mean() for row, token in zip(rows.log_softmax(-1), own, strict=True)]
    torch.testing.assert_close(found["lm"], -torch.stack(logs).mean(), atol=1e-5, rtol=1e-5)


def test_a_step_moves_the_queries_half_and_the_projection_alone(said, tokenizer):
    """The loss falls; the language model has neither gradient nor place in what is saved."""
    model, batch = prompter(tokenizer, said), batch_of(said, "")
    objective = PromptObjective(said, LanguageConfig(label_smoothing=0.0, prompt=""))
    optimizer = make_optimizer(model, objective, small_params().pretrain.optim.model_copy(update={"lr": 0.01}))
    before = {name: value.clone() for name, value in said.model.state_dict().items()}
    losses = []
    for _ in range(5):
        optimizer.zero_grad()
        losses.append(float(backward(parallel(model, objective), [batch], precision="fp32")["lm"]))
        assert all(p.grad is not None for p in model.parameters())
        optimizer.step()
    assert losses[-1] < losses[0] - 0.1
    assert all(torch.equal(value, before[name]) for name, value in said.model.state_dict().items())
    assert not objective.state_dict() and not any(p.grad is not None or p.requires_grad for p in said.model.parameters())


def test_an_end_that_is_also_the_padding_is_learned_once_a_text(tmp_path):
    """Many decoders pad with their end: what hides it by its id, learns no end at all."""
    said = load_language(language_folder("llama", tmp_path), precision="fp32")
    said.tokenizer.pad_token = said.tokenizer.eos_token
    words = said.words(["", "", ""], TEXTS, max_tokens=20)
    assert (words.targets == said.end).sum(1).tolist() == [1, 1, 1] and (words.ids == said.end).sum(1).max() > 1
    assert said.words([""], ["a ball " * 40], max_tokens=10).ids[0, -1] == said.end, "a text that is cut ends as well"
    line = load_language(tmp_path, precision="fp32", end="\n")
    assert line.tokenizer.decode(line.words([""], ["a"], max_tokens=9).ids[0]).endswith("a\n")
    with pytest.raises(ValueError, match=r"end ' a b c ' is \[.*expected one token"):
        load_language(tmp_path, precision="fp32", end=" a b c ")


def test_a_text_is_cut_at_any_word_and_something_is_left_to_write():
    cuts = [cut_words("a red ball", draw) for draw in (0.0, 0.4, 0.99)]
    assert cuts == [("", "a red ball"), ("a", "red ball"), ("a red", "ball")]
    assert cut_words("", 0.5) == ("", "")
