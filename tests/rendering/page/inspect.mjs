// Runs inside the page. What a reader would stumble over: missing data, text that is cut off, text that is hard to read.
export function inspect() {
  const LEAST = 4.5, LEAST_LARGE = 3, LARGE_PX = 24, SLACK_PX = 1;
  const found = [];

  const channel = (value) => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4);
  const luminance = ([r, g, b]) => 0.2126 * channel(r / 255) + 0.7152 * channel(g / 255) + 0.0722 * channel(b / 255);
  const parse = (text) => {
    const parts = text.match(/[\d.]+/g)?.map(Number) ?? [0, 0, 0, 0];
    return text.startsWith('color(srgb') ? parts.map((part, i) => (i < 3 ? part * 255 : part)) : parts;
  };
  const over = (top, below) => {
    const alpha = top[3] ?? 1;
    return [0, 1, 2].map((i) => top[i] * alpha + below[i] * (1 - alpha));
  };
  const background = (element) => {
    const layers = [];
    for (let at = element; at; at = at.parentElement) {
      const color = parse(getComputedStyle(at).backgroundColor);
      if ((color[3] ?? 1) > 0) layers.push(color);
      if ((color[3] ?? 1) === 1) break;
    }
    return layers.reverse().reduce((below, top) => over(top, below), [255, 255, 255]);
  };
  // WCAG 2.2, 1.4.3: https://www.w3.org/TR/WCAG22/#contrast-minimum
  const contrast = (one, other) => {
    const [light, dark] = [luminance(one), luminance(other)].sort((a, b) => b - a);
    return (light + 0.05) / (dark + 0.05);
  };
  const place = (element) => element.closest('.panel')?.dataset.title ?? 'header';

  const texts = document.createTreeWalker(document.getElementById('root'), NodeFilter.SHOW_TEXT);
  const seen = new Set();
  while (texts.nextNode()) {
    const element = texts.currentNode.parentElement, text = texts.currentNode.textContent.trim();
    const style = getComputedStyle(element), box = element.getBoundingClientRect();
    if (!text || ['STYLE', 'SCRIPT'].includes(element.tagName) || style.visibility === 'hidden' || !box.width || !box.height) continue;
    if (/no data/i.test(text)) found.push(`${place(element)}: "${text}"`);
    const below = background(element);
    const ratio = contrast(over(parse(style.color), below), below);
    const least = parseFloat(style.fontSize) >= LARGE_PX ? LEAST_LARGE : LEAST;
    const key = `${place(element)}|${style.color}|${below}`;
    if (ratio < least && !seen.has(key)) {
      seen.add(key);
      found.push(`${place(element)}: "${text}" has a contrast of ${ratio.toFixed(2)}`);
    }
    const hides = style.overflow !== 'visible' || style.textOverflow === 'ellipsis';
    if (hides && element.scrollWidth > element.clientWidth + SLACK_PX) found.push(`${place(element)}: "${text}" is cut off`);
  }
  for (const panel of document.querySelectorAll('.panel')) {
    const outer = panel.getBoundingClientRect();
    for (const element of panel.querySelectorAll('*')) {
      const box = element.getBoundingClientRect();
      const scrolls = ['auto', 'scroll'].includes(getComputedStyle(element).overflowX) && element.scrollWidth > element.clientWidth + SLACK_PX;
      if (scrolls) found.push(`${panel.dataset.title}: scrolls sideways by ${element.scrollWidth - element.clientWidth} px`);
      if (box.width && box.height && box.right > outer.right + SLACK_PX) {
        found.push(`${panel.dataset.title}: <${element.tagName.toLowerCase()}> reaches ${Math.round(box.right - outer.right)} px over the edge`);
        break;
      }
    }
    if (panel.dataset.type === 'timeseries' && !panel.querySelector('canvas') && !panel.querySelector('.empty')) {
      found.push(`${panel.dataset.title}: nothing is drawn`);
    }
  }
  if (document.documentElement.scrollWidth > window.innerWidth) found.push('the page scrolls sideways');
  return found;
}
