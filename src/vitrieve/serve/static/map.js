// The map of a collection: points by WebGL (or on a plain canvas), a lasso, and the same groups as a list.
// It runs in the service, where it fetches its data, and in a page that is a file, which holds them.
const find = (id) => document.getElementById(id);
const box = find("map");
const stage = find("map-stage");
const canvas = find("map-canvas");
const { source, search } = box.dataset;
const MOST_CARDS = 120;
const MOST_NAMES = 24; // in a group of the list
const NEAR = 300; // with so few pictures in view, thumbnails are shown
const MOST_THUMBNAILS = 80;
const APART_PX = 62; // thumbnails do not cover each other
const REACH_PX = 12; // how far from a point it is still meant
const CLICK_PX = 5;
const MOST_ADDRESS = 6000; // characters of a search's address

function addElement(parent, name, text, classes = "") {
  const element = document.createElement(name);
  if (text) element.textContent = text;
  if (classes) element.className = classes;
  parent.append(element);
  return element;
}

const decode = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));

// ---- Data ----------------------------------------------------------------------------------------------------------

async function load() {
  if (!source) return JSON.parse(find("map-data").textContent);
  const answer = await fetch(source, { headers: { Accept: "application/json" } });
  const said = await answer.json();
  if (!answer.ok) throw new Error(said.detail);
  return said;
}

let data, size, places, columns, column;
const chosen = { rows: [], is: null };

function prepare(said) {
  data = said;
  size = data.ids.length;
  const bytes = decode(data.xy);
  places = new Uint16Array(bytes.buffer, 0, 2 * size);
  columns = data.columns.map((one) => ({ ...one, codes: decode(one.codes) }));
  column = columns[0];
  chosen.is = new Uint8Array(size);
}

const placeX = (row) => places[2 * row] / 32767.5 - 1;
const placeY = (row) => places[2 * row + 1] / 32767.5 - 1;
const findName = (row) => data.titles?.[row] || data.ids[row].split("/").pop() || data.ids[row];
const findThumbnail = (row) =>
  source ? `${search}thumbnails?side_px=160&image_id=${encodeURIComponent(data.ids[row])}` : data.thumbnails[row];
const findLink = (row) => (source ? `${search}?${new URLSearchParams({ plus: data.ids[row] })}` : `#picture-${row}`);

// Rows by cells of a grid, so that what is near a place is found at once.
const SIDE = 128;
let starts, order;
const cellOf = (place) => Math.min(SIDE - 1, Math.max(0, Math.floor(((place + 1) / 2) * SIDE)));

function sortIntoCells() {
  starts = new Uint32Array(SIDE * SIDE + 1);
  const cells = new Uint16Array(size);
  for (let row = 0; row < size; row++) {
    cells[row] = cellOf(placeY(row)) * SIDE + cellOf(placeX(row));
    starts[cells[row] + 1]++;
  }
  for (let cell = 0; cell < SIDE * SIDE; cell++) starts[cell + 1] += starts[cell];
  const next = starts.slice();
  order = new Uint32Array(size);
  for (let row = 0; row < size; row++) order[next[cells[row]]++] = row;
}

// Calls back with the rows in a rectangle; stops where that returns true.
function visit(x1, y1, x2, y2, use) {
  for (let line = cellOf(y1); line <= cellOf(y2); line++) {
    const end = starts[line * SIDE + cellOf(x2) + 1];
    for (let at = starts[line * SIDE + cellOf(x1)]; at < end; at++) {
      const row = order[at];
      const x = placeX(row), y = placeY(row);
      if (x >= x1 && x <= x2 && y >= y1 && y <= y2 && use(row)) return;
    }
  }
}

// ---- Colors --------------------------------------------------------------------------------------------------------

const isDark = () => getComputedStyle(document.documentElement).colorScheme === "dark";
const RISING = [[68, 1, 84], [65, 68, 135], [42, 120, 142], [34, 168, 132], [122, 209, 81], [253, 231, 37]]; // viridis

function fromHsl(hue, saturation, lightness) {
  const part = (n) => {
    const k = (n + hue / 30) % 12;
    return 255 * (lightness - saturation * Math.min(lightness, 1 - lightness) * Math.max(-1, Math.min(k - 3, 9 - k, 1)));
  };
  return [part(0), part(8), part(4)].map(Math.round);
}

