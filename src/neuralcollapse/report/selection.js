"use strict";
/* A run or a group of runs that is selected in a table stands out in every figure: the curves of the others fade, and
   those that are drawn for a selection alone appear. Once more, or Escape, and all are alike again. */

const FADED = 0.13, BEHIND = 0.45;
let selected = "";

/* Whether a mark stays as it is: it belongs to the selection, or to none, such as what theory expects of all. */
function standsOut(view, mark) {
  const main = mark.of ? view.marks.find(other => other.name === mark.of && other.type === "line") || mark : mark;
  return !selected || !main.selectedBy || main.selectedBy.includes(selected);
}
function isUnseen(mark) { return Boolean(mark.onlySelected) && !mark.selectedBy.includes(selected); }
function emphasised(view, mark, parts) {
  if (!standsOut(view, mark)) return [svg("g", {opacity: FADED, class: "faded"}, ...parts)];
  /* the mean of the group, behind the curve of the one run that is selected */
  const behind = mark.type === "line" && !mark.onlySelected && view.marks.some(other => other.onlySelected && other.name === selected);
  return behind && mark.selectedBy ? [svg("g", {opacity: BEHIND}, ...parts)] : parts;
}

function select(name) {
  selected = name;
  for (const pick of document.querySelectorAll("button.pick")) {
    const on = pick.dataset.select === selected;
    pick.setAttribute("aria-pressed", String(on));
    pick.closest("tr").classList.toggle("chosen", on);
  }
  for (const view of views.values()) {
    const list = element(`${view.figure.name}-run`);
    const at = list ? [...list.options].findIndex(choice => choice.textContent === selected) : -1;
    if (at >= 0 && at !== list.selectedIndex) {
      list.selectedIndex = at;
      list.dispatchEvent(new Event("change"));
    } else if (view.marks.some(mark => mark.selectedBy)) draw(view);
  }
  element("said").textContent = selected ? `${selected} is selected: its curves stand out.` : "All curves are alike.";
}
for (const pick of document.querySelectorAll("button.pick")) {
  const toggle = () => select(selected === pick.dataset.select ? "" : pick.dataset.select);
  const row = pick.closest("tr");
  row.classList.add("selects");
  row.addEventListener("click", event => {
    const marking = String(window.getSelection());  // text that somebody marks to copy it
    if (pick.contains(event.target) || (!marking && !event.target.closest("a, button"))) toggle();
  });
}
document.addEventListener("keydown", event => { if (event.key === "Escape" && selected) select(""); });
