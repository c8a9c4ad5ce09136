// Puts a field above every long table, which shows only the rows that hold all words typed into it.
addEventListener("DOMContentLoaded", () => {
  for (const table of document.querySelectorAll(".md-typeset table")) {
    const rows = Array.from(table.tBodies[0]?.rows ?? []);
    if (rows.length < 20) continue;
    const field = Object.assign(document.createElement("input"), {type: "search", className: "filter"});
    const count = Object.assign(document.createElement("output"), {className: "filter"});
    field.placeholder = "Filter these rows";
    field.setAttribute("aria-label", field.placeholder);
    const update = () => {
      const words = field.value.toLowerCase().split(/\s+/);
      for (const row of rows) row.hidden = !words.every(word => row.textContent.toLowerCase().includes(word));
      count.textContent = `${rows.filter(row => !row.hidden).length} of ${rows.length}`;
    };
    field.addEventListener("input", update);
    table.before(field, count);
    update();
  }
});
