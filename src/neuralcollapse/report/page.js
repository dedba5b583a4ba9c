"use strict";
/* The page around its figures: switches, the pointer, steps, exports, tables that sort, downloads.
   `figures` and `files` are set by the page itself, before this script. */

const element = id => document.getElementById(id);
const still = window.matchMedia("(prefers-reduced-motion: reduce)");
const views = new Map();  // by the name of the figure
const HEIGHTS = {flat: 190, wide: 250, large: 440, space: 480};

function made(name, attributes = {}, ...children) {
  const item = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) item.setAttribute(key, value);
  item.append(...children);
  return item;
}
function save(name, blob) {
  const link = made("a", {href: URL.createObjectURL(blob), download: name});
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

/* A view is a figure as it is shown now: which run, which step, which scale, what is hidden, from where. */
function viewOf(figure, id) {
  const view = {id, figure, hidden: new Set(), camera: {...LOOK}, smooth: false, cursor: null};
  view.plot = element(figure.name);
  view.plot.replaceChildren();
  view.tip = made("div", {class: "tip", hidden: ""});
  view.legend = view.plot.closest("figure").querySelector(".legend");
  view.tools = made("div", {class: "tools", role: "group", "aria-label": `${figure.title}: how it is drawn`});
  show(view, figure);
  view.plot.closest("figure").querySelector(".head").append(view.tools);
  return view;
}
function show(view, source) {
  view.source = source;
  view.marks = source.marks.map(mark => {
    if (typeof mark.x === "number") return {...mark, x: source.marks[mark.x].x};
    if (mark.mirrored) return {...mark, z: mark.z.map(rows => rows.map((_, i) => rows.map((_, j) => i > j ? rows[i][j] : rows[j][i])))};
    return mark;
  });
  view.step = source.steps.length - 1;
  view.log = source.y.log && logAllowed(view);
}
function logAllowed(view) {
  if (view.source.kind !== "flat" || view.source.y.categories.length || view.source.y.range || view.marks.some(mark => mark.type === "heat")) return false;
  const values = allValues({...view, hidden: new Set(), source: {...view.source, levels: []}}, "y");
  if (nearOne(view.source.y)) return values.length > 0 && values.every(value => value >= 0 && value <= 1);
  return values.some(value => value > 0) && values.every(value => value >= 0);
}
function heightOf(view, width) {
  if (view.source.kind === "matrix") {
    const names = view.source.y.named ? 24 : 8;
    return Math.min(width - names, 520) + 60;
  }
  if (view.source.kind === "space") return Math.min(HEIGHTS.space, width * 0.88);
  const {x} = view.source, flat = window.innerWidth < 640 ? 165 : HEIGHTS.flat;
  const height = Math.min(HEIGHTS[view.source.size] || flat, Math.max(width * 0.9, flat));
  return height + (x.title ? 16 : 0) + (x.categories.length && x.categories.some(name => wide(name) > width / x.categories.length - 12) ? 80 : 0) + (view.marks.some(mark => mark.type === "heat") ? 60 : 0);
}
function picture(view, width) {
  const height = Math.round(heightOf(view, width));
  const group = view.source.kind === "space" ? drawSpace(view, width, height) : drawFlat(view, width, height);
  return {group, width, height};
}
function draw(view) {
  const {group, width, height} = picture(view, Math.max(view.plot.clientWidth, 200));
  view.size = {width, height};
  view.svg = svg("svg", {viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true"}, group);
  view.plot.replaceChildren(view.svg, view.tip);
  view.plot.dataset.scale = view.log ? "log" : "linear";
  const said = element(`${view.figure.name}-at`);
  if (said) said.textContent = `${view.source.step} ${view.source.steps[view.step]}`;
  if (view.cursor !== null) point(view, view.cursor);
}

/* The legend: a button for each name that shows or hides it, and one for all dashed parts of a kind, such as "test". */
function keys(view) {
  const seen = new Map();
  for (const mark of view.marks) {
    if (mark.type === "heat" || mark.type === "band" || mark.legend === false || !mark.name) continue;
    if (mark.of) seen.set(mark.part, {type: "line", color: "var(--soft)", dash: mark.dash});
    else if (!seen.has(mark.name)) seen.set(mark.name, mark);
  }
  view.legend.replaceChildren();
  if (seen.size < 2) return;
  for (const [name, mark] of seen) {
    const button = made("button", {type: "button", "aria-pressed": String(!view.hidden.has(name)), title: `${name}: show or hide`}, swatch(mark), made("span", {}, name));
    button.addEventListener("click", () => {
      if (!view.hidden.delete(name)) view.hidden.add(name);
      button.setAttribute("aria-pressed", String(!view.hidden.has(name)));
      draw(view);
    });
    view.legend.append(button);
  }
}
function swatch(mark) {
  const color = Array.isArray(mark.color) ? SPOKE : mark.color, line = mark.type === "line";
  const item = svg("svg", {width: line ? 22 : 12, height: 12, "aria-hidden": "true"});
  if (line) item.append(svg("line", {x1: 0, x2: 22, y1: 6, y2: 6, stroke: color, "stroke-width": mark.width || 2, "stroke-dasharray": DASHES[mark.dash]}));
  else if (mark.type === "points") item.append(symbol(mark, 6, 6, 4.5, color, 1));
  else if (mark.type === "bars") item.append(svg("rect", {x: 1, y: 1, width: 10, height: 10, fill: color}));
  else if (mark.hollow) item.append(svg("path", {d: "M6 1l5 5l-5 5l-5 -5Z", fill: "none", stroke: color, "stroke-width": 1.5}));
  else item.append(svg("circle", {cx: 6, cy: 6, r: 4.5, fill: color}));
  return item;
}

/* Switches and exports. */
function tools(view) {
  const name = view.figure.name;
  const toggle = (word, title, key) => {
    const button = made("button", {type: "button", id: `${name}-${word}`, title, "aria-pressed": String(view[key])}, word);
    button.addEventListener("click", () => {
      view[key] = !view[key];
      button.setAttribute("aria-pressed", String(view[key]));
      draw(view);
    });
    view.tools.append(button);
  };
  if (logAllowed(view)) toggle("log", nearOne(view.source.y) ? "Logarithm of what is missing to 100 %, or linear" : "Logarithmic or linear axis", "log");
  if (view.marks.some(mark => mark.type === "line" && !mark.markers && mark.y.length > 4)) toggle("smooth", "Running mean over a twentieth of the points", "smooth");
  for (const kind of ["png", "svg"]) {
    const button = made("button", {type: "button", id: `${name}-${kind}`, title: `Save as ${kind.toUpperCase()}`}, kind.toUpperCase());
    button.addEventListener("click", () => exported(view, kind));
    view.tools.append(button);
  }
}
/* The figure with its title and legend, in the colours of a light page. */
function alone(view) {
  const width = Math.max(view.size.width, 420), {group, height} = picture(view, width);
  draw(view);  // `picture` left the places of the other size
  let x = 12, y = 44;
  const top = svg("g", {"font-family": FONT}, words(view.source.title, 12, 22, {"font-size": 14, "font-weight": 600, fill: "var(--ink)"}));
  for (const key of view.legend.children) {
    const text = key.textContent, room = wide(text) + 40;
    if (key.getAttribute("aria-pressed") === "false") continue;
    if (x + room > width && x > 12) { x = 12; y += 17; }
    const sample = key.querySelector("svg").cloneNode(true);
    sample.setAttribute("x", x);
    sample.setAttribute("y", y - 10);
    top.append(sample, words(text, x + 26, y));
    x += room;
  }
  y += view.legend.children.length ? 12 : -8;
  group.setAttribute("transform", `translate(0 ${y})`);
  const whole = svg("svg", {xmlns: "http://www.w3.org/2000/svg", width, height: height + y, viewBox: `0 0 ${width} ${height + y}`}, svg("rect", {width: "100%", height: "100%", fill: "#ffffff"}), top, group);
  const light = JSON.parse(document.body.dataset.light);
  return {text: new XMLSerializer().serializeToString(whole).replace(/var\(--(\w+)\)/g, (_, key) => light[key]), width, height: height + y};
}
function exported(view, kind) {
  const {text, width, height} = alone(view), blob = new Blob([text], {type: "image/svg+xml"});
  if (kind === "svg") return save(`${view.figure.name}.svg`, blob);
  const image = new Image(), scale = 3;
  image.onload = () => {
    const canvas = made("canvas", {width: width * scale, height: height * scale});
    canvas.getContext("2d").drawImage(image, 0, 0, width * scale, height * scale);
    canvas.toBlob(png => save(`${view.figure.name}.png`, png));
  };
  image.src = "data:image/svg+xml;charset=utf-8," + encodeURIComponent(text);
}

/* Under the pointer: what all curves over the same axis have at one place, in every figure that has it. */
function nearest(xs, x) {
  let best = -1;
  xs.forEach((value, i) => { if (finite(value) && (best < 0 || Math.abs(value - x) < Math.abs(xs[best] - x))) best = i; });
  return best;
}
function readings(view, x) {
  const found = [];
  for (const mark of view.marks) {
    if (mark.type !== "line" || !mark.hover || isHidden(view, mark)) continue;
    const i = nearest(mark.x, x);
    if (i < 0 || !finite(mark.y[i])) continue;
    /* A long curve is drawn of fewer points, which differ from one figure to the next by less than a pixel. */
    if (mark.x[i] !== x && Math.abs(view.scales.x.at(mark.x[i]) - view.scales.x.at(x)) > 1) continue;
    const text = filled(mark.hover, {x: mark.x[i], y: mark.y[i], text: mark.texts[i] || ""});
    found.push({x: mark.x[i], name: mark.name, color: mark.color, px: view.scales.x.at(mark.x[i]), py: view.scales.y.at(mark.y[i]), text});
  }
  return found;
}
function placeTip(view, x, y, ...rows) {
  view.tip.replaceChildren(...rows);
  view.tip.hidden = false;
  const wider = view.plot.clientWidth / view.size.width, room = view.tip.offsetWidth + 14, right = x * wider + room < view.plot.clientWidth;
  view.tip.style.left = `${Math.max(0, right ? x * wider + 14 : x * wider - room)}px`;
  view.tip.style.top = `${Math.max(0, y * wider)}px`;
}
function mark(view, ...items) {
  view.svg.querySelector(".cursor")?.remove();
  view.svg.append(svg("g", {class: "cursor"}, ...items));
}
function hideTip(view) {
  view.cursor = null;
  view.tip.hidden = true;
  view.svg.querySelector(".cursor")?.remove();
}
function row(color, ...texts) {
  return made("div", {}, ...(color ? [made("i", {style: `background:${color}`})] : []), ...texts);
}
function point(view, x) {
  const found = readings(view, x), {box, scales} = view, at = scales.x.at(x);
  const placed = value => `${view.source.x.title} ${formatted(value)}`;
  view.cursor = x;
  if (!found.length || !Number.isFinite(at)) { view.tip.hidden = true; return view.svg.querySelector(".cursor")?.remove(); }
  mark(view, svg("line", {x1: px(at), x2: px(at), y1: box.top, y2: box.bottom, stroke: "var(--soft)", "stroke-width": 1}),
    ...found.filter(each => Number.isFinite(each.py)).map(each => svg("circle", {cx: px(each.px), cy: px(each.py), r: 3.5, fill: each.color, stroke: "var(--card)"})));
  placeTip(view, at, box.top, made("b", {}, placed(found[0].x)), ...found.map(each => row(each.color, `${each.name} `, made("span", {}, each.text), each.x === found[0].x ? "" : ` (${placed(each.x)})`)));
}
function together(view) {
  return [...views.values()].filter(other => other.source.together && other.source.x.title === view.source.x.title);
}
function closest(view, places, x, y, most = 24) {
  const far = each => Math.hypot(each.x - x, each.y - y);
  const best = places.reduce((one, other) => !one || far(other) < far(one) ? other : one, null);
  return best && far(best) <= most ? best : null;
}
function items(view) {  // what can be pointed at one by one
  if (view.source.kind === "space") return view.places;
  const {x, y} = view.scales;
  return view.marks.filter(each => ["line", "dots", "bars"].includes(each.type) && each.hover && !isHidden(view, each)).flatMap(each => each.x.map((value, i) => {
    const text = filled(each.hover, {x: value, y: each.y[i], text: (each.texts || [])[i] || ""});
    return {x: x.at(value), y: y.at(each.y[i]), text: each.type === "dots" ? text : `${each.name}\n${each.type === "bars" ? `${value}: ` : ""}${text}`};
  })).filter(each => Number.isFinite(each.x) && Number.isFinite(each.y));
}
function cellAt(view, x, y) {
  const heat = view.marks.find(each => each.type === "heat");
  if (!heat) return null;
  const inside = (list, scale, at) => edges(list, scale).findIndex(([one, other]) => at >= Math.min(one, other) && at < Math.max(one, other));
  const j = inside(heat.x, view.scales.x, x), i = inside(heat.y, view.scales.y, y);
  if (i < 0 || j < 0) return null;
  const z = heat.z[Math.max(view.step, 0)][i][j];
  return finite(z) ? {x, y, text: filled(heat.hover, {x: heat.x[j], y: heat.y[i], z})} : null;
}
function pointed(view, x, y) {
  if (view.source.together) {
    const all = [...new Set(view.marks.filter(each => each.type === "line" && each.hover && !isHidden(view, each)).flatMap(each => each.x))];
    const i = nearest(all.map(value => view.scales.x.at(value)), x);
    return i < 0 ? undefined : together(view).forEach(other => point(other, all[i]));
  }
  const found = closest(view, items(view), x, y) || cellAt(view, x, y);
  if (!found) return hideTip(view);
  mark(view, svg("circle", {cx: px(found.x), cy: px(found.y), r: 6, fill: "none", stroke: "var(--ink)"}));
  placeTip(view, found.x, found.y + 8, ...found.text.split("\n").map(line => row("", line)));
}
function away(view) { (view.source.together ? together(view) : [view]).forEach(hideTip); }

/* The pointer and the keys on a figure. */
function listen(view) {
  const {plot} = view;
  let held = null;
  const place = event => {
    const area = view.svg.getBoundingClientRect();
    return [(event.clientX - area.left) * view.size.width / area.width, (event.clientY - area.top) * view.size.height / area.height];
  };
  plot.addEventListener("pointermove", event => {
    if (held) {
      view.camera.yaw = held.yaw + (event.clientX - held.x) / 120;
      view.camera.pitch = Math.min(1.5, Math.max(-1.5, held.pitch + (event.clientY - held.y) / 120));
      return draw(view);
    }
    pointed(view, ...place(event));
  });
  plot.addEventListener("pointerleave", event => { if (event.pointerType !== "touch") away(view); });
  if (view.source.kind !== "space") plot.addEventListener("pointerdown", event => pointed(view, ...place(event)));
  else {
    plot.addEventListener("pointerdown", event => {
      held = {x: event.clientX, y: event.clientY, ...view.camera};
      plot.setPointerCapture(event.pointerId);
      hideTip(view);
    });
    for (const end of ["pointerup", "pointercancel"]) plot.addEventListener(end, () => { held = null; });
  }
  plot.addEventListener("keydown", event => {
    const [dx, dy] = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]}[event.key] || [0, 0];
    if (event.key === "Escape") return away(view);
    if (!dx && !dy) return;
    if (view.source.kind === "space") {
      view.camera.yaw += dx * 0.15;
      view.camera.pitch = Math.min(1.5, Math.max(-1.5, view.camera.pitch + dy * 0.15));
      draw(view);
    } else if (!walk(view, dx, dy)) return;
    event.preventDefault();
    element("said").textContent = view.tip.hidden ? "" : [...view.tip.children].map(line => line.textContent).join("; ");
  });
  plot.addEventListener("blur", () => away(view));
}
/* One place on, by keys: the next epoch, cell or point. */
function walk(view, dx, dy) {
  if (view.source.together) {
    if (!dx) return false;
    const all = [...new Set(view.marks.filter(each => each.type === "line" && each.hover).flatMap(each => each.x))].sort((a, b) => a - b);
    const i = view.cursor === null ? (dx > 0 ? 0 : all.length - 1) : Math.min(all.length - 1, Math.max(0, all.indexOf(view.cursor) + dx));
    together(view).forEach(other => point(other, all[i]));
    return true;
  }
  const heat = view.marks.find(each => each.type === "heat");
  if (heat) {
    const [i, j] = view.cell || [0, -dx], clamp = (value, count) => Math.min(count - 1, Math.max(0, value));
    view.cell = [clamp(i + dy, heat.y.length), clamp(j + dx, heat.x.length)];
    const middle = ([one, other]) => (one + other) / 2;
    pointed(view, middle(edges(heat.x, view.scales.x)[view.cell[1]]), middle(edges(heat.y, view.scales.y)[view.cell[0]]));
    return true;
  }
  const all = items(view).sort((one, other) => one.x - other.x || one.y - other.y);
  if (!all.length) return false;
  view.at = Math.min(all.length - 1, Math.max(0, (view.at ?? -1) + (dx || dy)));
  pointed(view, all[view.at].x, all[view.at].y);
  return true;
}

/* Steps, by slider and play; and the list of runs. */
function player(view) {
  const {name} = view.figure, input = element(`${name}-step`), button = element(`${name}-play`), list = element(`${name}-run`);
  let timer = null;
  const stop = () => { clearInterval(timer); timer = null; button.textContent = "play"; };
  const go = step => { view.step = step; input.value = step; input.setAttribute("aria-valuetext", `${view.source.step} ${view.source.steps[step]}`); draw(view); };
  list?.addEventListener("change", () => {
    if (timer) stop();
    show(view, list.selectedIndex > 0 ? view.figure.others[list.selectedIndex - 1][1] : view.figure);
    view.plot.setAttribute("aria-label", view.source.alt);
    element(`${name}-caption`).textContent = view.source.caption;
    if (input) { input.max = view.source.steps.length - 1; input.value = view.step; }
    keys(view);
    draw(view);
  });
  if (!input) return;
  input.addEventListener("input", () => { if (timer) stop(); go(Number(input.value)); });
  button.addEventListener("click", () => {
    if (timer) return stop();
    button.textContent = "pause";
    go(view.step >= Number(input.max) ? 0 : view.step);
    timer = setInterval(() => {
      if (view.step >= Number(input.max)) return stop();
      go(view.step + 1);
    }, still.matches ? 1000 : 250);
  });
}

/* Tables that sort, and downloads. */
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const down = head.getAttribute("aria-sort") === "ascending";
    heads.forEach(other => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const key = row => {
      const cell = row.cells[column];
      if ("sort" in cell.dataset) return Number(cell.dataset.sort.replace("inf", "Infinity"));
      return cell.textContent.trim() || NaN;
    };
    const order = (a, b) => typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), "en", {numeric: true});
    const missing = value => typeof value === "number" && Number.isNaN(value);
    [...body.rows].sort((a, b) => {
      const x = key(a), y = key(b);
      if (missing(x) || missing(y)) return missing(x) - missing(y);
      return (down ? -1 : 1) * order(x, y);
    }).forEach(row => body.append(row));
  }));
}
/* A file of the page is a text, or, where it is long, its gzip in base64. */
async function content(file) {
  if (typeof file === "string") return file;
  if (!("DecompressionStream" in window)) throw new Error("this browser cannot unpack it (it has no DecompressionStream)");
  const bytes = Uint8Array.from(atob(file.gzip), letter => letter.charCodeAt(0));
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
}
for (const button of document.querySelectorAll("button.download")) button.addEventListener("click", async () => {
  const {name} = button.dataset;
  try {
    save(name, new Blob([await content(files[name])], {type: "text/csv"}));
  } catch (error) {
    button.after(made("span", {role: "alert"}, ` ${name} was not saved: ${error.message}. The run folder has the numbers.`));
  }
});

/* All figures are drawn at once, so that what is printed or captured has no blanks. */
figures.forEach((figure, i) => {
  const view = viewOf(figure, i);
  views.set(figure.name, view);
  tools(view);
  keys(view);
  draw(view);
  player(view);
  listen(view);
});
const resized = new ResizeObserver(entries => {
  for (const {target} of entries) {
    const view = views.get(target.id);
    if (Math.abs(view.size.width - Math.max(target.clientWidth, 200)) > 1 && target.clientWidth) draw(view);
  }
});
for (const view of views.values()) resized.observe(view.plot);
if (window.innerWidth < 640) for (const part of document.querySelectorAll("details[data-foldable]")) part.open = false;
window.addEventListener("beforeprint", () => document.querySelectorAll("details").forEach(part => { part.open = true; }));
