"""The page, in Gradio: a picture, and a tab for each thing to ask. Whatever needs the model waits in one queue.

Texts of the crawl and of the model are shown as text, never as Markdown or HTML. Bad input becomes a message on the page.
"""

import html
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from gradio import component_meta
from gradio.data_classes import ImageData

from blip_core.demo.search import PictureIndex
from blip_core.gradcam.maps import Kind
from blip_core.gradcam.picture import overlay
from blip_core.gradcam.words import Look
from blip_core.pictures.containers import kind_of
from blip_core.serving.options import BadRequest, Task, choose, defaults
from blip_core.serving.others import OthersService
from blip_core.serving.questions import QuestionService
from blip_core.serving.rows import Row, decoded, read_rows, whole
from blip_core.serving.service import Service

MOST_HITS, MOST_RERANKED, EXAMPLES = 60, 200, 6
FORGET = (3600, 86_400)  # seconds: how often the cache is swept, and the age at which its files go
LOOKS = [("match with the text", "match"), ("each word of a caption", "caption")]
KINDS = [("Grad-CAM", "grad_cam"), ("attention alone", "attention")]
HOW_MAPS_READ = """Cross-attention of one layer, averaged over its heads; Grad-CAM weighs it by what it does for the match, for the
probability of each word, or for that of the answer. Each map goes from its own weakest patch (clear) to its strongest (red)."""
NO_PICTURES = "No pictures to search: start the page with `--generation`, as `artifacts/generations/g1`."
NO_SEARCH = "No search: it goes by the embeddings of a BLIP of ours. A model of others is asked for captions and matches alone."
NO_MAP = "No attention map: it is of the cross-attention of a BLIP of ours. A model of others is asked for captions and matches alone."

AnyService = Service | QuestionService | OthersService
Parts = list[Any]  # of the page: what is asked, and where the answer stands

component_meta.create_or_modify_pyi = lambda *_: None  # Gradio would write page.pyi beside this file


class Picture(gr.Image):
    """Hands on an uploaded file as it came: Gradio's own would open it with Pillow before our checks, and fetch what is named by a URL."""

    is_template = True  # for the browser it is an image

    def preprocess(self, payload: ImageData | None) -> str | None:
        return payload and payload.path

    async def async_move_resource_to_block_cache(self, url_or_file_path: str | Path | None) -> str | None:
        if url_or_file_path and "://" in str(url_or_file_path):
            raise gr.Error("URLs are not fetched: choose a file", print_exception=False)
        return await super().async_move_resource_to_block_cache(url_or_file_path)


def make_page(service: AnyService, index: PictureIndex | None, *, title: str, cache: Path) -> gr.Blocks:
    """`index`: of a generation's pictures, None when there is none to search; `cache`: the folder that Gradio was told to keep files in."""
    with gr.Blocks(title=f"BLIP · {title}", analytics_enabled=False, delete_cache=FORGET) as page:
        gr.Markdown(f"# What does the model see?\n`{title}`: nothing of what you choose or write leaves this machine.", elem_id="about")
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                picture = Picture(label="Picture", sources=["upload", "clipboard"], height=300, elem_id="picture", buttons=[])
                if index and (examples := _examples(index, cache)):
                    shown = f"Pictures of {index.generation.name}"
                    gr.Examples(examples, picture, label=shown, api_visibility="private", elem_id="examples")
            with gr.Column(scale=3, min_width=320), gr.Tabs():
                if isinstance(service, QuestionService):
                    with gr.Tab("Question", id="question"):
                        answers = _question_tab(service, picture)
                else:
                    answers = _tabs(page, service, index, picture, cache)
        # what was said of another picture goes
        gr.on([picture.change], lambda: [None] * len(answers), None, answers, queue=False, show_progress="hidden", api_visibility="private")
    page.queue(max_size=32, api_open=False)
    return page


