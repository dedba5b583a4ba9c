"use strict";
/* Draws a figure in the plane, given as plain data (figure_data.py), as SVG: axes, lines, bands, dots, bars, heat maps.
   Colours of the page are CSS variables, so that a change to dark mode draws nothing again. */

const FONT = "system-ui, sans-serif", SMALL = 11;
const DASHES = {dash: "6 4", dot: "1.5 3.5"};
const BLUE_TO_RED = [[33, 102, 172], [103, 169, 207], [247, 247, 247], [239, 138, 98], [178, 24, 43]];
const CELLS = 3600;  // of a heat map that are drawn one by one; more are drawn as a picture
const pen = document.createElement("canvas").getContext("2d");

function svg(name, attributes = {}, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) if (value !== undefined) made.setAttribute(key, value);
  made.append(...children);
  return made;
}
function words(text, x, y, attributes = {}) {
  return svg("text", {x: px(x), y: px(y), "font-size": SMALL, fill: "var(--soft)", ...attributes}, text);
}
function wide(text, size = SMALL) {
  pen.font = `${size}px ${FONT}`;
  return pen.measureText(text).width;
}
/* Names that begin alike often end in what tells them apart. */
function cut(text, room) {
  if (wide(text) <= room) return text;
  const letters = [...text], end = kept => kept > 5 ? letters.slice(letters.length - Math.floor(kept / 3)) : [];
  const shortened = kept => [...letters.slice(0, kept - end(kept).length), "…", ...end(kept)].join("");
  let kept = letters.length - 1;
  while (kept > 1 && wide(shortened(kept)) > room) kept -= 1;
  return shortened(kept);
}
const px = value => Math.round(value * 10) / 10;
const finite = value => typeof value === "number" && Number.isFinite(value);

/* Numbers as people read them: 0.002, 10,000, 2×10⁻⁵. */
const RAISED = {"-": "⁻", 0: "⁰", 1: "¹", 2: "²", 3: "³", 4: "⁴", 5: "⁵", 6: "⁶", 7: "⁷", 8: "⁸", 9: "⁹"};
function tickText(value) {
  const size = Math.abs(value);
  if (size === 0 || (size >= 0.9e-3 && size < 1e5)) {
    return Number(value.toPrecision(8)).toLocaleString("en", {maximumFractionDigits: 10}).replace("-", "−");
  }
  const [digits, power] = value.toExponential(6).split("e");
  const mantissa = Number(digits), raised = [...String(Number(power))].map(c => RAISED[c]).join("");
  return (mantissa === 1 ? "" : mantissa === -1 ? "−" : `${mantissa}×`.replace("-", "−")) + `10${raised}`;
}
/* A number by a format of Python, such as ".4g", ".3f" or ".2e". */
function formatted(value, format) {
  if (!finite(value)) return typeof value === "string" ? value : "undefined";
  const [, digits, kind] = /^\.(\d+)([gfe%])$/.exec(format || "") || [];
  if (!kind) return Number.isInteger(value) ? value.toLocaleString("en") : String(value);
  const places = Number(digits), pad = text => text.replace(/e([+-])(\d)$/, "e$10$2");
  if (kind === "%") return (100 * value).toFixed(places) + "%";
  if (kind === "f") return value.toFixed(places);
  if (kind === "e") return pad(value.toExponential(places));
  const power = value === 0 ? 0 : Math.floor(Math.log10(Math.abs(Number(value.toPrecision(places)))));
  return power < -4 || power >= places ? pad(String(Number(value.toPrecision(places)).toExponential())) : String(Number(value.toPrecision(places)));
}
function filled(template, values) {
  return template.replace(/\{(x|y|z|text)(?::([^{}]*))?\}/g, (_, name, format) => formatted(values[name], format));
}

