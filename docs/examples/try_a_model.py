# %% [markdown]
# # Try a model
# Caption held-out pictures, score texts, and measure both. Run it cell by cell in an editor, or whole, in the folder of the chain:
# `python docs/examples/try_a_model.py`. Where no chain has run, it tries an untrained model on a tiny world.

# %%
from tiny_world import artifacts

import blip_core

model = blip_core.load(artifacts() / "models/g1")

# %% Pictures that no training saw, with what people wrote about them
heldout = blip_core.open_generation(artifacts() / "heldout")
rows = heldout.to_pandas(["key", "text", "shard"])
rows = rows[rows["shard"].str.startswith("test")]
references = dict(list(rows.groupby("key")["text"].apply(list).items())[:20])
pictures = [heldout.picture(key) for key in references]

# %% A caption of each, by beam search, and how close they come
captions = [texts[0] for texts in model.captions(pictures)]
for caption, (key, texts) in list(zip(captions, references.items(), strict=True))[:3]:
    print(f"{key}: {caption!r}; people: {texts[0]!r}")
print(blip_core.evaluate_captions(dict(zip(references, captions, strict=True)), references))

# %% Three captions by nucleus sampling, and which of them the filter likes best
sampled = model.captions(pictures, sampler="nucleus", num_candidates=3, seed=1)
scores = model.match(pictures, sampled)
print(scores.itm.shape, sampled[0][scores.itm[0].argmax()])

# %% Retrieval by ITC: each picture among all texts, each text among all pictures
texts = [text for own in references.values() for text in own]
image_of_text = [number for number, own in enumerate(references.values()) for _ in own]
similarity = model.image_features(pictures) @ model.text_features(texts).T
print(similarity.shape, blip_core.evaluate_retrieval(similarity, image_of_text))
