// The page: its table, its search, and what clicks and keys do.

const MOST_NODES = 400, MOST_HITS = 60;
const data = JSON.parse(document.getElementById("data").textContent);
const graph = readGraph(data);
const byId = (id) => document.getElementById(id);
const svg = byId("canvas"), detail = byId("detail"), status = byId("status");
let state = firstState(graph);
let seen = null, world = null;
const camera = { x: 0, y: 0, zoom: 1 };

function tell(words) {
  status.textContent = words;
}

function copyOf(one) {
  return { ...one, shown: new Set(one.shown), opened: new Set(one.opened), closed: new Set(one.closed), apart: new Set(one.apart) };
}

// Change what is open, and draw it; what would give too many boxes is left as it was.
function change(how, about) {
  const next = copyOf(state);
  how(next);
  const wanted = view(graph, next);
  if (seen && wanted.nodes.length > MOST_NODES && wanted.nodes.length > seen.nodes.length) {
    tell(`that would be ${wanted.nodes.length} boxes: close some groups first`);
    return false;
  }
  state = next;
  seen = wanted;
  world = draw(graph, seen, svg);
  move();
  tell(`${seen.nodes.length} boxes for ${graph.parentOfBox.length.toLocaleString("en")}${about ? "; " + about : ""}`);
  return true;
}

function move() {
  world.setAttribute("transform", `translate(${camera.x} ${camera.y}) scale(${camera.zoom})`);
}

function fit() {
  const { width, height } = svg.getBoundingClientRect();
  camera.zoom = Math.max(0.05, Math.min(1.25, width / seen.root.w, height / seen.root.h));
  // A tall graph is shown from its top, in letters that can be read.
  camera.zoom = Math.max(camera.zoom, Math.min(0.68, width / seen.root.w));
  camera.x = (width - seen.root.w * camera.zoom) / 2;
  camera.y = Math.max(0, (height - seen.root.h * camera.zoom) / 2);
  move();
}

function zoom(factor, x, y) {
  const box = svg.getBoundingClientRect();
  if (x === undefined) { x = box.width / 2; y = box.height / 2; }
  const next = Math.max(0.03, Math.min(6, camera.zoom * factor));
  camera.x = x - (x - camera.x) * next / camera.zoom;
  camera.y = y - (y - camera.y) * next / camera.zoom;
  camera.zoom = next;
  move();
}

function centre(node) {
  const { width, height } = svg.getBoundingClientRect();
  camera.zoom = Math.max(camera.zoom, 0.7);
  camera.x = width / 2 - (node.x + node.w / 2) * camera.zoom;
  camera.y = height / 2 - (node.y + node.h / 2) * camera.zoom;
  move();
}

function mark(nodes) {
  for (const old of svg.querySelectorAll(".marked")) old.classList.remove("marked");
  for (const node of nodes) node.element.classList.add("marked");
}

// Open what hides these boxes, mark them and bring the first into the middle.
function showBoxes(boxes) {
  if (!boxes.length) return;
  if (!change((next) => boxes.forEach((box) => reveal(graph, next, box)))) {
    change((next) => reveal(graph, next, boxes[0]));
  }
  const nodes = [...new Set(boxes.map((box) => seen.places[box]))];
  mark(nodes);
  centre(nodes[0]);
  describe(nodes[0]);
}

function make(name, attributes, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes || {})) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

function describe(node) {
  const parts = [make("h3", {}, node.words.title)];
  const list = make("dl");
  const say = (name, ...words) => list.append(make("dt", {}, name), make("dd", {}, ...words));
  const text = (column, box) => data.texts[data.boxes[column][box]];
  if (node.group) {
    say(node.group.sort === "function" ? "function" : node.group.sort === "module" ? "module" : "group", node.group.path);
    if (node.group.type) say("class", node.group.type);
    node.words.lines.forEach((line) => say("", line));
    const open = make("button", { type: "button" }, "Open");
    open.addEventListener("click", () => openNode(node));
    parts.push(list, open);
    if (node.count > 1) parts.push(apartButton(node.groups));
  } else {
    const box = node.box, kind = data.kinds[data.boxes.kind[box]];
    say("kind", (data.boxes.flags[box] & 1 ? "frozen " : "") + kind);
    if (node.boxes.length > 1) say("stands for", eachOf(node.boxes));
    const details = text("details", box).split("\n").filter(Boolean);
    if (details.length) say(kind === "operation" ? "gives" : "shape", details.join("; "));
    if (text("module", box)) say("module", text("module", box));
    if (data.boxes.flags[box] & 2) say("gradient", "none comes here: this lies behind the cut");
    const gradient = gradientOver(graph, node.boxes);
    if (gradient) say("gradient", gradient);
    if (text("saved", box)) say("memory", text("saved", box));
    if (data.boxes.line[box]) say("code", code(text("file", box), data.boxes.line[box]));
    parts.push(list);
    const row = rowOf(data.boxes.row[box]);
    const drawn = row && row.querySelector(".chart");
    if (drawn) {
      const large = drawn.cloneNode(true);
      large.setAttribute("width", 260);
      large.setAttribute("height", 52);
      parts.push(make("p", { class: "quiet" }, "|grad| per step, logarithmic"), large);
    }
  }
  detail.replaceChildren(...parts);
}

