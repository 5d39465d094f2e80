// Sorting and filtering of the results; everything else on the site works without a script.
"use strict";

function number(text) {
  const found = text.replaceAll(",", "").match(/-?\d+(\.\d+)?(?=[^→]*$)/);
  return found ? Number(found[0]) : NaN;
}

function sort(table, column, button) {
  const descending = button.parentElement.getAttribute("aria-sort") !== "descending";
  const sign = descending ? -1 : 1;
  const value = (row) => row.cells[column].textContent.trim();
  const rows = [...table.tBodies[0].rows].sort((a, b) => {
    const [x, y] = [number(value(a)), number(value(b))];
    if (Number.isNaN(x) || Number.isNaN(y)) {
      if (Number.isNaN(x) !== Number.isNaN(y)) return Number.isNaN(x) ? 1 : -1;
      return sign * value(a).localeCompare(value(b));
    }
    return sign * (x - y);
  });
  table.tBodies[0].append(...rows);
  for (const cell of table.tHead.rows[0].cells) cell.removeAttribute("aria-sort");
  button.parentElement.setAttribute("aria-sort", descending ? "descending" : "ascending");
}

for (const table of document.querySelectorAll("table.sortable")) {
  [...table.tHead.rows[0].cells].forEach((cell, column) => {
    const button = document.createElement("button");
    button.textContent = cell.textContent;
    button.addEventListener("click", () => sort(table, column, button));
    cell.replaceChildren(button);
  });
}

const filters = document.querySelector(".filters");
if (filters) {
  const tables = [...document.querySelectorAll("table.sortable")];
  const section = (table) => table.closest("section");
  const choices = [["All tasks", ""], ...tables.map((t) => [section(t).querySelector("h2").firstChild.textContent, t.dataset.task])];
  for (const [label, task] of choices) {
    const button = document.createElement("button");
    button.textContent = label;
    button.setAttribute("aria-pressed", String(task === ""));
    button.addEventListener("click", () => {
      for (const other of filters.children) other.setAttribute("aria-pressed", String(other === button));
      for (const table of tables) section(table).hidden = task !== "" && table.dataset.task !== task;
    });
    filters.append(button);
  }
  filters.hidden = false;
}
