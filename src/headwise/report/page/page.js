/* What all pages share: the theme, charts, and tables of their data. Other scripts of a page use `headwise`. */
const headwise = (() => {
  "use strict";
  const root = document.documentElement;
  const held = document.getElementById("page-data");
  const data = held ? JSON.parse(held.textContent) : {};
  const charts = new Map(); // element -> {held, view}
  const dark = matchMedia("(prefers-color-scheme: dark)");

  /* Make an element; text is always text, never markup. */
  function make(name, attributes = {}, ...children) {
    const element = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) {
      if (value !== null && value !== undefined && value !== false) element.setAttribute(key, value === true ? "" : value);
    }
    element.append(...children);
    return element;
  }

  /* Theme */
  const stored = {
    get() { try { return localStorage.getItem("headwise-theme"); } catch { return null; } },
    set(value) { try { localStorage.setItem("headwise-theme", value); } catch { /* a page from a file may have no storage */ } },
  };
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : dark.matches);
  const button = make("button", { class: "theme", type: "button" });
  function showTheme() {
    button.textContent = isDark() ? "☀" : "☾";
    button.setAttribute("aria-label", isDark() ? "Use light colours" : "Use dark colours");
    button.title = button.getAttribute("aria-label");
  }
  function startTheme() {
    if (["light", "dark"].includes(stored.get())) root.dataset.theme = stored.get();
    button.addEventListener("click", () => {
      root.dataset.theme = isDark() ? "light" : "dark";
      stored.set(root.dataset.theme);
      showTheme();
      redraw();
    });
    dark.addEventListener("change", () => { showTheme(); redraw(); });
    showTheme();
    document.body.prepend(button);
  }
  const colour = (name) => getComputedStyle(root).getPropertyValue(`--${name}`).trim();

  /* Charts: names of colours are filled in, then vega-embed draws. */
  const MAGMA = ["#fdf5df", "#fed799", "#fea16e", "#f4695c", "#ca3e72", "#932b80", "#5f187f", "#331067"];
  const DARK_MAGMA = ["#20242b", "#3b1a5c", "#641a80", "#932b80", "#ca3e72", "#f4695c", "#fea16e", "#fcfdbf"];
  const SIGNS = ["#00497a", "#0072b2", "#6db2dc", "#f1eee6", "#f0a06a", "#d55e00", "#8c3a00"]; // blue, ground, red
  const DARK_SIGNS = ["#8fd0ff", "#56b4e9", "#22618a", "#272c32", "#8f4a1e", "#f2813a", "#ffb27a"];
  function themed(value) {
    if (Array.isArray(value)) return value.map(themed);
    if (value && typeof value === "object") return Object.fromEntries(Object.entries(value).map(([key, inner]) => [key, themed(inner)]));
    if (typeof value !== "string" || value[0] !== "$") return value;
    if (value === "$over") return "#111111"; // on the light end of cividis
    if (value === "$under") return "#ffffff";
    return colour(value.slice(1)) || value;
  }
  function config() {
    const [ink, soft, line] = [colour("ink"), colour("soft"), colour("line")];
    const font = getComputedStyle(document.body).fontFamily;
    return {
      background: "transparent", font, view: { stroke: null }, autosize: { type: "fit-x", contains: "padding" },
      axis: { labelColor: ink, titleColor: soft, gridColor: line, domainColor: line, tickColor: line, labelFontSize: 12, titleFontSize: 12,
        titleFontWeight: 400, gridOpacity: 0.7, titlePadding: 8 },
      legend: { labelColor: ink, titleColor: soft, labelFontSize: 12, titleFontSize: 12, titleFontWeight: 400, symbolOpacity: 1 },
      title: { color: ink, anchor: "start", fontSize: 14 }, text: { color: ink },
      range: { heatmap: isDark() ? DARK_MAGMA : MAGMA, ramp: { scheme: "cividis" },
        diverging: isDark() ? DARK_SIGNS : SIGNS },
    };
  }
  function rowsOf(table) {
    const columns = typeof table === "string" ? data.tables[table] : table;
    const names = Object.keys(columns);
    const short = (value) => (typeof value === "number" && !Number.isInteger(value) ? +value.toPrecision(5) : value);
    return Array.from({ length: columns[names[0]]?.length ?? 0 }, (_, i) => Object.fromEntries(names.map((name) => [name, short(columns[name][i])])));
  }
  async function draw(element) {
    const chart = charts.get(element);
    const spec = { ...themed(chart.held.spec), datasets: { ...chart.held.spec.datasets, table: chart.rows ??= rowsOf(chart.held.data) } };
    const place = element.querySelector(".drawing") || element.appendChild(make("div", { class: "drawing" }));
    if (chart.view) chart.view.finalize();
    const done = await vegaEmbed(place, spec, {
      renderer: "svg", config: config(), downloadFileName: chart.held.name, tooltip: { theme: "custom" }, logLevel: 1, // errors only
      actions: { export: { svg: true, png: true }, source: false, compiled: false, editor: false },
      i18n: { PNG_ACTION: "Save as PNG", SVG_ACTION: "Save as SVG", CLICK_TO_VIEW_ACTIONS: "Save this chart" },
    });
    chart.view = done.view;
    element.dispatchEvent(new CustomEvent("drawn", { bubbles: true, detail: { view: done.view, name: chart.held.name } }));
  }
  const visible = (element) => element.getClientRects().length > 0;
  /* Draw what is visible and not drawn yet, top first, leaving the browser time between charts. */
  async function drawAll() {
    for (const [element, chart] of charts) {
      if (chart.view || chart.busy || !visible(element)) continue;
      chart.busy = true;
      try { await draw(element); } finally { chart.busy = false; }
      await new Promise((resolve) => setTimeout(resolve));
    }
    document.body.dataset.drawn = "true";
  }
  async function redraw() {
    for (const [element, chart] of charts) {
      if (chart.view && visible(element)) await draw(element);
      else if (chart.view) { chart.view.finalize(); chart.view = null; }
    }
  }
  function addCharts(place) {
    for (const element of place.querySelectorAll(".chart")) {
      if (charts.has(element)) continue;
      const inside = element.querySelector("script");
      charts.set(element, { held: JSON.parse(inside.textContent) });
      inside.remove();
    }
    for (const details of place.querySelectorAll("details.data")) {
      details.addEventListener("toggle", () => fillTable(details));
    }
  }

  /* The table behind a chart, made when it is opened. */
  function written(value) {
    if (value === null || value === undefined) return "–";
    if (typeof value !== "number") return String(value);
    return value && Math.abs(value) < 0.001 ? value.toExponential(1) : String(+value.toPrecision(4));
  }
  function tableOf(columns, rows) {
    const names = Object.keys(columns);
    const numeric = (name) => rows.some((row) => typeof row[name] === "number");
    const kinds = Object.fromEntries(names.map((name) => [name, numeric(name) ? "number" : null]));
    const head = make("tr", {}, ...names.map((name) => make("th", { scope: "col", class: kinds[name] }, columns[name])));
    const body = rows.map((row) => make("tr", {}, ...names.map((name) => make("td", { class: kinds[name] }, written(row[name])))));
    return make("div", { class: "scroll", tabindex: "0" }, make("table", {}, make("thead", {}, head), make("tbody", {}, ...body)));
  }
  function fillTable(details) {
    const chart = charts.get(details.parentElement.querySelector(".chart"));
    if (!details.open || details.querySelector("table") || !chart) return;
    details.append(tableOf(chart.held.columns, chart.rows ??= rowsOf(chart.held.data)));
  }

  function start() {
    startTheme();
    addCharts(document);
    drawAll();
  }
  const viewOf = (element) => charts.get(element)?.view ?? null;
  /* Give a chart other data: rows of its table. */
  async function setRows(element, rows) {
    const chart = charts.get(element);
    chart.rows = rows;
    if (chart.view) await draw(element);
    const details = element.parentElement.querySelector("details.data");
    details?.querySelector("table")?.closest(".scroll").remove();
    if (details) fillTable(details);
  }
  return { data, make, start, drawAll, addCharts, viewOf, setRows, tableOf, written, rowsOf, isDark };
})();
// Not at once: other scripts of the page want to hear of the first chart, too.
document.addEventListener("DOMContentLoaded", headwise.start);
