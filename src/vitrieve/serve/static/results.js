// Results: a light box with arrow keys, and choosing several to export or tag.
import { splitTags } from "./feedback.js";

const root = document.body.dataset.root;
const status = document.getElementById("status");
const notice = document.getElementById("notice");
const cards = () => [...document.querySelectorAll("#page .found .card")];

// ---- The light box -------------------------------------------------------------------------------------------------

const box = document.getElementById("light-box");
const picture = document.getElementById("light-box-picture");
const compare = document.getElementById("light-box-compare");
const closer = document.getElementById("light-box-close");
let shown = null; // the card whose picture is large

function enlarge(card) {
  shown = card;
  const { title, large, score } = card.dataset;
  picture.src = large;
  picture.alt = title;
  document.getElementById("light-box-title").textContent = `${title} (${score})`;
  compare.href = card.querySelector("a.title").href;
  const place = cards().indexOf(card);
  for (const [id, isEnd] of [["previous", place === 0], ["next", place === cards().length - 1]]) {
    const button = document.getElementById(`light-box-${id}`);
    if (isEnd && document.activeElement === button) closer.focus(); // what is switched off hears no keys
    button.disabled = isEnd;
  }
  if (!box.open) box.showModal();
}

function step(by) {
  const next = cards()[cards().indexOf(shown) + by];
  if (next) enlarge(next);
}

document.addEventListener("click", (event) => {
  const opener = event.target.closest("[data-enlarge]");
  const isPlain = event.button === 0 && !event.ctrlKey && !event.metaKey && !event.shiftKey && !event.altKey;
  if (!opener || !isPlain) return;
  event.preventDefault();
  event.stopImmediatePropagation(); // the page would follow the link
  enlarge(opener.closest(".card"));
}, true);
document.getElementById("light-box-previous").addEventListener("click", () => step(-1));
document.getElementById("light-box-next").addEventListener("click", () => step(1));
closer.addEventListener("click", () => box.close());
compare.addEventListener("click", () => box.close());
box.addEventListener("keydown", (event) => {
  const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (by) step(by);
});
box.addEventListener("click", (event) => {
  if (event.target === box) box.close(); // beside the picture
});
box.addEventListener("close", () => {
  picture.removeAttribute("src");
  shown?.querySelector("button[data-enlarge]")?.focus();
});

// ---- Choosing several ----------------------------------------------------------------------------------------------

const bar = document.getElementById("chosen");
const tagging = document.getElementById("tag-chosen");
let lastChosen = null; // the box that was changed last
const chosen = new Map(); // image_id -> what is exported; it stays while one goes from page to page

document.addEventListener("change", (event) => {
  if (!event.target.matches("[data-choose]")) return;
  const { imageId, title, score } = event.target.closest(".card").dataset;
  if (event.target.checked) chosen.set(imageId, { image_id: imageId, title, score: Number(score) });
  else chosen.delete(imageId);
  status.textContent = chosen.size ? `${chosen.size} chosen; Enter leads to what can be done with them` : "None chosen";
  lastChosen = event.target;
  showChosen();
});

// The bar stands behind all results, too far for the Tab key.
document.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || bar.hidden || !event.target.matches("[data-choose]")) return;
  event.preventDefault(); // or the button that has the focus then would be pressed
  bar.querySelector("button").focus();
});

function showChosen() {
  bar.hidden = !chosen.size;
  tagging.hidden = !document.getElementById("feedback"); // where feedback is off, nothing keeps a tag
  document.getElementById("num-chosen").textContent = chosen.size;
}

document.getElementById("choose-none").addEventListener("click", () => {
  const last = lastChosen?.isConnected ? lastChosen : document.querySelector("[data-choose]:checked");
  (last ?? document.getElementById("page")).focus(); // the button goes
  chosen.clear();
  for (const check of document.querySelectorAll("[data-choose]")) check.checked = false;
  status.textContent = "None chosen";
  showChosen();
});

function quote(value) {
  // Spreadsheets would compute a text that begins so.
  const text = typeof value === "string" ? value.replace(/^[=+\-@\t\r]/, "'$&") : String(value);
  return `"${text.replaceAll('"', '""')}"`;
}

bar.addEventListener("click", (event) => {
  const kind = event.target.dataset.export;
  if (!kind) return;
  const rows = [...chosen.values()];
  const lines = [["image_id", "title", "score"], ...rows.map(Object.values)].map((row) => row.map(quote).join(","));
  const mark = "\ufeff"; // without it Excel takes UTF-8 for another encoding
  const text = kind === "json" ? JSON.stringify(rows, null, 2) : `${mark}${lines.join("\r\n")}\r\n`;
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: kind === "json" ? "application/json" : "text/csv" }));
  link.download = `chosen.${kind}`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
});

tagging.addEventListener("submit", async (event) => {
  event.preventDefault();
  const tags = splitTags(new FormData(tagging).get("tags"));
  const { fingerprint } = document.getElementById("feedback").dataset;
  const who = document.querySelector("#feedback [name=who]")?.value.trim() ?? "";
  const headers = { "Content-Type": "application/json", Accept: "application/json" };
  const all = [...chosen.keys()];
  let numGone = 0;
  for (let at = 0; at < all.length; at += 1000) {
    const ids = all.slice(at, at + 1000);
    const body = JSON.stringify({ tags, image_ids: ids, fingerprint, who });
    const answer = await fetch(`${root}/feedback/tags`, { method: "POST", headers, body }).catch(() => null);
    const told = await answer?.json().catch(() => null);
    const areAllGone = answer?.status === 404;
    if (!told || !(answer.ok || areAllGone)) {
      return say(told?.detail ?? "The tags were not all kept: the server does not answer. Try again in a moment.");
    }
    const gone = areAllGone ? ids : told.gone;
    numGone += gone.length;
    if (areAllGone) continue;
    const there = ids.filter((id) => !gone.includes(id));
    dispatchEvent(new CustomEvent("tagged", { detail: { who, tags, ids: there, number: told.num_since_training } }));
  }
  tagging.reset();
  notice.hidden = true;
  status.textContent = `${all.length - numGone} tagged.`;
  if (numGone) say(`Not tagged, because the collection no longer has them: ${numGone} of ${all.length}.`);
});

function say(text) {
  notice.textContent = text;
  notice.hidden = false;
  notice.scrollIntoView({ block: "nearest" });
}

// A page that scripts put in place of another begins with what was chosen before.
new MutationObserver(() => {
  for (const card of cards()) card.querySelector("[data-choose]").checked = chosen.has(card.dataset.imageId);
  showChosen();
}).observe(document.body, { childList: true });