/* Axes: `measure` turns a value into a length, of which `place` makes pixels. */
function measureOf(kind, least) {
  if (kind === "log") return value => value > 0 ? Math.log10(value) : NaN;
  if (kind === "nines") return value => value <= 1 ? -Math.log10(Math.max(1 - value, least)) : NaN;
  return value => value;
}
function scaleOf(axis, kind, values, from, to, pad) {
  if (axis.categories.length) {
    const slot = (to - from) / axis.categories.length, place = index => from + slot * (index + 0.5);
    const at = value => place(typeof value === "string" ? axis.categories.indexOf(value) : value);
    return {kind: "names", at, place, slot: Math.abs(slot), ticks: () => [], from, to};
  }
  let least = 1;
  for (const value of values) if (value < 1) least = Math.min(least, Math.max(1 - value, 1e-7));
  least /= 2;
  const measure = measureOf(kind, least);
  let low = Infinity, high = -Infinity;
  for (const value of axis.range || values) {
    const length = measure(value);
    if (Number.isFinite(length)) { low = Math.min(low, length); high = Math.max(high, length); }
  }
  if (low > high) { low = 0; high = 1; }
  const ends = [low, high];
  if (kind === "linear" && axis.fromZero && low > 0) low = 0;
  if (high - low < 1e-9 * Math.max(1, Math.abs(high))) { low -= kind === "linear" ? Math.abs(low) / 10 || 0.5 : 0.2; high += kind === "linear" ? Math.abs(high) / 10 || 0.5 : 0.2; }
  const room = axis.range ? 0 : (high - low) * pad;
  low -= kind === "linear" && axis.fromZero && low === 0 ? 0 : room;
  high += kind === "nines" && ends[0] === ends[1] ? 0 : room;
  const place = length => from + (length - low) / (high - low) * (to - from);
  const inside = value => measure(value) >= low - 1e-9 && measure(value) <= high + 1e-9;
  const raw = {linear: length => length, log: length => 10 ** length, nines: length => 1 - 10 ** -length}[kind];
  const ticks = count => {
    if (axis.ticks.length && kind !== "nines") return axis.ticks.map(value => [value, tickText(value)]);
    const nines = kind === "nines" ? nineTicks(least, count).filter(([value]) => inside(value)) : [];
    if (nines.length > 2) return nines;
    /* accuracies that are all far from 1, or all alike, lie between two nines */
    const shown = kind === "log" ? logTicks(raw(low), raw(high), count) : linearTicks(kind === "nines" ? raw(low) : low, kind === "nines" ? raw(high) : high, count, axis.whole);
    const text = axis.percent ? value => tickText(100 * value) + " %" : tickText;
    return shown.map(value => [value, text(value)]).filter(([value]) => inside(value));
  };
  return {kind, measure, place, at: value => place(measure(value)), ticks, from, to, raw, low, high};
}
/* Steps of 1, 2 or 5 times a power of ten. */
function linearTicks(low, high, count, whole) {
  const rough = (high - low) / Math.max(count, 1);
  if (!(rough > 1e-12 * Math.max(Math.abs(low), Math.abs(high))) || !Number.isFinite(rough)) return [];
  const power = 10 ** Math.floor(Math.log10(rough));
  let step = [1, 2, 5, 10].map(part => part * power).find(size => size >= rough * 0.999);
  if (whole) step = Math.max(1, Math.round(step));
  const ticks = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) ticks.push(Number((i * step).toPrecision(12)));
  return ticks;
}
/* The finest of these that fits: 1, 2, 5 of each decade; each decade; every second one, ... */
function logTicks(low, high, count) {
  [low, high] = [Math.max(low, 1e-300), Math.min(high, 1e300)];
  const first = Math.floor(Math.log10(low) + 1e-9), last = Math.ceil(Math.log10(high) - 1e-9);
  const chosen = (parts, every) => {
    const found = [];
    for (let power = Math.ceil(first / every) * every; power <= last; power += every) {
      for (const part of parts) found.push(Number(`${part}e${power}`));
    }
    return found.filter(value => value >= low * 0.999999 && value <= high * 1.000001);
  };
  const fine = chosen([1, 2, 5], 1);
  if (fine.length < 3) return linearTicks(low, high, count).filter(value => value > 0);
  if (fine.length <= count) return fine;
  for (const every of [1, 2, 3, 5, 10, 20, 50, 100]) {
    const found = chosen([1], every);
    if (found.length <= count) return found;
  }
  return [];
}
/* 0 %, 50 %, 80 %, 90 %, 95 %, 98 %, 99 %, ...: what is missing to 1 is 1, 5 or 2 times a power of ten. */
function nineTicks(least, count) {
  const all = [[0, "0 %"]], whole = [[0, "0 %"]];
  for (let power = -1; 10 ** power > least; power--) {
    for (const part of [5, 2, 1]) {
      const missing = Number(`${part}e${power}`);
      if (missing <= least * 1.5) continue;
      const tick = [1 - missing, tickText(Number((100 - 100 * missing).toPrecision(10))) + " %"];
      all.push(tick);
      if (part === 1) whole.push(tick);
    }
  }
  const top = [1, "100 %"];
  return [...(all.length < count ? all : whole), top];
}

