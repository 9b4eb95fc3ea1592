/* The page of `headwise trace`: a click on a token shows its sources; arrow keys go from token to token. */
(() => {
  "use strict";
  const { data, make } = headwise;
  const buttons = [...document.querySelectorAll("button.token")];
  const place = document.querySelector(".source");
  const pieces = new Map([...document.querySelectorAll("[data-at]")].map((one) => [Number(one.dataset.at), one]));
  const meaning = { read: "read from the prompt", remembered: "remembered", unsure: "unsure" };
  let chosen = null;

  function clear() {
    chosen = null;
    for (const button of buttons) button.setAttribute("aria-pressed", "false");
    for (const piece of pieces.values()) { piece.classList.remove("w", "best"); piece.style.removeProperty("--w"); }
    place.replaceChildren();
  }

  function show(button) {
    const again = chosen === button;
    clear();
    if (again) return;
    chosen = button;
    button.setAttribute("aria-pressed", "true");
    const token = data.tokens[Number(button.dataset.token)];
    for (const [at, weight] of token.sources) {
      const piece = pieces.get(at);
      if (!piece) continue;
      piece.classList.add("w");
      piece.style.setProperty("--w", weight.toFixed(2));
    }
    pieces.get(token.position)?.classList.add("best");
    const bars = make("dl", { class: "bars" });
    const named = Object.entries(token.shares).sort((a, b) => b[1] - a[1]).slice(0, 6);
    for (const [name, share] of named) {
      bars.append(make("dt", {}, name), make("dd", {}, make("div", { class: "bar", style: `width:${Math.round(100 * share)}%` })),
        make("dd", {}, `${Math.round(100 * share)} %`));
    }
    place.append(
      make("p", {}, make("b", {}, token.text.trim() || "(white space)"), `: ${meaning[token.label]}, probability that it was read ${token.probability.toFixed(2)}`),
      ...(token.position >= 0 ? [make("p", { class: "soft" }, `Most likely place${token.passage ? `, in ${token.passage}` : ""}:`),
        make("blockquote", {}, make("p", {}, `… ${token.excerpt} …`))] : []),
      bars);
  }

  for (const button of buttons) button.addEventListener("click", () => show(button));
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") clear();
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step || !chosen || event.altKey || event.ctrlKey || event.metaKey) return;
    const next = buttons[buttons.indexOf(chosen) + step];
    if (next) { show(next); next.focus(); }
  });
})();
