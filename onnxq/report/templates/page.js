"use strict";
// What every page has: its data, and tables to sort and to filter.
const page = (() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);

  // A table with its rows' values, and what filters it.
  class Sheet {
    #table; #tools; #rows; #keys; #open = null; #detail = null; #watchers = [];
    #sort = null; #descending = true;

    constructor(table) {
      this.#table = table;
      this.#rows = data.tables[table.id];
      this.#tools = document.querySelector(`.tools[data-for="${table.id}"]`);
      const heads = [...table.tHead.rows[0].cells];
      this.#keys = heads.filter((head) => !head.classList.contains("number")).map((head) => head.dataset.key);
      for (const select of this.#selects) this.#offer(select);
      this.#tools.addEventListener("input", () => this.#filter());
      table.addEventListener("click", ({ target }) => {
        const head = target.closest("th[data-key]");
        const line = target.closest("tr[data-row]");
        if (head) this.#sortBy(head);
        else if (line && this.#detail) this.#toggle(line);
      });
      table.addEventListener("keydown", (event) => {
        if (!event.target.matches("tr[data-row]") || !["Enter", " "].includes(event.key)) return;
        event.preventDefault();
        if (this.#detail) this.#toggle(event.target);
      });
      this.#filter();
    }

    // The rows that are looked at, each with its index.
    get shown() {
      const words = this.#tools.querySelector("input").value.toLowerCase().split(/\s+/).filter(Boolean);
      const chosen = this.#selects.filter((select) => select.value);
      return this.#rows.map((row, index) => ({ ...row, index })).filter((row) => {
        const text = this.#keys.map((key) => row[key] ?? "").join(" ").toLowerCase();
        return words.every((word) => text.includes(word))
          && chosen.every((select) => String(row[select.dataset.key]) === select.value);
      });
    }

    get rows() {
      return this.#rows;
    }

    // Calls a function now, and whenever other rows are looked at.
    watch(draw) {
      this.#watchers.push(draw);
      draw();
    }

    // Rows open from now on: a function fills what is below one.
    opens(detail) {
      this.#detail = detail;
    }

    // Opens a row, and goes there.
    reveal(index) {
      const line = this.#lines.find((one) => Number(one.dataset.row) === index);
      if (this.#detail) this.#show(line);
      line.scrollIntoView({ block: "center", behavior: "smooth" });
    }

    // Fills the open row anew.
    refresh() {
      if (this.#open) this.#show(this.#open);
    }

    get #selects() {
      return [...this.#tools.querySelectorAll("select")];
    }

    get #lines() {
      return [...this.#table.tBodies[0].querySelectorAll("tr[data-row]")];
    }

    #offer(select) {
      const values = [...new Set(this.#rows.map((row) => row[select.dataset.key]))].filter((value) => value !== null);
      for (const value of values) select.add(new Option(value, value));
      select.parentElement.hidden = values.length < 2;
    }

    #filter() {
      const kept = new Set(this.shown.map((row) => row.index));
      for (const line of this.#lines) line.hidden = !kept.has(Number(line.dataset.row));
      if (this.#open?.hidden) this.#close();
      this.#tools.querySelector(".count").textContent = `${kept.size} of ${this.#rows.length}`;
      for (const draw of this.#watchers) draw();
    }

    #sortBy(head) {
      const { key } = head.dataset;
      const number = head.classList.contains("number");
      // words rise, figures fall unless the smallest is the worst: that comes first
      const rises = !number || "rises" in head.dataset;
      this.#descending = this.#sort === key ? !this.#descending : !rises;
      this.#sort = key;
      const sign = this.#descending ? -1 : 1;
      const value = (line) => this.#rows[line.dataset.row][key] ?? null;
      const compare = number
        ? (left, right) => left - right
        : (left, right) => String(left).localeCompare(String(right), undefined, { numeric: true });
      const lines = this.#lines.sort((a, b) => {
        const [left, right] = [value(a), value(b)];
        const missing = (left === null) - (right === null); // at the end, whatever the direction
        const known = left === null || right === null ? 0 : sign * compare(left, right);
        return missing || known || a.dataset.row - b.dataset.row;
      });
      for (const other of head.parentElement.cells) other.setAttribute("aria-sort", "none");
      head.setAttribute("aria-sort", this.#descending ? "descending" : "ascending");
      const opened = this.#open;
      this.#close();
      this.#table.tBodies[0].append(...lines);
      if (opened) this.#show(opened);
    }

    #toggle(line) {
      if (line === this.#open) this.#close();
      else this.#show(line);
    }

    #close() {
      if (!this.#open) return;
      this.#open.setAttribute("aria-expanded", "false");
      this.#open.nextElementSibling.remove();
      this.#open = null;
    }

    #show(line) {
      this.#close();
      const detail = make("tr", "detail");
      const cell = make("td", "", detail);
      const inner = make("div", "inner", cell);
      cell.colSpan = line.cells.length;
      inner.style.width = `${this.#table.parentElement.clientWidth}px`; // the table may be wider
      line.after(detail);
      line.setAttribute("aria-expanded", "true");
      this.#open = line;
      this.#detail(inner, this.#rows[line.dataset.row]);
    }
  }

  function make(tag, name, parent) {
    const element = document.createElement(tag);
    element.className = name;
    parent?.append(element);
    return element;
  }

  // Offers pairs of a value and a text.
  function offer(select, pairs) {
    for (const [value, text] of pairs) select.add(new Option(text, value));
  }

  const tables = [...document.querySelectorAll("table.sheet")];
  const sheets = Object.fromEntries(tables.map((table) => [table.id, new Sheet(table)]));
  return { data, byId, make, offer, sheets };
})();
