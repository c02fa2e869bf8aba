// A small layered layout: every frame is laid out by itself, innermost first, and is a box in the frame around it.
// Ranks by longest path, order by barycentres, places by least squares. Arrows cross frames at ports on their edges, and
// pass boxes through empty places held free for them: no text lies under another or under a line.

const GAP_ACROSS = 22, GAP_DOWN = 28, LANE = 10, MARGIN = 14, TITLE_HEIGHT = 22;
const SWEEPS = 8, SETTLES = 12;

// Give each node and frame `x`, `y` (left, top), frames their `w`, `h` too, and each link its `points`.
function layOut(root, links) {
  const frames = [];
  const collect = (frame) => {
    for (const child of frame.children) if (child.children) collect(child);
    frames.push(frame);
  };
  collect(root);
  frames.forEach((frame) => { frame.local = new Map(); frame.runs = []; });
  for (const link of links) divide(link);
  for (const frame of frames) layOutFrame(frame);
  const shift = (frame, x, y) => {
    frame.x = x;
    frame.y = y;
    for (const child of frame.children) {
      if (child.children) shift(child, x + child.dx, y + child.dy);
      else { child.x = x + child.dx; child.y = y + child.dy; }
    }
  };
  shift(root, 0, 0);
  for (const link of links) link.points = trace(link);
}

// Cut a link into one piece for each frame that it runs in.
function divide(link) {
  const up = [], down = [];
  let tail = link.tail, head = link.head;
  const depth = (node) => { let d = 0; while (node.parent) { node = node.parent; d++; } return d; };
  let a = depth(tail), b = depth(head);
  while (tail.parent !== head.parent) {
    if (a >= b) {
      up.push(piece(tail.parent, tail, port(tail.parent, "out", link.tail.index)));
      tail = tail.parent; a--;
    } else {
      down.push(piece(head.parent, port(head.parent, "in", link.tail.index), head));
      head = head.parent; b--;
    }
  }
  link.pieces = [...up, piece(tail.parent, tail, head), ...down.reverse()];
}

function port(frame, side, name) {
  const key = side + name;
  let found = frame.local.get(key);
  if (!found) {
    found = { port: side, w: 0, h: 0 };
    frame.local.set(key, found);
  }
  return found;
}

function piece(frame, from, to) {
  const key = keyOf(from) + ">" + keyOf(to);
  frame.pieces = frame.pieces || new Map();
  let found = frame.pieces.get(key);
  if (!found) {
    found = { frame, from, to, lanes: [], back: false };
    frame.pieces.set(key, found);
  }
  return found;
}

let keys = 0;
function keyOf(node) {
  if (node.key === undefined) node.key = keys++;
  return node.key;
}

function layOutFrame(frame) {
  const nodes = [...frame.children, ...frame.local.values()];
  const pieces = [...(frame.pieces ? frame.pieces.values() : [])];
  frame.pieces = null;
  rank(nodes, pieces);
  const layers = withLanes(nodes, pieces);
  order(layers);
  place(layers, frame);
}

function rank(nodes, pieces) {
  nodes.forEach((node) => { node.outs = []; node.ins = []; node.rank = 0; node.state = 0; });
  for (const p of pieces) p.from.outs.push(p);
  // Depth first, without recursion: what leads back to an open node is turned round.
  for (const start of nodes) {
    if (start.state) continue;
    const stack = [[start, 0]];
    start.state = 1;
    while (stack.length) {
      const top = stack[stack.length - 1];
      const next = top[0].outs[top[1]++];
      if (!next) { top[0].state = 2; stack.pop(); continue; }
      if (next.to.state === 1) next.back = true;
      else if (!next.to.state) { next.to.state = 1; stack.push([next.to, 0]); }
    }
  }
  nodes.forEach((node) => { node.outs = []; });
  for (const p of pieces) {
    p.upper = p.back ? p.to : p.from;
    p.lower = p.back ? p.from : p.to;
    p.upper.outs.push(p);
    p.lower.ins.push(p);
  }
  const missing = new Map(nodes.map((node) => [node, node.ins.length]));
  const ready = nodes.filter((node) => !node.ins.length);
  const sorted = [];
  while (ready.length) {
    const node = ready.pop();
    sorted.push(node);
    for (const p of node.outs) {
      p.lower.rank = Math.max(p.lower.rank, node.rank + 1);
      missing.set(p.lower, missing.get(p.lower) - 1);
      if (!missing.get(p.lower)) ready.push(p.lower);
    }
  }
  const inner = nodes.filter((node) => !node.port);
  const entries = nodes.some((node) => node.port === "in");
  if (entries) {
    for (const node of sorted) if (!node.port && !node.rank) lower(node, 1);
  }
  const deepest = Math.max(0, ...inner.map((node) => node.rank));
  for (const node of sorted.reverse()) {
    if (node.port === "out") node.rank = deepest + 1;
    // What nothing leads to, such as a weight, stands right above what takes it.
    else if (node.port !== "in" && node.outs.length && !node.ins.length) {
      node.rank = Math.min(...node.outs.map((p) => p.lower.rank)) - 1;
    }
  }
}