// The boxes that are drawn over each other, one by one.
function eachOf(boxes) {
  const list = make("ul");
  for (const box of boxes.slice(0, MOST_HITS)) {
    const title = data.texts[data.boxes.title[box]], module = data.texts[data.boxes.module[box]];
    const named = data.kinds[data.boxes.kind[box]] === "operation" && module ? `${module}: ${title}` : title;
    list.append(make("li", {}, named, " ", make("small", {}, data.texts[data.boxes.gradient[box]])));
  }
  if (boxes.length > MOST_HITS) list.append(make("li", {}, `and ${boxes.length - MOST_HITS} more`));
  return make("details", {}, make("summary", {}, `${boxes.length} alike`), list);
}

function code(file, line) {
  const known = data.sources[file] && data.sources[file][line];
  const parts = [make("span", {}, `${file}:${line}`)];
  if (known) parts.push(make("pre", {}, known));
  return make("div", {}, ...parts);
}

function apartButton(groups) {
  const button = make("button", { type: "button" }, `Show all ${groups.length} one by one`);
  button.addEventListener("click", () => change((next) => groups.forEach((group) => next.apart.add(group.number))));
  return button;
}

function frameOf(number, frame = seen.root) {
  if (frame.frame && frame.frame.number === number) return frame;
  for (const child of frame.children) {
    const found = child.children ? frameOf(number, child) : null;
    if (found) return found;
  }
  return null;
}

// What was clicked stays under the pointer, whatever grows or shrinks around it.
function keep(before, after) {
  const width = svg.getBoundingClientRect().width;
  const wide = Math.max(before.w, after.w) * camera.zoom > width;
  camera.x += (wide ? before.x - after.x : before.x + before.w / 2 - after.x - after.w / 2) * camera.zoom;
  camera.y += (before.y - after.y) * camera.zoom;
  move();
}

function openNode(node) {
  const number = node.group.number;
  const opened = change((next) => { next.opened.add(number); next.closed.delete(number); }, `opened ${node.words.title}`);
  const frame = opened ? frameOf(number) : null;
  if (!frame) return;
  keep(node, frame);
  frame.element.focus({ preventScroll: true });
}

function closeFrame(number) {
  const group = graph.groups[number];
  const before = frameOf(number);
  change((next) => {
    next.opened.delete(number);
    next.closed.add(number);
    // Closed by hand, a row that was taken apart comes together again.
    next.apart.delete(number);
  }, `closed ${group.title}`);
  const node = seen.nodes.find((one) => one.group && one.group.number === number);
  if (!node) return;
  keep(before, node);
  describe(node);
  node.element.focus({ preventScroll: true });
}

function activate(target) {
  const node = target.closest("[data-node]"), frame = target.closest("[data-frame]");
  if (node) {
    const found = seen.nodes[Number(node.dataset.node)];
    mark([found]);
    describe(found);
    if (found.group) openNode(found);
  } else if (frame) closeFrame(Number(frame.dataset.frame));
}

function level(by) {
  change((next) => {
    const deepest = graph.groups.reduce((most, group) => (opensByDepth(group) ? Math.max(most, group.depth) : most), 0) + 1;
    const from = next.small ? deepest : next.depth;
    next.small = false;
    next.shown.clear();
    next.opened.clear();
    next.closed.clear();
    next.depth = Math.max(1, Math.min(deepest, from + by));
  }, "");
  fit();
}

