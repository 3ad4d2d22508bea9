// What the page does better with scripts. Without them every link and form here works as it stands.
const page = () => document.getElementById("page");
const notice = document.getElementById("notice");
const status = document.getElementById("status");
const progress = document.getElementById("progress");
let running = null; // the AbortController of what is being loaded
let preview = null; // address of the picture that is being sent
const root = document.body.dataset.root; // a proxy's prefix, or nothing
const isList = "list" in document.body.dataset; // of collections: nothing can be searched here
const findPlace = () => location.pathname + location.search;
let shown = findPlace(); // what the page on the screen is

// ---- Going from page to page -------------------------------------------------------------------------------------

async function go(address, { isBack = false, scroll = 0 } = {}) {
  const answer = await load((signal) => fetch(address, { signal, headers: { Accept: "text/html" } }));
  if (!answer) return;
  const { response, text } = answer;
  const next = new DOMParser().parseFromString(text, "text/html");
  const isMap = [document, next].some((one) => one.getElementById("map")); // its script belongs to its own document
  if (isMap) return isBack ? location.reload() : location.assign(address);
  if (!next.getElementById("page")) return location.assign(address); // no page of ours: a file
  if (!isBack) {
    history.replaceState({ scroll: scrollY }, "");
    history.pushState({ scroll: 0 }, "", response.url);
  }
  shown = findPlace();
  document.title = next.title;
  page().replaceWith(next.getElementById("page"));
  status.textContent = summarize();
  notice.hidden = true;
  setUp();
  page().focus({ preventScroll: true });
  scrollTo(0, isBack ? scroll : 0);
}

// What a screen reader says once a page is there.
function summarize() {
  const title = page().querySelector("h1")?.textContent ?? "";
  const numResults = page().querySelectorAll(".found .card").length;
  return numResults ? `${title}: ${numResults} ${numResults === 1 ? "result" : "results"}` : title;
}

// One thing is loaded at a time. Null: it failed, which the notice says, or something newer took its place.
async function load(request) {
  closeCamera();
  running?.abort();
  const mine = (running = new AbortController());
  progress.hidden = false;
  page().setAttribute("aria-busy", "true");
  status.textContent = "Searching…";
  try {
    const response = await request(mine.signal);
    return { response, text: await response.text() };
  } catch {
    if (running === mine) say("The server does not answer. It may have been stopped, or the network is down. Try again in a moment.");
    return null;
  } finally {
    if (running === mine) {
      running = null;
      progress.hidden = true;
      page().removeAttribute("aria-busy");
    }
  }
}

function say(text) {
  status.textContent = "";
  notice.textContent = text;
  notice.hidden = false;
  notice.scrollIntoView({ block: "nearest" });
}

addEventListener("popstate", (event) => {
  if (findPlace() === shown) return; // a jump inside the page, as the skip link's
  go(location.href, { isBack: true, scroll: event.state?.scroll ?? 0 });
});

document.addEventListener("click", (event) => {
  const link = event.target.closest("a[href]");
  const isPlain = event.button === 0 && !event.ctrlKey && !event.metaKey && !event.shiftKey && !event.altKey;
  if (document.getElementById("map")) return; // every link of the map leads to another document
  if (!link || !isPlain || event.defaultPrevented || link.origin !== location.origin) return;
  if (![`${root}/`, `${root}/compare`].includes(link.pathname) || link.hash) return;
  event.preventDefault();
  go(link.href);
});

document.addEventListener("submit", (event) => {
  const form = event.target;
  if (form.matches("[data-get], [data-box-form]")) {
    event.preventDefault();
    const fields = [...new FormData(form)].filter(([, value]) => value !== "");
    // The server counts characters, and length counts an emoji twice.
    const long = [...form.querySelectorAll("[data-most]")].find((field) => [...field.value].length > field.dataset.most);
    if (long) {
      const [has, most] = [[...long.value].length, Number(long.dataset.most)].map((number) => number.toLocaleString("en"));
      return say(`The text to search for has ${has} characters; at most ${most} are read: say it in fewer words.`);
    }
    if (!fields.some(([name]) => name === "value")) drop(fields, ["column", "operator"]);
    go(`${root}/?${new URLSearchParams(fields)}`);
  }
});

function drop(fields, names) {
  for (let i = fields.length; i--; ) if (names.includes(fields[i][0])) fields.splice(i, 1);
}

