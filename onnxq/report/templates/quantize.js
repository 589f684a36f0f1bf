"use strict";
(() => {
  const { byId, data, make } = page;
  const { layers } = page.sheets;
  const cells = [...byId("map").querySelectorAll(".cell")];

  // --- the map ----------------------------------------------------------------------------------

  function tell(cell) {
    const index = Number(cell.dataset.cell);
    const { layer, op, precision, reason } = layers.rows[index];
    const told = byId("told");
    told.textContent = `${layer} (${op}): ${precision}${reason ? `; ${reason}` : ""}`;
    const go = make("button", "plain-button", told);
    go.type = "button";
    go.textContent = "in the table";
    go.addEventListener("click", () => layers.reveal(index));
    for (const other of cells) other.tabIndex = other === cell ? 0 : -1;
  }

  const STEPS = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1, Home: -Infinity, End: Infinity };
  byId("map").addEventListener("keydown", (event) => {
    const step = STEPS[event.key];
    if (step === undefined) return;
    event.preventDefault();
    const wanted = Number(event.target.dataset.cell) + step;
    cells[Math.max(0, Math.min(cells.length - 1, wanted))].focus();
  });
  for (const kind of ["focusin", "click", "mouseover"]) {
    byId("map").addEventListener(kind, ({ target }) => {
      if (target.matches(".cell")) tell(target);
    });
  }

  // --- charts -----------------------------------------------------------------------------------

  layers.opens((inner, row) => {
    const found = data.layers[row.layer] ?? {};
    charts.pair(inner, `${row.layer} (${row.op}), ${row.precision}${row.reason ? `: ${row.reason}` : ""}`, [
      ["weights", found.weights, found.weight_range],
      [found.reads ? `activations: ${found.reads}` : "activations", found.activations, found.activation_range],
    ]);
  });
  charts.follow(() => layers.refresh());
  if (byId("growth")) charts.follow(() => charts.growth(data.growth));
  if (byId("times")) {
    const draw = () => charts.times(layers, data.forms);
    byId("time").addEventListener("change", draw);
    layers.watch(draw);
    charts.follow(draw);
  }
})();
