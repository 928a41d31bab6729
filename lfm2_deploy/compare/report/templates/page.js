"use strict";
(() => {
  const data = document.getElementById("report").textContent;
  const save = document.getElementById("save");
  save.hidden = false;
  save.addEventListener("click", () => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([data], { type: "application/json" }));
    link.download = "report.json";
    link.click();
  });
  const body = document.querySelector("#figures tbody");
  document.querySelectorAll("#figures thead th").forEach((head, column) => {
    if (!column) return;
    const button = document.createElement("button");
    button.append(...head.childNodes);
    head.append(button);
    let sign = 1;
    button.addEventListener("click", () => {
      const value = (row) => parseFloat(row.cells[column]?.dataset.number ?? "NaN");
      const last = (row) => (Number.isNaN(value(row)) ? 1 : 0);
      const rows = [...body.rows];
      rows.sort((a, b) => last(a) - last(b) || sign * (value(a) - value(b)) || 0);
      sign = -sign;
      body.append(...rows);
    });
  });
})();
