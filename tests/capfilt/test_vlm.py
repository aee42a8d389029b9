"""Vision-language models of transformers as captioners: each writes what its own `generate` would, whatever else is in the batch."""

import json
import re

import numpy as np
import pytest
import torch

from blip_core.capfilt.decoding import draw_keys, gumbel, write
from blip_core.capfilt.plugins import identify, open_captioner
from blip_core.capfilt.vlm import snapped, together
from blip_core.config.capfilt import SamplerConfig
from tests.support.vlms import FAMILIES, make_folder, make_tokenizer

SAMPLER = SamplerConfig(name="nucleus", p=0.9, top_k=0, temperature=1.3, beams=3, min_tokens=2, max_tokens=6, repetition_penalty=1.0)
KEYS = ["k0", "k1", "k2"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_folder("llava", tmp_path_factory.mktemp("llava"))


def opened(folder, prompt=None):
    return open_captioner(str(folder), folder, prompt=prompt, precision="fp32", fetch=None)


def pictures() -> list[np.ndarray]:
    """Of large squares, which stay when a picture is made small."""
    draw = np.random.default_rng(0)
    return [draw.integers(0, 256, (h, w, 3), dtype=np.uint8).repeat(50, 0).repeat(50, 1) for h, w in ((2, 3), (2, 3), (6, 2))]


def written(captioner, prepared, keys, sampler=SAMPLER, *, num=3, first=0):
    return captioner.captions(prepared, keys, sampler, seed=5, num_candidates=num, first=first)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_text_follows_from_its_picture_key_and_number_alone(family, tmp_path):
    """In a batch with another order, other neighbours, another shape of picture: the same. And with one choice left, `generate`'s own."""
    captioner = opened(make_folder(family, tmp_path / family))
    prepared = [captioner.prepare(p) for p in pictures()]
    together_ = written(captioner, prepared, KEYS)
    assert [written(captioner, [p], [k])[0] for p, k in zip(prepared, KEYS, strict=True)] == together_
    assert written(captioner, prepared[::-1], KEYS[::-1], num=1, first=2) == [[own[2]] for own in together_[::-1]]
    assert len({c.text for own in together_ for c in own}) == 9, "another picture, key or number is another text"
    one, other = (written(captioner, [prepared[i]], ["k0"], num=12) for i in (0, 1))
    assert one != other, "the picture matters"

    numbers, model = {"seed": 0, "first": 0}, captioner.vlm.model
    limits = {"max_new_tokens": 6, "min_new_tokens": 2, "do_sample": False}
    for inputs in map(together, [[p] for p in prepared]):
        sure = write(model, inputs, ["k"], SAMPLER.model_copy(update={"top_k": 1}), num_candidates=1, **numbers)[0]
        assert torch.equal(sure, model.generate(**inputs, **limits)[:, -sure.shape[1] :])
        best = write(model, inputs, ["k"], SAMPLER.model_copy(update={"name": "beam"}), num_candidates=2, **numbers)[0]
        assert torch.equal(best, model.generate(**inputs, **limits, num_beams=3, num_return_sequences=2)[:, -best.shape[1] :])
        assert best.shape[1] == 6 or (best == model.generation_config.eos_token_id).any(), "nothing but the prompt is cut"


def test_noise_draws_from_the_softmax():
    """The largest of logits and noise is each token as often as its probability says; a chance of 1 in 10,000 to fail."""
    logits = torch.tensor([0.0, 1.0, 2.0, -1.0, 0.5])
    noise = gumbel(draw_keys([f"k{i}" for i in range(2500)], 4, seed=0), step=3, vocabulary=5)
    counts = torch.bincount((logits + noise).argmax(-1), minlength=5).double()
    expected = logits.softmax(-1).double() * len(noise)
    assert float(((counts - expected) ** 2 / expected).sum()) < 23.5  # chi-squared of four degrees
    assert torch.isfinite(noise).all() and abs(float(noise.mean()) - 0.5772) < 0.05


def test_noise_is_another_for_each_seed_key_number_step_and_token():
    keys = torch.cat([draw_keys(["a", "b"], 2, seed=s) for s in (0, 1)])
    noise = torch.stack([gumbel(keys, step, 50) for step in range(3)])
    assert noise.unique().numel() > 8 * 3 * 50 - 5, "23 bits: two may meet"
    assert torch.equal(gumbel(keys, 1, 20), noise[1][:, :20]), "a longer vocabulary leaves the first tokens as they are"


def test_the_penalty_counts_what_is_written_and_not_the_prompt(folder):
    vlm, inputs = opened(folder).vlm, opened(folder).prepare(pictures()[0])
    sure = SAMPLER.model_copy(update={"top_k": 1, "max_tokens": 30})
    numbers = {"seed": 0, "num_candidates": 1, "first": 0}
    free, strict = (
        write(vlm.model, inputs, ["k"], sure.model_copy(update={"repetition_penalty": by}), **numbers).flatten() for by in (1, 1000)
    )
    assert free[0] == strict[0] and len(free.unique()) < 30, "the first token as without it, of a text that would say something again"
    assert len(strict.unique()) == len(strict)


def test_a_text_that_reaches_the_limit_is_truncated_and_one_that_ends_is_not(folder):
    captioner = opened(folder)
    prepared = [captioner.prepare(pictures()[0])] * 40
    found = written(
        captioner, prepared, [f"k{i}" for i in range(40)], SAMPLER.model_copy(update={"p": 1.0, "temperature": 50.0, "max_tokens": 40})
    )
    ended = [not c.truncated for own in found for c in own]
    assert 0 < sum(ended) < len(ended)  # by chance, one token of 400 ends a text


def test_the_prompt_is_the_instruction(folder):
    plain, other = opened(folder), opened(folder, prompt="What is it?")
    assert "Describe the image in one sentence." in plain.vlm.tokenizer.decode(plain.prepare(pictures()[0])["input_ids"][0])
    assert plain.identity == identify(folder) != other.identity
    assert "What is it?" in other.vlm.tokenizer.decode(other.prepare(pictures()[0])["input_ids"][0])


@pytest.mark.parametrize(
    ("shape", "expected"), [((64, 64), (112, 112)), ((300, 400), (336, 448)), ((2000, 1000), (448, 224)), ((900, 30), (448, 112))]
)
def test_pictures_get_one_of_few_shapes(shape, expected):
    assert snapped(np.zeros((*shape, 3), np.uint8)).shape == (*expected, 3)


def test_identity_is_of_all_that_changes_an_answer(folder, tmp_path):
    """Template, settings of generation and of the processor, an adapter in a folder below; not what is for people."""
    import shutil

    copy = shutil.copytree(folder, tmp_path / "copy")
    seen = {identify(folder)}
    assert identify(copy) in seen
    (copy / "README.md").write_text("read me")
    (copy / ".cache").mkdir()
    (copy / ".cache" / "x.json").write_text("{}")
    assert identify(copy) in seen
    for name in ("chat_template.jinja", "generation_config.json", "preprocessor_config.json", "adapter/adapter_config.json"):
        path = copy / name
        path.parent.mkdir(exist_ok=True)
        path.write_text((path.read_text() if path.exists() else "{}") + " ")
        assert identify(copy) not in seen, name
        seen.add(identify(copy))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            {"config.json": {"model_type": "llama"}},
            "model_type is 'llama', which can't write; expected a BLIP, or a model that transformers",
        ),
        (
            {"config.json": {"model_type": "new_vl", "auto_map": {"AutoModel": "m.M"}}},
            "'new_vl' and wants code of its own (auto_map), which is",
        ),
        ({"config.json": {"model_type": "new_vl"}}, "model_type is 'new_vl', which can't write"),
    ],
)
def test_a_folder_that_is_no_captioner_is_told(files, message, tmp_path):
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    with pytest.raises(ValueError, match=re.escape(message)):
        opened(tmp_path)


def test_a_folder_without_a_processor_is_told(folder, tmp_path):
    for path in folder.iterdir():
        if path.name in ("config.json", "model.safetensors", "generation_config.json"):
            (tmp_path / path.name).write_bytes(path.read_bytes())
    with pytest.raises(ValueError, match="transformers can't read this as a llava with its processor"):
        opened(tmp_path)
    make_tokenizer("<image>").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="transformers can't read this as a llava with its processor"):
        opened(tmp_path)
