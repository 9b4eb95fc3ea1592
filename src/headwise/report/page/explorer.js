/* The explorer: choosing files and heads, by mouse, keyboard and address, and showing what a head looks at. */
(() => {
  "use strict";
  const { data, make, written } = headwise;
  const NEAR = 14; // tokens kept around what a head looks at
  const { files, tables } = data;
  const traces = data.traces || [];
  let current = 0; // index of the file that is shown
  let chosen = null; // its open head: {layer, head}
  let cursor = null; // where the arrow keys are
  const cache = new Map();

  const section = (index) => document.querySelector(`.file[data-file="${index + 1}"]`);
  const panel = (index) => section(index).querySelector(".panel");
  const chart = (index, kind) => section(index).querySelector(`.chart[data-name="${kind}-${index + 1}"]`);
  const row = (file, { layer, head }) => layer * file.shape[1] + head;
  const value = (index, column, at) => tables[files[index].key][column]?.[row(files[index], at)] ?? null;
  const nameOf = ({ layer, head }) => `L${layer}H${head}`;
  const address = (index, at) => `#${index ? `${index + 1}-` : ""}${nameOf(at)}`;

  /* Addresses: #L5H2 in the first file, #3-L5H2 in the third. */
  function read(hash) {
    const found = /^#(?:(\d+)-)?L(\d+)H(\d+)$/i.exec(hash);
    if (!found) return null;
    const [index, layer, head] = [Number(found[1] || 1) - 1, Number(found[2]), Number(found[3])];
    const file = files[index];
    return file && layer < file.shape[0] && head < file.shape[1] ? { index, at: { layer, head } } : null;
  }
  function follow() {
    const wanted = read(location.hash);
    if (wanted) { showFile(wanted.index); open(wanted.at); } else close();
  }
  function go(index, at) {
    if (location.hash === address(index, at)) follow();
    else location.hash = address(index, at);
  }
  function leave() {
    history.replaceState(null, "", location.pathname + location.search);
    close();
  }

  function showFile(index) {
    if (index === current) return;
    close();
    section(current).hidden = true;
    section(index).hidden = false;
    current = index;
    cursor = null;
    markFile();
    headwise.drawAll();
  }
  function markFile() {
    for (const button of document.querySelectorAll(".pick button")) {
      button.setAttribute("aria-pressed", String(Number(button.dataset.file) === current + 1));
    }
  }

  /* The mark on map and points. */
  function mark(at) {
    for (const kind of ["map", "ranks", "frequency"]) {
      const element = chart(current, kind);
      const view = element && headwise.viewOf(element);
      if (view) view.signal("cursor_x", at ? at.head : null).signal("cursor_y", at ? at.layer : null).runAsync();
    }
  }
  const start = () => {
    const ranks = tables[files[current].key].rank;
    const first = ranks.indexOf(1);
    return { layer: Math.floor(first / files[current].shape[1]), head: first % files[current].shape[1] };
  };
  function move(down, right) {
    const [layers, heads] = files[current].shape;
    const from = cursor || chosen;
    cursor = from ? { layer: Math.min(layers - 1, Math.max(0, from.layer + down)), head: Math.min(heads - 1, Math.max(0, from.head + right)) } : start();
    mark(cursor);
    const score = value(current, "score", cursor);
    chart(current, "map").setAttribute("aria-label", `${nameOf(cursor)}, ${score === null ? "not scored" : `score ${score}`}`);
    say(`${nameOf(cursor)}: ${score === null ? "not scored" : score}`);
  }
  const status = make("p", { class: "soft", role: "status" });
  const say = (text) => { status.textContent = text; chart(current, "map").parentElement.append(status); };
  const STEPS = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
  function onKey(event) {
    if (event.altKey || event.ctrlKey || event.metaKey) return;
    if (event.key === "Escape" && chosen) { leave(); if (section(current).contains(document.activeElement)) chart(current, "map").focus(); return; }
    if (!event.target.closest?.(".map .chart")) return;
    if (STEPS[event.key]) move(...STEPS[event.key]);
    else if (event.key === "Enter") go(current, cursor || start());
    else return;
    event.preventDefault();
  }

  /* One head. */
  function open(at, scroll = true) {
    const file = files[current];
    chosen = at;
    cursor = at;
    mark(at);
    const place = panel(current);
    place.querySelector(".strongest").hidden = true;
    place.querySelector(".chosen").hidden = false;
    place.querySelector(".about").replaceChildren(...about(file, at));
    showRuns(file, at);
    showTrace(place, at);
    headwise.drawAll();
    if (scroll && place.getBoundingClientRect().top > innerHeight - 120) place.scrollIntoView({ block: "start" });
  }
  function close() {
    chosen = null;
    mark(cursor);
    for (const place of document.querySelectorAll(".panel")) {
      place.querySelector(".strongest").hidden = false;
      place.querySelector(".chosen").hidden = true;
    }
  }
  function neighbour(at, step) {
    const ranks = tables[files[current].key].rank;
    const rank = value(current, "rank", at);
    const found = rank === null ? -1 : ranks.indexOf(rank + step);
    return found < 0 ? null : { layer: Math.floor(found / files[current].shape[1]), head: found % files[current].shape[1] };
  }
  function about(file, at) {
    const button = (sign, label, act) => {
      const made = make("button", { type: "button", "aria-label": label, title: label, disabled: !act }, sign);
      if (act) made.addEventListener("click", act);
      return made;
    };
    const [up, down] = [neighbour(at, -1), neighbour(at, 1)];
    const facts = [["Score", value(current, "score", at) ?? "not scored"], ["Rank", value(current, "rank", at) === null ? "–" : `${value(current, "rank", at)} of ${file.scored}`]];
    const low = value(current, "low", at);
    if (low !== null) facts.push(["95 % CI over runs", `${written(low)} to ${written(value(current, "high", at))}`]);
    const frequency = value(current, "frequency", at);
    if (frequency !== null) facts.push(["Active in runs", `${Math.round(100 * frequency)} %`]);
    if (file.group > 1) facts.push(["KV head", Math.floor(at.head / file.group)]);
    if (file.kinds[at.layer] !== "–") facts.push(["Attention", file.kinds[at.layer]]);
    return [
      make("h3", {}, nameOf(at)),
      button("‹", "Next stronger head", up && (() => go(current, up))),
      button("›", "Next weaker head", down && (() => go(current, down))),
      button("×", "Close (Esc)", leave),
      make("dl", { class: "facts" }, ...facts.map(([name, text]) => make("div", {}, make("dt", {}, name), make("dd", {}, typeof text === "number" ? written(text) : text)))),
    ];
  }

  /* Values of a head in all runs, unpacked when first needed. */
  async function unpack(index) {
    if (!cache.has(index)) {
      const bytes = Uint8Array.from(atob(files[index].runs.packed), (letter) => letter.charCodeAt(0));
      const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
      cache.set(index, new Uint8Array(await new Response(stream).arrayBuffer()));
    }
    return cache.get(index);
  }
  async function showRuns(file, at) {
    const place = panel(current).querySelector(".runs");
    if (!place) return;
    const bytes = await unpack(current);
    if (chosen !== at) return;
    const { count, low, high, levels } = file.runs;
    const begin = row(file, at) * count;
    const values = Array.from(bytes.subarray(begin, begin + count), (byte) => (byte === 255 ? null : low + (byte / levels) * (high - low)));
    const known = values.some((one) => one !== null);
    place.hidden = !known;
    if (known) {
      await headwise.setRows(place.querySelector(".chart"), file.axes ? byPlace(file.axes, values) : values.map((one, i) => ({ run: i + 1, value: one })));
      headwise.drawAll();
    }
  }
  function byPlace(axes, values) {
    const cells = new Map();
    values.forEach((one, i) => {
      const key = `${axes.length[i]}/${axes.depth[i]}`;
      const cell = cells.get(key) || { length: axes.length[i], depth: axes.depth[i], sum: 0, runs: 0 };
      if (one !== null) { cell.sum += one; cell.runs += 1; }
      cells.set(key, cell);
    });
    return [...cells.values()].map(({ length, depth, sum, runs }) => ({ length, depth, value: runs ? sum / runs : null, runs }));
  }

  /* What a head looked at: the text of a prompt, as dark as the head looked at it. */
  let [prompt, step, whole] = [0, 0, false];
  function showTrace(place, at) {
    const recorded = current === 0 && traces.some((trace) => trace.heads[nameOf(at)]);
    place.querySelector(".traces").hidden = !recorded;
    place.querySelector(".untraced").hidden = recorded;
    if (recorded) drawTrace(place.querySelector(".trace"), at);
  }
  const inside = (span, i) => span && i >= span[0] && i < span[1];
  function drawTrace(place, at) {
    const trace = traces[prompt];
    const [positions, weights] = trace.heads[nameOf(at)];
    step = Math.min(step, positions.length - 1);
    const again = (change) => { change(); drawTrace(place, at); place.querySelector("[aria-pressed=true][data-kept]")?.focus({ preventScroll: true }); };
    const prompts = traces.map((one, i) => choice(`Prompt ${i + 1}`, i === prompt, () => { prompt = i; step = 0; whole = false; drawTrace(place, at); }, one.info.about));
    const answer = trace.pieces.slice(trace.prompt);
    const steps = answer.map((piece, i) => {
      const top = positions[i][0];
      const made = choice(shown(piece), i === step, () => again(() => { step = i; }), `Step ${i + 1}`);
      made.dataset.kept = "";
      if (inside(trace.spans.needle, top) && trace.pieces[top] === piece) made.classList.add("copied");
      return made;
    });
    const looked = new Map(positions[step].map((position, i) => [position, weights[step][i] / 1000]));
    looked.delete(-1);
    const list = make("ol", {}, ...[...looked].filter(([, weight]) => weight >= 0.005).slice(0, 6).map(([position, weight]) =>
      make("li", {}, `${Math.round(100 * weight)} % `, make("b", {}, shown(trace.pieces[position])), where(trace, position))));
    const stepsRow = make("div", { class: "steps", role: "group", "aria-label": "Tokens of the answer" }, ...steps);
    stepsRow.addEventListener("keydown", (event) => {
      const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (by) { event.preventDefault(); again(() => { step = Math.min(positions.length - 1, Math.max(0, step + by)); }); }
    });
    place.replaceChildren(
      ...(traces.length > 1 ? [make("div", { class: "prompts", role: "group", "aria-label": "Prompts" }, ...prompts)] : []),
      make("p", { class: "soft" }, trace.info.about || ""),
      make("p", { class: "said" }, "What the head attends to while the model generates each token; choose a token (underlined: copied from the needle)."),
      stepsRow, list, textOf(trace, looked, positions, place, at));
  }
  function choice(label, pressed, act, title) {
    const made = make("button", { type: "button", "aria-pressed": String(pressed), title: title || null }, label);
    made.addEventListener("click", act);
    return made;
  }
  const shown = (piece) => piece.replaceAll("\n", "⏎") || "·";
  const where = (trace, i) => (inside(trace.spans.answer, i) ? " answer" : inside(trace.spans.needle, i) ? " needle" : inside(trace.spans.question, i) ? " question" : i >= trace.prompt ? " generated" : i === 0 ? " start" : "");
  /* The text up to this step, without long stretches that the head never looks at. */
  function textOf(trace, looked, positions, place, at) {
    const end = trace.prompt + step;
    const keep = new Set();
    const near = (from, to) => { for (let i = Math.max(0, from - NEAR); i < Math.min(end, to + NEAR); i += 1) keep.add(i); };
    for (const position of looked.keys()) near(position, position + 1);
    for (const span of [trace.spans.needle, trace.spans.question]) if (span) near(...span);
    near(trace.prompt - 1, end);
    const text = make("p", { class: "marked", tabindex: "0" });
    for (let i = 0; i < end; i += 1) {
      if (!whole && !keep.has(i)) {
        const from = i;
        while (i + 1 < end && !keep.has(i + 1)) i += 1;
        const gap = make("button", { type: "button", class: "gap", title: "Show the whole text" }, `… ${i + 1 - from} tokens …`);
        gap.addEventListener("click", () => { whole = true; drawTrace(place, at); });
        text.append(gap);
        continue;
      }
      const weight = looked.get(i) || 0;
      const kind = inside(trace.spans.answer, i) ? "answer" : inside(trace.spans.needle, i) ? "needle" : "";
      if (weight < 0.005 && !kind) text.append(trace.pieces[i]);
      else text.append(make("span", { class: `w ${kind}`, style: `--w:${weight.toFixed(2)}`, title: weight ? `${Math.round(100 * weight)} %` : null }, trace.pieces[i]));
    }
    return text;
  }

  /* Comparison of a chosen pair. */
  const NAMES = ["both files", "halves of first", "halves of second", "chance"];
  const inPlace = (place, name) => place.querySelector(`[data-name^="${name}"]`);
  function startComparison(held) {
    const place = held.closest("section");
    const found = JSON.parse(held.textContent);
    const selects = ["a", "b"].map((side) => place.querySelector(`select[name="compare-${side}"]`));
    place.dataset.first = found.pairs[0].a;
    if (!selects[0]) return;
    selects.forEach((select) => select.addEventListener("change", () => {
      const [a, b] = selects.map((one) => Number(one.value));
      place.dataset.first = a;
      const pair = found.pairs.find((one) => (one.a === a && one.b === b) || (one.a === b && one.b === a));
      const [one, other] = [tables[`heads${a}`], tables[`heads${b}`]];
      const points = one.name.map((name, i) => ({ name, layer: one.layer[i], head: one.head[i], a: one.score[i], b: other.score[i] }));
      headwise.setRows(inPlace(place, "compare-heads"), points);
      const series = [pair ? pair.overlap : found.ks.map(() => 1), found.retest[a], found.retest[b], found.ks.map((k) => k / found.heads)];
      const rows = series.flatMap((shares, i) => (shares ? shares.map((share, j) => ({ k: found.ks[j], share, what: NAMES[i] })) : []));
      headwise.setRows(inPlace(place, "compare-overlap"), rows);
    }));
  }

  document.addEventListener("drawn", (event) => {
    const { view, name } = event.detail;
    const place = event.target;
    if (/^(map|ranks|frequency)-/.test(name)) {
      const index = Number(name.split("-")[1]) - 1;
      view.addEventListener("click", (_, item) => { if (item?.datum?.name) go(index, item.datum); });
      if (index === current && (chosen || cursor)) mark(chosen || cursor);
    } else if (name.startsWith("compare-heads-")) {
      view.addEventListener("click", (_, item) => { if (item?.datum?.name) go(Number(place.closest("section").dataset.first) - 1, item.datum); });
    }
  });
  for (const place of document.querySelectorAll(".map .chart")) {
    place.tabIndex = 0;
    place.setAttribute("role", "application");
  }
  document.addEventListener("keydown", onKey);
  for (const button of document.querySelectorAll(".pick button")) {
    button.addEventListener("click", () => { showFile(Number(button.dataset.file) - 1); section(current).scrollIntoView({ block: "start" }); });
  }
  addEventListener("hashchange", follow);
  document.querySelectorAll("script.comparison").forEach(startComparison);
  /* Without an address the page opens on what the strongest recorded head looks at: real text, not an empty panel. */
  function welcome() {
    const names = Object.keys(traces[0]?.heads || {}).map((name) => read(`#${name}`)).filter(Boolean);
    const strongest = names.sort((a, b) => (value(0, "rank", a.at) ?? Infinity) - (value(0, "rank", b.at) ?? Infinity))[0];
    if (location.hash || !strongest) follow();
    else open(strongest.at, false);
  }
  if (files.length) { markFile(); welcome(); }
})();
