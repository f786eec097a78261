// The faults of a page, for accessible.py: what is wrong, and where.
([least, leastLarge]) => {
  const faults = [];
  const told = (one, what) => faults.push(`${what}: ${one.outerHTML.slice(0, 160)}`);
  const seen = (one) => one.checkVisibility({ visibilityProperty: true });
  const all = (selector) => [...document.querySelectorAll(selector)].filter(seen);

  const parts = (colour) => (colour.match(/[\d.]+/g) ?? []).map(Number);
  const over = ([r, g, b, a = 1], below) => [r, g, b].map((one, place) => a * one + (1 - a) * below[place]);
  const linear = (one) => (one <= 0.04045 ? one / 12.92 : ((one + 0.055) / 1.055) ** 2.4);
  const light = (rgb) => {
    const [r, g, b] = rgb.map((one) => linear(one / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (one) => {
    const layers = [];
    for (let at = one; at; at = at.parentElement) layers.unshift(parts(getComputedStyle(at).backgroundColor));
    return layers.reduce((below, layer) => over(layer, below), [255, 255, 255]);
  };
  const opacity = (one) => (one ? Number(getComputedStyle(one).opacity) * opacity(one.parentElement) : 1);
  const says = (one) =>
    [...one.childNodes].some((node) => node.nodeType === Node.TEXT_NODE && node.data.trim()) || (one.matches("input, textarea") && one.value);
  for (const one of all("body *")) {
    if (one.closest("svg, option, .hidden, .skip, :disabled") || !says(one)) continue;
    const style = getComputedStyle(one);
    const below = behind(one);
    const [r, g, b, a = 1] = parts(style.color);
    const both = [light(over([r, g, b, a * opacity(one)], below)), light(below)];
    const ratio = (Math.max(...both) + 0.05) / (Math.min(...both) + 0.05);
    const size = parseFloat(style.fontSize);
    const isLarge = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700);
    if (ratio < (isLarge ? leastLarge : least)) told(one, `contrast ${ratio.toFixed(2)}`);
  }

  const isLabelled = (one) => one.ariaLabel?.trim() || one.hasAttribute("aria-labelledby") || one.labels?.length;
  for (const one of all("a, button, summary")) if (!one.ariaLabel?.trim() && !one.textContent.trim()) told(one, "no name");
  const fields = "input:not([type=hidden]), select, textarea, progress, [role=img], [role=region]";
  for (const one of all(fields)) if (!isLabelled(one)) told(one, "no name");
  for (const attribute of ["aria-describedby", "aria-labelledby", "aria-controls", "for"]) {
    for (const one of document.querySelectorAll(`[${attribute}]`)) {
      const named = one.getAttribute(attribute).split(" ");
      if (named.some((id) => !document.getElementById(id))) told(one, `${attribute} names nothing`);
    }
  }
  const ids = [...document.querySelectorAll("[id]")].map((one) => one.id);
  for (const id of new Set(ids.filter((one, place) => ids.indexOf(one) !== place))) faults.push(`id twice: ${id}`);
  for (const one of document.querySelectorAll("[tabindex]")) if (one.tabIndex > 0) told(one, "an order of tabs of its own");

  let level = 0;
  for (const one of all("h1, h2, h3, h4")) {
    const here = Number(one.tagName[1]);
    if (here > level + 1) told(one, `a heading of level ${here} below one of ${level}`);
    level = here;
  }
  for (const one of all("th")) {
    if (!one.scope) told(one, "a header without scope");
    if (!one.textContent.trim()) told(one, "an empty header");
  }
  const PARTS = { UL: ["LI"], OL: ["LI"], DL: ["DT", "DD"] };
  for (const one of all("ul, ol, dl")) {
    if ([...one.children].some((child) => !PARTS[one.tagName].includes(child.tagName))) told(one, "a list with other parts");
  }
  if (document.querySelectorAll("main").length !== 1) faults.push("not one main part");
  if (!document.documentElement.lang) faults.push("no language");
  if (!document.title.trim()) faults.push("no title");

  const reached = "a, button, input, select, textarea, summary";
  for (const one of all("body *")) {
    const { overflowX, overflowY } = getComputedStyle(one);
    const across = /auto|scroll/.test(overflowX) && one.scrollWidth > one.clientWidth + 1;
    const down = /auto|scroll/.test(overflowY) && one.scrollHeight > one.clientHeight + 1;
    if ((across || down) && one.tabIndex < 0 && !one.querySelector(reached)) told(one, "scrolls, and no key reaches it");
  }
  return faults;
}
