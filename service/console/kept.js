// The labelled images that a deployment keeps: how many of each class, and their deletion.

import { at, call } from "./api.js";
import { announce, busy, byId, confirm, el, fill, showProblem } from "./dom.js";
import { plural, when } from "./format.js";
import { guard, ownRole } from "./session.js";
import { scrollable } from "./tables.js";

export function createKept({ onChanged }) {
  const root = byId("kept");
  const problem = el("div", {});
  let shown = "";

  function update({ samples, view }) {
    const next = JSON.stringify([samples, view.deployment, ownRole()]);
    if (next !== shown) {
      shown = next;
      draw(samples);
    }
  }

  function draw(samples) {
    showProblem(problem, null);
    if (samples.images === 0) {
      fill(root, el("p", { class: "empty" }, "None. Every adaptation on labelled images keeps them here."));
      return;
    }
    const rows = Object.entries(samples.per_class).map(([label, count]) =>
      el(
        "tr",
        {},
        el("th", { scope: "row" }, label),
        el("td", {}, String(count)),
        el(
          "td",
          { class: "action" },
          deleting(`Delete ${label}`, `the ${plural(count, "image")} of ${label}`, { class: label }),
        ),
      ),
    );
    const unused = samples.unused > 0 ? ` No search has seen ${samples.unused} of them.` : "";
    fill(
      root,
      el(
        "p",
        { class: "lead" },
        `${plural(samples.images, "image")}, ${megabytes(samples.bytes)} of at most ${megabytes(samples.max_bytes)}, `,
        `last sent ${when(samples.oldest)} to ${when(samples.newest)}.${unused}`,
      ),
      scrollable("Kept labelled images", ["Class", "Images", ""], rows),
      el("div", { class: "row" }, deleting("Delete all", `all ${samples.images} images`, {})),
      problem,
    );

    function deleting(text, what, query) {
      const button = el("button", { type: "button", class: "small danger" }, text);
      button.addEventListener("click", () => busy(button, () => remove(samples.deployment, what, query)));
      return guard(button);
    }
  }

  async function remove(name, what, query) {
    const agreed = await confirm({
      title: `Delete ${what}?`,
      body: el(
        "p",
        {},
        "Later adaptations cannot use them. Versions that were made from them stay. There is no way back.",
      ),
      action: "Delete them",
      danger: true,
    });
    if (!agreed) {
      return;
    }
    try {
      const { deleted } = await call("DELETE", at(name, `/samples?${new URLSearchParams(query)}`));
      announce(`Deleted ${plural(deleted, "image")}`);
      await onChanged();
    } catch (error) {
      showProblem(problem, error);
    }
  }

  return { update };
}

const megabytes = (bytes) => `${(bytes / 1e6).toFixed(1)} MB`;
