"use strict";
// The page's own script: theme, figures by Vega-Lite, tables sorted by their headers.
// Whatever it puts on the page it puts there as text, never as markup.
const betaflow = (() => {
  const root = document.documentElement;
  const system = matchMedia("(prefers-color-scheme: dark)");
  const dark = () => (root.dataset.theme ? root.dataset.theme === "dark" : system.matches);
  const data = (id) => JSON.parse(document.getElementById(`${id}-data`).textContent);

  function element(name, attributes = {}, ...children) {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    made.append(...children);
    return made;
  }

  // A button for each name; `changed` is told the set of those pressed, of which none means all.
  function toggles(place, entries, changed) {
    const pressed = new Set();
    for (const entry of entries) {
      const button = element("button", { type: "button", "aria-pressed": "false" });
      button.append(...(entry.shape ? [swatch(entry)] : []), entry.name);
      button.addEventListener("click", () => {
        if (!pressed.delete(entry.name)) pressed.add(entry.name);
        button.setAttribute("aria-pressed", String(pressed.has(entry.name)));
        changed(pressed);
      });
      place.append(button);
    }
  }

  function swatch(entry) {
    const svg = (name, attributes) => {
      const made = document.createElementNS("http://www.w3.org/2000/svg", name);
      for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
      return made;
    };
    const picture = svg("svg", { viewBox: "-15 -6 30 12", "aria-hidden": "true" });
    const colour = dark() ? entry.dark : entry.colour;
    const line = { x1: -15, x2: 15, y1: 0, y2: 0, stroke: colour, "stroke-width": 1.6 };
    picture.append(
      svg("line", { ...line, "stroke-dasharray": entry.dash[1] ? entry.dash.join(" ") : "none" }),
      svg("path", { d: entry.shape, transform: "scale(4.6)", fill: colour }),
    );
    return picture;
  }

  function config(colours) {
    const style = getComputedStyle(root);
    const [ink, soft, line, mark] = ["ink", "soft", "line", "mark"].map((name) =>
      style.getPropertyValue(`--${name}`).trim(),
    );
    return {
      background: "transparent",
      font: getComputedStyle(document.body).fontFamily,
      view: { stroke: null },
      range: { category: colours[dark() ? "dark" : "light"] },
      legend: { labelColor: soft, titleColor: ink, titleFontWeight: "normal", gradientLength: 150 },
      title: { color: ink, fontSize: 13, anchor: "start" },
      axis: {
        labelColor: soft, titleColor: ink, gridColor: line, domainColor: soft, tickColor: soft,
        labelFontSize: 11, titleFontSize: 12, titleFontWeight: "normal", tickCount: 6,
      },
      style: {
        ink: { color: ink },
        "ink-line": { color: ink, strokeWidth: 2 },
        "soft-line": { color: soft, strokeWidth: 1.2, strokeDash: [5, 3] },
        "soft-point": { color: soft, size: 25 },
        way: { color: soft, strokeWidth: 1 },
        half: { color: soft, strokeDash: [2, 3] },
        accent: { color: mark },
        note: { color: ink, fontSize: 11 },
      },
    };
  }

  // Draw a figure's panels; where anything fails, its static picture stays.
  async function draw(place, figure) {
    const live = place.querySelector(".live");
    const chosen = place.chosen || [];
    place.classList.add("drawn"); // a panel takes its width from the page
    try {
      for (const panel of place.views || []) panel.finalize();
      live.replaceChildren();
      if (figure.series.length > 1) {
        const legend = element("div", { class: "legend", role: "group", "aria-label": "Show only" });
        toggles(legend, figure.series, (pressed) => {
          for (const panel of place.views) panel.view.signal("shown", [...pressed]).run();
          place.chosen = [...pressed];
        });
        live.append(legend);
      }
      const panels = element("div", { class: figure.panels.length > 1 ? "panels" : "panels one" });
      // All places first: a panel is as wide as its own when it is drawn.
      panels.append(...figure.panels.map(() => element("div", { class: "panel" })));
      live.append(panels);
      place.views = [];
      for (const [at, specification] of figure.panels.entries()) {
        const panel = panels.children[at];
        place.views.push(
          await vegaEmbed(panel, structuredClone(specification), {
            mode: "vega-lite", renderer: "svg", actions: false, ast: true, hover: false,
            defaultStyle: false, config: config(figure.colours),
            tooltip: { disableDefaultStyle: true },
          }),
        );
      }
      place.chosen = [];
      for (const button of live.querySelectorAll(".legend button"))
        if (chosen.includes(button.textContent)) button.click();
    } catch (error) {
      place.classList.remove("drawn");
      console.error(`the figure ${place.dataset.figure} could not be drawn`, error);
    }
  }

  async function drawAll() {
    const figures = data("figures");
    for (const place of document.querySelectorAll("figure[data-figure]"))
      if (figures[place.dataset.figure]) await draw(place, figures[place.dataset.figure]);
    root.dataset.drawn = dark() ? "dark" : "light";
  }

  function sortable(table) {
    const heads = [...table.tHead.rows[0].cells];
    const first = (row, column) => (row.cells[column].firstChild?.textContent ?? "").trim();
    // "1,234", "0.512 ± 0.020", "1 to 3.5", "7%" and "> 99%", which is more than "99%".
    const shape = /^([<>]?) ?([-+]?\d*\.?\d+(?:e[-+]?\d+)?)(?:%| ±.*| to .*)?$/i;
    const value = (text) => {
      const [, sign, number] = shape.exec(text.replace(/,/g, "")) ?? [];
      return Number(number) + ({ "<": -1e-9, ">": 1e-9 }[sign] ?? 0);
    };
    heads.forEach((head, column) => {
      const button = element("button", { type: "button", class: "sort" }, ...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const up = head.getAttribute("aria-sort") !== "ascending";
        for (const other of heads) other.removeAttribute("aria-sort");
        head.setAttribute("aria-sort", up ? "ascending" : "descending");
        const body = table.tBodies[0];
        const rows = [...body.rows].map((row) => [first(row, column), row]);
        const known = rows.filter(([text]) => text !== "" && text !== "–");
        const numbers = known.every(([text]) => !Number.isNaN(value(text)));
        known.sort(([a], [b]) =>
          (up ? 1 : -1) * (numbers ? value(a) - value(b) : a.localeCompare(b, "en", { numeric: true })),
        );
        const unknown = rows.filter(([text]) => text === "" || text === "–");
        body.append(...[...known, ...unknown].map(([, row]) => row)); // what is unknown stays last
      });
    });
  }

  function theme() {
    const button = document.getElementById("theme");
    const show = () => button.setAttribute("aria-pressed", String(dark()));
    button.hidden = false;
    button.addEventListener("click", () => {
      root.dataset.theme = dark() ? "light" : "dark";
      show();
      drawing = drawing.then(drawAll);
    });
    system.addEventListener("change", () => {
      show();
      drawing = drawing.then(drawAll);
    });
    show();
  }

  theme();
  for (const table of document.querySelectorAll("table.sortable")) sortable(table);
  let drawing = drawAll();
  return { data, element, toggles };
})();
