// Elements as plain values, and the least change that makes the page show them: focus, selection and scrolling stay.
// Text is only ever set as text.

const SVG = "http://www.w3.org/2000/svg";
const DRAWN = new Set(["svg", "path", "line", "circle", "rect", "text", "g"]);

export function h(tag, props, ...children) {
  return { tag, props: props || {}, children: children.flat(Infinity).filter((child) => child || child === 0) };
}

// Makes the children of an element be these.
export function patch(parent, wanted) {
  wanted.forEach((node, index) => {
    const old = found(parent, node, index);
    if (typeof node !== "object") {
      const text = String(node);
      if (old && old.nodeType === Node.TEXT_NODE) {
        if (old.data !== text) old.data = text;
      } else {
        parent.insertBefore(document.createTextNode(text), old || null);
      }
      return;
    }
    if (old && fits(old, node)) {
      update(old, node);
    } else {
      const made = DRAWN.has(node.tag) ? document.createElementNS(SVG, node.tag) : document.createElement(node.tag);
      made.shownKey = node.props.key;
      update(made, node);
      parent.insertBefore(made, old || null);
    }
  });
  while (parent.childNodes.length > wanted.length) parent.lastChild.remove();
}

// The child that shows this already, brought to its place.
function found(parent, node, index) {
  const here = parent.childNodes[index];
  if (!here || typeof node !== "object" || node.props.key === undefined || fits(here, node)) return here;
  for (let later = here.nextSibling; later; later = later.nextSibling) {
    if (fits(later, node)) {
      parent.insertBefore(later, here);
      return later;
    }
  }
  return here;
}

function fits(element, node) {
  return element.localName === node.tag && element.shownKey === node.props.key;
}

function update(element, { props, children }) {
  const before = element.shownProps || {};
  for (const name of Object.keys(before)) {
    if (!(name in props)) set(element, name, null);
  }
  for (const [name, value] of Object.entries(props)) {
    if (before[name] !== value) set(element, name, value);
  }
  element.shownProps = props;
  patch(element, children);
}

function set(element, name, value) {
  if (name === "key") return;
  if (name.startsWith("on")) element[name] = value;
  else if (value === null || value === undefined || value === false) element.removeAttribute(name);
  else element.setAttribute(name, value === true ? "" : value);
}
