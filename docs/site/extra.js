// Code and tables that are wider than the page can be scrolled by keyboard. The theme makes some of
// them later, and takes the attribute away from others, so that changes are followed.
const WIDE = "pre > code, .md-typeset__scrollwrap";

function reachable() {
  for (const element of document.querySelectorAll(WIDE)) {
    if (!element.hasAttribute("tabindex")) element.tabIndex = 0;
  }
}

reachable();
new MutationObserver(reachable).observe(document.body, {
  attributeFilter: ["tabindex"],
  childList: true,
  subtree: true,
});
