"use strict";
(() => {
  const DATA = JSON.parse(document.getElementById("data").textContent);
  const MOST_BARS = 25;
  const CONFIG = { displaylogo: false, responsive: true, displayModeBar: false };
  // There names have no room beside the bars: each stands above its own.
  const NARROW = matchMedia("(max-width: 640px)");
  const MONO = "ui-monospace, Menlo, Consolas, monospace";
  const byId = (id) => document.getElementById(id);
  const table = byId("layers");
  const lines = table ? [...table.tBodies[0].rows] : [];
  const state = { sort: null, descending: true, open: null };

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

  function layout(changes) {
    const { ink, dim, line, card } = colors();
    const axis = (title) => ({
      title: { text: broken(title), font: { size: 12, color: dim }, standoff: 10 },
      gridcolor: line, zerolinecolor: line, linecolor: line, tickcolor: line, automargin: true,
    });
    return {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: ink },
      hoverlabel: { bgcolor: card, bordercolor: line, font: { color: ink, size: 12 }, align: "left" },
      margin: { l: 10, r: 16, t: 10, b: 44 },
      legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom" },
      ...changes,
      xaxis: { ...axis(changes.xaxis.title), ...changes.xaxis.extra },
      yaxis: { ...axis(changes.yaxis.title), ...changes.yaxis.extra },
    };
  }

  const precisions = [...new Set(DATA.rows.map((row) => row.precision))];
  const colorOf = (precision) => {
    const { series } = colors();
    return series[precisions.indexOf(precision) % series.length];
  };

  // --- which rows are looked at -----------------------------------------------------------------

  function wanted(row) {
    const words = byId("find").value.toLowerCase().split(/\s+/).filter(Boolean);
    const precision = byId("precision").value;
    const text = `${row.layer} ${row.op} ${row.precision}`.toLowerCase();
    return words.every((word) => text.includes(word)) && (!precision || row.precision === precision);
  }

  function filter() {
    let count = 0;
    for (const line of lines) {
      const keep = wanted(DATA.rows[line.dataset.row]);
      line.hidden = !keep;
      count += keep;
    }
    if (state.open?.hidden) close();
    byId("count").textContent = `${count} of ${lines.length}`;
    drawBars();
  }

  // --- bars -------------------------------------------------------------------------------------

  function drawBars() {
    const [key, , title] = DATA.bars.find(([name]) => name === byId("measure").value) ?? [];
    if (key === undefined) return;
    const rows = DATA.rows.map((row, index) => ({ ...row, index }));
    const found = rows.filter((row) => wanted(row) && row[key] !== null);
    const worst = new Map();
    for (const row of found) {
      worst.set(row.layer, Math.max(worst.get(row.layer) ?? -Infinity, row[key]));
    }
    const layers = [...worst.keys()].sort((a, b) => worst.get(b) - worst.get(a));
    const shown = layers.slice(0, MOST_BARS);
    const place = new Map(shown.map((layer, index) => [layer, index]));
    const traces = precisions.map((precision) => {
      const part = found.filter((row) => row.precision === precision && place.has(row.layer));
      return {
        type: "bar", orientation: "h", name: precision,
        x: part.map((row) => row[key]), y: part.map((row) => place.get(row.layer)),
        customdata: part.map((row) => [plain(row.layer), plain(row.op), row.index]),
        hovertemplate: `%{customdata[0]}<br>%{customdata[1]}, ${plain(precision)}: %{x:.4~g}<extra></extra>`,
        marker: { color: colorOf(precision) },
      };
    }).filter((trace) => trace.x.length);
    const name = new Map(found.map((row) => [row.layer, plain(row.short)]));
    const narrow = NARROW.matches;
    const each = (narrow ? 26 : 12) + 12 * Math.max(traces.length, 1);
    const above = shown.map((layer, index) => ({
      text: name.get(layer), x: 0, xref: "paper", xanchor: "left", y: index - 0.5, yanchor: "top",
      yshift: 5, showarrow: false, font: { family: MONO, size: 10.5 },
    }));
    Plotly.react("bars", traces, layout({
      height: shown.length * each + 100, bargap: narrow ? 26 / each : 0.3, barmode: "group",
      showlegend: traces.length > 1, annotations: narrow ? above : [],
      xaxis: { title: plain(title) },
      yaxis: {
        title: "",
        extra: {
          tickvals: shown.map((_, index) => index), ticktext: shown.map((layer) => name.get(layer)),
          range: [shown.length - 0.5, -0.5], showgrid: false, zeroline: false, fixedrange: true,
          tickfont: { family: MONO, size: 11.5 }, ticklen: 4, showticklabels: !narrow,
        },
      },
    }), CONFIG);
    byId("cut").textContent = layers.length > shown.length
      ? `The first ${shown.length} of ${layers.length} layers; the table holds all.` : "";
    byId("bars").removeAllListeners?.("plotly_click");
    byId("bars").on("plotly_click", ({ points: [point] }) => {
      const line = lines.find((one) => Number(one.dataset.row) === point.customdata[2]);
      open(line);
      line.scrollIntoView({ block: "center", behavior: "smooth" });
    });
  }

  // --- the Pareto front -------------------------------------------------------------------------

  function drawFront() {
    if (!byId("front")) return;
    const [key, , title] = DATA.losses.find(([name]) => name === byId("loss").value) ?? [];
    if (key === undefined) return;
    const points = DATA.front.filter((point) => point[key] !== null);
    points.sort((a, b) => a.ms - b.ms);
    const all = points.every((point) => point.measured);
    const { series } = colors();
    const text = points.map(({ kept_float: names }) => {
      const some = names.slice(0, 8).map(plain).join("<br>");
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
    }], layout({
      height: 360,
      xaxis: { title: `latency (ms per run${all ? "" : "; filled: measured, open: predicted"})` },
      yaxis: { title: plain(title), extra: { rangemode: "tozero" } },
    }), CONFIG);
  }

  // --- the table --------------------------------------------------------------------------------

  function sortBy(header) {
    const { key } = header.dataset;
    const number = header.classList.contains("number");
    // words rise, figures that are large when they hurt fall, ratios rise: the worst comes first
    const rises = !number || (/sqnr_db|agreement/.test(key));
    state.descending = state.sort === key ? !state.descending : !rises;
    state.sort = key;
    const sign = state.descending ? -1 : 1;
    const value = (line) => DATA.rows[line.dataset.row][key];
    const compare = number
      ? (left, right) => left - right
      : (left, right) => left.localeCompare(right, undefined, { numeric: true });
    const order = (a, b) => {
      const [left, right] = [value(a), value(b)];
      const missing = (left === null) - (right === null); // at the end, whatever the direction
      const known = left === null || right === null ? 0 : sign * compare(left, right);
      return missing || known || a.dataset.row - b.dataset.row;
    };
    lines.sort(order);
    for (const other of table.tHead.rows[0].cells) other.setAttribute("aria-sort", "none");
    header.setAttribute("aria-sort", state.descending ? "descending" : "ascending");
    const opened = state.open;
    close();
    table.tBodies[0].append(...lines);
    if (opened) open(opened);
  }

  function close() {
    if (!state.open) return;
    state.open.setAttribute("aria-expanded", "false");
    state.open.nextElementSibling.remove();
    state.open = null;
  }

  function open(line) {
    close();
    const row = DATA.rows[line.dataset.row];
    const make = (tag, name, parent) => {
      const element = document.createElement(tag);
      element.className = name;
      parent?.append(element);
      return element;
    };
    const detail = make("tr", "detail");
    const cell = make("td", "", detail);
    const inner = make("div", "inner", cell);
    cell.colSpan = line.cells.length;
    inner.style.width = `${table.parentElement.clientWidth}px`; // the table may be wider
    make("p", "full", inner).textContent = `${row.layer} (${row.op})`;
    const pair = make("div", "pair", inner);
    const places = [make("div", "dim", pair), make("div", "dim", pair)];
    line.after(detail);
    line.setAttribute("aria-expanded", "true");
    state.open = line;
    histogram(places[0], "weights", 0, DATA.weights[row.layer]);
    histogram(places[1], "activations that it reads", 1, DATA.activations[row.layer]);
  }

  function histogram(place, title, series, found) {
    if (!found) {
      place.textContent = `No histogram of ${title}.`;
      return;
    }
    // bins of a constant reach half a unit to both sides
    const [lo, hi] = found.lo < found.hi ? [found.lo, found.hi] : [found.lo - 0.5, found.hi + 0.5];
    const width = (hi - lo) / found.counts.length;
    Plotly.newPlot(place, [{
      type: "bar", y: found.counts, x: found.counts.map((_, bin) => lo + (bin + 0.5) * width),
      width, marker: { color: colors().series[series], line: { width: 0 } },
      hovertemplate: "about %{x:.4~g}: %{y} values<extra></extra>",
    }], layout({
      height: 230, bargap: 0, showlegend: false,
      xaxis: { title }, yaxis: { title: "values (log scale)", extra: { type: "log", dtick: 1 } },
    }), CONFIG);
  }

  // --- start ------------------------------------------------------------------------------------

  function choices(select, pairs) {
    for (const [value, text] of pairs) select.add(new Option(text, value));
  }

  function drawAll() {
    if (table) {
      drawBars();
      if (state.open) open(state.open);
    }
    drawFront();
  }

  if (table) {
    choices(byId("measure"), DATA.bars);
    choices(byId("precision"), precisions.map((precision) => [precision, precision]));
    byId("precisions").hidden = precisions.length < 2;
    byId("find").addEventListener("input", filter);
    byId("precision").addEventListener("change", filter);
    byId("measure").addEventListener("change", drawBars);
    const toggle = (line) => (line === state.open ? close() : open(line));
    table.addEventListener("click", ({ target }) => {
      const header = target.closest("th[data-key]");
      const line = target.closest("tr[data-row]");
      if (header) sortBy(header);
      else if (line) toggle(line);
    });
    table.addEventListener("keydown", (event) => {
      if (!event.target.matches("tr[data-row]") || !["Enter", " "].includes(event.key)) return;
      event.preventDefault();
      toggle(event.target);
    });
    filter();
  }
  if (byId("loss")) {
    choices(byId("loss"), DATA.losses);
    byId("loss").addEventListener("change", drawFront);
  }
  drawFront();
  for (const query of [NARROW, matchMedia("(prefers-color-scheme: dark)")]) {
    query.addEventListener("change", drawAll);
  }
})();