// A search is its address, so that whoever keeps that keeps the search.
document.addEventListener("click", async (event) => {
  const button = event.target.closest("[data-copy]");
  if (!button) return;
  try {
    await navigator.clipboard.writeText(location.origin + findPlace());
    button.textContent = status.textContent = button.dataset.copy;
  } catch {
    say("The browser does not let the page copy. The address stands where the browser shows it, and a bookmark keeps it.");
  }
});

// ---- Giving a picture ----------------------------------------------------------------------------------------------

async function send(file) {
  const most = Number(document.body.dataset.maxBodyBytes);
  if (file.size > most - 4096) {
    return say(`This picture has ${(file.size / 2 ** 20).toFixed(1)} MiB; at most ${Math.floor(most / 2 ** 20)} MiB can be searched for. Send a smaller copy.`);
  }
  notice.hidden = true;
  const before = [...page().childNodes];
  const form = new FormData();
  for (const field of page().querySelectorAll("[data-picker] [type=hidden]")) form.append(field.name, field.value);
  form.append("image", file, file.name || "picture");
  showLoading(file);
  const answer = await load((signal) =>
    fetch(`${root}/uploads`, { method: "POST", body: form, signal, headers: { Accept: "application/json" } }),
  );
  const said = answer && parse(answer.text);
  if (answer?.response.ok && said?.address) return go(said.address);
  page().replaceChildren(...before); // as it was, so that nothing is lost
  setUp();
  if (answer) say(said?.detail ?? `The server refused the picture (${answer.response.status}).`);
}

function parse(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}

function showLoading(file) {
  const loading = document.getElementById("loading").content.cloneNode(true);
  if (preview) URL.revokeObjectURL(preview);
  preview = URL.createObjectURL(file);
  const picture = loading.getElementById("loading-picture");
  picture.onload = () => (picture.hidden = false);
  picture.src = preview;
  page().replaceChildren(loading);
  scrollTo(0, 0);
}

function sendFirst(files) {
  const picture = [...files].find((file) => file.type.startsWith("image/")) ?? files[0];
  if (picture) send(picture);
}

document.addEventListener("change", (event) => {
  if (!event.target.matches("[data-file]")) return;
  const files = [...event.target.files];
  event.target.value = ""; // so that the same file can be chosen again
  sendFirst(files);
});

document.addEventListener("paste", (event) => {
  const { files, types } = event.clipboardData ?? {};
  // Spreadsheets and word processors put a picture of a text beside the text, which is meant where one types.
  const isText = event.target.closest?.("input, textarea") && types?.includes("text/plain");
  if (isList || isText || !files?.length) return;
  event.preventDefault();
  sendFirst(files);
});

const veil = document.getElementById("drop-veil");
const hasFiles = (event) => !isList && event.dataTransfer?.types.includes("Files");
addEventListener("dragover", (event) => {
  if (!hasFiles(event)) return;
  event.preventDefault();
  veil.hidden = false;
});
addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) veil.hidden = true;
});
addEventListener("drop", (event) => {
  veil.hidden = true;
  if (!hasFiles(event)) return;
  event.preventDefault();
  sendFirst(event.dataTransfer.files);
});

// ---- The camera ----------------------------------------------------------------------------------------------------

const camera = document.getElementById("camera");
const view = document.getElementById("camera-view");
let opening = 0; // which one it is: what comes for an earlier one comes too late

async function openCamera() {
  closeCamera();
  const mine = opening;
  const giveUp = (text) => {
    if (mine !== opening) return; // it was closed, or opened again, meanwhile
    closeCamera();
    say(`${text} Choose a picture instead.`);
  };
  camera.showModal(); // before the browser asks for leave, so that nothing else can be pressed until it is closed
  try {
    const stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment", width: { ideal: 1920 } } });
    if (mine !== opening) return stop(stream);
    view.srcObject = stream;
    const [track] = stream.getVideoTracks(); // stop() below fires no "ended"
    track.addEventListener("ended", () => giveUp("The camera was switched off or unplugged, or is no longer allowed."));
    await view.play();
  } catch {
    giveUp("The camera cannot be used: there is none, or the browser was told not to allow it.");
  }
}

function closeCamera() {
  opening += 1;
  stop(view.srcObject);
  view.srcObject = null;
  camera.close();
}

function stop(stream) {
  for (const track of stream?.getTracks() ?? []) track.stop(); // or its lamp stays on
}

async function shoot() {
  if (view.readyState < view.HAVE_CURRENT_DATA) return; // there is no picture yet
  const canvas = document.createElement("canvas");
  canvas.width = view.videoWidth;
  canvas.height = view.videoHeight;
  canvas.getContext("2d").drawImage(view, 0, 0);
  closeCamera(); // before anything is waited for: a second press would send a second picture
  const blob = await new Promise((done) => canvas.toBlob(done, "image/jpeg", 0.92));
  if (blob) send(new File([blob], "photograph.jpg", { type: "image/jpeg" }));
}