def _tabs(page: gr.Blocks, service: Service | OthersService, index: PictureIndex | None, picture: Picture, cache: Path) -> Parts:
    with gr.Tab("Caption", id="caption"):
        answers = _caption_tab(service, picture)
    with gr.Tab("Match", id="match"):
        answers += _match_tab(service, picture)
    with gr.Tab("Search", id="search"):
        if index:
            _search_tab(page, index, picture, cache)
        else:
            gr.Markdown(NO_PICTURES if isinstance(service, Service) else NO_SEARCH, elem_id="no-search")
    with gr.Tab("Attention", id="attention"):
        if isinstance(service, Service):
            return answers + _attention_tab(service, picture)
        gr.Markdown(NO_MAP, elem_id="no-map")
    return answers


def _ask(button: gr.Button, answer: Callable[..., Any], inputs: Parts, outputs: Parts, *, text: gr.Textbox | None = None) -> None:
    """On a click, or Enter in the text. One at a time over all tabs: two questions at once would only share the same cores."""

    @wraps(answer)
    def told(*values: Any) -> Any:
        try:
            return answer(*values)
        except BadRequest as e:
            message = str(e).removeprefix("row 0: ").removeprefix("params: ")
            raise gr.Error(html.escape(message), duration=None, print_exception=False) from None

    events = [button.click, text.submit] if text else [button.click]
    gr.on(events, told, inputs, outputs, concurrency_id="model", concurrency_limit=1, api_visibility="private", show_progress_on=outputs)


def _rows(service: AnyService, path: str | None, texts: list[str | None], task: Task) -> list[Row]:
    """The picture with each of the texts."""
    if path is None:
        raise BadRequest("choose a picture first")
    if not Path(path).is_file():
        raise BadRequest("the page no longer has this picture: choose it again")
    return read_rows([path] * len(texts), texts, task, service.settings, paths=True)


def _caption_tab(service: Service | OthersService, picture: Picture) -> Parts:
    usual, most = defaults(service.settings), service.settings.limits.max_captions
    sampler = gr.Radio([("beam search", "beam"), ("nucleus sampling", "nucleus")], value=usual["sampler"], label="By", elem_id="sampler")
    count = gr.Slider(1, most, min(3, usual["beams"]), step=1, label="captions", elem_id="num_captions")
    with gr.Row(visible=usual["sampler"] == "beam") as beam:
        beams = gr.Slider(1, most, usual["beams"], step=1, label="beams", elem_id="beams")
    with gr.Row(visible=usual["sampler"] == "nucleus") as nucleus:
        p = gr.Slider(0.01, 1, 0.9 if usual["p"] == 1 else usual["p"], step=0.01, label="p", elem_id="p")
        top_k = gr.Number(usual["top_k"], minimum=0, precision=0, label="top k", info="of so many words; 0: of any", elem_id="top_k")
        temperature = gr.Number(usual["temperature"], minimum=0.1, step=0.1, label="temperature", elem_id="temperature")
        seed = gr.Number(usual["seed"], minimum=0, precision=0, label="seed", info="the same draws the same", elem_id="seed")
    gr.on([sampler.change], lambda s: [gr.Row(visible=s == "beam"), gr.Row(visible=s == "nucleus")], sampler, [beam, nucleus], queue=False,
          show_progress="hidden", api_visibility="private")  # fmt: skip
    button = gr.Button("Caption", variant="primary", elem_id="ask-caption")
    answer = gr.Textbox(label="Captions", lines=3, interactive=False, buttons=["copy"], elem_id="captions")

    def caption(path: str | None, name: str, num_captions: int, num_beams: int, *of_nucleus: float) -> str:
        own = {"beams": num_beams} if name == "beam" else dict(zip(("p", "top_k", "temperature", "seed"), of_nucleus, strict=True))
        asked = {"task": "caption", "sampler": name, "num_captions": num_captions, **own}
        options = choose(asked, service.settings)
        return "\n".join(service.answer(_rows(service, path, [None], "caption"), options)[0]["captions"])

    _ask(button, caption, [picture, sampler, count, beams, p, top_k, temperature, seed], [answer])
    return [answer]


