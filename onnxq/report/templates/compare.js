"use strict";
(() => {
  const DATA = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);
  const table = byId("layers");
  if (!table) return;
  const lines = [...table.tBodies[0].rows];
  // Below this names have room along the axis.
  const MOST_NAMES = 40;

  // Charts read a few tags in text; names are to be shown as they are.
  const plain = (text) =>
    text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");

  function draw() {
    const style = getComputedStyle(document.documentElement);
    const read = (name) => style.getPropertyValue(name).trim();
    const series = read("--series").split(",").map((color) => color.trim());
    const line = read("--line");
    const axis = { gridcolor: line, zerolinecolor: line, linecolor: line, automargin: true };
    const title = (text) => ({ text, font: { size: 12, color: read("--dim") } });
    const rows = DATA.rows;
    const places = rows.map((_, index) => index);
    const names = rows.map((row) => `${plain(row.name)}<br>${plain(row.op)}`);
    const mostShare = (row) => (row.share === null ? 0 : Math.min(row.share, 1));
    Plotly.react("growth", [{
      type: "scatter", mode: "lines+markers", name: "what the layer makes", connectgaps: true,
      x: places, y: rows.map((row) => row.sqnr_db), text: names,
      hovertemplate: "%{text}<br>SQNR %{y:.1f} dB<extra></extra>",
      line: { color: series[0], width: 1.8 }, marker: { size: 4, color: series[0] },
    }, {
      type: "scatter", mode: "markers", name: "what it adds itself; larger: more harm at the outputs",
      x: places, y: rows.map((row) => row.new_db), text: names,
      hovertemplate: "%{text}<br>new error %{y:.1f} dB<extra></extra>",
      marker: { color: series[1], size: rows.map((row) => 5 + 17 * Math.sqrt(mostShare(row))), opacity: 0.85 },
    }], {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", height: 420,
      font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: read("--ink") },
      hoverlabel: { bgcolor: read("--card"), bordercolor: line, font: { color: read("--ink") }, align: "left" },
      margin: { l: 10, r: 16, t: 10, b: 44 },
      legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom" },
      xaxis: {
        ...axis, title: title("layers in the order of the graph"), showgrid: false, zeroline: false,
        tickvals: places, ticktext: rows.map((row) => plain(row.short)), tickfont: { size: 10 },
        tickangle: -60, showticklabels: rows.length <= MOST_NAMES,
      },
      yaxis: { ...axis, title: title("signal to error (dB)") },
    }, { displaylogo: false, responsive: true, displayModeBar: false });
  }

  function filter() {
    const words = byId("find").value.toLowerCase().split(/\s+/).filter(Boolean);
    let count = 0;
    for (const line of lines) {
      const { name, op } = DATA.rows[line.dataset.row];
      const keep = words.every((word) => `${name} ${op}`.toLowerCase().includes(word));
      line.hidden = !keep;
      count += keep;
    }
    byId("count").textContent = `${count} of ${lines.length}`;
  }

  byId("find").addEventListener("input", filter);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  filter();
  draw();
})();
