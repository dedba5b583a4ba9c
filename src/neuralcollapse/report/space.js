"use strict";
/* Draws points in three dimensions as SVG: a sphere, spokes from its centre, points and their names, by depth. */

const LOOK = {yaw: -0.6, pitch: 0.35};  // where a view is seen from at first
const SPOKE = "#94a3b8";

/* Turned by the camera: x to the right, y down, z towards the reader. */
function turned([x, y, z], {yaw, pitch}) {
  const [cos, sin, up, side] = [Math.cos(yaw), Math.sin(yaw), Math.cos(pitch), Math.sin(pitch)];
  const [right, deep] = [x * cos - y * sin, x * sin + y * cos];
  return [right, -(z * up + deep * side), z * side - deep * up];
}
function drawSpace(view, width, height) {
  const points = view.marks.filter(mark => mark.type === "points" && !isHidden(view, mark));
  let far = 1;  // the same at all steps, so that the view does not jump
  for (const mark of view.marks) for (const step of mark.points) for (const point of step) if (point.every(finite)) far = Math.max(far, Math.hypot(...point));
  const named = points.some(mark => mark.labelled), radius = Math.min(width / 2 - (named ? 24 : 12), height / 2 - 14) / Math.min(far, 1.8);
  const centre = [width / 2, height / 2];
  const place = point => {
    const [x, y, z] = turned(point, view.camera), grow = 1 / (1 - 0.12 * z / Math.max(far, 1));
    return [centre[0] + x * radius * grow, centre[1] + y * radius * grow, z];
  };
  const group = svg("g", {"font-family": FONT}, ...sphere(view, centre, radius, place));
  const drawn = [];
  view.places = [];
  for (const mark of points) {
    const step = mark.points[Math.min(Math.max(view.step, 0), mark.points.length - 1)], origin = place([0, 0, 0]);
    step.forEach((point, i) => {
      if (!point.every(finite)) return;
      const [x, y, z] = place(point), color = Array.isArray(mark.color) ? mark.color[i] : mark.color, text = mark.texts[i];
      const size = mark.size * (1 + 0.18 * z) * 0.8, dim = 0.72 + 0.28 * Math.min(1, Math.max(-1, z));
      if (mark.spokes) drawn.push([z - 0.5, svg("line", {x1: px(origin[0]), y1: px(origin[1]), x2: px(x), y2: px(y), stroke: SPOKE, "stroke-width": 1.5, opacity: px(dim)})]);
      drawn.push([z, symbol(mark, x, y, size, color, dim)]);
      if (mark.labelled && text) drawn.push([z + 0.1, words(cut(text, 90), x + size + 3, y - size, {fill: "var(--ink)", opacity: Math.max(0.55, px(dim)), stroke: "var(--card)", "stroke-width": 3, "paint-order": "stroke"})]);
      if (mark.hover) view.places.push({x, y, z, text: filled(mark.hover, {text})});
    });
  }
  group.append(...drawn.sort((one, other) => one[0] - other[0]).map(each => each[1]));
  return group;
}
function symbol(mark, x, y, size, color, opacity) {
  const style = {"data-point": mark.name, opacity: px(opacity)};
  if (mark.symbol === "diamond") return svg("path", {d: `M${px(x)} ${px(y - size)}l${px(size)} ${px(size)}l${px(-size)} ${px(size)}l${px(-size)} ${px(-size)}Z`, fill: color, stroke: "var(--card)", "stroke-width": 0.7, ...style});
  if (mark.symbol === "ring") return svg("circle", {cx: px(x), cy: px(y), r: px(size), fill: "none", stroke: color, "stroke-width": 1.5, ...style});
  return svg("circle", {cx: px(x), cy: px(y), r: px(size), fill: color, stroke: "var(--card)", "stroke-width": 0.7, ...style});
}
/* The sphere of radius 1: its outline, and three great circles that are fainter at the back. */
function sphere(view, centre, radius, place) {
  const id = `ball-${view.id}`, made = [
    svg("radialGradient", {id, cx: 0.35, cy: 0.3, r: 0.8}, svg("stop", {offset: 0, "stop-color": SPOKE, "stop-opacity": 0.04}), svg("stop", {offset: 1, "stop-color": SPOKE, "stop-opacity": 0.22})),
    svg("circle", {cx: px(centre[0]), cy: px(centre[1]), r: px(radius), fill: `url(#${id})`, stroke: SPOKE, "stroke-width": 0.8, "data-sphere": ""}),
  ];
  for (const circle of [(c, s) => [c, s, 0], (c, s) => [c, 0, s], (c, s) => [0, c, s]]) {
    const front = [[], []], back = [[], []];
    for (let i = 0; i <= 72; i++) {
      const [x, y, z] = place(circle(Math.cos(i * Math.PI / 36), Math.sin(i * Math.PI / 36)));
      for (const [part, there] of [[front, z >= 0], [back, z < 0]]) { part[0].push(there ? x : NaN); part[1].push(y); }
    }
    made.push(svg("path", {d: path(...back), fill: "none", stroke: SPOKE, "stroke-width": 0.6, opacity: 0.25}));
    made.push(svg("path", {d: path(...front), fill: "none", stroke: SPOKE, "stroke-width": 0.7, opacity: 0.5}));
  }
  return made;
}