document.addEventListener("click", (event) => {
  if (event.target.closest("[data-camera]")) openCamera();
});
document.getElementById("camera-shoot").addEventListener("click", shoot);
document.getElementById("camera-close").addEventListener("click", closeCamera);
camera.addEventListener("close", () => {
  if (!camera.open) closeCamera(); // by Escape; the event comes late, and the camera may have been opened again
});
addEventListener("pagehide", closeCamera);

// ---- Drawing a box -------------------------------------------------------------------------------------------------

const LEAST_PX = 8; // on the screen; less is a click, not a box

function setUpStage(stage) {
  const svg = stage.querySelector("svg");
  const rects = svg.querySelectorAll("rect"); // one over the other, to be seen on every picture
  const form = document.querySelector("[data-box-form]");
  const { width, height } = svg.viewBox.baseVal;
  let from = null;

  const place = (event) => {
    const point = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
    return [Math.min(Math.max(point.x, 0), width), Math.min(Math.max(point.y, 0), height)];
  };
  const span = (event) => {
    const to = place(event);
    return [Math.min(from[0], to[0]), Math.min(from[1], to[1]), Math.max(from[0], to[0]), Math.max(from[1], to[1])].map(Math.round);
  };
  stage.addEventListener("dragstart", (event) => event.preventDefault());
  stage.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    from = place(event);
    stage.setPointerCapture(event.pointerId);
  });
  stage.addEventListener("pointermove", (event) => {
    if (!from) return;
    const [x1, y1, x2, y2] = span(event);
    const sides = Object.entries({ x: x1, y: y1, width: x2 - x1, height: y2 - y1 });
    for (const rect of rects) for (const [name, value] of sides) rect.setAttribute(name, value);
  });
  stage.addEventListener("pointercancel", () => (from = null));
  stage.addEventListener("pointerup", (event) => {
    if (!from) return;
    const sides = span(event);
    from = null;
    const scale = svg.getScreenCTM().a;
    if ((sides[2] - sides[0]) * scale < LEAST_PX || (sides[3] - sides[1]) * scale < LEAST_PX) return;
    for (const [i, name] of ["x_1", "y_1", "x_2", "y_2"].entries()) form.elements[name].value = sides[i];
    form.requestSubmit();
  });
}

// ---- Colors -------------------------------------------------------------------------------------------------------

const theme = document.getElementById("theme");
const prefersDark = matchMedia("(prefers-color-scheme: dark)");
const isDark = () => (document.documentElement.dataset.theme ?? (prefersDark.matches ? "dark" : "light")) === "dark";
const showTheme = () => theme.setAttribute("aria-pressed", String(isDark()));
theme.addEventListener("click", () => {
  const chosen = isDark() ? "light" : "dark";
  document.documentElement.dataset.theme = chosen;
  try {
    localStorage.setItem("theme", chosen);
  } catch {
    // Storage is switched off: it holds until the page is left.
  }
  showTheme();
});
prefersDark.addEventListener("change", showTheme);

// ---- Keys ----------------------------------------------------------------------------------------------------------

document.addEventListener("keydown", (event) => {
  if (event.target.closest("input, select, textarea, dialog, summary") || event.ctrlKey || event.metaKey || event.altKey) return;
  const direction = { ArrowLeft: "prev", ArrowRight: "next" }[event.key];
  const link = direction && page().querySelector(`a[rel="${direction}"]`);
  if (link) link.click();
});

let isOverlayShown = false; // stays while one goes from result to result
document.addEventListener("change", (event) => {
  if (event.target.id === "show-overlay") isOverlayShown = event.target.checked;
});

function setUp() {
  for (const stage of page().querySelectorAll("[data-stage]")) setUpStage(stage);
  const overlay = document.getElementById("show-overlay");
  if (overlay) overlay.checked = isOverlayShown;
  if (matchMedia("(max-width: 860px)").matches) for (const part of page().querySelectorAll("details.again, details.refine")) part.open = false;
  if (navigator.mediaDevices?.getUserMedia) for (const button of page().querySelectorAll("[data-camera]")) button.hidden = false;
  if (navigator.clipboard) for (const button of page().querySelectorAll("[data-copy]")) button.hidden = false; // by TLS, or on this machine
}

history.scrollRestoration = "manual"; // the page of before is loaded first
history.replaceState({ scroll: scrollY }, "");
showTheme();
setUp();
