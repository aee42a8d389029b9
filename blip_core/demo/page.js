"use strict";
// Texts of the crawl and of the model come in here; they are put on the page as text nodes alone.

const find = (css, within = document) => within.querySelector(css);
const all = (css, within = document) => [...within.querySelectorAll(css)];
let about = null; // what the model is and can
let chosen = null; // {base64, url} of the picture

function make(tag, text = "", ...children) {
  const element = document.createElement(tag);
  element.append(text, ...children);
  return element;
}

function say(text, fault = false) {
  find("#status").textContent = text;
  find("#status").classList.toggle("fault", fault);
}

async function ask(path, body) {
  let answer;
  try {
    const options = { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
    answer = await fetch(`/api/${path}`, body === undefined ? {} : options);
  } catch {
    throw new Error("the program behind this page does not answer; start it again in its terminal");
  }
  const found = await answer.json().catch(() => ({ error: `answered ${answer.status}` }));
  if (!answer.ok) throw new Error(found.error);
  return found;
}

// the picture

async function choose(blob, name) {
  const url = await new Promise((done, failed) => {
    const reader = new FileReader();
    reader.onload = () => done(reader.result);
    reader.onerror = () => failed(new Error(`${name}: can't be read`));
    reader.readAsDataURL(blob);
  });
  if (chosen) URL.revokeObjectURL(chosen.url);
  chosen = { base64: url.slice(url.indexOf(",") + 1), url: URL.createObjectURL(blob) };
  find("#picture").src = chosen.url;
  find("#picture").hidden = false;
  find("#hint").hidden = true;
  find("#name").textContent = name;
  for (const answer of all("#caption .answer, #match .answer, #attention .answer")) answer.replaceChildren();
  say("");
}

function picture() {
  if (!chosen) throw new Error("choose a picture first");
  return chosen.base64;
}

function take(files) {
  if (files.length) choose(files[0], files[0].name).catch((e) => say(e.message, true));
}

// what can be asked: each function fills its form's answer

const number = (form, name) => form.elements[name].valueAsNumber;

async function caption(form, answer) {
  const sampler = form.elements.sampler.value;
  const own = all("input:enabled", form).map((input) => [input.name, input.valueAsNumber]);
  const found = await ask("task/caption", { image: picture(), params: { sampler, ...Object.fromEntries(own) } });
  answer.replaceChildren(...found.captions.map((text) => make("li", text)));
}

const NAMES = { match: "P(match), calibrated", itm: "P(match) of the ITM head, raw", itc: "ITC cosine" };

async function match(form, answer) {
  const found = await ask("task/match", { image: picture(), text: form.elements.text.value });
  const lines = Object.keys(NAMES).filter((name) => name in found);
  answer.replaceChildren(...lines.flatMap((name) => [make("dt", NAMES[name]), make("dd", found[name].toFixed(4))]));
}

async function search(form, answer) {
  const found = await ask("search", { text: form.elements.text.value, count: number(form, "count"), rerank: number(form, "rerank") });
  showProgress(found.search);
  answer.replaceChildren(...found.hits.map(hit));
  if (!found.hits.length) throw new Error(found.search.fault || "no picture is embedded yet; try again in a moment");
}

function hit(found) {
  const image = make("img");
  image.src = `/api/picture/${encodeURIComponent(found.shard)}/${encodeURIComponent(found.key)}`;
  image.alt = found.key;
  const button = make("button", "", image);
  button.type = "button";
  button.title = "ask about this picture";
  button.onclick = async () => choose(await (await fetch(image.src)).blob(), found.key).catch((e) => say(e.message, true));
  const scores = Object.keys(NAMES).filter((name) => name in found).map((name) => `${name} ${found[name].toFixed(3)}`);
  const notes = [make("span", found.key), make("span", scores.join(" · ")), ...found.texts.slice(0, 3).map((t) => make("span", `${t.source}: ${t.text}`))];
  notes.forEach((note) => (note.className = "note"));
  return make("figure", "", button, make("figcaption", "", ...notes));
}

async function attention(form, answer) {
  const body = { image: picture(), text: form.elements.text.value, kind: form.elements.kind.value, layer: number(form, "layer") - 1 };
  const [found, image] = await Promise.all([ask("attention", body), loaded(chosen.url)]);
  answer.replaceChildren(...found.words.map((word) => make("figure", "", overlay(image, word.weights, found.side), make("figcaption", word.word))));
}

function loaded(url) {
  return new Promise((done, failed) => {
    const image = new Image();
    image.onload = () => done(image);
    image.onerror = () => failed(new Error("this browser can't show the picture"));
    image.src = url;
  });
}

function overlay(image, weights, side) {
  // red over the greyed picture, the stronger the larger the weight; the model saw the whole picture as a square, so the grid is stretched with it
  const canvas = make("canvas");
  const scale = Math.max(240 / image.naturalWidth, 240 / image.naturalHeight);
  canvas.width = Math.max(1, Math.round(Math.min(image.naturalWidth * scale, 1200)));
  canvas.height = Math.max(1, Math.round(Math.min(image.naturalHeight * scale, 1200)));
  const grid = make("canvas");
  grid.width = grid.height = side;
  const heat = grid.getContext("2d").createImageData(side, side);
  const least = Math.min(...weights), span = Math.max(...weights) - least;
  weights.forEach((weight, i) => heat.data.set([255, 40, 0, span > 0 ? Math.round((200 * (weight - least)) / span) : 0], 4 * i));
  grid.getContext("2d").putImageData(heat, 0, 0);
  const context = canvas.getContext("2d");
  context.filter = "grayscale(0.8)";
  context.drawImage(image, 0, 0, canvas.width, canvas.height);
  context.filter = "none";
  context.drawImage(grid, 0, 0, canvas.width, canvas.height);
  return canvas;
}

// the page

function showProgress(state) {
  const note = find("#search .progress");
  if (!state) note.textContent = "no pictures to search: start the page with --generation, as artifacts/generations/g1";
  else if (state.fault) note.textContent = `${state.done} of ${state.total} pictures of ${state.generation} can be searched; stopped: ${state.fault}`;
  else note.textContent = `${state.done} of ${state.total} pictures of ${state.generation} can be searched` + (state.done < state.total ? " so far" : "");
}

async function watch() {
  const found = await ask("about");
  showProgress(found.search);
  if (found.search && !found.search.fault && found.search.done < found.search.total) setTimeout(() => watch().catch(() => {}), 2000);
  return found;
}

function open(name) {
  for (const tab of all("[role=tab]")) {
    const own = tab.getAttribute("aria-controls") === name;
    tab.setAttribute("aria-selected", own);
    tab.tabIndex = own ? 0 : -1;
    find(`#${tab.getAttribute("aria-controls")}`).hidden = !own;
  }
  say("");
}

function onlyOf(sampler) {
  for (const label of all("[data-only]")) {
    label.hidden = label.dataset.only !== sampler;
    find("input", label).disabled = label.hidden;
  }
}

const ACTS = { caption, match, search, attention };

async function begin() {
  for (const [name, act] of Object.entries(ACTS)) {
    const form = find(`#${name}`);
    form.addEventListener("submit", async (event) => {
      event.preventDefault();
      find("button.main", form).disabled = true;
      say("working …");
      try {
        await act(form, find(".answer", form));
        say("");
      } catch (e) {
        say(e.message, true);
      }
      find("button.main", form).disabled = false;
    });
    find(`#tab-${name}`).addEventListener("click", () => open(name));
  }
  find("[role=tablist]").addEventListener("keydown", (event) => {
    const tabs = all("[role=tab]"), step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const next = tabs[(tabs.indexOf(document.activeElement) + step + tabs.length) % tabs.length];
    next.focus();
    next.click();
  });
  find("#file").addEventListener("change", (event) => take(event.target.files));
  for (const kind of ["dragover", "dragleave", "drop"]) {
    document.addEventListener(kind, (event) => {
      event.preventDefault();
      find("#drop").classList.toggle("over", kind === "dragover");
      if (kind === "drop") take(event.dataTransfer.files);
    });
  }
  open("caption");
  try {
    about = await watch();
  } catch (e) {
    return say(e.message, true);
  }
  document.title = `BLIP · ${about.title}`;
  find("#about").textContent = `${about.title}. Everything stays on this machine.`;
  const form = find("#caption"), sampler = form.elements.sampler;
  for (const name of ["beams", "p", "top_k", "temperature", "seed"]) form.elements[name].value = about.params[name];
  if (about.params.p === 1) form.elements.p.value = 0.9;
  form.elements.num_captions.value = Math.min(3, about.params.beams);
  sampler.value = about.params.sampler;
  sampler.addEventListener("change", () => onlyOf(sampler.value));
  onlyOf(sampler.value);
  Object.assign(find("#attention").elements.layer, { max: about.layers, value: about.layer + 1 });
}

begin();
