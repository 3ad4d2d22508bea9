// What people say of results. A button shows what was said; pressing it again takes it back.
const root = document.body.dataset.root;
const notice = document.getElementById("notice");
const status = document.getElementById("status");

addEventListener("click", async (event) => {
  const button = event.target.closest?.(".feedback [data-kind]");
  if (!button) return;
  const isSaid = button.getAttribute("aria-pressed") === "true";
  if (!(await tell(button, { kind: isSaid ? "taken_back" : button.dataset.kind }))) return;
  for (const other of button.parentElement.querySelectorAll("[data-kind]")) other.setAttribute("aria-pressed", "false");
  button.setAttribute("aria-pressed", String(!isSaid));
});

addEventListener("submit", async (event) => {
  if (!event.target.matches("[data-tags]")) return;
  event.preventDefault();
  const form = new FormData(event.target);
  const tags = form.get("tags").split(",").map((tag) => tag.trim()).filter(Boolean);
  if (await tell(event.target, { kind: "tagged", tags, label: form.get("label").trim() })) {
    event.target.closest("details").open = false;
    event.target.closest("details").querySelector("summary").focus();
  }
});

async function tell(element, said) {
  const { queryId, query, fingerprint } = document.getElementById("feedback").dataset;
  const who = document.querySelector("#feedback [name=who]").value.trim();
  const body = { ...said, image_id: element.closest(".feedback").dataset.imageId, query_id: queryId, query, fingerprint, who };
  try {
    const headers = { "Content-Type": "application/json", Accept: "application/json" };
    const answer = await fetch(`${root}/feedback`, { method: "POST", headers, body: JSON.stringify(body) });
    const told = await answer.json();
    if (!answer.ok) return say(told.detail);
    const count = told.num_since_training;
    document.getElementById("num-corrections").textContent = `${count} correction${count === 1 ? "" : "s"} since the last training`;
    status.textContent = said.kind === "taken_back" ? "Taken back." : "Kept.";
    notice.hidden = true;
    return true;
  } catch {
    return say("The feedback was not kept: the server does not answer. Try again in a moment.");
  }
}

function say(text) {
  notice.textContent = text;
  notice.hidden = false;
  notice.scrollIntoView({ block: "nearest" });
  return false;
}
