"use strict";
(() => {
  const root = document.documentElement;
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const areas = [...document.querySelectorAll(".plot-area")];
  const figures = areas.map((area) => JSON.parse(area.querySelector("script").textContent));
  const heights = areas.map((area) => parseInt(area.style.height, 10));
  const button = document.getElementById("theme");

  // Light and dark: the reader's choice wins over the system's preference and is remembered where that is allowed.
  const remembered = () => { try { return localStorage.getItem("lowdim-theme"); } catch { return null; } };
  const remember = (theme) => { try { localStorage.setItem("lowdim-theme", theme); } catch { /* a private window */ } };
  const theme = () => root.dataset.theme || (dark.matches ? "dark" : "light");
  const show = () => {
    button.textContent = theme() === "dark" ? "Light" : "Dark";
    draw();
  };
  if (remembered()) root.dataset.theme = remembered();
  button.addEventListener("click", () => {
    root.dataset.theme = theme() === "dark" ? "light" : "dark";
    remember(root.dataset.theme);
    show();
  });
  dark.addEventListener("change", show);

  // Figures: colors written var(--name) come from the style sheet, so that they follow the theme.
  const resolve = (value, style) => {
    if (typeof value === "string") {
      const match = /^var\((--[a-z0-9-]+)\)$/.exec(value);
      return match ? style.getPropertyValue(match[1]).trim() : value;
    }
    if (Array.isArray(value)) return value.map((entry) => resolve(entry, style));
    if (value && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([key, entry]) => [key, resolve(entry, style)]));
    }
    return value;
  };
  const template = (style) => {
    const color = (name) => style.getPropertyValue(name).trim();
    const axis = {
      gridcolor: color("--line"), linecolor: color("--line"), zerolinecolor: color("--line"), automargin: true,
      tickfont: { color: color("--soft") }, title: { font: { color: color("--soft"), size: 13 }, standoff: 8 },
      ticks: "outside", ticklen: 5, tickcolor: "rgba(0,0,0,0)",
    };
    return {
      layout: {
        font: { family: getComputedStyle(document.body).fontFamily, size: 13, color: color("--ink") },
        paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
        colorway: [1, 2, 3, 4, 5, 6, 7, 8].map((number) => color(`--c${number}`)),
        margin: { l: 48, r: 16, t: 12, b: 40 }, xaxis: axis, yaxis: axis,
        hoverlabel: { bgcolor: color("--surface"), bordercolor: color("--line"), font: { color: color("--ink") } },
        legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0, xanchor: "left" },
        bargap: 0.35, bargroupgap: 0.08,
      },
    };
  };
  let ready = false;
  const draw = () => {
    if (!ready) return;
    const style = getComputedStyle(root);
    areas.forEach((area, index) => {
      const { data, layout } = resolve(figures[index], style);
      // On a phone a legend takes one row per name: give it that room.
      const named = layout.showlegend === false ? 0 : data.filter((trace) => trace.name && trace.showlegend !== false).length;
      const narrow = area.clientWidth < 560 && named > 1;
      area.style.height = `${heights[index] + (narrow ? 20 * named : 0)}px`;
      Plotly.react(area, data, { ...layout, template: template(style), autosize: true }, {
        displaylogo: false, responsive: true, displayModeBar: false, scrollZoom: false,
      });
    });
    root.dataset.drawn = theme();
  };
  const unpack = async () => {
    const packed = document.getElementById("plotly");
    if (!packed || !areas.length) return;
    if (!("DecompressionStream" in window)) {
      areas.forEach((area) => { area.textContent = "This figure needs a browser from 2023 or later. Its numbers are in the tables."; });
      return;
    }
    const bytes = Uint8Array.from(atob(packed.textContent), (character) => character.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    const script = document.createElement("script");
    script.textContent = await new Response(stream).text();
    document.head.append(script);
    packed.remove();
    ready = true;
    show();
  };

  // Print in light colors whatever the screen shows.
  let chosen;
  addEventListener("beforeprint", () => { chosen = root.dataset.theme; root.dataset.theme = "light"; draw(); });
  addEventListener("afterprint", () => {
    if (chosen) root.dataset.theme = chosen; else delete root.dataset.theme;
    draw();
  });

  // Tables: a click on a heading sorts, a second one reverses; empty cells stay last.
  document.querySelectorAll("table").forEach((table) => {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      head.querySelector("button").addEventListener("click", () => {
        const numeric = head.classList.contains("number");
        const first = numeric ? "descending" : "ascending";
        const second = numeric ? "ascending" : "descending";
        const order = head.getAttribute("aria-sort") === first ? second : first;
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", order);
        const sign = order === "ascending" ? 1 : -1;
        const key = (row) => row.cells[column].dataset.key;
        const number = (row) => Number(key(row).replace("inf", "Infinity"));
        const compare = (a, b) => {
          if (!key(a) || !key(b)) return !key(a) - !key(b);
          return sign * (numeric ? number(a) - number(b) : key(a).localeCompare(key(b), "en", { numeric: true }));
        };
        const body = table.tBodies[0];
        body.append(...[...body.rows].sort(compare));
      });
    });
  });

  // Images over each other: a range, which the keyboard knows, moves the line; a choice changes all pictures of its group.
  document.querySelectorAll(".sliders").forEach((group) => {
    const frames = [...group.querySelectorAll(".slider")];
    const layers = (frame, side) => [...frame.querySelectorAll(`img.${side}`)];
    const shown = (frame, side) => layers(frame, side).find((image) => !image.hidden);
    const name = (frame) => {
      const range = frame.querySelector("input");
      if (!range) return;
      const [left, right] = ["before", "after"].map((side) => shown(frame, side)?.dataset.layer ?? "");
      frame.querySelector("b.before").textContent = left;
      frame.querySelector("b.after").textContent = right;
      range.setAttribute("aria-valuetext", `${range.value} % ${left}, ${100 - range.value} % ${right}`);
    };
    frames.forEach((frame) => {
      const range = frame.querySelector("input");
      frame.querySelectorAll("img").forEach((image) => image.decode().catch(() => {}).then(() => {
        image.classList.toggle("small", image.naturalWidth < 200);
      }));
      range?.addEventListener("input", () => { frame.style.setProperty("--at", `${range.value}%`); name(frame); });
      name(frame);
    });
    group.querySelectorAll("select").forEach((select) => select.addEventListener("change", () => frames.forEach((frame) => {
      const own = layers(frame, select.dataset.side);
      const wanted = own.find((image) => image.dataset.layer === select.value) ?? own[0];
      own.forEach((image) => { image.hidden = image !== wanted; });
      name(frame);
    })));
  });

  document.querySelectorAll(".copy").forEach((copy) => copy.addEventListener("click", async () => {
    const code = copy.parentElement.querySelector("code");
    try {
      await navigator.clipboard.writeText(code.textContent);
      copy.textContent = "Copied";
    } catch {
      // Without the right to the clipboard: select it, so that one key copies it.
      getSelection().selectAllChildren(code);
      copy.textContent = "Selected";
    }
    setTimeout(() => { copy.textContent = "Copy"; }, 2000);
  }));

  show();
  unpack();
})();
