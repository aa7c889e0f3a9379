// Tables sort by a click on a header, or Enter and Space there: up, down, as they came.
// Figures sort by their values; words and missing figures come last.
// A link to a place in a folded part opens it.
"use strict";
(() => {
  function open() {
    const place = location.hash && document.getElementById(location.hash.slice(1));
    const fold = place && place.closest("details");
    if (fold && !fold.open) {
      fold.open = true;
      place.scrollIntoView();
    }
  }
  addEventListener("hashchange", open);
  open();
})();
(() => {
  function compare(a, b, down) {
    if (a.figure !== null || b.figure !== null) {
      if (a.figure === null || b.figure === null) return a.figure === null ? 1 : -1;
      if (a.figure !== b.figure) return (a.figure - b.figure) * (down ? -1 : 1);
    } else if (a.words !== b.words) {
      return a.words.localeCompare(b.words, "en", { numeric: true }) * (down ? -1 : 1);
    }
    return a.place - b.place;
  }

  function order(table, rows, column, state) {
    const body = table.tBodies[0];
    table.classList.toggle("sorted", state !== "none");
    const keyed = rows.map((row, place) => {
      const { value, above } = row.cells[column].dataset;
      const words = above ?? row.cells[column].textContent.trim();
      return { row, place, words, figure: value === undefined ? null : Number(value) };
    });
    if (state !== "none") keyed.sort((a, b) => compare(a, b, state === "descending"));
    body.append(...keyed.map((key) => key.row));
    [...table.tHead.rows[0].cells].forEach((th, i) => {
      th.setAttribute("aria-sort", i === column ? state : "none");
    });
  }

  const NEXT = { none: "ascending", ascending: "descending", descending: "none" };
  for (const table of document.querySelectorAll("table")) {
    const rows = [...table.tBodies[0].rows];
    if (rows.length < 2) continue;
    [...table.tHead.rows[0].cells].forEach((th, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.setAttribute("aria-label", `Sort by ${th.textContent.trim()}`);
      button.addEventListener("click", () => order(table, rows, column, NEXT[th.getAttribute("aria-sort")]));
      th.append(button);
      th.setAttribute("aria-sort", "none");
    });
  }
})();
