// Which boxes are seen: the same rules as gradscope/reports/folding.py, for groups that open and close by click.
// A group that is closed is one node; groups in a row that are alike are drawn over each other.

const SORT = 0, PATH = 1, TITLE = 2, TYPE = 3, ALIKE = 4, MEMBERS = 5;

function readGraph(data) {
  const groups = []; // in the order of their numbers: outer ones first, then by place
  const parentOfBox = new Int32Array(data.boxes.kind.length).fill(-1);
  const waiting = [{ entry: data.tree, parent: null, depth: 0, place: -1 }];
  while (waiting.length) {
    const { entry, parent, depth, place } = waiting.pop();
    const group = {
      number: groups.length, sort: entry[SORT], path: data.texts[entry[PATH]], title: data.texts[entry[TITLE]],
      type: data.texts[entry[TYPE]], alike: entry[ALIKE], members: entry[MEMBERS].slice(), parent, depth, boxes: [],
    };
    groups.push(group);
    if (parent) parent.members[place] = group;
    for (let i = group.members.length - 1; i >= 0; i--) {
      const member = group.members[i];
      if (typeof member === "number") parentOfBox[member] = group.number;
      else waiting.push({ entry: member, parent: group, depth: depth + 1, place: i });
    }
  }
  for (let box = 0; box < parentOfBox.length; box++) {
    for (let group = groups[parentOfBox[box]]; group; group = group.parent) group.boxes.push(box);
  }
  return { data, groups, parentOfBox };
}

function firstState(graph) {
  const { small, depth, groups } = graph.data.opened;
  return { small, depth, shown: new Set(groups), opened: new Set(), closed: new Set(), apart: new Set() };
}

function isOpen(state, group) {
  if (group.sort === "whole" || state.opened.has(group.number)) return true;
  if (state.closed.has(group.number)) return false;
  if (state.small || state.shown.has(group.number)) return true;
  return group.depth < state.depth && opensByDepth(group);
}

function opensByDepth(group) {
  return group.sort === "module" || group.sort === "function";
}

function isGroup(member) {
  return typeof member === "object";
}

function sameRow(state, one, other) {
  if (state.small || !isGroup(one) || !isGroup(other) || one.sort !== "module" || other.sort !== "module") return false;
  return one.alike === other.alike && !state.apart.has(one.number) && !state.apart.has(other.number);
}

function rowsOf(state, members) {
  const rows = [];
  let start = 0;
  for (let place = 1; place <= members.length; place++) {
    if (place === members.length || !sameRow(state, members[start], members[place])) {
      rows.push([start, place]);
      start = place;
    }
  }
  return rows;
}

// What is seen: `root` holds frames and nodes as a tree, `places` the node of each box, `links` the arrows.
function view(graph, state) {
  const root = { frame: null, children: [], parent: null };
  const nodes = [];
  const count = graph.parentOfBox.length;
  const places = new Array(count);
  const trails = new Array(count);

  function add(node, copies, copyTrails, parent) {
    node.parent = parent;
    node.index = nodes.length;
    nodes.push(node);
    parent.children.push(node);
    copies.forEach((boxes, i) => {
      for (const box of boxes) {
        places[box] = node;
        trails[box] = copyTrails[i];
      }
    });
  }

  function show(copies, row, parent, copyTrails) {
    const first = copies[0];
    if (!isGroup(first)) {
      add({ box: first, boxes: copies, count: 1 }, copies.map((box) => [box]), copyTrails, parent);
      return;
    }
    if (!isOpen(state, first)) {
      const boxes = copies.flatMap((group) => group.boxes);
      add({ group: first, groups: copies, boxes, count: row }, copies.map((group) => group.boxes), copyTrails, parent);
      return;
    }
    const rows = rowsOf(state, first.members);
    let inside = parent;
    const framed = first.sort !== "whole" && (row > 1 || state.opened.has(first.number) || worthAFrame(graph, first, rows));
    if (framed) {
      inside = { frame: first, groups: copies, count: row, children: [], parent };
      parent.children.push(inside);
      if (copies.length > 1) copyTrails = copyTrails.map((trail, i) => [...trail, first.number, i]);
    }
    for (const [start, end] of rows) {
      const members = [];
      const memberTrails = [];
      copies.forEach((group, i) => {
        for (let place = start; place < end; place++) {
          members.push(group.members[place]);
          memberTrails.push(copyTrails[i]);
        }
      });
      show(members, end - start, inside, memberTrails);
    }
  }

  show([graph.groups[0]], 1, root, [[]]);
  return { root, nodes, places, links: linksOf(graph, places, trails) };
}

function worthAFrame(graph, group, rows) {
  const inner = group.members.some(isGroup);
  const operation = graph.data.kinds.indexOf("operation");
  const operations = group.members.filter((member) => !isGroup(member) && graph.data.boxes.kind[member] === operation);
  return (rows.length > 1 && inner) || operations.length > 1;
}

function linksOf(graph, places, trails) {
  const arrows = graph.data.arrows;
  const links = new Map();
  for (let i = 0; i < arrows.length; i += 4) {
    const tail = places[arrows[i]], head = places[arrows[i + 1]];
    if (tail === head || betweenCopies(trails[arrows[i]], trails[arrows[i + 1]])) continue;
    const key = tail.index * 1048576 + head.index;
    const known = links.get(key);
    // Kinds are numbered by strength: data, gradient, cut.
    if (known && known.kind >= arrows[i + 2]) continue;
    links.set(key, { tail, head, kind: arrows[i + 2], line: arrows[i + 3] });
  }
  return [...links.values()];
}

// From one copy into the next, drawn over each other, the arrow would run backwards.
function betweenCopies(one, other) {
  for (let i = 0; i < Math.min(one.length, other.length); i += 2) {
    if (one[i] === other[i] && one[i + 1] !== other[i + 1]) return true;
  }
  return false;
}

// Open all groups around a box, so that it is a node of its own, or stands for it among its copies.
function reveal(graph, state, box) {
  for (let group = graph.groups[graph.parentOfBox[box]]; group; group = group.parent) {
    const leader = leaderOf(state, group);
    if (!isOpen(state, leader)) {
      state.opened.add(leader.number);
      state.closed.delete(leader.number);
    }
  }
}

// The group that is drawn for this one: the first of its row, in the copies around it too.
function leaderOf(state, group) {
  const places = [];
  let around = group;
  while (around.parent) {
    places.push(around.parent.members.indexOf(around));
    around = around.parent;
  }
  for (const place of places.reverse()) {
    const row = rowsOf(state, around.members).find(([start, end]) => start <= place && place < end);
    around = around.members[row[0]];
  }
  return around;
}
