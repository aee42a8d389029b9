# %% [markdown]
# # Look at a generation
# How many texts a round kept, what it dropped, and why. Run it cell by cell in an editor, or whole, in the folder of the chain:
# `python docs/examples/look_at_a_generation.py`. Where no chain has run, it looks at a tiny world with an untrained model.

# %%
import pandas
from tiny_world import artifacts

import blip_core

generation = blip_core.open_generation(artifacts() / "generations/g1")

# %% How many texts of each source were kept, and why the others were not
print(pandas.DataFrame(generation.counts()).fillna(0).astype(int))

# %% The texts that a model may train on, the surest first
kept = generation.kept().to_pandas(["key", "source", "text", "match"])
print(kept.sort_values("match", ascending=False).head())

# %% The web texts that the filter was surest to drop
texts = generation.to_pandas(["key", "source", "text", "match", "reason"])
dropped = texts[(texts["source"] == "web") & (texts["reason"] == "below_threshold")].sort_values("match")
print(dropped.head())

# %% One of them: its picture, and the rule in words
key = dropped["key"].iloc[0]
print(generation.explain(key))
picture = generation.picture(key)
print(picture.size)

# %% A generation may be larger than the memory: then shard by shard
longest = max((text.as_py() for table in generation.kept().tables(["text"]) for text in table["text"]), key=len)
print(longest)
