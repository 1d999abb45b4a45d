// The book's own script: figures open large on a click, tables can be sorted, the ledger filtered.
"use strict";
// The formulas in view are set first, so that nothing in sight moves; then all others.
window.MathJax = window.MathJax || {};
window.MathJax.startup = {
  pageReady: async () => {
    if (innerWidth <= 600) oneStatementALine();
    const near = () => [...document.querySelectorAll("article .math:not(:has(mjx-container))")]
      .filter((e) => e.getBoundingClientRect().top < 1.5 * innerHeight);
    for (let round = 0; round < 5 && near().length; round++) { // those below move up
      await window.MathJax.typesetPromise(near());
      fitToTheirBoxes();
    }
    const late = new Promise((done) => setTimeout(done, 1500));
    await Promise.race([document.fonts.ready, late]); // lines are higher without their fonts
    document.documentElement.classList.add("typeset");
    await new Promise((done) => setTimeout(done));
    await window.MathJax.startup.defaultPageReady();
    fitToTheirBoxes();
  },
};

document.addEventListener("DOMContentLoaded", () => {
  openMenus();
  markTheHeading();
  zoomFigures();
  filterLedger();
  fitToTheirBoxes();
  let width = 0; // of the text: sidebars come and go a little after the window's change
  new ResizeObserver(([entry]) => {
    if (entry.contentRect.width !== width) requestAnimationFrame(fitToTheirBoxes);
    width = entry.contentRect.width;
  }).observe(document.querySelector("article") || document.body);
  sortTables();
});

// On a phone what wide spaces set apart in a displayed formula stands in lines of its own.
function oneStatementALine() {
  const wrapped = /^\s*\\\[(?:\\begin\{split\})?(?:\s*\\begin\{gathered\})?([^]*?)(?:\\end\{gathered\}\s*)?(?:\\end\{split\})?\s*\\\]\s*$/;
  const token = /\\begin\{\w+\*?\}|\\end\{\w+\*?\}|\\[a-zA-Z]+|\\.|[^]/g;
  for (const box of document.querySelectorAll("div.math")) {
    const tex = box.lastChild?.data?.match(wrapped);
    let depth = 0, rows = false;
    const letters = (tex ? tex[1] : "").replace(/\\[a-z]+/gi, "m").replace(/[{}_^\s]/g, "").length;
    const lines = (tex ? tex[1] : "").replace(token, (t, at, all) => {
      if (/^(\{|\\begin|\\left$|\\[bB]igg?l$)/.test(t)) depth++;
      if (/^(\}|\\end|\\right$|\\[bB]igg?r$)/.test(t)) depth--;
      rows ||= t === "&" && !depth;
      const word = /^\s*\\text/.test(all.slice(at + 5)) || /\\text\{[^}]*\}\s*$/.test(all.slice(0, at));
      const gap = t === "\\qquad" || (t === "\\quad" && letters > 34 && !word);
      return gap && !depth ? "\\\\\n" : t;
    });
    if (tex && !rows && lines !== tex[1])
      box.lastChild.data = `\\[\\begin{gathered}${lines}\\end{gathered}\\]`;
  }
}

// A menu of the page's head opens and shuts; Escape and a click elsewhere shut it.
function openMenus() {
  for (const button of document.querySelectorAll('[data-bs-toggle="dropdown"]')) {
    const box = button.parentElement, menu = box.querySelector(".dropdown-menu");
    const set = (open) => { menu.classList.toggle("show", open); button.ariaExpanded = open; };
    button.addEventListener("click", () => set(!menu.classList.contains("show")));
    document.addEventListener("click", (e) => { if (!box.contains(e.target)) set(false); });
    box.addEventListener("keydown", (e) => { if (e.key === "Escape") { set(false); button.focus(); } });
  }
}

// The contents beside the text mark the section in view; who scrolls up is offered the top.
function markTheHeading() {
  const links = [...document.querySelectorAll('.bd-toc-nav a[href^="#"]')];
  const heads = links.map((a) => document.getElementById(decodeURIComponent(a.hash.slice(1))));
  const up = document.getElementById("pst-back-to-top");
  if (up) up.addEventListener("click", () => scrollTo(0, 0));
  let last = 0, waiting = false;
  const mark = () => {
    waiting = false;
    const now = heads.findLast((h) => h && h.getBoundingClientRect().top < innerHeight * 0.4);
    const path = [];
    for (let a = links[heads.indexOf(now)]; a; a = a.closest("ul").parentElement.querySelector(":scope > a")) path.push(a);
    for (const a of links) for (const e of [a, a.parentElement]) e.classList.toggle("active", path.includes(a));
    if (up) up.style.display = scrollY < last && scrollY > innerHeight ? "block" : "none";
    last = scrollY;
  };
  addEventListener("scroll", () => { if (!waiting) requestAnimationFrame(mark); waiting = true; }, { passive: true });
  mark();
  const show = () => document.documentElement.classList.add("marked");
  requestAnimationFrame(() => requestAnimationFrame(show)); // as they are by then
}

