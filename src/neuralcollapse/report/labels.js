"use strict";
/* Names beside the points of a figure: each on the first side that has room; one without room is left to the pointer. */

const NAME_SIZE = 10.5, AWAY = 7;
const SIDES = [[1, 0], [-1, 0], [0, -1], [0, 1], [1, -1], [1, 1], [-1, -1], [-1, 1]];

function pointNames(view) {
  const {box, scales: {x, y}} = view, made = [], places = [];
  for (const mark of view.marks) {
    if (mark.type !== "dots" || isHidden(view, mark)) continue;
    mark.x.forEach((value, i) => places.push({left: x.at(value), top: y.at(mark.y[i]), name: (mark.labels || [])[i]}));
  }
  const there = places.filter(place => Number.isFinite(place.left) && Number.isFinite(place.top));
  const taken = there.map(({left, top}) => [left - 5, top - 5, left + 5, top + 5]);
  const free = area => taken.every(other => area[0] >= other[2] || other[0] >= area[2] || area[1] >= other[3] || other[1] >= area[3]);
  for (const {left, top, name} of there) {
    if (!name) continue;
    const width = wide(name, NAME_SIZE);
    for (const [across, down] of SIDES) {
      const middle = left + across * (AWAY + width / 2), centre = top + down * (AWAY + NAME_SIZE / 2);
      const area = [middle - width / 2, centre - NAME_SIZE / 2, middle + width / 2, centre + NAME_SIZE / 2];
      if (area[0] < box.left || area[2] > box.right + 8 || area[1] < box.top || area[3] > box.bottom || !free(area)) continue;
      taken.push(area);
      made.push(words(name, middle, centre + 3.5, {"text-anchor": "middle", "font-size": NAME_SIZE, "data-label": name}));
      break;
    }
  }
  return made;
}
