"use strict";
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0], pictures = document.getElementById(table.dataset.pictures);
  const valueOf = (row, column) => {
    const cell = row.cells[column], value = cell.dataset.value;
    return value === undefined ? cell.textContent : value === "" ? -Infinity : Number(value);
  };
  for (const head of table.tHead.querySelectorAll("th:has(button)")) head.firstElementChild.addEventListener("click", () => {
    const column = head.cellIndex, before = head.getAttribute("aria-sort");
    const down = before ? before === "ascending" : head.classList.contains("number");  // numbers: the greatest first
    for (const other of table.tHead.querySelectorAll("[aria-sort]")) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const order = (a, b) => typeof a === "number" ? a - b : a.localeCompare(b, "en", {numeric: true});
    const rows = [...body.rows].sort((a, b) => (down ? -1 : 1) * order(valueOf(a, column), valueOf(b, column)));
    body.append(...rows);
    if (pictures) pictures.append(...rows.flatMap(row => pictures.querySelector(`[data-row="${row.dataset.row}"]`) || []));
  });
}