function colorOf(code) {
  const dark = isDark();
  if (code >= column.num_colored) return dark ? [122, 125, 132] : [150, 150, 150];
  if (column.is_ordered) {
    const at = (code / Math.max(1, column.num_colored - 1)) * (RISING.length - 1);
    const low = RISING[Math.floor(at)], high = RISING[Math.ceil(at)];
    const mixed = low.map((part, i) => part + (high[i] - part) * (at % 1));
    return mixed.map((part) => Math.round(dark ? 60 + part * 0.76 : part * 0.88));
  }
  // The golden angle: neighbors in the list are far apart on the circle.
  const lightness = (dark ? [0.66, 0.54, 0.76] : [0.42, 0.33, 0.52])[Math.floor(code / 9) % 3];
  return fromHsl((205 + code * 137.508) % 360, 0.62, lightness);
}

function colorAll() {
  const table = column.values.map((_, code) => colorOf(code));
  const colors = new Uint8Array(4 * size);
  const isAny = chosen.rows.length > 0;
  for (let row = 0; row < size; row++) {
    const color = table[column.codes[row]];
    colors[4 * row] = color[0];
    colors[4 * row + 1] = color[1];
    colors[4 * row + 2] = color[2];
    colors[4 * row + 3] = isAny && !chosen.is[row] ? 34 : 225;
  }
  painter.color(colors);
}

// ---- What paints ---------------------------------------------------------------------------------------------------

const POINTS = `
attribute vec2 place; attribute vec4 color; uniform vec2 center; uniform vec2 scale; uniform mediump float size;
varying vec4 shade;
void main() { gl_Position = vec4((place * 2.0 - 1.0 - center) * scale, 0.0, 1.0); gl_PointSize = size; shade = color; }`;
const PIXELS = `
precision mediump float; uniform mediump float size; varying vec4 shade;
void main() {
  float alpha = shade.a * clamp((0.5 - length(gl_PointCoord - 0.5)) * size, 0.0, 1.0);
  gl_FragColor = vec4(shade.rgb * alpha, alpha);
}`;

function paintByWebgl(gl) {
  const program = gl.createProgram();
  for (const [kind, text] of [[gl.VERTEX_SHADER, POINTS], [gl.FRAGMENT_SHADER, PIXELS]]) {
    const shader = gl.createShader(kind);
    gl.shaderSource(shader, text);
    gl.compileShader(shader);
    gl.attachShader(program, shader);
  }
  gl.linkProgram(program);
  if (!gl.getProgramParameter(program, gl.LINK_STATUS) && !gl.isContextLost()) throw new Error(gl.getProgramInfoLog(program));
  gl.useProgram(program);
  const fill = (name, width, kind, values) => {
    const at = gl.getAttribLocation(program, name);
    gl.bindBuffer(gl.ARRAY_BUFFER, gl.createBuffer());
    gl.enableVertexAttribArray(at);
    gl.vertexAttribPointer(at, width, kind, true, 0, 0);
    gl.bufferData(gl.ARRAY_BUFFER, values, gl.DYNAMIC_DRAW);
  };
  fill("place", 2, gl.UNSIGNED_SHORT, places);
  fill("color", 4, gl.UNSIGNED_BYTE, new Uint8Array(4 * size)); // stays bound: color fills it
  gl.enable(gl.BLEND);
  gl.blendFunc(gl.ONE, gl.ONE_MINUS_SRC_ALPHA);
  const uniform = (name) => gl.getUniformLocation(program, name);
  const [center, scale, pointSize] = ["center", "scale", "size"].map(uniform);
  return {
    kind: "webgl",
    color: (colors) => gl.bufferSubData(gl.ARRAY_BUFFER, 0, colors),
    draw(width, height, pixels, point) {
      gl.viewport(0, 0, canvas.width, canvas.height);
      gl.uniform2f(center, view.x, view.y);
      gl.uniform2f(scale, (2 * pixels) / width, (2 * pixels) / height);
      gl.uniform1f(pointSize, point * devicePixelRatio);
      gl.clear(gl.COLOR_BUFFER_BIT);
      gl.drawArrays(gl.POINTS, 0, size);
    },
  };
}

