// The list of deployments, making one and deleting one.

import { at, call } from "./api.js";
import { announce, busy, byId, confirm, el, fill, showProblem } from "./dom.js";

/** Return the address of a deployment on this page. */
export const link = (name) => `#/${name}`;

const MANY = 8; // from here on, a field to filter the list
const MOST = 200; // listed at once

export function createDeployments({ onMade, onDeleted }) {
  const filter = byId("filter");
  let entries = [];
  let selected = null;
  let shown = "";

  filter.addEventListener("input", draw);

  byId("make").addEventListener("submit", (event) => {
    event.preventDefault();
    busy(event.submitter, make);
  });

  function update(list, bases, name) {
    entries = list;
    selected = name;
    const select = byId("make-base");
    if (select.options.length !== bases.length) {
      fill(
        select,
        bases.map((base) => el("option", { value: base.name }, base.name)),
      );
    }
    byId("filter-row").hidden = entries.length < MANY;
    draw();
  }

  function draw() {
    const wanted = filter.value.trim().toLowerCase();
    const found = entries.filter((entry) => entry.deployment.includes(wanted));
    const listed = found.filter((entry, at) => at < MOST || entry.deployment === selected);
    const next = JSON.stringify([listed, found.length, selected]);
    if (next === shown) {
      return;
    }
    shown = next;
    const focused = document.activeElement?.getAttribute("href");
    fill(
      byId("deployments"),
      listed.map(({ deployment, base_set: base, version }) =>
        el(
          "li",
          {},
          el(
            "a",
            { href: link(deployment), "aria-current": deployment === selected ? "page" : null },
            el("span", { class: "deployment-name" }, deployment),
            el("span", { class: "hint" }, `${base}, version ${version}`),
          ),
        ),
      ),
      found.length === 0 && el("li", { class: "empty" }, "No deployment of that name"),
      found.length > listed.length &&
        el("li", { class: "empty" }, `${found.length - listed.length} more: type a part of the name above`),
    );
    if (focused) {
      byId("deployments")
        .querySelector(`a[href="${CSS.escape(focused)}"]`)
        ?.focus();
    }
  }

  async function make() {
    const name = byId("make-name").value.trim();
    showProblem(byId("make-problem"), null);
    try {
      await call("PUT", at(name), { json: { base_set: byId("make-base").value } });
      byId("make-name").value = "";
      announce(`Made ${name}`);
      await onMade(name);
    } catch (error) {
      showProblem(byId("make-problem"), error);
    }
  }

  async function remove(name) {
    const agreed = await confirm({
      title: `Delete ${name}?`,
      body: el(
        "p",
        {},
        "Its versions, jobs and stored images go with it. Clients that ask for it get an error. You cannot undo this.",
      ),
      action: "Delete it",
      danger: true,
    });
    if (agreed) {
      await call("DELETE", at(name));
      announce(`Deleted ${name}`);
      await onDeleted();
    }
  }

  return { update, remove };
}