def _match_tab(service: Service | OthersService, picture: Picture) -> Parts:
    text = gr.Textbox(label="Texts, one on each line", lines=4, placeholder="which of these fits the picture?", elem_id="match-text")
    button = gr.Button("Score", variant="primary", elem_id="ask-match")
    names = list(service.told_by)
    legend = "; ".join(f"{name}: {words}" for name, words in service.told_by.items())
    table = gr.Dataframe(headers=[*names, "text"], datatype="str", interactive=False, wrap=True, buttons=[],
                         label=f"The best first. {legend}", elem_id="scores")  # fmt: skip

    def match(path: str | None, asked: str) -> list[list[str]]:
        texts: list[str | None] = [line for line in asked.splitlines() if line.strip()]
        rows = _rows(service, path, texts or [""], "match")
        found = zip(rows, service.answer(rows, choose({"task": "match"}, service.settings)), strict=True)
        best = sorted(found, key=lambda pair: -pair[1][names[0]])
        return [[*(f"{scores[name]:.4f}" for name in names), str(row.text)] for row, scores in best]

    _ask(button, match, [picture, text], [table], text=text)
    return [table]


def _search_tab(page: gr.Blocks, index: PictureIndex, picture: Picture, cache: Path) -> None:
    text = gr.Textbox(label="Text", placeholder="what to look for", elem_id="search-text")
    with gr.Row():
        count = gr.Slider(1, MOST_HITS, 12, step=1, label="pictures", elem_id="count")
        rerank = gr.Slider(1, MOST_RERANKED, 32, step=1, label="ranked by match", elem_id="rerank",
                           info="the best by cosine that the match head puts in order")  # fmt: skip
    button = gr.Button("Search", variant="primary", elem_id="ask-search")
    _watch(page, index)
    hits = gr.State([])
    gallery = gr.Gallery(label="Found", show_label=False, columns=3, height="auto", allow_preview=False, interactive=False, buttons=[],
                         object_fit="contain", elem_id="hits")  # fmt: skip
    table = gr.Dataframe(headers=["picture", "scores", "texts"], datatype="str", interactive=False, wrap=True, buttons=[],
                         label="Scores and texts; a click on a picture above chooses it", elem_id="hit-texts")  # fmt: skip

    def search(asked: str, most: float, best: float) -> tuple[list[str], list[tuple[str, str]], list[list[str]]]:
        row = read_rows([None], [asked], "embed", index.service.settings, paths=False)[0]
        assert row.text is not None
        found = index.search(row.text, count=int(most), rerank=int(best))
        if not found:
            raise BadRequest(index.fault or "no picture is embedded yet; try again in a moment")
        paths = [_stored(index, hit["shard"], hit["key"], cache) for hit in found]
        marks = [" · ".join(f"{name} {hit[name]:.3f}" for name in index.service.told_by) for hit in found]
        texts = ["\n".join(f"{text['source']}: {text['text']}" for text in hit["texts"][:3]) for hit in found]
        keys = [hit["key"] for hit in found]
        return paths, list(zip(paths, marks, strict=True)), list(map(list, zip(keys, marks, texts, strict=True)))

    def chosen(event: gr.SelectData, paths: list[str]) -> str:
        return paths[event.index]

    _ask(button, search, [text, count, rerank], [hits, gallery, table], text=text)
    gallery.select(chosen, hits, picture, queue=False, show_progress="hidden", api_visibility="private")