// Where a browser has no WebGL, or computes it without a graphics card: then putting pixels into a picture is faster.
function paintFlat() {
  const flat = canvas.getContext("2d");
  let colors = null, picture = null, pixels = null;
  return {
    kind: "flat",
    color: (given) => (colors = new Uint32Array(given.buffer)), // a pixel each
    draw(width, height, pixelsPerUnit, point) {
      const { width: wide, height: high } = canvas;
      if (picture?.width !== wide || picture.height !== high) {
        picture = flat.createImageData(wide, high);
        pixels = new Uint32Array(picture.data.buffer);
      }
      pixels.fill(0);
      const disc = findDisc(point * devicePixelRatio, wide), numPixels = disc.length;
      // From a place as it was sent, of 0 to 65535, to a pixel.
      const whole = pixelsPerUnit * devicePixelRatio, scale = whole / 32767.5;
      const left = wide / 2 - (view.x + 1) * whole + 0.5, top = high / 2 + (view.y + 1) * whole + 0.5;
      const most = Math.ceil(point * devicePixelRatio) + 1, right = wide - most, bottom = high - most;
      for (const isChosen of chosen.rows.length ? [0, 1] : [0]) { // the chosen ones above the others
        for (let row = 0; row < size; row++) {
          if (chosen.is[row] !== isChosen) continue;
          const x = (left + places[2 * row] * scale) | 0, y = (top - places[2 * row + 1] * scale) | 0;
          if (x < most || y < most || x >= right || y >= bottom) continue;
          const color = colors[row], at = y * wide + x;
          for (let i = 0; i < numPixels; i++) pixels[at + disc[i]] = color;
        }
      }
      flat.putImageData(picture, 0, 0);
    },
  };
}

// Where the pixels of a point are, from its middle.
function findDisc(side, wide) {
  const reach = Math.ceil(side / 2), found = [];
  for (let y = -reach; y <= reach; y++) {
    for (let x = -reach; x <= reach; x++) if (Math.hypot(x, y) <= side / 2 + 0.1) found.push(y * wide + x);
  }
  return Int32Array.from(found);
}

// Whether WebGL would be computed by the processor. It is asked on another canvas: one that has WebGL has nothing else.
function isComputed() {
  const gl = document.createElement("canvas").getContext("webgl");
  if (!gl) return true;
  const more = gl.getExtension("WEBGL_debug_renderer_info");
  const name = String(gl.getParameter(more ? more.UNMASKED_RENDERER_WEBGL : gl.RENDERER));
  gl.getExtension("WEBGL_lose_context")?.loseContext();
  return /swiftshader|llvmpipe|softpipe|software|basic render/i.test(name);
}

let painter;
function findPainter() {
  const gl = isComputed() ? null : canvas.getContext("webgl", { antialias: false, premultipliedAlpha: true });
  painter = gl ? paintByWebgl(gl) : paintFlat();
  stage.dataset.painter = painter.kind;
  colorAll();
}

// ---- The view ------------------------------------------------------------------------------------------------------

const view = { x: 0, y: 0, zoom: 1 };
let isAsked = false;

const perUnit = () => 0.46 * Math.min(stage.clientWidth, stage.clientHeight) * view.zoom; // pixels
const toScreen = (row) => [
  stage.clientWidth / 2 + (placeX(row) - view.x) * perUnit(),
  stage.clientHeight / 2 - (placeY(row) - view.y) * perUnit(),
];
const toMap = (x, y) => [
  view.x + (x - stage.clientWidth / 2) / perUnit(),
  view.y - (y - stage.clientHeight / 2) / perUnit(),
];

function ask() {
  if (isAsked) return;
  isAsked = true;
  requestAnimationFrame(() => {
    isAsked = false;
    draw();
  });
}

function draw() {
  const width = stage.clientWidth, height = stage.clientHeight;
  const wide = Math.round(width * devicePixelRatio), high = Math.round(height * devicePixelRatio);
  if (canvas.width !== wide || canvas.height !== high) Object.assign(canvas, { width: wide, height: high });
  const point = Math.min(16, Math.max(2.2, 300 / Math.sqrt(size)) * view.zoom ** 0.4);
  painter.draw(width, height, perUnit(), point);
  stage.dataset.frames = Number(stage.dataset.frames ?? 0) + 1;
  moveThumbnails();
}

