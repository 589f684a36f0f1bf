"use strict";
(() => {
  const { byId, data } = page;
  const { layers } = page.sheets;
  const precisions = layers ? [...new Set(layers.rows.map((row) => row.precision))] : [];

  // Of a layer in several precisions, the worst one says where it stands.
  function drawBars() {
    const [key, , title] = data.bars.find(([name]) => name === byId("measure").value) ?? [];
    if (key === undefined) return;
    const found = layers.shown.filter((row) => row[key] !== null);
    const worst = new Map();
    for (const row of found) {
      worst.set(row.layer, Math.max(worst.get(row.layer) ?? -Infinity, row[key]));
    }
    const names = [...worst.keys()].sort((a, b) => worst.get(b) - worst.get(a));
    const place = new Map(names.map((name, index) => [name, index]));
    const short = new Map(found.map((row) => [row.layer, row.short]));
    charts.bars("bars", {
      labels: names.map((name) => short.get(name)),
      series: precisions.map((precision) => ({
        name: precision,
        points: found.filter((row) => row.precision === precision).map((row) => ({
          place: place.get(row.layer), value: row[key], row: row.index,
          text: `${row.layer} · ${row.op}, ${precision}: ${Number(row[key].toPrecision(4))}`,
        })),
      })),
      title,
      chosen: (index) => layers.reveal(index),
    });
  }

  function drawFront() {
    const [key, , title] = data.losses.find(([name]) => name === byId("loss").value) ?? [];
    if (key === undefined) return;
    const points = data.front.filter((point) => point[key] !== null);
    points.sort((a, b) => a.ms - b.ms);
    const all = points.every((point) => point.measured);
    const { series } = charts.colors();
    const text = points.map(({ kept_float: names }) => {
      const some = names.slice(0, 8).map(charts.plain).join("<br>");
      const more = names.length > 8 ? `<br>and ${names.length - 8} more` : "";
      return names.length ? `in float: ${names.length}<br>${some}${more}` : "no layer in float";
    });
    Plotly.react("front", [{
      type: "scatter", mode: "lines+markers", cliponaxis: false,
      x: points.map((point) => point.ms), y: points.map((point) => point[key]), text,
      hovertemplate: "%{x:.4~g} ms, %{y:.4~g}<br>%{text}<extra></extra>",
      line: { color: series[0], width: 1.5 },
      marker: {
        size: 9, color: series[0], line: { color: series[0], width: 1.5 },
        symbol: points.map((point) => (point.measured ? "circle" : "circle-open")),
      },
    }], charts.layout({
      height: 360,
      xaxis: { title: `latency (ms per run${all ? "" : "; filled: measured, open: predicted"})` },
      yaxis: { title: charts.plain(title), extra: { rangemode: "tozero" } },
    }), charts.CONFIG);
  }

  if (layers) {
    page.offer(byId("measure"), data.bars);
    byId("measure").addEventListener("change", drawBars);
    layers.opens((inner, row) => charts.pair(inner, `${row.layer} (${row.op})`, [
      ["weights", data.weights[row.layer]],
      ["activations that it reads", data.activations[row.layer]],
    ]));
    layers.watch(drawBars);
    charts.follow(() => {
      drawBars();
      layers.refresh();
    });
  }
  if (byId("loss")) {
    page.offer(byId("loss"), data.losses);
    byId("loss").addEventListener("change", drawFront);
    charts.follow(drawFront);
  }
})();