function watchCanvas() {
  let held = null, moved = false;
  svg.addEventListener("pointerdown", (event) => {
    if (event.button) return;
    held = { x: event.clientX - camera.x, y: event.clientY - camera.y, startX: event.clientX, startY: event.clientY };
    moved = false;
  });
  svg.addEventListener("pointermove", (event) => {
    if (!held) return;
    if (!moved && Math.hypot(event.clientX - held.startX, event.clientY - held.startY) < 5) return;
    if (!moved) svg.setPointerCapture(event.pointerId);
    moved = true;
    camera.x = event.clientX - held.x;
    camera.y = event.clientY - held.y;
    move();
  });
  svg.addEventListener("pointerup", () => { held = null; });
  svg.addEventListener("pointercancel", () => { held = null; });
  svg.addEventListener("click", (event) => { if (!moved) activate(event.target); });
  svg.addEventListener("wheel", (event) => {
    event.preventDefault();
    const box = svg.getBoundingClientRect();
    zoom(Math.exp(-event.deltaY * 0.0015), event.clientX - box.left, event.clientY - box.top);
  }, { passive: false });
  const steps = { ArrowLeft: [60, 0], ArrowRight: [-60, 0], ArrowUp: [0, 60], ArrowDown: [0, -60] };
  svg.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "Enter" || event.key === " ") activate(event.target);
    else if (steps[event.key]) { camera.x += steps[event.key][0]; camera.y += steps[event.key][1]; move(); }
    else if (event.key === "+" || event.key === "=") zoom(1.2);
    else if (event.key === "-") zoom(1 / 1.2);
    else if (event.key === "0") fit();
    else return;
    event.preventDefault();
  });
  svg.addEventListener("focusin", (event) => {
    const node = event.target.closest && event.target.closest("[data-node]");
    if (!node || !event.target.matches(":focus-visible")) return;
    const found = seen.nodes[Number(node.dataset.node)];
    const { width, height } = svg.getBoundingClientRect();
    const x = camera.x + (found.x + found.w / 2) * camera.zoom, y = camera.y + (found.y + found.h / 2) * camera.zoom;
    if (x < 0 || y < 0 || x > width || y > height) centre(found);
  });
}

function watchSearch() {
  const field = byId("search"), hits = byId("hits");
  // Of texts that are alike, the words are looked at once.
  const lower = data.texts.map((text) => text.toLowerCase());
  let found = [];
  field.addEventListener("input", () => {
    const words = field.value.trim().toLowerCase();
    found = [];
    hits.replaceChildren();
    hits.hidden = !words;
    if (!words) { tell(""); return; }
    const hit = lower.map((text) => text.includes(words));
    const columns = data.boxes;
    for (let box = 0; box < graph.parentOfBox.length; box++) {
      if (hit[columns.title[box]] || hit[columns.module[box]] || hit[columns.details[box]] ||
          (columns.line[box] && `${data.texts[columns.file[box]]}:${columns.line[box]}`.toLowerCase().includes(words))) found.push(box);
    }
    tell(`${found.length.toLocaleString("en")} found`);
    for (const box of found.slice(0, MOST_HITS)) {
      const where = [data.texts[columns.module[box]], columns.line[box] ? placeOf(data, box) : ""].filter(Boolean).join(", ");
      const button = make("button", { type: "button" }, data.texts[columns.title[box]], " ", make("small", {}, where));
      button.addEventListener("click", () => showBoxes([box]));
      hits.append(make("li", {}, button));
    }
    if (found.length > MOST_HITS) hits.append(make("li", { class: "quiet" }, `and ${(found.length - MOST_HITS).toLocaleString("en")} more`));
  });
  field.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && found.length) showBoxes([found[0]]);
    if (event.key === "Escape") { field.value = ""; field.dispatchEvent(new Event("input")); }
  });
}

function rowOf(number) {
  return number >= 0 ? document.querySelector(`tr[data-row="${number}"]`) : null;
}