function zoomBy(factor, x = stage.clientWidth / 2, y = stage.clientHeight / 2) {
  const before = toMap(x, y);
  view.zoom = Math.min(2000, Math.max(0.5, view.zoom * factor));
  const after = toMap(x, y);
  moveBy(before[0] - after[0], before[1] - after[1]);
}

function moveBy(x, y) {
  view.x = Math.min(1.2, Math.max(-1.2, view.x + x));
  view.y = Math.min(1.2, Math.max(-1.2, view.y + y));
  ask();
}

function showWhole() {
  Object.assign(view, { x: 0, y: 0, zoom: 1 });
  ask();
}

// ---- Thumbnails when near ------------------------------------------------------------------------------------------

const shown = new Map(); // row -> its <img>
let waiting = 0;

function moveThumbnails() {
  for (const [row, image] of shown) {
    const [x, y] = toScreen(row);
    image.style.transform = `translate(${x}px, ${y}px)`;
    image.classList.toggle("faint", chosen.rows.length > 0 && !chosen.is[row]);
  }
  clearTimeout(waiting);
  waiting = setTimeout(chooseThumbnails, 60);
}

function chooseThumbnails() {
  const [x1, y2] = toMap(0, 0), [x2, y1] = toMap(stage.clientWidth, stage.clientHeight);
  const rows = [];
  visit(x1, y1, x2, y2, (row) => rows.push(row) > NEAR);
  const wanted = new Set();
  if (rows.length <= NEAR) {
    const taken = [];
    for (const row of rows) {
      const [x, y] = toScreen(row);
      const isFree = taken.every((one) => Math.max(Math.abs(one[0] - x), Math.abs(one[1] - y)) >= APART_PX);
      if (isFree && wanted.size < MOST_THUMBNAILS && findThumbnail(row)) {
        taken.push([x, y]);
        wanted.add(row);
      }
    }
  }
  for (const [row, image] of shown) {
    if (wanted.has(row)) continue;
    image.remove();
    shown.delete(row);
  }
  for (const row of wanted) {
    if (shown.has(row)) continue;
    const image = addElement(find("map-thumbnails"), "img");
    image.alt = "";
    image.onerror = () => image.remove(); // its file is gone: the point stays
    image.src = findThumbnail(row);
    image.style.borderColor = `rgb(${colorOf(column.codes[row])})`;
    shown.set(row, image);
    const [x, y] = toScreen(row);
    image.style.transform = `translate(${x}px, ${y}px)`;
  }
}

function forgetThumbnails() {
  for (const image of shown.values()) image.remove();
  shown.clear();
}

// ---- Choosing ------------------------------------------------------------------------------------------------------

function choose(rows) {
  chosen.rows = rows;
  chosen.is.fill(0);
  for (const row of rows) chosen.is[row] = 1;
  colorAll();
  ask();
  find("map-chosen").hidden = rows.length === 0;
  const count = `${rows.length.toLocaleString("en")} ${rows.length === 1 ? "picture" : "pictures"} chosen`;
  find("map-chosen-title").textContent = count;
  find("map-said").textContent = count;
  const cards = find("map-cards");
  cards.replaceChildren();
  for (const row of rows.slice(0, MOST_CARDS)) addCard(cards, row);
  const more = rows.length - MOST_CARDS;
  find("map-told").textContent = "";
  find("map-more").textContent = more > 0 ? `and ${more.toLocaleString("en")} more, which are in what you save` : "";
  linkSearch();
}

function addCard(cards, row) {
  const link = addElement(addElement(cards, "li", "", "card"), "a", "", "sample");
  link.href = findLink(row);
  const picture = addElement(link, "span", "", "picture");
  const thumbnail = findThumbnail(row);
  if (thumbnail) {
    const image = addElement(picture, "img");
    Object.assign(image, { alt: "", loading: "lazy", width: 160, height: 160, src: thumbnail });
  }
  const text = addElement(link, "span", "", "text");
  addElement(text, "span", findName(row), "title map-cards-name");
  if (findName(row) !== data.ids[row]) addElement(text, "span", data.ids[row], "soft small break");
}

