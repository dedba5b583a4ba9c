// What scrolls sideways is reached by the keyboard, and the search has a name for those who hear the page.
const reach = () => {
  for (const box of document.querySelectorAll(".formula, .md-typeset__scrollwrap, .md-typeset pre > code")) {
    if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
    else box.removeAttribute("tabindex");
  }
  document.querySelector("[data-md-component=search]:not([aria-label])")?.setAttribute("aria-label", "Search");
};
addEventListener("load", reach);
addEventListener("resize", reach);