function watchTable() {
  const table = document.querySelector("#tensors table");
  if (!table) return;
  const body = table.tBodies[0];
  const rows = [...body.rows];
  byId("sieve").hidden = false;
  const field = byId("filter");
  field.addEventListener("input", () => {
    const words = field.value.trim().toLowerCase();
    let shown = 0;
    for (const row of rows) {
      row.hidden = words !== "" && !row.textContent.toLowerCase().includes(words);
      shown += row.hidden ? 0 : 1;
    }
    byId("counted").textContent = `${shown.toLocaleString("en")} of ${rows.length.toLocaleString("en")} tensors`;
  });
  [...table.tHead.rows[0].cells].forEach((cell, column) => {
    const button = make("button", { type: "button" }, cell.textContent);
    cell.replaceChildren(button);
    button.addEventListener("click", () => {
      const down = cell.getAttribute("aria-sort") === "ascending";
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      cell.setAttribute("aria-sort", down ? "descending" : "ascending");
      const keys = rows.map((row) => row.cells[column].dataset.key);
      const numbers = keys.map(Number);
      const numeric = numbers.every((number) => !Number.isNaN(number));
      const order = rows.map((_, i) => i).sort((a, b) => {
        const compared = numeric ? numbers[a] - numbers[b] : keys[a] < keys[b] ? -1 : keys[a] > keys[b] ? 1 : 0;
        return (down ? -compared : compared) || a - b;
      });
      body.append(...order.map((i) => rows[i]));
    });
  });
  const boxOfRow = new Map();
  data.boxes.row.forEach((row, box) => { if (row >= 0 && !boxOfRow.has(row)) boxOfRow.set(row, box); });
  for (const row of rows) {
    const box = boxOfRow.get(Number(row.dataset.row));
    if (box === undefined) continue;
    const cell = row.cells[0];
    const button = make("button", { type: "button", title: "show in the graph" }, cell.textContent);
    button.addEventListener("click", () => { byId("graph").scrollIntoView(); showBoxes([box]); });
    cell.replaceChildren(button);
  }
}

function watchFindings() {
  for (const button of document.querySelectorAll("button.place")) {
    const boxes = data.findings[Number(button.dataset.finding)];
    if (!boxes.length) continue;
    button.hidden = false;
    const go = () => { byId("graph").scrollIntoView(); showBoxes(boxes); };
    button.addEventListener("click", go);
    button.closest("article").querySelector("h2").addEventListener("click", go);
  }
}

function drawLegend() {
  const kinds = new Set(data.boxes.kind.map((kind) => data.kinds[kind]));
  if (graph.groups.length > 1) kinds.add("group");
  const legend = byId("legend");
  const entry = (picture, words) => legend.append(make("li", {}, picture, words));
  const small = () => element("svg", { width: 34, height: 20, "aria-hidden": "true" });
  for (const kind of data.kinds) {
    if (!kinds.has(kind)) continue;
    const picture = small();
    picture.append(element("g", { class: `node ${kind}` }, outline(kind, 2, 6, 28, 12)));
    entry(picture, kind === "group" ? "closed group" : kind);
  }
  const line = (name, words) => {
    const picture = small();
    picture.append(element("path", { class: `link ${name}`, d: "M2 10H32" }));
    entry(picture, words);
  };
  line("gradient", "carries a gradient, thicker where |grad| is larger");
  line("data", "carries none");
  if (data.arrows.some((kind, i) => i % 4 === 2 && kind === 2)) line("cut", "the gradient is lost here");
  const marks = [
    ["parameter frozen", "frozen", data.boxes.flags.some((flags) => flags & 1)],
    ["operation cutoff", "behind a cut", data.boxes.flags.some((flags) => flags & 2)],
    ["operation refused", "torch raised here", data.boxes.flags.some((flags) => flags & 4)],
    ["parameter trouble", "gradient missing, zero or not finite", data.boxes.worst.some((worst) => worst > 0)],
  ];
  for (const [name, words, occurs] of marks) {
    if (!occurs) continue;
    const picture = small();
    picture.append(element("g", { class: `node ${name}` }, outline(name.split(" ")[0], 2, 4, 28, 12)));
    entry(picture, words);
  }
  legend.hidden = false;
}

function begin() {
  watchTable();
  if (!graph.parentOfBox.length) {
    byId("stage").replaceChildren(make("p", {}, data.note || "nothing to draw"));
    return;
  }
  byId("bar").hidden = false;
  change(() => {}, data.note || "");
  fit();
  watchCanvas();
  watchSearch();
  watchFindings();
  drawLegend();
  byId("fit").addEventListener("click", fit);
  byId("larger").addEventListener("click", () => zoom(1.25));
  byId("smaller").addEventListener("click", () => zoom(0.8));
  byId("less").addEventListener("click", () => level(-1));
  byId("more").addEventListener("click", () => level(1));
  byId("reset").addEventListener("click", () => { change((next) => Object.assign(next, firstState(graph))); fit(); });
}

begin();
