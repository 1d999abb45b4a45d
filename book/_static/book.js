// The book's own script: figures open large on a click, and the ledger can be filtered.
"use strict";
document.addEventListener("DOMContentLoaded", () => {
  zoomFigures();
  filterLedger();
  reachWideFormulas();
});

// A formula that is wider than its box scrolls, and is then reached from the keyboard too.
function reachWideFormulas() {
  const mark = () => {
    for (const formula of document.querySelectorAll('mjx-container[display="true"]')) {
      if (formula.scrollWidth > formula.clientWidth) formula.tabIndex = 0;
      else formula.removeAttribute("tabindex");
    }
  };
  const wait = (left) => {
    const done = window.MathJax && window.MathJax.startup && window.MathJax.startup.promise;
    if (done) done.then(() => { mark(); window.addEventListener("resize", mark); });
    else if (left) setTimeout(wait, 100, left - 1);
  };
  wait(100);
}

function zoomFigures() {
  const figures = document.querySelectorAll(".bd-article .cell_output img");
  if (!figures.length || !window.HTMLDialogElement) return;
  const dialog = document.createElement("dialog");
  dialog.className = "zoom";
  dialog.setAttribute("aria-label", "The figure, enlarged");
  const large = document.createElement("img");
  const close = document.createElement("button");
  close.textContent = "Close";
  dialog.append(close, large);
  dialog.addEventListener("click", () => dialog.close());
  document.body.append(dialog);
  for (const figure of figures) {
    const open = () => {
      large.src = figure.currentSrc || figure.src;
      large.alt = figure.alt;
      dialog.showModal();
    };
    figure.classList.add("zoomable");
    figure.tabIndex = 0;
    figure.setAttribute("role", "button");
    figure.addEventListener("click", open);
    figure.addEventListener("keydown", (e) => {
      if (e.key === "Enter" || e.key === " ") { e.preventDefault(); open(); }
    });
  }
}

function filterLedger() {
  const rows = [...document.querySelectorAll(".ledger tbody tr")];
  const place = document.querySelector(".ledger-filter");
  if (!place || !rows.length) return;
  const choose = (label, values) => {
    const box = document.createElement("label");
    const select = document.createElement("select");
    select.append(new Option("all", ""), ...values.map((v) => new Option(v, v)));
    box.append(label + " ", select);
    place.append(box);
    return select;
  };
  const unique = (values) => [...new Set(values)];
  const verdict = choose("Verdict", unique(rows.map((r) => r.dataset.verdict)));
  const page = choose("Page", unique(rows.map((r) => r.dataset.page)));
  const data = choose("Data", unique(rows.flatMap((r) => (r.dataset.data || "").split(", "))).filter(Boolean));
  const word = document.createElement("input");
  word.type = "search";
  const wordBox = document.createElement("label");
  wordBox.append("Words ", word);
  const count = document.createElement("output");
  place.append(wordBox, count);
  const update = () => {
    let shown = 0;
    for (const row of rows) {
      const keep =
        (!verdict.value || row.dataset.verdict === verdict.value) &&
        (!page.value || row.dataset.page === page.value) &&
        (!data.value || (row.dataset.data || "").split(", ").includes(data.value)) &&
        row.textContent.toLowerCase().includes(word.value.toLowerCase());
      row.hidden = !keep;
      shown += keep;
    }
    for (const table of document.querySelectorAll(".ledger"))
      table.hidden = !table.querySelector("tbody tr:not([hidden])");
    count.textContent = `${shown} of ${rows.length} shown`;
  };
  for (const control of [verdict, page, data, word]) control.addEventListener("input", update);
  update();
}