/* Colours of a heat map. */
function heatColor(value, low, high) {
  const share = Math.min(1, Math.max(0, (value - low) / (high - low))) * (BLUE_TO_RED.length - 1);
  const index = Math.min(Math.floor(share), BLUE_TO_RED.length - 2), part = share - index;
  return BLUE_TO_RED[index].map((from, i) => Math.round(from + part * (BLUE_TO_RED[index + 1][i] - from)));
}
function heatPicture(rows, low, high) {
  const canvas = document.createElement("canvas");
  canvas.width = rows[0].length;
  canvas.height = rows.length;
  const context = canvas.getContext("2d"), image = context.createImageData(canvas.width, canvas.height);
  rows.flat().forEach((value, i) => {
    if (finite(value)) image.data.set([...heatColor(value, low, high), 255], 4 * i);
  });
  context.putImageData(image, 0, 0);
  return canvas.toDataURL();
}

/* The scale that a view has on an axis now. */
function kindOf(view, which) {
  const axis = view.source[which];
  if (which === "x" || view.marks.some(mark => mark.type === "heat")) return axis.log ? "log" : "linear";
  return !view.log ? "linear" : nearOne(axis) ? "nines" : "log";
}
/* Whether shares are read by what they lack to 1, as accuracies are; those of a histogram are read from 0. */
function nearOne(axis) { return axis.percent && !axis.fromZero; }
function allValues(view, which) {
  const found = [], heat = view.marks.some(mark => mark.type === "heat");
  for (const mark of view.marks) {
    if (mark.type === "points" || (mark.name !== undefined && isHidden(view, mark))) continue;
    if (heat && mark.type !== "heat") continue;
    for (const key of which === "x" ? ["x"] : ["y", "low", "high"]) {
      if (Array.isArray(mark[key])) for (const value of mark[key]) if (finite(value)) found.push(value);
    }
  }
  if (which === "y" && found.length) for (const [value] of view.source.levels) if (near(value, found, view)) found.push(value);
  return found;
}
/* A threshold belongs on the axis unless it would push the curves into a corner. */
function near(value, found, view) {
  const measure = measureOf(kindOf(view, "y"), 1e-4), lengths = found.map(measure).filter(Number.isFinite);
  if (!lengths.length) return false;
  const low = lengths.reduce((a, b) => Math.min(a, b)), high = lengths.reduce((a, b) => Math.max(a, b));
  const length = measure(value), span = high - low || 1;
  return length > low - span && length < high + span;
}
function isHidden(view, mark) { return isUnseen(mark) || [mark.name, mark.of, mark.part].some(name => name && view.hidden.has(name)); }

/* A running mean over a twentieth of the points, in the lengths that are drawn. */
function smoothed(lengths) {
  const half = Math.max(1, Math.round(lengths.length / 40));
  return lengths.map((own, i) => {
    if (!Number.isFinite(own)) return NaN;
    const reach = Math.min(half, i, lengths.length - 1 - i);
    const part = lengths.slice(i - reach, i + reach + 1).filter(Number.isFinite);
    return part.reduce((a, b) => a + b, 0) / part.length;
  });
}
function path(xs, ys) {
  let drawn = "", open = false;
  for (let i = 0; i < xs.length; i++) {
    const there = Number.isFinite(xs[i]) && Number.isFinite(ys[i]);
    if (there) drawn += `${open ? "L" : "M"}${px(xs[i])} ${px(ys[i])}`;
    open = there;
  }
  return drawn;
}