function lower(node, to) {
  const waiting = [[node, to]];
  while (waiting.length) {
    const [one, least] = waiting.pop();
    if (one.rank >= least) continue;
    one.rank = least;
    for (const p of one.outs) waiting.push([p.lower, least + 1]);
  }
}

// The nodes of each rank, with a lane in every rank that a long arrow passes.
function withLanes(nodes, pieces) {
  const layers = [];
  const put = (node) => { (layers[node.rank] = layers[node.rank] || []).push(node); node.near = { up: [], down: [] }; };
  nodes.forEach(put);
  for (const p of pieces) {
    let before = p.upper;
    for (let r = p.upper.rank + 1; r < p.lower.rank; r++) {
      const lane = { lane: true, w: LANE, h: 0, rank: r };
      put(lane);
      p.lanes.push(lane);
      before.near.down.push(lane);
      lane.near.up.push(before);
      before = lane;
    }
    before.near.down.push(p.lower);
    p.lower.near.up.push(before);
  }
  const dense = [];
  for (let r = 0; r < layers.length; r++) dense.push(layers[r] || []);
  return dense;
}

function order(layers) {
  const number = (layer) => layer.forEach((node, i) => { node.at = i; });
  layers.forEach(number);
  let best = null, fewest = Infinity;
  for (let sweep = 0; sweep < SWEEPS; sweep++) {
    const side = sweep % 2 ? "down" : "up";
    const turn = sweep % 2 ? [...layers].reverse() : layers;
    for (const layer of turn) {
      layer.forEach((node) => {
        const near = node.near[side];
        node.mean = near.length ? near.reduce((sum, other) => sum + other.at, 0) / near.length : node.at;
      });
      layer.sort((one, other) => one.mean - other.mean || one.at - other.at);
      number(layer);
    }
    const crossed = layers.reduce((sum, layer) => sum + crossings(layer), 0);
    if (crossed < fewest) {
      fewest = crossed;
      best = layers.map((layer) => [...layer]);
    }
    if (!crossed) break;
  }
  (best || []).forEach((layer, i) => { layers[i] = layer; number(layer); });
}

function crossings(layer) {
  let count = 0;
  const seen = [];
  for (const node of layer) {
    for (const other of node.near.down) for (const before of seen) if (before > other.at) count++;
    for (const other of node.near.down) seen.push(other.at);
    if (seen.length > 400) return count; // more than are ever told apart
  }
  return count;
}

