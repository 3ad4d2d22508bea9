// What people say of results. A button shows what was said; pressing it again takes it back.
const root = document.body.dataset.root;
const notice = document.getElementById("notice");
const status = document.getElementById("status");
const NAMES = { right: "right", wrong: "wrong", same_group: "same group" };
const groups = () => [...document.querySelectorAll("#page .feedback")];
const nameField = () => document.querySelector("#feedback [name=who]");
const findWho = () => nameField()?.value.trim() ?? "";
const isTagged = (one) => one.kind === "tagged";
// Tags stand between commas of several scripts, which the page names.
const COMMAS = new RegExp(`[${document.body.dataset.commas}]`);
export const splitTags = (text) => text.split(COMMAS).map((tag) => tag.trim()).filter(Boolean);

addEventListener("click", async (event) => {
  const button = event.target.closest?.(".feedback [data-kind]");
  if (!button) return;
  const isSaid = button.getAttribute("aria-pressed") === "true";
  await tell(button.closest(".feedback"), { kind: isSaid ? "taken_back" : button.dataset.kind });
});

addEventListener("submit", async (event) => {
  if (!event.target.matches("[data-tags]")) return;
  event.preventDefault();
  const form = new FormData(event.target);
  const tags = splitTags(form.get("tags")), label = form.get("label").trim();
  const details = event.target.closest("details");
  const isEmpty = !tags.length && !label; // what is taken back without a query are the tags
  const said = isEmpty ? { kind: "taken_back", query_id: "", query: "" } : { kind: "tagged", tags, label };
  if (await tell(event.target.closest(".feedback"), said)) {
    details.open = false;
    details.querySelector("summary").focus();
  }
});

async function tell(group, said) {
  const { queryId, query, fingerprint } = document.getElementById("feedback").dataset;
  const who = findWho();
  const body = { image_id: group.dataset.imageId, query_id: queryId, query, fingerprint, who, ...said };
  try {
    const headers = { "Content-Type": "application/json", Accept: "application/json" };
    const answer = await fetch(`${root}/feedback`, { method: "POST", headers, body: JSON.stringify(body) });
    const told = await answer.json();
    if (!answer.ok) return say(told.detail);
    count(told.num_since_training);
    note(group, who, said);
    status.textContent = said.kind === "taken_back" ? "Taken back." : "Kept.";
    notice.hidden = true;
    return true;
  } catch {
    return say("The feedback was not kept: the server does not answer. Try again in a moment.");
  }
}

function count(number) {
  document.getElementById("num-corrections").textContent = `${number} correction${number === 1 ? "" : "s"} since the last training`;
}

function say(text) {
  notice.textContent = text;
  notice.hidden = false;
  notice.scrollIntoView({ block: "nearest" });
  return false;
}

// ---- What was said, by whom ----------------------------------------------------------------------------------------

const read = (group) => JSON.parse(group.dataset.said);

// Of each person the last word about the pair counts, and the last about the picture's tags.
function note(group, who, said) {
  const isOfTags = isTagged(said) || said.query_id === "";
  const rest = read(group).filter((one) => one.who !== who || isTagged(one) !== isOfTags);
  group.dataset.said = JSON.stringify(said.kind === "taken_back" ? rest : [...rest, { ...said, who }]);
  show(group);
}

function show(group) {
  const said = read(group), who = findWho();
  const own = said.filter((one) => one.who === who);
  for (const button of group.querySelectorAll("[data-kind]")) {
    button.setAttribute("aria-pressed", String(own.some((one) => one.kind === button.dataset.kind)));
  }
  const tagged = own.find(isTagged);
  const form = group.querySelector("[data-tags]");
  form.elements.tags.value = tagged?.tags.join(", ") ?? "";
  form.elements.label.value = tagged?.label ?? "";
  const words = said.filter((one) => one.who !== who || isTagged(one)).map((one) => {
    const name = one.who === who ? "" : ` (${one.who || "no name"})`;
    return (isTagged(one) ? [...one.tags, one.label && `label ${one.label}`].filter(Boolean).join(", ") : NAMES[one.kind]) + name;
  });
  const line = group.querySelector(".said");
  line.textContent = words.join("; ");
  line.hidden = !words.length;
}

function showAll() {
  const field = nameField();
  try {
    if (field && !field.value) field.value = localStorage.getItem("who") ?? "";
  } catch {} // storage is switched off: the name is typed again
  groups().forEach(show);
}

addEventListener("input", (event) => {
  if (event.target !== nameField()) return;
  try {
    localStorage.setItem("who", findWho());
  } catch {}
  groups().forEach(show);
});

// Several pictures were tagged at once.
addEventListener("tagged", ({ detail: { who, tags, ids, number } }) => {
  if (document.getElementById("num-corrections")) count(number);
  for (const group of groups().filter((one) => ids.includes(one.dataset.imageId))) {
    const old = read(group).find((one) => one.who === who && isTagged(one));
    note(group, who, { kind: "tagged", tags: [...new Set([...(old?.tags ?? []), ...tags])], label: old?.label ?? "" });
  }
});

// A page that scripts put in place of another.
new MutationObserver(showAll).observe(document.body, { childList: true });
showAll();
