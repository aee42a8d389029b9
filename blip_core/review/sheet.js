"use strict";
(() => {
  const VERDICTS = ["right", "wrong", "unsure"];
  const PAIR = ["shard", "key", "image_id", "source", "round", "candidate", "text"];
  const LAST_REVIEWER = "blip-review:reviewer";
  const sheet = JSON.parse(document.getElementById("sheet").textContent);
  const rows = sheet.cards.flatMap((card, c) => card.rows.map((row, r) => ({ ...row, id: `${c}.${r}`, card: c })));
  const $ = (id) => document.getElementById(id);
  // marks: row id -> {verdict, time, blind}; seen: its scores were shown; look: the map that is drawn, of the sheet's maps
  const state = { reviewer: "", marks: {}, seen: {}, at: 0, current: 0, look: null };

  // What is kept in the browser, by sheet and reviewer: a place for each mark, so that no tab writes over what another has kept.
  // A browser may refuse; then the export is all there is.

  function stored(place) {
    try { return localStorage.getItem(place); } catch { return null; }
  }

  function store(place, value) {
    try {
      if (value === null) localStorage.removeItem(place);
      else localStorage.setItem(place, value);
    } catch { say("This browser keeps nothing: export before you close the page."); }
  }

  const place = (of) => `blip-review:${sheet.sheet}:${state.reviewer}:${of}`;

  function parsed(value) {
    try { return JSON.parse(value); } catch { return null; }
  }

  function mark(row, judgement) {  // null takes it back
    if (judgement) state.marks[row.id] = judgement;
    else delete state.marks[row.id];
    store(place(row.id), judgement && JSON.stringify(judgement));
  }

  function load() {
    const kept = rows.map((row) => [row.id, parsed(stored(place(row.id)))]);
    state.marks = Object.fromEntries(kept.filter(([, judgement]) => VERDICTS.includes(judgement?.verdict)));
    state.seen = parsed(stored(place("seen"))) ?? {};
  }

  function begin() {
    load();
    go(rows.findIndex((row) => row.id === stored(place("at"))));
  }

  // The page. Texts get onto it by textContent alone.

  function make(tag, attributes = {}, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) if (value !== null && value !== false) element.setAttribute(name, value);
    element.append(...children);
    return element;
  }

  const isOpen = (row) => !state.marks[row.id];
  const ofCard = (card) => rows.filter((row) => row.card === card);

  function shown(row) {  // whether source and scores may be told: what one text has tells something of the next
    const when = $("scores").value;
    return when === "always" || (when === "after" && !ofCard(row.card).some(isOpen));
  }

  function draw() {
    const row = rows[state.at], mine = ofCard(row.card);
    const others = sheet.cards[row.card].others;
    const texts = make("div", {}, ...mine.map((r, i) => drawText(r, i, mine.length)));
    if (others.length && mine.every(shown)) texts.append(drawOthers(others));
    $("card").replaceChildren(drawPicture(row), texts);
    for (const r of mine) if (shown(r) && !state.seen[r.id]) {
      state.seen[r.id] = true;
      store(place("seen"), JSON.stringify(state.seen));
    }
    const done = rows.filter((r) => !isOpen(r)).length;
    $("progress").max = rows.length;
    $("progress").value = done;
    $("count").textContent = `${done} of ${rows.length} texts judged`;
    $("back").disabled = row.card === 0;
    $("next").disabled = row.card === sheet.cards.length - 1;
    $("open").disabled = done === rows.length;
    $("export").disabled = done === 0;
    $("who").textContent = state.reviewer || "no name yet";
    drawGrid(row.card);
  }

  function drawPicture(row) {
    const { src, width, height } = sheet.pictures[row.card];
    const alt = `the picture ${row.key}`, small = Math.max(width, height) < 192;
    const image = make("img", { src, width, height, alt, class: small && "small" });
    const drawn = state.look ? drawMap(image, small, state.look) : image;
    const number = `picture ${row.card + 1} of ${sheet.cards.length}`;
    return make("figure", {}, drawn, make("figcaption", {}, `${number}, ${row.key}`), ...drawFields(row.card));
  }

  function drawFields(card) {  // what the source says of the picture: folded, for it may tell where a text comes from
    const fields = Object.entries(sheet.fields?.[card] ?? {});
    if (!fields.length) return [];
    const rows = fields.flatMap(([name, value]) => [make("dt", {}, make("bdi", {}, name)), make("dd", {}, make("bdi", {}, value))]);
    return [make("details", { class: "fields note" }, make("summary", {}, "what its source says"), make("dl", {}, ...rows))];
  }

  function drawMap(image, small, look) {  // red over the greyed picture, as blip_core/gradcam/picture.py draws it
    const { width, height, alt } = image, scale = small ? Math.ceil(240 / Math.min(width, height)) : 1;
    const canvas = make("canvas", { width: width * scale, height: height * scale, role: "img", "aria-label": `${alt}: ${look.word}` });
    const heat = make("canvas", { width: sheet.maps.side, height: sheet.maps.side });
    const red = Uint8ClampedArray.from([...atob(look.map)].flatMap((c) => [255, 40, 0, 0.8 * c.charCodeAt(0)]));
    heat.getContext("2d").putImageData(new ImageData(red, sheet.maps.side), 0, 0);
    image.decode().then(() => {
      const pen = canvas.getContext("2d");
      pen.imageSmoothingEnabled = !small;
      pen.drawImage(image, 0, 0, canvas.width, canvas.height);
      pen.globalCompositeOperation = "saturation";
      pen.fillStyle = "rgb(128 128 128 / .8)";
      pen.fillRect(0, 0, canvas.width, canvas.height);
      pen.globalCompositeOperation = "source-over";
      pen.imageSmoothingEnabled = true;
      pen.drawImage(heat, 0, 0, canvas.width, canvas.height);
    });
    return canvas;
  }

  function drawWords(row) {  // of which each can be looked at in the picture
    const [card, text] = row.id.split("."), looks = sheet.maps.cards[card][text];
    return make("p", { class: "looks note" }, "where the filter looked: ", ...looks.map((look) => {
      const button = make("button", { "aria-pressed": String(state.look === look) }, make("bdi", {}, look.word));
      button.addEventListener("click", () => {
        state.look = state.look === look ? null : look;
        draw();
        document.querySelector(".looks [aria-pressed=true]")?.focus();
      });
      return button;
    }));
  }

  function drawText(row, i, count) {
    const verdict = state.marks[row.id]?.verdict;
    const buttons = VERDICTS.map((name, n) => {
      const button = make("button", { class: name, "aria-pressed": String(verdict === name) }, make("kbd", {}, String(n + 1)), ` ${name}`);
      button.addEventListener("click", () => { state.at = rows.indexOf(row); judge(name); });
      return button;
    });
    const label = count > 1 ? `text ${i + 1} of ${count}` : "text";
    const section = make("section", { class: "text", tabindex: "-1", "aria-label": label, "aria-current": rows[state.at] === row && "true" },
      make("p", { class: "words" }, make("bdi", { dir: "auto" }, row.text)),
      make("div", { class: "verdicts", role: "group", "aria-label": "does it fit the picture?" }, ...buttons));
    if (shown(row)) {
      const limit = `; threshold of ${sheet.score} ${Number(sheet.threshold[row.source].toPrecision(3))}`;
      section.append(make("p", { class: "facts note" }, ...facts(row), limit));
      if (sheet.maps) section.append(drawWords(row));
    }
    return section;
  }

  function facts(row) {
    const kept = row.reason === "kept";
    const scores = Object.entries(row.scores).map(([name, value]) => `${name} ${value.toFixed(2)}`).join(", ");
    const decision = kept ? "kept" : `dropped: ${row.reason.replaceAll("_", " ")}`;
    return [make("span", { class: kept ? "badge kept" : "badge" }, decision), ` ${row.source}; ${scores}`];
  }

  function drawOthers(others) {
    const items = others.map((other) => make("li", {}, make("bdi", { dir: "auto" }, other.text), " ", ...facts(other)));
    return make("div", { class: "others" }, "Other texts of this picture, which you are not asked about", make("ul", {}, ...items));
  }

  function drawGrid(card) {
    if (!$("overview").open) return;
    $("grid").replaceChildren(...sheet.cards.map((_, c) => {
      const left = ofCard(c).filter(isOpen).length;
      const label = `picture ${c + 1}, ${left ? `${left} open` : "done"}`;
      const button = make("button", { class: left ? null : "done", "aria-label": label, "aria-current": c === card && "true" }, left ? `${c + 1}` : `${c + 1} ✓`);
      button.addEventListener("click", () => go(rows.findIndex((row) => row.card === c)));
      return button;
    }));
  }

  function say(message) { $("status").textContent = message; }

  // What a person does.

  function go(at, focus = false) {
    const before = rows[state.at].card;
    state.at = Math.max(0, Math.min(at, rows.length - 1));
    if (rows[state.at].card !== before) state.look = null;
    store(place("at"), rows[state.at].id);
    draw();
    const text = document.querySelector(".text[aria-current]");
    if (focus) text.focus({ preventScroll: true });
    text.scrollIntoView({ block: "nearest" });
  }

  function judge(verdict) {
    const row = rows[state.at], before = state.marks[row.id];
    const blind = !state.seen[row.id] && !shown(row);
    // the same again leaves the judgement as it was made
    if (before?.verdict !== verdict) mark(row, { verdict, time: new Date().toISOString(), blind });
    const last = state.at === rows.length - 1, all = !rows.some(isOpen);
    go($("onward").checked && !last ? state.at + 1 : state.at, true);
    say(all ? "All are judged. Export them now." : `${verdict}: ${row.text.slice(0, 80)}`);
    $("export").classList.toggle("main", all);
  }

  function takeBack() {
    if (isOpen(rows[state.at])) {
      say("There is nothing to take back: this text is not judged yet.");
      return;
    }
    mark(rows[state.at], null);
    go(state.at, true);
    say("taken back");
  }

  function turn(step) {  // to another picture
    const card = rows[state.at].card + step;
    if (card >= 0 && card < sheet.cards.length) go(rows.findIndex((row) => row.card === card), true);
  }

  function nextOpen() {
    const order = [...rows.keys()].map((i) => (state.at + 1 + i) % rows.length);
    const at = order.find((i) => isOpen(rows[i]));
    if (at !== undefined) go(at, true);
  }

  // Files of labels: a JSON object in each line, as blip_core/selection/labels.py reads them.

  function labelOf(row) {
    const pair = Object.fromEntries(PAIR.map((name) => [name, row[name]]));
    const about = { version: sheet.version, sheet: sheet.sheet, ...sheet.drawn };
    return { ...about, ...pair, filter: row.filter, weight: row.weight, reviewer: state.reviewer, ...state.marks[row.id] };
  }

  function exportLabels() {
    const lines = rows.filter((row) => !isOpen(row)).map((row) => JSON.stringify(labelOf(row)) + "\n");
    const url = URL.createObjectURL(new Blob(lines, { type: "application/jsonl" }));
    const name = state.reviewer.replace(/[^\p{L}\p{N}_-]+/gu, "_");
    make("a", { href: url, download: `labels-${sheet.name.replace(/[^\w-]+/g, "_")}-${name}-${sheet.sheet.slice(0, 8)}.jsonl` }).click();
    setTimeout(() => URL.revokeObjectURL(url), 60000);
    say(`${lines.length} judgements exported as a file: give it to whoever gave you this sheet.`);
  }

  function importLabels(text) {
    const known = new Map(rows.map((row) => [JSON.stringify(PAIR.map((name) => row[name])), row]));
    let taken = 0, older = 0, foreign = 0, broken = 0;
    for (const line of text.split("\n").filter((l) => l.trim())) {
      let label = null;
      try { label = JSON.parse(line); } catch { /* counted below */ }
      const row = label && known.get(JSON.stringify(PAIR.map((name) => label[name])));
      if (!label || !VERDICTS.includes(label.verdict) || Number.isNaN(Date.parse(label.time))) broken++;
      else if (label.version !== sheet.version || label.sheet !== sheet.sheet || label.reviewer !== state.reviewer || !row) foreign++;
      else if (!isOpen(row) && Date.parse(state.marks[row.id].time) >= Date.parse(label.time)) older++;
      else { mark(row, { verdict: label.verdict, time: label.time, blind: label.blind === true }); taken++; }
    }
    draw();
    const left = [[older, "no newer than yours"], [foreign, "of another sheet or reviewer"], [broken, "no labels"]].filter(([n]) => n);
    say([`${taken} judgements imported`, ...left.map(([n, what]) => `${n} lines left out: ${what}`)].join("; ") + ".");
  }

  function ask() {
    $("name").value = state.reviewer || stored(LAST_REVIEWER) || "";
    $("intro").showModal();
    $("name").focus();
  }

  const KEYS = {
    1: () => judge("right"), 2: () => judge("wrong"), 3: () => judge("unsure"), 0: takeBack, n: nextOpen, "?": ask,
    ArrowLeft: () => turn(-1), ArrowRight: () => turn(1), ArrowUp: () => go(state.at - 1, true), ArrowDown: () => go(state.at + 1, true),
  };

  document.addEventListener("keydown", (event) => {
    const choosing = event.target.matches?.("select") && !/\d/.test(event.key);
    const typing = event.target.matches?.("input:not([type=checkbox])") || $("intro").open;
    if (choosing || typing || event.ctrlKey || event.metaKey || event.altKey || event.repeat && /\d/.test(event.key) || !Object.hasOwn(KEYS, event.key)) return;
    event.preventDefault();
    KEYS[event.key]();
  });
  $("form").addEventListener("submit", (event) => {
    event.preventDefault();
    const name = $("name").value.trim();
    if (!name) return;
    const changed = name !== state.reviewer;
    state.reviewer = name;
    $("intro").close();
    store(LAST_REVIEWER, name);
    if (changed) begin();
    document.querySelector(".text[aria-current]").focus({ preventScroll: true });
  });
  $("intro").addEventListener("close", () => { if (!state.reviewer) ask(); });
  $("who").addEventListener("click", ask);
  $("help").addEventListener("click", ask);
  $("back").addEventListener("click", () => turn(-1));
  $("next").addEventListener("click", () => turn(1));
  $("open").addEventListener("click", nextOpen);
  $("scores").addEventListener("change", draw);
  $("overview").addEventListener("toggle", () => drawGrid(rows[state.at].card));
  $("export").addEventListener("click", exportLabels);
  $("import").addEventListener("click", () => $("file").click());
  $("file").addEventListener("change", async () => {
    const [file] = $("file").files;
    if (file) importLabels(await file.text());
    $("file").value = "";
  });
  // a second tab with the same sheet
  window.addEventListener("storage", (event) => {
    if (event.key?.startsWith(place("")) && event.key !== place("at")) { load(); draw(); }
  });

  $("about").textContent = `generation ${sheet.name}: ${rows.length} texts at ${sheet.cards.length} pictures, sheet ${sheet.sheet.slice(0, 8)}`;
  state.reviewer = stored(LAST_REVIEWER) ?? "";
  begin();
  if (!state.reviewer) ask();
})();
