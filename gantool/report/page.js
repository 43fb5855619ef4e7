"use strict";
(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const one = (id) => document.getElementById(id);

  // Sorting: by the numbers of the cells (data-value) where there are any, else by their texts; empty cells come last.
  const valueOf = (row, index) => {
    const cell = row.cells[index];
    const shown = cell.dataset.value !== undefined ? cell : cell.querySelector("[data-value]:not([hidden])");
    const text = shown ? shown.dataset.value : cell.textContent.trim();
    const number = Number(text);
    return text === "" || text === "-" ? null : Number.isNaN(number) ? text : number;
  };
  const compare = (a, b) =>
    typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), undefined, { numeric: true });
  const sort = (table, index, direction) => {
    const sign = direction === "descending" ? -1 : 1;
    const rows = all("tbody > tr", table).map((row) => [valueOf(row, index), row]);
    rows.sort(([a], [b]) => (a === null || b === null ? (a === null) - (b === null) : sign * compare(a, b)));
    table.tBodies[0].append(...rows.map(([, row]) => row));
    all("thead th", table).forEach((th, place) =>
      place === index ? th.setAttribute("aria-sort", direction) : th.removeAttribute("aria-sort"));
  };
  for (const table of all("table.sortable")) {
    all("thead th", table).forEach((th, index) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...th.childNodes);
      th.append(button);
      button.addEventListener("click", () =>
        sort(table, index, th.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending"));
    });
  }

  // Filtering: rows and cards that have all chosen labels and the searched words.
  const form = one("controls");
  const rows = () => all("#table tbody tr");
  const filter = () => {
    const chosen = all("[data-axis]", form).filter((select) => select.value);
    const words = one("search").value.toLowerCase().split(/\s+/).filter(Boolean);
    const fits = (row) => {
      const labels = JSON.parse(row.dataset.labels); // their places among those of each axis
      const text = row.dataset.name.toLowerCase();
      return chosen.every((select) => labels[select.dataset.axis] === Number(select.value)) &&
        words.every((word) => text.includes(word));
    };
    const out = new Set(rows().filter((row) => !fits(row)).map((row) => row.dataset.variant));
    for (const item of all("[data-variant]")) item.hidden = out.has(item.dataset.variant);
    one("shown").textContent = `${rows().length - out.size} of ${rows().length} variants`;
  };

  // The metric: its differences, figures and order of rows.
  const show = () => {
    const { value } = one("metric");
    for (const item of all("[data-metric]")) item.hidden = item.dataset.metric !== value;
    for (const item of all("[data-figures]")) item.hidden = item.dataset.figures !== value;
  };
  const choose = () => {
    const option = one("metric").selectedOptions[0];
    show();
    const index = all("#table thead th").findIndex((th) => th.dataset.column === option.value);
    const places = new Map(rows().map((row) => row.dataset.protocol).map((name, place) => [name, place]));
    if (index < 0) return; // it has figures alone
    sort(one("table"), index, option.dataset.higher ? "descending" : "ascending");
    const byProtocol = (a, b) => places.get(a.dataset.protocol) - places.get(b.dataset.protocol);
    one("table").tBodies[0].append(...rows().sort(byProtocol)); // which are never ranked together
  };
  if (form) {
    form.addEventListener("submit", (event) => event.preventDefault());
    form.addEventListener("input", filter);
    one("metric").addEventListener("change", choose);
    show();
    filter();
  }

  // Training time: the same share of each variant's grids.
  const slider = one("time");
  const flick = () => {
    const share = Number(slider.value) / Number(slider.max || 1);
    const steps = new Set();
    for (const list of all(".frames")) {
      const frames = [...list.children];
      const now = Math.round(share * (frames.length - 1));
      frames.forEach((frame, index) => frame.classList.toggle("now", index === now));
      steps.add(frames[now].dataset.step);
    }
    const text = steps.size === 1 ? `step ${[...steps][0]}` : `${slider.value} of ${slider.max}`;
    one("time-shown").textContent = text;
    slider.setAttribute("aria-valuetext", text);
  };
  const most = Math.max(0, ...all(".frames").map((list) => list.children.length - 1));
  if (most > 0) {
    slider.max = slider.value = most;
    slider.addEventListener("input", flick);
    flick();
  } else {
    slider.closest(".flick").remove();
  }

  // On paper everything is open.
  let closed = [];
  addEventListener("beforeprint", () => {
    closed = all("details:not([open])");
    closed.forEach((item) => (item.open = true));
  });
  addEventListener("afterprint", () => closed.forEach((item) => (item.open = false)));
})();
