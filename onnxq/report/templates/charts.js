"use strict";
// Charts that several pages draw, in the colours of the page.
const charts = (() => {
  const { byId, make } = page;
  const MOST_BARS = 25;
  // Below this names have room along an axis.
  const MOST_NAMES = 40;
  const CONFIG = { displaylogo: false, responsive: true, displayModeBar: false };
  // There names have no room beside the bars: each stands above its own.
  const NARROW = matchMedia("(max-width: 640px)");
  const DARK = matchMedia("(prefers-color-scheme: dark)");
  const MONO = "ui-monospace, Menlo, Consolas, monospace";

  // Charts read a few tags in text; names are to be shown as they are.
  const plain = (text) =>
    text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");

  function colors() {
    const style = getComputedStyle(document.documentElement);
    const read = (name) => style.getPropertyValue(name).trim();
    return {
      ink: read("--ink"), dim: read("--dim"), line: read("--line"), card: read("--card"),
      series: read("--series").split(",").map((color) => color.trim()),
    };
  }

  // Titles do not break by themselves.
  function broken(title) {
    const lines = [""];
    for (const word of title.split(" ")) {
      const longer = `${lines.at(-1)} ${word}`.trim();
      if (NARROW.matches && longer.length > 44) lines.push(word);
      else lines[lines.length - 1] = longer;
    }
    return lines.join("<br>");
  }

  function layout({ xaxis, yaxis, ...changes }) {
    const { ink, dim, line, card } = colors();
    const axis = ({ title, extra }) => ({
      title: { text: broken(title), font: { size: 12, color: dim }, standoff: 10 },
      gridcolor: line, zerolinecolor: line, linecolor: line, tickcolor: line, automargin: true,
      ...extra,
    });
    return {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: ink },
      hoverlabel: { bgcolor: card, bordercolor: line, font: { color: ink, size: 12 }, align: "left" },
      margin: { l: 10, r: 16, t: 10, b: 44 },
      legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom" },
      ...changes, xaxis: axis(xaxis), yaxis: axis(yaxis),
    };
  }

  // Draws now, and again where the width or the colours change.
  function follow(draw) {
    draw();
    for (const query of [NARROW, DARK]) query.addEventListener("change", draw);
  }

  // Horizontal bars below one another.
  //   labels: names of the bars, from the top; the first of them are shown
  //   series: name and points of each kind of bar: place among the labels, value, text to show,
  //     and maybe how far it may be off to both sides
  function bars(id, { labels, series, title, note = byId(id).nextElementSibling, chosen = () => {} }) {
    const shown = labels.slice(0, MOST_BARS);
    const palette = colors();
    const traces = series.map(({ name, points }, number) => {
      const drawn = points.filter((point) => point.place < shown.length);
      const off = drawn.some((point) => point.off);
      return {
        type: "bar", orientation: "h", name: plain(name),
        x: drawn.map((point) => point.value), y: drawn.map((point) => point.place),
        customdata: drawn.map((point) => point.row), text: drawn.map((point) => plain(point.text)),
        textposition: "none", hovertemplate: "%{text}<extra></extra>",
        marker: { color: palette.series[number % palette.series.length] },
        error_x: off ? {
          type: "data", symmetric: false, color: palette.ink, thickness: 1.2, width: 3,
          arrayminus: drawn.map((point) => point.off?.[0] ?? 0), array: drawn.map((point) => point.off?.[1] ?? 0),
        } : undefined,
      };
    }).filter((trace) => trace.x.length);
    const narrow = NARROW.matches;
    const each = (narrow ? 26 : 12) + 12 * Math.max(traces.length, 1);
    const above = shown.map((label, place) => ({
      text: plain(label), x: 0, xref: "paper", xanchor: "left", y: place - 0.5, yanchor: "top",
      yshift: 5, showarrow: false, font: { family: MONO, size: 10.5 },
    }));
    Plotly.react(id, traces, layout({
      height: shown.length * each + 100, bargap: narrow ? 26 / each : 0.3, barmode: "group",
      showlegend: traces.length > 1, annotations: narrow ? above : [],
      legend: { orientation: "h", x: 0, y: 1, yanchor: "bottom", traceorder: "normal" },
      xaxis: { title: plain(title) },
      yaxis: {
        title: "",
        extra: {
          tickvals: shown.map((_, place) => place), ticktext: shown.map(plain),
          range: [shown.length - 0.5, -0.5], showgrid: false, zeroline: false, fixedrange: true,
          tickfont: { family: MONO, size: 11.5 }, ticklen: 4, showticklabels: !narrow,
        },
      },
    }), CONFIG);
    if (note?.matches(".cut")) {
      note.textContent = labels.length > shown.length
        ? `The first ${shown.length} of ${labels.length}; the table holds all.` : "";
    }
    byId(id).removeAllListeners?.("plotly_click");
    byId(id).on("plotly_click", ({ points: [point] }) => chosen(point.customdata));
  }

  // Times of the nodes of a sheet, in one model or in two.
  function times(sheet, names) {
    const gains = byId("time")?.value === "gain";
    const size = (row) => (gains ? row.gain ?? -Infinity : Math.max(...names.map((_, i) => row.us[i] ?? 0)));
    const rows = sheet.shown.filter((row) => row.us.some((us) => us !== null));
    rows.sort((a, b) => size(b) - size(a));
    const bar = (name, of) => ({
      name,
      points: rows.map((row, place) => ({ row, place, value: of(row) })).filter(({ value }) => value !== null)
        .map(({ row, place, value }) => ({
          place, value, row: row.index, text: `${row.layer} · ${row.op}, ${name}: ${value.toFixed(1)} µs`,
        })),
    });
    bars("times", {
      labels: rows.map((row) => row.short),
      series: gains ? [bar("saved", (row) => row.gain)] : names.map((name, i) => bar(name, (row) => row.us[i])),
      title: gains ? "microseconds saved per run" : "microseconds per run",
      chosen: (index) => sheet.reveal(index),
    });
  }

  // How often values occur, with the ends of a range where one was chosen.
  function histogram(place, title, series, found, range = null) {
    if (!found) {
      place.textContent = `No histogram of ${title}.`;
      return;
    }
    // bins of a constant reach half a unit to both sides
    const [lo, hi] = found.lo < found.hi ? [found.lo, found.hi] : [found.lo - 0.5, found.hi + 0.5];
    const width = (hi - lo) / found.counts.length;
    const { ink } = colors();
    const ends = range ? [Math.min(lo, range[0]), Math.max(hi, range[1])] : [lo, hi];
    const margin = (ends[1] - ends[0]) * 0.03;
    Plotly.newPlot(place, [{
      type: "bar", y: found.counts, x: found.counts.map((_, bin) => lo + (bin + 0.5) * width),
      width, marker: { color: colors().series[series], line: { width: 0 } },
      hovertemplate: "about %{x:.4~g}: %{y} values<extra></extra>",
    }], layout({
      height: 230, bargap: 0, showlegend: false,
      shapes: (range ?? []).map((x) => ({
        type: "line", x0: x, x1: x, yref: "paper", y0: 0, y1: 1, line: { color: ink, width: 1.5, dash: "dash" },
      })),
      xaxis: { title: plain(title), extra: { range: [ends[0] - margin, ends[1] + margin] } },
      yaxis: { title: "values (log scale)", extra: { type: "log", dtick: 1 } },
    }), CONFIG);
  }

  // Histograms of weights and activations below a row: pairs of a title, what was found, its range.
  function pair(inner, heading, told) {
    make("p", "full", inner).textContent = heading;
    const grid = make("div", "pair", inner);
    const places = told.map(() => make("div", "dim", grid)); // all of them: each takes its width
    told.forEach(([title, found, range], number) => histogram(places[number], title, number, found, range));
  }

  // How an error grows from layer to layer.
  function growth(rows) {
    const { series } = colors();
    const places = rows.map((_, index) => index);
    const names = rows.map((row) => `${plain(row.layer)}<br>${plain(row.op)}`);
    const share = (row) => Math.min(row.share ?? 0, 1);
    Plotly.react("growth", [{
      type: "scatter", mode: "lines+markers", name: "what the layer makes", connectgaps: true,
      x: places, y: rows.map((row) => row.sqnr_db), text: names,
      hovertemplate: "%{text}<br>SQNR %{y:.1f} dB<extra></extra>",
      line: { color: series[0], width: 1.8 }, marker: { size: 4, color: series[0] },
    }, {
      type: "scatter", mode: "markers", name: `what it adds itself; larger: more harm${NARROW.matches ? "" : " at the outputs"}`,
      x: places, y: rows.map((row) => row.new_db), text: names,
      hovertemplate: "%{text}<br>new error %{y:.1f} dB<extra></extra>",
      marker: { color: series[1], size: rows.map((row) => 5 + 17 * Math.sqrt(share(row))), opacity: 0.85 },
    }], layout({
      height: 420,
      xaxis: {
        title: "layers in the order of the graph",
        extra: {
          showgrid: false, zeroline: false, tickvals: places, ticktext: rows.map((row) => plain(row.short)),
          tickfont: { size: 10 }, tickangle: -60, showticklabels: rows.length <= MOST_NAMES && !NARROW.matches,
        },
      },
      yaxis: { title: "signal to error (dB)" },
    }), CONFIG);
  }

  return { CONFIG, plain, colors, layout, follow, bars, times, pair, growth };
})();