// A search by examples takes a few: those that stand evenly in the list of the chosen ones.
function linkSearch() {
  const link = find("map-search");
  if (!link || !chosen.rows.length) return;
  const rows = chosen.rows;
  let number = Math.min(rows.length, Number(box.dataset.maxExamples));
  let address;
  do {
    const some = Array.from({ length: number }, (_, i) => rows[Math.floor((i * rows.length) / number)]);
    address = `${search}?${new URLSearchParams(some.map((row) => ["plus", data.ids[row]]))}`;
  } while (address.length > MOST_ADDRESS && --number);
  link.href = address;
  link.textContent = number === rows.length ? "Search for what is like these" : `Search for what is like ${number} of these`;
}

function chooseInside(outline) {
  const corners = outline.map(([x, y]) => toMap(x, y));
  const xs = corners.map((one) => one[0]), ys = corners.map((one) => one[1]);
  const rows = [];
  visit(Math.min(...xs), Math.min(...ys), Math.max(...xs), Math.max(...ys), (row) => {
    if (isInside(placeX(row), placeY(row), corners)) rows.push(row);
  });
  choose(rows.sort((one, other) => one - other));
}

function isInside(x, y, corners) {
  let inside = false;
  for (let i = 0, j = corners.length - 1; i < corners.length; j = i++) {
    const [x1, y1] = corners[i], [x2, y2] = corners[j];
    if (y1 > y !== y2 > y && x < ((x2 - x1) * (y - y1)) / (y2 - y1) + x1) inside = !inside;
  }
  return inside;
}

function findNearest(x, y) {
  const [at, up] = toMap(x, y), reach = REACH_PX / perUnit();
  let best = -1, least = reach ** 2;
  visit(at - reach, up - reach, at + reach, up + reach, (row) => {
    const far = (placeX(row) - at) ** 2 + (placeY(row) - up) ** 2;
    if (far <= least) [best, least] = [row, far];
  });
  return best;
}

function save(name, kind, lines) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([lines.join("\n") + "\n"], { type: kind }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
}

function saveCsv() {
  // Spreadsheets would compute a text that begins so.
  const quote = (text) => `"${text.replace(/^[=+\-@\t\r]/, "'$&").replaceAll('"', '""')}"`;
  const rows = chosen.rows.map((row) => [data.ids[row], findName(row), columns[0].values[columns[0].codes[row]]]);
  const [head, ...lines] = [["image_id", "title", "cluster"], ...rows].map((row) => row.map(quote).join(","));
  save("chosen.csv", "text/csv", [`\ufeff${head}`, ...lines]); // without the mark Excel takes UTF-8 for another encoding
}

// Tags are kept as feedback, of each picture beside those that the same person gave it before.
const MOST_TAGGED = 1000; // in one request
async function tagChosen(event) {
  event.preventDefault();
  const form = event.target, told = find("map-told"), { rows } = chosen;
  const who = form.elements.who.value.trim();
  const words = form.elements.tags.value.split(new RegExp(`[${document.body.dataset.commas}]`)); // as in feedback.js
  const tags = words.map((tag) => tag.trim()).filter(Boolean);
  const headers = { "Content-Type": "application/json", Accept: "application/json" };
  const { fingerprint } = form.dataset;
  const spell = (number) => number.toLocaleString("en");
  let numGone = 0;
  for (let at = 0; at < rows.length; at += MOST_TAGGED) {
    const ids = rows.slice(at, at + MOST_TAGGED).map((row) => data.ids[row]);
    const body = JSON.stringify({ tags, image_ids: ids, fingerprint, who });
    const answer = await fetch(`${search}feedback/tags`, { method: "POST", headers, body }).catch(() => null);
    const said = await answer?.json().catch(() => null);
    const areAllGone = answer?.status === 404;
    if (!said || !(answer.ok || areAllGone)) {
      const reason = said?.detail ?? "the server does not answer. Try again in a moment.";
      return (told.textContent = `${spell(at - numGone)} of ${spell(rows.length)} are tagged: ${reason}`);
    }
    numGone += areAllGone ? ids.length : said.gone.length;
    told.textContent = `${spell(at + ids.length - numGone)} tagged “${tags.join("”, “")}”.`;
    if (numGone) told.textContent += ` Not tagged, because the collection no longer has them: ${spell(numGone)}.`;
  }
  form.elements.tags.value = "";
}