// A click on a heading sorts a table by that column, a second one the other way.
function sortTables() {
  for (const head of document.querySelectorAll(".sortable thead th")) {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const down = head.ariaSort !== "descending", body = head.closest("table").tBodies[0];
      for (const other of head.parentElement.cells) other.removeAttribute("aria-sort");
      head.ariaSort = down ? "descending" : "ascending";
      const rows = [...body.rows].map((row) => [worth(row.cells[head.cellIndex].textContent), row]);
      rows.sort(([a], [b]) => (typeof a === typeof b ? (a < b ? -1 : a > b) : typeof a === "number" ? 1 : -1));
      body.append(...(down ? rows.reverse() : rows).map(([, row]) => row));
    });
  }
}

// The number with which a cell begins, powers of ten as they are printed; else its text.
function worth(text) {
  const plain = text.trim().replace("−", "-").replace(/·10(?=[⁻⁰¹²³⁴-⁹])/, "e").replace(/^(-?)10(?=[⁻⁰¹²³⁴-⁹])/, "$11e")
    .replace(/[⁻⁰¹²³⁴-⁹]/g, (c) => "-0123456789"["⁻⁰¹²³⁴⁵⁶⁷⁸⁹".indexOf(c)]);
  const number = parseFloat(plain);
  return isNaN(number) ? text.trim().toLowerCase() : number;
}

// What is a little wider than its box is set smaller, down to nine points. What still is
// wider scrolls and says so; a formula is then reached from the keyboard too.
function fitToTheirBoxes() {
  for (const e of document.querySelectorAll("mjx-container.in-line")) {
    e.classList.remove("in-line", "wide");
    e.removeAttribute("tabindex");
    e.style.zoom = "";
  }
  const right = document.querySelector("article")?.getBoundingClientRect().right;
  const out = [...document.querySelectorAll("article mjx-container:not([display])")]
    .filter((e) => e.getBoundingClientRect().right > right + 1);
  for (const e of out) e.classList.add("in-line");
  const boxes = [...document.querySelectorAll('mjx-container.in-line, mjx-container[display="true"], .table-box, .bd-article table.table, .bd-article pre')];
  for (const cell of document.querySelectorAll(".table-box td:not(.long)"))
    cell.classList.toggle("long", /[a-z]{2}/i.test(cell.textContent) && cell.textContent.length > 9);
  for (const box of boxes) {
    box.style.zoom = "";
    box.classList.remove("tight");
    if (box.matches(".table-box")) box.classList.toggle("tight", box.scrollWidth > box.clientWidth + 1);
  }
  const parts = boxes.map((box) => box.clientWidth / box.scrollWidth);
  boxes.forEach((box, k) => {
    const least = box.matches("pre") ? 1 : box.matches(".table-box") ? 0.86 : 0.75;
    if (least <= parts[k] && box.scrollWidth > box.clientWidth + 1) box.style.zoom = 0.99 * parts[k];
  });
  for (const box of boxes) {
    const wide = box.scrollWidth > box.clientWidth + 1;
    box.classList.toggle("wide", wide);
    const caption = box.querySelector("caption"); // stays when its table scrolls
    if (caption) caption.style.maxWidth = wide ? `${box.clientWidth}px` : "";
    if (!box.matches("mjx-container")) continue;
    if (wide) box.tabIndex = 0;
    else box.removeAttribute("tabindex");
  }
}

function zoomFigures() {
  const figures = document.querySelectorAll(".bd-article :is(.cell_output, figure) img");
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
  const chapter = (row) => row.dataset.page.split("/")[0];
  const part = choose("Chapter", unique(rows.map(chapter)));
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
        (!part.value || chapter(row) === part.value) &&
        (!page.value || row.dataset.page === page.value) &&
        (!data.value || (row.dataset.data || "").split(", ").includes(data.value)) &&
        row.textContent.toLowerCase().includes(word.value.toLowerCase());
      row.hidden = !keep;
      shown += keep;
    }
    for (const table of document.querySelectorAll(".ledger")) {
      table.hidden = !table.querySelector("tbody tr:not([hidden])");
      table.previousElementSibling.hidden = table.hidden; // its heading
    }
    count.textContent = `${shown} of ${rows.length} shown`;
  };
  for (const control of [verdict, part, page, data, word]) control.addEventListener("input", update);
  update();
}