/* The figure as an SVG group of this size; `view.box` and `view.scales` say where things are. */
function drawFlat(view, width, height) {
  const {source, marks} = view, heat = marks.find(mark => mark.type === "heat"), matrix = source.kind === "matrix";
  const kinds = {x: kindOf(view, "x"), y: kindOf(view, "y")};
  const values = {x: allValues(view, "x"), y: allValues(view, "y")};
  const trial = scaleOf(source.y, kinds.y, values.y, height, 0, 0.04);
  const longest = (texts, most) => Math.min(most, texts.reduce((all, text) => Math.max(all, wide(text)), 0));
  const rows = source.y.categories, columns = source.x.categories, nameWidth = Math.min(150, width * 0.24);
  const left = 8 + (rows.length ? (source.y.named ? longest(rows, nameWidth) : 0) : longest(trial.ticks(height / 20).map(tick => tick[1]), 90)) + (source.y.title ? 17 : 0);
  const slot = (width - left - 10) / Math.max(columns.length, 1);
  const named = columns.length && source.x.named, tilted = named && longest(columns, 200) > slot - 2;
  const nameRoom = named ? (tilted ? longest(columns, nameWidth) + 8 : 16) : 0;
  const colours = heat ? 34 : 0;
  const box = {left, right: width - 10, top: matrix ? 4 + nameRoom : source.events.length ? 18 : 8};
  box.bottom = height - (columns.length ? (matrix ? 4 : nameRoom + 4) : 20) - (source.x.title ? 16 : 0) - colours;
  if (matrix) {  // square
    const side = Math.min(box.right - box.left, box.bottom - box.top);
    box.right = box.left + side;
    box.bottom = box.top + side;
  }
  const x = scaleOf(source.x, kinds.x, values.x, box.left, box.right, heat ? 0 : 0.015);
  const y = matrix ? scaleOf(source.y, "linear", [], box.top, box.bottom, 0) : scaleOf(source.y, kinds.y, values.y, box.bottom, box.top, heat ? 0 : 0.04);
  view.box = box;
  view.scales = {x, y};
  const clip = `clip-${view.id}`;
  const group = svg("g", {"font-family": FONT}, svg("clipPath", {id: clip}, svg("rect", {x: px(box.left), y: px(box.top - 1), width: px(box.right - box.left), height: px(box.bottom - box.top + 2)})));
  if (!matrix) group.append(...grid(view, height));
  if (named) group.append(...columns.map((name, i) => {
    const at = x.place(i), base = matrix ? box.top - 5 : box.bottom + 13;
    if (!tilted) return words(name, at, base, {"text-anchor": "middle"});
    return words(cut(name, nameWidth), at + 4, base, {"text-anchor": matrix ? "start" : "end", transform: `rotate(${matrix ? -90 : -60} ${px(at + (matrix ? 4 : 0))} ${px(base)})`});
  }));
  if (rows.length && source.y.named) group.append(...rows.map((name, i) => words(cut(name, nameWidth), box.left - 6, y.place(i) + 4, {"text-anchor": "end"})));
  const drawn = svg("g", {"clip-path": `url(#${clip})`});
  const bars = marks.filter(mark => mark.type === "bars" && !isHidden(view, mark));
  for (const mark of marks) {
    if (mark.type === "heat") drawn.append(...drawHeat(view, mark, x, y));
    else if (!isHidden(view, mark)) drawn.append(...emphasised(view, mark, DRAW[mark.type](view, mark, x, y, bars)));
  }
  group.append(drawn, ...upright(view), ...thresholds(view), ...pointNames(view));
  if (heat) group.append(...colourBar(view, heat, matrix ? box.bottom + 12 : height - 28));
  return group;
}
function grid(view, height) {
  const {box, scales: {x, y}, source} = view, made = [];
  const line = (x1, y1, x2, y2, color) => svg("line", {x1: px(x1), y1: px(y1), x2: px(x2), y2: px(y2), stroke: color, "stroke-width": 1});
  for (const [value, text] of y.ticks((box.bottom - box.top) / 17)) {
    const at = y.at(value);
    made.push(line(box.left, at, box.right, at, "var(--line)"), words(text, box.left - 6, at + 4, {"text-anchor": "end"}));
  }
  let end = -Infinity;
  const shown = x.ticks(Math.max(2, (box.right - box.left) / 52));
  for (const [value, text] of shown) {
    const at = x.at(value), half = wide(text) / 2, middle = Math.min(at, box.right + 8 - half);
    made.push(line(at, box.top, at, box.bottom, "var(--line)"));
    if (middle - half < end + 4) continue;
    end = middle + half;
    made.push(words(text, middle, box.bottom + 14, {"text-anchor": "middle"}));
  }
  made.push(line(box.left, box.bottom, box.right, box.bottom, "var(--axis)"));
  if (source.y.zeroLine && y.kind === "linear" && y.low < 0) made.push(line(box.left, y.at(0), box.right, y.at(0), "var(--axis)"));
  if (source.x.title) made.push(words(source.x.title, (box.left + box.right) / 2, box.bottom + (x.kind === "names" ? height - box.bottom - 6 : 29), {"text-anchor": "middle"}));
  if (source.y.title) {
    const at = (box.top + box.bottom) / 2;
    made.push(words(cut(source.y.title, box.bottom - box.top + 20), 12, at, {"text-anchor": "middle", transform: `rotate(-90 12 ${px(at)})`}));
  }
  return made;
}
function upright(view) {
  const {box, scales: {x}, source} = view;
  return source.events.flatMap(([value, text]) => {
    const at = x.at(value), left = at < (box.left + box.right) / 2;
    return [
      svg("line", {x1: px(at), x2: px(at), y1: box.top - 4, y2: px(box.bottom), stroke: "var(--soft)", "stroke-width": 1, "stroke-dasharray": "2 3"}),
      words(text, at + (left ? -2 : 2), box.top - 7, {"text-anchor": left ? "start" : "end", "font-size": 10.5}),
    ];
  });
}
function thresholds(view) {
  const {box, scales: {y}, source} = view;
  return source.levels.flatMap(([value, text]) => {
    const at = y.at(value);
    if (!(at >= box.top - 1 && at <= box.bottom + 1)) return [];
    const below = at < box.top + 14;
    return [
      svg("line", {x1: px(box.left), x2: px(box.right), y1: px(at), y2: px(at), stroke: "var(--good)", "stroke-width": 1, "stroke-dasharray": "7 3"}),
      words(text, box.right - 2, at + (below ? 12 : -4), {"text-anchor": "end", "font-size": 10.5, fill: "var(--good)", class: "halo", stroke: "var(--card)", "stroke-width": 3, "paint-order": "stroke"}),
    ];
  });
}