// The same as on the pages of results.
function rememberName(field) {
  try {
    if (field) field.value = localStorage.getItem("who") ?? "";
    field?.addEventListener("input", () => localStorage.setItem("who", field.value.trim()));
  } catch {} // storage is switched off
}

// ---- Pointer and keys ----------------------------------------------------------------------------------------------

const pointers = new Map();
let outline = null; // of the lasso
let isLasso = false;
let hasMoved = false;

const onStage = (event) => {
  const { left, top } = stage.getBoundingClientRect();
  return [event.clientX - left, event.clientY - top];
};

function showOutline() {
  find("map-outline").setAttribute("points", (outline ?? []).map((one) => one.join(",")).join(" "));
}

function setLasso(on) {
  isLasso = on;
  find("map-lasso").setAttribute("aria-pressed", String(on));
  stage.classList.toggle("choosing", on);
}

function listen() {
  canvas.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    canvas.setPointerCapture(event.pointerId);
    pointers.set(event.pointerId, onStage(event));
    hasMoved = pointers.size > 1;
    outline = pointers.size === 1 && (isLasso || event.shiftKey) ? [onStage(event)] : null;
    hideTip();
  });
  canvas.addEventListener("pointermove", (event) => {
    const now = onStage(event), before = pointers.get(event.pointerId);
    if (!before) return showTip(...now);
    if (!hasMoved && Math.hypot(now[0] - before[0], now[1] - before[1]) < CLICK_PX) return;
    hasMoved = true;
    if (outline) {
      const last = outline.at(-1);
      if (Math.hypot(now[0] - last[0], now[1] - last[1]) >= CLICK_PX) outline.push(now);
      return showOutline();
    }
    const others = [...pointers].filter(([id]) => id !== event.pointerId).map(([, at]) => at);
    pointers.set(event.pointerId, now);
    if (others.length === 1) {
      const apart = (one) => Math.hypot(one[0] - others[0][0], one[1] - others[0][1]) || 1;
      zoomBy(apart(now) / apart(before), (now[0] + others[0][0]) / 2, (now[1] + others[0][1]) / 2);
    } else if (!others.length) moveBy((before[0] - now[0]) / perUnit(), (now[1] - before[1]) / perUnit());
  });
  const end = (event, isDone) => {
    if (!pointers.delete(event.pointerId)) return;
    if (isDone && outline && hasMoved) chooseInside(outline);
    else if (isDone && !hasMoved) {
      const row = findNearest(...onStage(event));
      if (row >= 0) choose([row]);
    }
    outline = null;
    showOutline();
  };
  canvas.addEventListener("pointerup", (event) => end(event, true));
  canvas.addEventListener("pointercancel", (event) => end(event, false));
  canvas.addEventListener("pointerleave", hideTip);
  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    const lines = event.deltaMode === 1 ? 16 : 1;
    zoomBy(Math.exp(-Math.max(-300, Math.min(300, event.deltaY * lines)) / 400), ...onStage(event));
  }, { passive: false });
  canvas.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const step = 60 / perUnit();
    const actions = {
      ArrowLeft: () => moveBy(-step, 0), ArrowRight: () => moveBy(step, 0),
      ArrowUp: () => moveBy(0, step), ArrowDown: () => moveBy(0, -step),
      "+": () => zoomBy(1.4), "=": () => zoomBy(1.4), "-": () => zoomBy(1 / 1.4), 0: showWhole,
      Escape: () => choose([]),
    };
    if (!actions[event.key]) return;
    event.preventDefault();
    event.stopPropagation(); // the page's own keys mean something else
    actions[event.key]();
  });
  canvas.addEventListener("webglcontextlost", (event) => event.preventDefault());
  canvas.addEventListener("webglcontextrestored", () => {
    findPainter();
    ask();
  });
  find("map-lasso").addEventListener("click", () => setLasso(!isLasso));
  find("map-in").addEventListener("click", () => zoomBy(1.6));
  find("map-out").addEventListener("click", () => zoomBy(1 / 1.6));
  find("map-whole").addEventListener("click", showWhole);
  find("map-tag")?.addEventListener("submit", tagChosen);
  rememberName(find("map-tag")?.elements.who);
  find("map-csv").addEventListener("click", saveCsv);
  find("map-list").addEventListener("click", () => save("chosen.txt", "text/plain", chosen.rows.map((row) => data.ids[row])));
  find("map-clear").addEventListener("click", () => {
    choose([]);
    canvas.focus();
  });
  find("map-column").addEventListener("change", (event) => {
    column = columns[Number(event.target.value)];
    recolor();
  });
  addEventListener("hashchange", followHash);
  new ResizeObserver(ask).observe(stage);
  new MutationObserver(recolor).observe(document.documentElement, { attributeFilter: ["data-theme"] });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", recolor);
}

