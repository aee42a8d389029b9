"""What was made of what, as a section of the report: generations, captioners, filters and models with their content hashes."""

from blip_core.report.findings import Findings, Maker
from blip_core.report.page import Section, Table
from blip_core.report.wording import listed

HASH = 16  # digits shown


def chain_section(found: Findings) -> Section:
    """In the order of the making. What was not run is left out."""
    models = [name for name in found.params.models if name in found.models]
    rows = [_generation(found, "g0", "ingest", "the crawl and the clean set"), *_models(found, models, "g0")]
    for r in found.rounds:
        one, made = found.params.rounds[r], found.makers[r]
        for part in ("captioner", "filter"):
            tuned = _of_tuned(made[f"{part}s"])
            of = f"{_base(one.model, tuned)}, tuned on the human texts of generation {one.base}"
            rows.append([f"{part} of {r}", f"tune_{part}@{r}", of, tuned])
        further = [f"{maker.words} ({maker.identity})" for both in made.values() for maker in both if maker.name != "tuned"]
        helped = f", with {listed(further)}" if further else ""
        rows.append(_generation(found, one.next, f"assemble@{r}", f"the texts of {one.base} and new captions, by {r}'s two{helped}"))
        rows += _models(found, models, one.next)
    about = f"content: the first {HASH} digits of a hash of what is in it; candidates and scores carry those of captioner and filter. "
    if found.registration:
        version = f"{found.registration['name']}/{found.registration['version']}"
        about += f"`blip lineage {version}` tells code, values and data of the registered version. "
    about += "`blip history KEY` tells the way of a text."
    return Section("What was made of what", [Table(["what", "by stage", "of", "content"], rows, left=4), about])


def _generation(found: Findings, name: str, stage: str, of: str) -> list[str]:
    return [f"generation {name}", stage, of, found.contents[name][:HASH]]


def _models(found: Findings, models: list[str], generation: str) -> list[list[str]]:
    own = [(name, found.params.models[name]) for name in models if found.params.models[name].generation == generation]
    registered = {found.comparison.get("challenger"): found.registration.get("model_hash")}
    return [
        [f"model {n}", f"pretrain@{n}", f"the {listed(m.sources.split(','))} texts of generation {generation}", registered.get(n) or "-"]
        for n, m in own
    ]


def _base(model: str, tuned: str) -> str:
    """What was tuned: the round's model, or the base of an adapter, which stands first in its identity."""
    base, plus, _ = tuned.partition("+")
    return f"an adapter upon the model {base}" if plus else f"model {model}"


def _of_tuned(made: list[Maker]) -> str:
    return next((maker.identity for maker in made if maker.name == "tuned"), "not used")
