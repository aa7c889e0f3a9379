// Tables sort by a click on a header, or Enter and Space there: up, down, as they came.
// Figures sort by their first number with its unit; words and missing figures come last.
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
  const SCALE = { kb: 1e3, mb: 1e6, gb: 1e9, tb: 1e12, k: 1e3, m: 1e6, b: 1e9 };
  const FIGURE = /^[^\p{L}\d]*?([+−-]?)\$?(\d[\d,]*(?:\.\d+)?(?:e[+−-]?\d+)?)\s?([kMGT]?B|[kM])?(?![\p{L}\d])/u;

  const text = (row, column) => {
    const cell = row.cells[column];
    return cell.dataset.above ?? cell.textContent.trim();
  };

  function figure(words) {
    const found = FIGURE.exec(words);
    if (!found) return null;
    const value = Number(found[2].replaceAll(",", "").replace("−", "-"));
    const size = value * (SCALE[(found[3] || "").toLowerCase()] || 1);
    return found[1] === "−" || found[1] === "-" ? -size : size;
  }

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
    const numeric = rows.filter((row) => figure(text(row, column)) !== null).length * 2 >= rows.length;
    const keyed = rows.map((row, place) => {
      const words = text(row, column);
      return { row, place, words, figure: numeric ? figure(words) : null };
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