function place(layers, frame) {
  for (const layer of layers) {
    let x = 0;
    for (const node of layer) {
      node.cx = x + node.w / 2;
      x += node.w + GAP_ACROSS;
    }
  }
  for (let settle = 0; settle < SETTLES; settle++) {
    const up = settle % 2 === 1;
    for (const layer of up ? [...layers].reverse() : layers) {
      const wanted = layer.map((node) => {
        const near = settle > SETTLES - 4 ? [...node.near.up, ...node.near.down] : node.near[up ? "down" : "up"];
        if (!near.length) return node.cx;
        let sum = 0, weights = 0;
        for (const other of near) {
          // Long lines are straight first, then the way of the operations; what they take gives way.
          const weight = node.lane && other.lane ? 8 : node.main && other.main ? 4 : 1;
          sum += weight * other.cx;
          weights += weight;
        }
        return sum / weights;
      });
      spread(layer, wanted);
    }
  }
  let left = Infinity, right = -Infinity;
  for (const layer of layers) {
    for (const node of layer) {
      left = Math.min(left, node.cx - node.w / 2);
      right = Math.max(right, node.cx + node.w / 2);
    }
  }
  const margin = frame.frame ? MARGIN : 20;
  const title = frame.frame ? TITLE_HEIGHT : 0;
  const least = frame.frame ? frame.titleWidth + 2 * MARGIN : 0;
  const extra = Math.max(0, least - (right - left + 2 * margin)) / 2;
  let y = margin + title;
  layers.forEach((layer, r) => {
    const ports = layer.length > 0 && layer.every((node) => node.port || node.lane) && layer.some((node) => node.port);
    const height = Math.max(0, ...layer.map((node) => node.h));
    if (ports && !r) y = title;
    for (const node of layer) {
      node.dx = node.cx - node.w / 2 - left + margin + extra;
      node.dy = y + (height - node.h) / 2;
      node.top = y;
      node.bottom = y + height;
    }
    // Ports lie on the edge itself: no gap before the margin.
    const next = layers[r + 1];
    const last = !next || (r === layers.length - 2 && next.every((node) => node.port));
    y += ports && !r ? margin : height + (last ? 0 : GAP_DOWN);
  });
  frame.w = (layers.length ? right - left : 0) + 2 * margin + 2 * extra;
  frame.h = y + margin;
  for (const node of frame.local.values()) {
    if (node.port === "in") node.dy = node.top = node.bottom = 0;
    else node.dy = node.top = node.bottom = frame.h;
  }
}

// The places nearest to those wanted that keep the order and the gaps: neighbours that get too close move as one.
function spread(layer, wanted) {
  const offsets = [];
  let offset = 0;
  layer.forEach((node, i) => {
    if (i) offset += layer[i - 1].w / 2 + node.w / 2 + (node.lane && layer[i - 1].lane ? LANE : GAP_ACROSS);
    offsets.push(offset);
  });
  const blocks = [];
  wanted.forEach((x, i) => {
    blocks.push({ sum: x - offsets[i], count: 1 });
    while (blocks.length > 1) {
      const last = blocks[blocks.length - 1], before = blocks[blocks.length - 2];
      if (before.sum / before.count <= last.sum / last.count) break;
      before.sum += last.sum;
      before.count += last.count;
      blocks.pop();
    }
  });
  let i = 0;
  for (const block of blocks) {
    for (let k = 0; k < block.count; k++, i++) layer[i].cx = block.sum / block.count + offsets[i];
  }
}

// The points that a link runs through, from frame to frame.
function trace(link) {
  const points = [];
  const add = (x, y) => {
    const last = points[points.length - 1];
    if (!last || Math.abs(last[0] - x) > 0.5 || Math.abs(last[1] - y) > 0.5) points.push([x, y]);
  };
  link.pieces.forEach((p, i) => {
    const { x, y } = p.frame;
    const across = (node) => x + node.dx + node.w / 2;
    const last = i === link.pieces.length - 1;
    // Where a port lies on the edge of a frame, the pieces on both sides of it meet.
    const entry = last ? null : link.pieces[i + 1];
    const lanes = p.back ? [...p.lanes].reverse() : p.lanes;
    if (p.from.port) {
      if (!points.length || i === 0) add(across(p.from), y + p.from.dy);
    } else {
      if (i === 0) add(across(p.from), y + p.from.dy + (p.back ? 0 : p.from.h));
      // Straight down past taller neighbours before it turns.
      if (!p.back) add(points[points.length - 1][0], y + p.from.bottom);
    }
    for (const lane of lanes) {
      const ends = [[across(lane), y + lane.top], [across(lane), y + lane.bottom]];
      if (p.back) ends.reverse();
      ends.forEach((point) => add(...point));
    }
    if (p.to.port) add(across(p.to), y + p.to.dy);
    else if (last) {
      if (!p.back) add(across(p.to), y + p.to.top);
      add(across(p.to), y + p.to.dy + (p.back ? p.to.h : 0));
    } else {
      const meet = entry.frame.x + entry.from.dx;
      if (!p.back) add(meet, y + p.to.top);
      add(meet, entry.frame.y + entry.from.dy);
    }
  });
  return points;
}
