window.MathJax = { tex: { inlineMath: [["$", "$"], ["\\(", "\\)"]] }, options: { enableMenu: false, ignoreHtmlClass: "clipboard-copy-txt" } };

// Tables whose headings are buttons sort by them: by data-order, where a cell has it, otherwise by text.
document.addEventListener("click", ({ target }) => {
  const heading = target.closest("th:has(> button)");
  if (!heading) return;
  const [head, body] = [heading.parentElement, heading.closest("table").tBodies[0]];
  const down = heading.ariaSort === "ascending", at = [...head.cells].indexOf(heading);
  for (const other of head.cells) other.removeAttribute("aria-sort");
  heading.ariaSort = down ? "descending" : "ascending";
  const key = (row) => row.cells[at].dataset.order ?? row.cells[at].textContent;
  const rows = [...body.rows], numbers = rows.every((row) => !isNaN(key(row)));
  const compare = (a, b) => (numbers ? a - b : a.localeCompare(b, "en"));
  body.append(...rows.sort((a, b) => // rows without a number come last either way
    (key(a) === "") - (key(b) === "") || (down ? -1 : 1) * compare(key(a), key(b))));
});
