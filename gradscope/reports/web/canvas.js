// Draws what `view` shows into the SVG, and moves it.

const SVG = "http://www.w3.org/2000/svg";
const LINE = 13, TITLE_LINE = 17, PAD_X = 11, PAD_Y = 6, LONGEST = 44;
const pen = document.createElement("canvas").getContext("2d");

function element(name, attributes, ...children) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes || {})) made.setAttribute(key, value);
  for (const child of children) made.append(child);
  return made;
}

function widthOf(text, size) {
  if (!pen) return text.length * size * 0.62;
  pen.font = `${size}px ${getComputedStyle(document.body).fontFamily}`;
  return pen.measureText(text).width * 1.04;
}

function shortened(text) {
  return text.length <= LONGEST ? text : `${text.slice(0, LONGEST / 2 - 2)}\u2026${text.slice(1 - LONGEST / 2)}`;
}

// The words on a node: a title and small lines below it.
function wordsOf(graph, node) {
  const { data } = graph;
  const boxes = data.boxes;
  const text = (column, box) => data.texts[boxes[column][box]];
  if (node.group) return groupWords(graph, node);
  const box = node.box;
  const kind = data.kinds[boxes.kind[box]];
  const lines = text("details", box).split("\n").filter(Boolean);
  let title = text("title", box);
  if (node.boxes.length > 1) {
    if (kind === "operation") lines.forEach((line, i) => { lines[i] = line.split(" ").pop(); });
    else if (lines.length) title = "*." + title.split(".").pop();
  }
  if (kind === "operation") {
    const frame = node.parent.frame ? node.parent.frame.path + "." : "";
    const module = text("module", box);
    const inner = module.startsWith(frame) ? module.slice(frame.length) : module + "." === frame ? "" : module;
    const where = [boxes.line[box] ? placeOf(data, box) : "", inner].filter(Boolean).join(" \u00b7 ");
    if (where) lines.push(where);
  }
  const gradient = gradientOver(graph, node.boxes);
  if (gradient) lines.push(gradient);
  if (node.boxes.length === 1 && text("saved", box)) lines.push(text("saved", box));
  return { title, lines };
}

function placeOf(data, box) {
  const file = data.texts[data.boxes.file[box]], line = data.boxes.line[box];
  return file === data.script ? `line ${line}` : `${file.split(/[\\/]/).pop()}:${line}`;
}

function groupTitle(group, count) {
  if (count > 1) return group.type ? `${count} x ${group.type}` : `${count} alike`;
  if (group.sort === "line") return `${group.boxes.length.toLocaleString("en")} x ${group.title}`;
  if (group.sort === "part") return partTitle(group);
  if (group.sort === "module" && group.type) return `${group.title}: ${group.type}`;
  return group.title;
}

// Of a part of things that are called alike, their numbers tell more.
function partTitle(group) {
  const [first, last] = group.title.split(" .. ");
  if (first !== last) return group.title;
  let whole = group;
  while (whole.sort === "part") whole = whole.parent;
  const start = whole.boxes.indexOf(group.boxes[0]) + 1;
  const count = (number) => number.toLocaleString("en");
  return `${first} ${count(start)} .. ${count(start + group.boxes.length - 1)}`;
}

function groupWords(graph, node) {
  const { data } = graph;
  const { group } = node;
  const lines = [];
  const kinds = group.boxes.map((box) => data.kinds[data.boxes.kind[box]]);
  const parameters = group.boxes.filter((_, i) => kinds[i] === "parameter");
  const operations = group.boxes.filter((_, i) => kinds[i] === "operation");
  let title = groupTitle(group, node.count);
  if (group.sort === "tensors") title = `${group.boxes.length.toLocaleString("en")} ${kinds[0]}s`;
  if (node.count > 1) lines.push(rangeOf(node.groups, node.count));
  if (group.sort === "line") {
    if (data.boxes.line[group.boxes[0]]) lines.push(placeOf(data, group.boxes[0]));
  } else if (group.sort !== "tensors") {
    const parts = [];
    const names = new Set(operations.map((box) => data.boxes.title[box]));
    if (names.size === 1) {
      const name = data.texts[data.boxes.title[operations[0]]];
      parts.push(operations.length === 1 ? name : `${operations.length.toLocaleString("en")} x ${name}`);
    } else if (operations.length) parts.push(`${operations.length.toLocaleString("en")} operations`);
    if (parameters.length) {
      const frozen = parameters.filter((box) => data.boxes.flags[box] & 1).length;
      const size = parameters.reduce((sum, box) => sum + data.boxes.elements[box], 0);
      const ice = !frozen ? "" : frozen === parameters.length ? ", frozen" : `, ${frozen} frozen`;
      parts.push(`${parameters.length} parameter${parameters.length > 1 ? "s" : ""} (${amount(size)}${ice})`);
    }
    if (parts.length) lines.push(parts.join(", "));
  }
  const gradient = gradientOver(graph, node.boxes);
  if (gradient) lines.push(gradient);
  return { title, lines };
}

