"use strict";
(() => {
  const { byId, data } = page;
  const { models, nodes } = page.sheets;

  // A chart of a figure of all models: one kind of bar for each batch size and number of threads.
  function draw(id, title, figure, off, unit) {
    const rows = models.shown;
    const names = [...new Map(rows.map((row) => [row.model, row.short]))].sort(([a], [b]) => a - b);
    const place = new Map(names.map(([model], index) => [model, index]));
    const runs = new Map();
    for (const row of rows) {
      const name = `batch ${row.batch}, ${row.threads} thread${row.threads > 1 ? "s" : ""}`;
      if (!runs.has(name)) runs.set(name, []);
      runs.get(name).push({
        place: place.get(row.model), value: row[figure], row: row.index, off: off(row),
        text: `${row.short}, ${name}: ${Number(row[figure].toPrecision(4))}${unit}`,
      });
    }
    charts.bars(id, {
      labels: names.map(([, short]) => short),
      series: [...runs].map(([name, points]) => ({ name, points })),
      title,
      chosen: (index) => models.reveal(index),
    });
  }

  function drawModels() {
    const noise = (row) => [row.noise * row.speed, row.noise * row.speed];
    draw("speeds", "times as fast as the first model", "speed", noise, "x");
    draw("medians", "milliseconds per run", "ms", (row) => [row.ms - row.low, row.high - row.ms], " ms");
  }

  models.watch(drawModels);
  charts.follow(drawModels);
  if (nodes) {
    const drawNodes = () => charts.times(nodes, data.forms);
    byId("time")?.addEventListener("change", drawNodes);
    nodes.watch(drawNodes);
    charts.follow(drawNodes);
  }
})();