const DRAW = {
  line(view, mark, x, y) {
    const xs = mark.x.map(value => x.at(value)), lengths = mark.y.map(value => finite(value) ? y.measure(value) : NaN);
    const style = {fill: "none", stroke: mark.color, "stroke-width": mark.width, "stroke-dasharray": DASHES[mark.dash], "stroke-linejoin": "round", "data-line": mark.name};
    const made = [], smooth = view.smooth && lengths.length > 4 && !mark.markers;
    const at = list => list.map(length => y.place(length));
    if (smooth) made.push(svg("path", {...style, d: path(xs, at(lengths)), "stroke-width": 1, opacity: 0.25, "data-line": undefined}));
    const ys = at(smooth ? smoothed(lengths) : lengths);
    made.push(svg("path", {...style, d: path(xs, ys)}));
    for (let i = 0; i < xs.length; i++) {
      if (!Number.isFinite(ys[i]) || !Number.isFinite(xs[i])) continue;
      const alone = !Number.isFinite(ys[i - 1]) && !Number.isFinite(ys[i + 1]);
      if (finite(mark.errors[i])) {
        const ends = [-1, 1].map(sign => y.at(mark.y[i] + sign * mark.errors[i])), low = Number.isFinite(ends[0]) ? ends[0] : view.box.bottom;
        made.push(svg("path", {d: `M${px(xs[i])} ${px(low)}V${px(ends[1])}`, stroke: mark.color, "stroke-width": 1}));
      }
      if (mark.markers || alone) made.push(svg("circle", {cx: px(xs[i]), cy: px(ys[i]), r: 3, fill: mark.color}));
    }
    return made;
  },
  band(view, mark, x, y) {
    const made = [];
    let run = [];
    const close = () => {
      if (run.length) {
        const there = run.map(i => `${px(x.at(mark.x[i]))} ${px(y.at(mark.low[i]))}`);
        const back = [...run].reverse().map(i => `${px(x.at(mark.x[i]))} ${px(y.at(mark.high[i]))}`);
        made.push(svg("path", {d: `M${[...there, ...back].join("L")}Z`, fill: mark.color, opacity: 0.18}));
      }
      run = [];
    };
    mark.x.forEach((_, i) => {
      const there = finite(mark.low[i]) && finite(mark.high[i]) && Number.isFinite(y.at(mark.low[i])) && Number.isFinite(y.at(mark.high[i]));
      if (there) run.push(i); else close();
    });
    close();
    return made;
  },
  dots(view, mark, x, y) {
    return mark.x.flatMap((_, i) => {
      const cx = x.at(mark.x[i]), cy = y.at(mark.y[i]);
      if (!Number.isFinite(cx) || !Number.isFinite(cy)) return [];
      const style = {"data-dot": mark.name, stroke: mark.color, "stroke-width": 1.5, fill: mark.hollow ? "var(--card)" : mark.color};
      if (mark.hollow) return [svg("path", {d: `M${px(cx)} ${px(cy - 5.5)}l5.5 5.5l-5.5 5.5l-5.5 -5.5Z`, ...style})];
      return [svg("circle", {cx: px(cx), cy: px(cy), r: 4.5, ...style, "fill-opacity": 0.8})];
    });
  },
  bars(view, mark, x, y, all) {
    const width = x.slot * 0.8 / all.length, zero = y.kind === "linear" ? y.at(Math.min(Math.max(0, y.low), y.high)) : view.box.bottom;
    return mark.x.flatMap((_, i) => {
      const at = x.at(mark.x[i]) - x.slot * 0.4 + width * all.indexOf(mark), top = y.at(mark.y[i]);
      if (!finite(mark.y[i]) || !Number.isFinite(top)) return [];
      return [svg("rect", {x: px(at), y: px(Math.min(top, zero)), width: px(Math.max(width - 1, 0.5)), height: px(Math.abs(zero - top)), fill: mark.color, "data-bar": mark.name})];
    });
  },
};