def _attention_tab(service: Service, picture: Picture) -> Parts:
    of = gr.Radio(LOOKS, value="match", label="What for", elem_id="of")
    text = gr.Textbox(
        label="Text", placeholder="where does each word look? Left empty, the model writes the caption", elem_id="attention-text"
    )
    kind, layer = _how(service)
    button = gr.Button("Show", variant="primary", elem_id="ask-attention")
    maps = _gallery()

    def attention(path: str | None, task: Task, asked: str, which: Kind, number: float) -> list[tuple[np.ndarray, str]]:
        if task == "caption" and not asked.strip():
            asked = service.answer(_rows(service, path, [None], "caption"), choose({}, service.settings))[0]["captions"][0]
        [row] = _rows(service, path, [asked], "match")
        seen = decoded(row, service.settings, service.model.image_size)
        with service.lock:
            [look] = service.looks(task, [seen], [str(row.text)], layer=int(number) - 1 if number else None, kind=which)
        return _drawn(look, whole(row, service.settings))

    _ask(button, attention, [picture, of, text, kind, layer], [maps], text=text)
    return [maps]


def _question_tab(service: QuestionService, picture: Picture) -> Parts:
    text = gr.Textbox(label="Question", placeholder="what colour is the ball?", elem_id="question-text")
    kind, layer = _how(service)
    button = gr.Button("Answer", variant="primary", elem_id="ask-question")
    said = gr.Textbox(label="Answer", interactive=False, buttons=["copy"], elem_id="said")
    maps = _gallery()

    def answer(path: str | None, asked: str, which: Kind, number: float) -> tuple[str, list[tuple[np.ndarray, str]]]:
        [row] = _rows(service, path, [asked], "answer")
        [found] = service.answer([row], choose({"task": "answer"}, service.settings))
        seen = decoded(row, service.settings, service.model.image_size)
        with service.lock:
            [look] = service.looks([seen], [found["answer"]], layer=int(number) - 1 if number else None, kind=which)
        return found["answer"], _drawn(look, whole(row, service.settings))

    _ask(button, answer, [picture, text, kind, layer], [said, maps], text=text)
    return [said, maps]


def _how(service: Service | QuestionService) -> tuple[gr.Radio, gr.Slider]:
    with gr.Row():
        kind = gr.Radio(KINDS, value="grad_cam", label="map", elem_id="kind")
        layer = gr.Slider(0, service.model.med.cfg.depth, 0, step=1, label="layer", info="0: two thirds of the way up", elem_id="layer")
    return kind, layer


def _gallery() -> gr.Gallery:
    maps = gr.Gallery(label="Maps", show_label=False, columns=3, height="auto", interactive=False, buttons=[], format="png",
                      object_fit="contain", elem_id="maps")  # fmt: skip
    gr.Markdown(HOW_MAPS_READ)
    return maps


def _drawn(look: Look, picture: np.ndarray) -> list[tuple[np.ndarray, str]]:
    """Of the whole text, then of each word."""
    return [(overlay(picture, look.whole), "all")] + [(overlay(picture, w), word) for w, word in zip(look.weights, look.words, strict=True)]


def _watch(page: gr.Blocks, index: PictureIndex) -> None:
    """Says how much can be searched, and again until the index is whole."""
    note, timer = gr.Markdown(elem_id="progress"), gr.Timer(2)

    def progress() -> tuple[str, gr.Timer]:
        ended = bool(index.fault) or index.done == len(index.places)
        so_far = f"; stopped: {index.fault}" if index.fault else "" if ended else " so far"
        said = f"{index.done} of {len(index.places)} pictures of {index.generation.name} can be searched{so_far}"
        return said, gr.Timer(active=not ended)

    gr.on([page.load, timer.tick], progress, None, [note, timer], queue=False, show_progress="hidden", api_visibility="private")


def _stored(index: PictureIndex, shard: str, key: str, cache: Path) -> str:
    """A picture of a shard as a file of the cache."""
    data = index.picture(shard, key)
    path = cache / "shards" / shard / f"{key}.{kind_of(data)}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return str(path)


def _examples(index: PictureIndex, cache: Path) -> list[str]:
    """Some pictures of the generation, spread over it."""
    if not index.places:
        return []
    step = max(1, len(index.places) // EXAMPLES)
    try:
        return [_stored(index, *place, cache) for place in index.places[::step][:EXAMPLES]]
    except (ValueError, OSError):  # the index says what is wrong with the pictures
        return []
