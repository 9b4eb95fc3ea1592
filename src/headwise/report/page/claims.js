/* Sorting and filtering of the ledger of claims. */
(() => {
  "use strict";
  const table = document.getElementById("ledger");
  const body = table.tBodies[0];
  const rows = [...body.rows];
  const words = new Map(rows.map((row) => [row, row.textContent.toLowerCase()]));
  const chosen = { card: "", model: "", words: "" };
  const numeric = new Set(["effect", "control", "p"]);

  function show() {
    const off = new Set([...document.querySelectorAll(".toggle[aria-pressed=false]")].map((button) => button.dataset.verdict));
    const asked = chosen.words.toLowerCase().split(/\s+/).filter(Boolean);
    let count = 0;
    for (const row of rows) {
      const fits = (!chosen.card || row.dataset.card === chosen.card) && (!chosen.model || row.dataset.model === chosen.model)
        && !off.has(row.dataset.verdict) && asked.every((word) => words.get(row).includes(word));
      row.hidden = !fits;
      count += fits;
    }
    document.getElementById("shown").textContent = `${count} of ${rows.length}`;
  }

  /* Empty cells stay at the end, whichever way the column is sorted. */
  function sort(key, direction) {
    const value = (row) => (numeric.has(key) ? parseFloat(row.dataset[key]) : row.dataset[key]);
    const missing = (one) => one === "" || Number.isNaN(one);
    const order = rows.map((row, place) => [value(row), place, row]);
    order.sort(([a, i], [b, j]) => missing(a) - missing(b) || (missing(a) ? i - j : (a < b ? -direction : a > b ? direction : i - j)));
    body.append(...order.map(([, , row]) => row));
  }

  for (const button of table.querySelectorAll("[data-sort]")) {
    button.addEventListener("click", () => {
      const head = button.closest("th");
      const direction = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
      for (const other of table.querySelectorAll("th[aria-sort]")) other.setAttribute("aria-sort", "none");
      head.setAttribute("aria-sort", direction > 0 ? "ascending" : "descending");
      sort(button.dataset.sort, direction);
    });
  }
  for (const field of document.querySelectorAll("[data-filter]")) {
    field.addEventListener("input", () => { chosen[field.dataset.filter] = field.value; show(); });
  }
  for (const button of document.querySelectorAll(".toggle")) {
    button.addEventListener("click", () => {
      button.setAttribute("aria-pressed", button.getAttribute("aria-pressed") === "true" ? "false" : "true");
      show();
    });
  }
  show();
})();