/* Where the cells of a heat map begin and end on an axis: halfway between its values. */
function edges(list, scale) {
  if (scale.kind === "names") return list.map((_, i) => [scale.place(i) - scale.slot / 2, scale.place(i) + scale.slot / 2]);
  const at = list.map(value => scale.at(value));
  const between = (i, j) => at[j] === undefined ? at[i] + (at[i] - (at[2 * i - j] ?? at[i])) / 2 : (at[i] + at[j]) / 2;
  return list.map((_, i) => [between(i, i - 1), between(i, i + 1)]);
}
function drawHeat(view, mark, x, y) {
  const rows = mark.z[Math.min(Math.max(view.step, 0), mark.z.length - 1)], columns = edges(mark.x, x), lines = edges(mark.y, y);
  const made = [];
  if (rows.length * mark.x.length > CELLS) {
    const [[left], [, right]] = [columns[0], columns.at(-1)], [[top], [, bottom]] = [lines[0], lines.at(-1)];
    made.push(svg("image", {x: px(left), y: px(top), width: px(right - left), height: px(bottom - top), href: heatPicture(rows, mark.low, mark.high), preserveAspectRatio: "none", style: "image-rendering: pixelated"}));
    return made;
  }
  rows.forEach((row, i) => row.forEach((value, j) => {
    const [x1, x2] = columns[j], [y1, y2] = lines[i], left = Math.min(x1, x2), top = Math.min(y1, y2);
    const color = finite(value) ? heatColor(value, mark.low, mark.high) : null;
    const cell = {x: px(left), y: px(top), width: px(Math.abs(x2 - x1) + 0.3), height: px(Math.abs(y2 - y1) + 0.3)};
    made.push(svg("rect", {...cell, fill: color ? `rgb(${color})` : "var(--blank)", "data-cell": `${i},${j}`}));
    if (!mark.numbers || !color) return;
    const size = Math.min(12, Math.abs(x2 - x1) / 3), dark = color[0] * 0.3 + color[1] * 0.6 + color[2] * 0.1 < 140;
    const text = Math.abs(value) < 0.995 ? value.toFixed(2).replace("0.", ".").replace("-", "−") : value.toFixed(1).replace("-", "−");
    made.push(words(text, (x1 + x2) / 2, (y1 + y2) / 2 + size / 3, {"text-anchor": "middle", "font-size": px(size), fill: dark ? "#ffffff" : "#0f172a"}));
  }));
  return made;
}
function colourBar(view, mark, top) {
  const {box} = view, id = `scale-${view.id}`, name = wide(mark.title) + 10, left = box.left + name, right = box.right;
  const stops = BLUE_TO_RED.map((color, i) => svg("stop", {offset: i / (BLUE_TO_RED.length - 1), "stop-color": `rgb(${color})`}));
  const beyond = mark.z.flat(2).filter(finite), under = beyond.some(v => v < mark.low), over = beyond.some(v => v > mark.high);
  const middle = (mark.low + mark.high) / 2, short = value => tickText(Number(value.toPrecision(3)));
  return [
    svg("linearGradient", {id}, ...stops),
    svg("rect", {x: px(left), y: px(top), width: px(right - left), height: 8, fill: `url(#${id})`, rx: 2}),
    words(mark.title, box.left, top + 8),
    words((under ? "≤ " : "") + short(mark.low), left, top + 20),
    words(short(middle), (left + right) / 2, top + 20, {"text-anchor": "middle"}),
    words((over ? "≥ " : "") + short(mark.high), right, top + 20, {"text-anchor": "end"}),
  ];
}