function rangeOf(groups, count) {
  const start = groups[0].path.split("."), end = groups[count - 1].path.split(".");
  const same = start.findIndex((part, i) => part !== end[i]);
  return `${groups[0].path} .. ${end.slice(Math.max(0, same)).join(".")}`;
}

function amount(number) {
  for (const [unit, size] of [["G", 1e9], ["M", 1e6], ["k", 1e3]]) {
    if (number >= size) return `${Number((number / size).toPrecision(3))}${unit}`;
  }
  return String(number);
}

function gradientOver(graph, boxes) {
  const columns = graph.data.boxes;
  let least = Infinity, largest = -Infinity, worst = -1, said = 0;
  for (const box of boxes) {
    if (columns.worst[box] > worst) { worst = columns.worst[box]; said = columns.gradient[box]; }
    const norm = columns.norm[box];
    if (norm !== null) { least = Math.min(least, norm); largest = Math.max(largest, norm); }
  }
  if (worst < 0) return "";
  if (worst > 0 || least === largest || least > largest) return graph.data.texts[said];
  return `|grad| ${exponent(least)} .. ${exponent(largest)}`;
}

function exponent(number) {
  return number.toExponential(1).replace(/e([+-])(\d)$/, "e$10$2");
}

function measure(graph, seen) {
  for (const node of seen.nodes) {
    node.words = wordsOf(graph, node);
    node.main = Boolean(node.group) || graph.data.kinds[graph.data.boxes.kind[node.box]] === "operation";
    const widths = [widthOf(shortened(node.words.title), 13), ...node.words.lines.map((line) => widthOf(shortened(line), 10.5))];
    node.w = Math.max(44, ...widths) + 2 * PAD_X;
    node.h = TITLE_LINE + LINE * node.words.lines.length + 2 * PAD_Y;
  }
  const frames = (frame) => frame.children.forEach((child) => {
    if (!child.children) return;
    child.main = true;
    child.title = groupTitle(child.frame, child.count);
    child.detail = child.count > 1 ? rangeOf(child.groups, child.count) : "";
    child.titleWidth = widthOf(shortened(child.title), 12) + (child.detail ? widthOf(shortened(child.detail), 10) + 12 : 0);
    frames(child);
  });
  frames(seen.root);
}

function classOf(graph, node) {
  const columns = graph.data.boxes;
  const first = node.boxes[0];
  const closed = node.group && node.group.sort !== "line" && node.group.sort !== "tensors";
  const names = ["node", closed ? "group" : graph.data.kinds[columns.kind[first]]];
  if (node.count > 1 || (node.group && !closed)) names.push("many");
  const own = node.boxes.filter((box) => graph.data.kinds[columns.kind[box]] === "parameter");
  if (own.length && own.every((box) => columns.flags[box] & 1)) names.push("frozen");
  if (node.boxes.every((box) => columns.flags[box] & 2)) names.push("cutoff");
  if (node.boxes.some((box) => columns.flags[box] & 4)) names.push("refused");
  if (node.boxes.some((box) => columns.worst[box] > 0)) names.push("trouble");
  return names.join(" ");
}

// The outline tells the role without colour.
function outline(kind, x, y, w, h) {
  const c = Math.min(12, h / 3);
  if (kind === "operation") return element("rect", { x, y, width: w, height: h, rx: 9 });
  if (kind === "constant") return element("rect", { x, y, width: w, height: h, rx: h / 2 });
  if (kind === "output") return polygon([[x + c, y], [x + w - c, y], [x + w, y + c], [x + w, y + h - c], [x + w - c, y + h], [x + c, y + h], [x, y + h - c], [x, y + c]]);
  if (kind === "input") return polygon([[x, y], [x + w, y], [x + w, y + h - 7], [x + w / 2, y + h], [x, y + h - 7]]);
  if (kind === "intermediate") return polygon([[x + 9, y], [x + w - 9, y], [x + w, y + h / 2], [x + w - 9, y + h], [x + 9, y + h], [x, y + h / 2]]);
  if (kind === "buffer") return element("path", { d: `M${x} ${y + 4}q${w / 2} -8 ${w} 0v${h - 8}q${-w / 2} 8 ${-w} 0z` });
  if (kind === "group") return polygon([[x, y], [x + w - 26, y], [x + w - 22, y - 5], [x + w - 4, y - 5], [x + w, y], [x + w, y + h], [x, y + h]]);
  return element("rect", { x, y, width: w, height: h });
}

function polygon(points) {
  return element("polygon", { points: points.map((point) => point.join(",")).join(" ") });
}