function recolor() {
  colorAll();
  forgetThumbnails();
  listGroups();
  ask();
}

function followHash() {
  const row = Number(/^#picture-(\d+)$/.exec(location.hash)?.[1] ?? -1);
  if (row < 0 || row >= size) return;
  view.zoom = Math.max(view.zoom, Math.sqrt(size / 30), 1);
  Object.assign(view, { x: placeX(row), y: placeY(row) });
  choose([row]);
  stage.scrollIntoView({ block: "nearest" });
}

// ---- What is under the pointer -------------------------------------------------------------------------------------

const tip = find("map-tip");
const hideTip = () => (tip.hidden = true);

function showTip(x, y) {
  const row = findNearest(x, y);
  tip.hidden = row < 0;
  if (row < 0) return;
  const value = column.values[column.codes[row]];
  tip.textContent = [...new Set([findName(row), data.ids[row], value])].join(" · ");
  const left = Math.max(4, Math.min(x + 14, stage.clientWidth - tip.offsetWidth - 4));
  const top = y + 18 + tip.offsetHeight > stage.clientHeight ? y - tip.offsetHeight - 10 : y + 18;
  tip.style.transform = `translate(${left}px, ${top}px)`;
}

// ---- The same groups as a list -------------------------------------------------------------------------------------

function listGroups() {
  const list = find("map-groups");
  const open = new Set([...list.querySelectorAll("details[open]")].map((one) => one.dataset.group));
  const rows = column.values.map(() => []);
  for (let row = 0; row < size; row++) rows[column.codes[row]].push(row);
  list.replaceChildren();
  for (const [code, value] of column.values.entries()) {
    if (!rows[code].length) continue;
    const group = addElement(list, "details");
    group.dataset.group = `${column.name} ${code}`;
    const summary = addElement(group, "summary");
    addElement(summary, "span", "", "map-swatch").style.background = `rgb(${colorOf(code)})`;
    addElement(summary, "span", value, "map-name");
    addElement(summary, "span", rows[code].length.toLocaleString("en"), "soft small");
    group.addEventListener("toggle", () => fillGroup(group, rows[code], value), { once: true });
    if (open.has(group.dataset.group)) group.open = true;
  }
}

function fillGroup(group, rows, value) {
  const items = addElement(group, "ul", "", "map-items");
  const button = addElement(addElement(items, "li"), "button", `Choose these ${rows.length.toLocaleString("en")}`, "chip");
  button.type = "button";
  button.setAttribute("aria-label", `Choose these ${rows.length}: ${value}`);
  button.addEventListener("click", () => {
    choose(rows);
    find("map-chosen-title").focus(); // what can be done with them stands there, above the list
  });
  for (const row of rows.slice(0, MOST_NAMES)) {
    const link = addElement(addElement(items, "li"), "a", findName(row));
    link.href = findLink(row);
    if (findName(row) !== data.ids[row]) addElement(link, "span", ` ${data.ids[row]}`, "soft small break");
  }
  if (rows.length > MOST_NAMES) addElement(items, "li", `and ${(rows.length - MOST_NAMES).toLocaleString("en")} more`, "soft small");
}

// ---- Begin ---------------------------------------------------------------------------------------------------------

try {
  prepare(await load());
  sortIntoCells();
  findPainter();
  listen();
  listGroups();
  find("map-wait").hidden = true;
  draw();
  followHash();
  box.dataset.ready = "true";
} catch (error) {
  find("map-wait").textContent = `The map cannot be shown: ${error.message} The list of groups below has the same pictures.`;
}