function drawNode(graph, node) {
  const names = classOf(graph, node);
  const kind = names.split(" ")[1];
  const shape = outline(kind, node.x, node.y, node.w, node.h);
  const g = element("g", { class: names, tabindex: 0, role: "button", "data-node": node.index });
  g.setAttribute("aria-label", [node.words.title, ...node.words.lines].join(", ") + (node.group ? ", closed" : ""));
  if (names.includes(" many")) {
    const behind = outline(kind, node.x + 4, node.y - 4, node.w, node.h);
    behind.setAttribute("class", "behind");
    g.append(behind);
  }
  g.append(shape);
  const middle = node.x + node.w / 2;
  let y = node.y + PAD_Y + TITLE_LINE - 4;
  g.append(element("text", { x: middle, y, class: "title" }, shortened(node.words.title)));
  for (const line of node.words.lines) {
    y += LINE;
    g.append(element("text", { x: middle, y, class: "small" }, shortened(line)));
  }
  node.element = g;
  return g;
}

function drawFrame(frame) {
  const g = element("g", { class: frame.count > 1 ? "frame many" : "frame" });
  g.append(element("rect", { x: frame.x, y: frame.y, width: frame.w, height: frame.h, rx: 9 }));
  const title = element("g", { class: "handle", tabindex: 0, role: "button", "data-frame": frame.frame.number });
  title.setAttribute("aria-label", `${frame.title}, open; close it`);
  title.append(element("rect", { class: "grip", x: frame.x + 5, y: frame.y + 3, width: frame.titleWidth + 22, height: 18, rx: 4 }));
  const words = element("text", { x: frame.x + 10, y: frame.y + 16, class: "name" }, "\u2212 ", shortened(frame.title));
  if (frame.detail) words.append(element("tspan", { class: "small", dx: 8 }, shortened(frame.detail)));
  title.append(words);
  return { g, title };
}

const KINDS_OF_LINKS = ["data", "gradient", "cut"];

function drawLink(graph, link, scale, labels) {
  const [first, ...rest] = link.points;
  let d = `M${first[0].toFixed(1)} ${first[1].toFixed(1)}`;
  let [x, y] = first;
  for (const [nextX, nextY] of rest) {
    const half = (y + nextY) / 2;
    d += Math.abs(nextX - x) < 1 ? `L${nextX.toFixed(1)} ${nextY.toFixed(1)}`
      : `C${x.toFixed(1)} ${half.toFixed(1)} ${nextX.toFixed(1)} ${half.toFixed(1)} ${nextX.toFixed(1)} ${nextY.toFixed(1)}`;
    [x, y] = [nextX, nextY];
  }
  const kind = KINDS_OF_LINKS[link.kind];
  const path = element("path", { class: `link ${kind}`, d, "marker-end": `url(#tip-${kind})` });
  const columns = graph.data.boxes;
  if (kind === "gradient" && scale && !link.tail.group && columns.norm[link.tail.box]) {
    path.style.strokeWidth = scale(columns.norm[link.tail.box]).toFixed(2);
  }
  const words = link.line ? `cut, line ${link.line}` : "cut";
  // Several ways may end at one cut: its line is told once.
  const told = labels.get(link.head) ?? new Set();
  labels.set(link.head, told);
  if (kind !== "cut" || told.has(words)) return [path];
  told.add(words);
  const [a, b] = link.points.slice(-2);
  const label = element("text", { class: "cut", x: (a[0] + b[0]) / 2 + 8, y: (a[1] + b[1]) / 2 + 4 });
  label.append(words);
  return [path, label];
}

// From |grad| to the thickness of a line, over three decades at least.
function scaleOf(graph) {
  const norms = graph.data.boxes.norm.filter((norm) => norm > 0);
  if (norms.length < 2) return null;
  let largest = 0, least = Infinity;
  for (const norm of norms) { largest = Math.max(largest, norm); least = Math.min(least, norm); }
  least = Math.min(least, largest / 1000);
  return (norm) => 0.8 + 2.6 * Math.log(norm / least) / Math.log(largest / least);
}

function tips() {
  const defs = element("defs");
  for (const kind of KINDS_OF_LINKS) {
    const marker = element("marker", { id: `tip-${kind}`, class: `tip ${kind}`, viewBox: "0 0 8 8", refX: 7, refY: 4, markerWidth: 8, markerHeight: 8, markerUnits: "userSpaceOnUse", orient: "auto" });
    marker.append(element("path", { d: "M0 0.5L8 4L0 7.5z" }));
    defs.append(marker);
  }
  return defs;
}

function draw(graph, seen, svg) {
  measure(graph, seen);
  layOut(seen.root, seen.links);
  const frames = element("g"), links = element("g"), nodes = element("g"), handles = element("g");
  const paint = (frame) => frame.children.forEach((child) => {
    if (child.children) {
      const { g, title } = drawFrame(child);
      frames.append(g);
      handles.append(title);
      child.element = title;
      paint(child);
    } else nodes.append(drawNode(graph, child));
  });
  paint(seen.root);
  const scale = scaleOf(graph);
  // Cuts last, over all others.
  const labels = new Map();
  for (const link of [...seen.links].sort((one, other) => one.kind - other.kind)) {
    links.append(...drawLink(graph, link, scale, labels));
  }
  const world = element("g", { id: "world" }, frames, links, handles, nodes);
  svg.replaceChildren(tips(), world);
  return world;
}
